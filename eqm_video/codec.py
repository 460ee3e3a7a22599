"""The codec: pixels to latents and back, frame by frame, through a diffusers autoencoder, or unchanged ("pixels").

Shapes: B clips, T frames, C latent channels, H W height and width of the pixels, h w of the latents (H / downsampling).

Three named stages: pixels -> moments (mean and log-variance of the posterior, unscaled) -> latents. Latents are scaled
with the numbers in the autoencoder's config, latents = (raw - shift) * scale, so that their standard deviation is
about 1.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import FrozenDict
from einops import rearrange
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from torch import Generator, Tensor, nn

from eqm_video.errors import UserError, short
from eqm_video.models.bounds import check_config, check_scaling
from eqm_video.models.loading import first_line, load_weights
from eqm_video.models.pixels import PixelAutoencoder
from eqm_video.randomness import normal
from eqm_video.system import waits
from eqm_video.system.hashing import add_file
from eqm_video.system.reading import read_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "assets" / "codec"
PIXELS = "pixels"
WEIGHTS = "diffusion_pytorch_model"
TINY = "AutoencoderTiny"
CLASSES = ("AutoencoderKL", TINY, PixelAutoencoder.__name__)
SUPPORTED = f"{', '.join(CLASSES[:-1])} and {CLASSES[-1]}"
NEEDED = {"in_channels": int, "out_channels": int, "latent_channels": int, "scaling_factor": float}  # of a config.json
PIXELS_AT_ONCE = 2**20  # 16 frames of 256x256: about 3.5 GB in the decoder of a Stable Diffusion autoencoder, float32
TINY_LOG_VARIANCE = -30.0  # AutoencoderTiny and pixels have no posterior: a standard deviation of 3e-7


class Codec:
    """A diffusers autoencoder for clips: pixels (B, T, 3, H, W) in [-1, 1] <-> scaled latents (B, T, C, h, w).

    `chunk` is the largest number of frames that pass through the autoencoder together; chunks of frames above 256x256
    are smaller. The autoencoder computes in its own dtype, under autocast too; where the attribute `encoding` is
    bfloat16, its encoder uses autocast to that. Results are float32, or float64 for a float64 autoencoder, and have no
    gradient. Raises UserError for an unsupported autoencoder or chunk < 1.
    """

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny | PixelAutoencoder, chunk: int = 64, name: str | None = None
    ) -> None:
        if type(vae).__name__ not in CLASSES:
            raise UserError(f"the codec is a {type(vae).__name__}; supported are {SUPPORTED}")
        if any(part.training for part in vae.modules()) or any(weight.requires_grad for weight in vae.parameters()):
            vae.eval().requires_grad_(False)  # only where needed: it takes longer than to decode a frame
        self._vae, self._load = vae, None
        self._describe(vae.config, chunk, name)

    def _describe(self, config: Any, chunk: int, name: str | None) -> None:
        """Set everything that follows from the configuration; UserError for one of no codec."""
        if chunk < 1:
            raise UserError(f"codec.chunk is {chunk}; it must be at least 1 frame")
        if config.in_channels != 3 or config.out_channels != 3:
            raise UserError(
                f"the codec turns {config.in_channels} into {config.out_channels} channels; RGB needs 3 and 3"
            )
        self.config = config
        self.chunk, self.encoding = chunk, torch.float32
        self.name = name if name is not None else str(config.get("_name_or_path") or "")
        self.latent_channels: int = config.latent_channels
        check_scaling(config, self.latent_channels, self.name)
        widths = config.get("encoder_block_out_channels") or config.get("block_out_channels") or [0]
        self.downsampling = 2 ** (len(widths) - 1)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        chunk: int = 64,
        variant: str | None = None,
        weights: bool = True,
    ) -> Codec:
        """Load by name: "bundled", "pixels", a folder (of an autoencoder, or of a model with a `vae` in it), or hub id.

        Weights must be safetensors, of the `variant` (such as "fp16") if it is not None. They become float32, or
        `torch_dtype` ("auto": as they were saved). With `weights=False` the configuration alone is read, and the
        weights when `vae`, `moments` or `decode` first need them. Raises UserError for a folder without a supported
        autoencoder, and for a hub id that is neither cached nor reachable.
        """
        name = str(name_or_path)
        if name == PIXELS:
            exact = torch_dtype if isinstance(torch_dtype, torch.dtype) else torch.float32
            return cls(nn.Module.to(PixelAutoencoder(), exact), chunk, name)
        source, subfolder, config_file = _place(name, revision)
        class_name = _class_name(config_file, name)
        more = {"subfolder": subfolder, "revision": revision, "torch_dtype": torch_dtype, "variant": variant}
        if weights:
            return cls(load_weights(_class(class_name), source, f"codec {name!r}", **more), chunk, name)
        check_config(None, config_file.parent)
        config = FrozenDict(read_json(config_file))
        if not all(isinstance(config.get(key), kinds) for key, kinds in NEEDED.items()):
            config = FrozenDict(_class(class_name)().config | config)  # with defaults of the class, slow to import
        codec = cls.__new__(cls)
        codec._vae, codec._load = None, lambda: load_weights(_class(class_name), source, f"codec {name!r}", **more)
        codec._describe(config, chunk, name)
        return codec

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Codec:
        """Move the autoencoder to a device or dtype, in place, and return self."""
        if (load := self._load) is not None:
            self._load = lambda: nn.Module.to(load(), device=device, dtype=dtype)
        else:
            nn.Module.to(self._vae, device=device, dtype=dtype)
        return self

    @property
    def vae(self) -> AutoencoderKL | AutoencoderTiny | PixelAutoencoder:
        """The autoencoder with its weights, which are read now if they were not needed before."""
        if self._load is not None:
            self._vae, self._load = self._load().eval().requires_grad_(False), None
        return self._vae

    @property
    def has_weights(self) -> bool:
        """Whether the weights are in memory."""
        return self._load is None

    @property
    def device(self) -> torch.device:
        """The device on which the autoencoder computes, even if accelerate offloads its weights to another."""
        hook = getattr(self.vae, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or self.vae.device)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """The posterior of pixels (B, T, 3, H, W) in [-1, 1]: (B, T, 2C, h, w), mean then log-variance, unscaled.

        Raises UserError unless there are 3 channels and H and W are multiples of `downsampling`. AutoencoderTiny and
        pixels have no posterior; their log-variance is -30.
        """
        _check_video(pixels, 3, "pixels")
        height, width = pixels.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"pixels are {height}x{width} (height x width); codec {self.name!r} needs multiples of "
                f"{self.downsampling}, such as {self.nearest_size(height)}x{self.nearest_size(width)}"
            )
        return self._by_chunks(pixels, self._moments_of_frames, height * width, "encoding", self.encoding)

    @torch.no_grad()
    def sample(self, moments: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
        """Scaled latents (B, T, C, h, w), drawn from moments (B, T, 2C, h, w), a generator a clip; None: the mean."""
        _check_video(moments, 2 * self.latent_channels, "moments")
        mean, log_variance = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=2)
        if generators is not None:
            noise = normal(tuple(mean.shape[1:]), generators, device=mean.device, dtype=mean.dtype)
            mean = mean + log_variance.mul(0.5).exp() * noise
        shift, scale = self._shift_and_scale(mean)
        return (mean - shift) * scale

    def encode(self, pixels: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
        """Scaled latents (B, T, C, h, w) of pixels (B, T, 3, H, W) in [-1, 1]: `sample` of their `moments`."""
        return self.sample(self.moments(pixels), generators)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, T, 3, H, W), clamped to [-1, 1], of scaled latents (B, T, C, h, w)."""
        _check_video(latents, self.latent_channels, "latents")
        height, width = latents.shape[-2:]
        shift, scale = self._shift_and_scale(latents)
        pixels = height * width * self.downsampling**2
        return self._by_chunks(latents / scale + shift, self._pixels_of_frames, pixels, "decoding")

    def nearest_size(self, pixels: int, multiple: int = 1) -> int:
        """The multiple of `downsampling * multiple` that is nearest to a height or width, and at least 1 of it."""
        unit = self.downsampling * multiple
        return max(1, round(pixels / unit)) * unit

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.config
        scale, shift = config.scaling_factor, config.get("shift_factor") or 0.0
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return shift, scale
        mean, std = (rearrange(like.new_tensor(config[key]), "c -> c 1 1") for key in ("latents_mean", "latents_std"))
        return mean + shift, scale / std

    def _by_chunks(
        self,
        video: Tensor,
        apply: Callable[[Tensor], Tensor],
        pixels_per_frame: int,
        what: str,
        autocast: torch.dtype = torch.float32,
    ) -> Tensor:
        device, dtype = self.device, self.vae.dtype
        size = min(self.chunk, max(1, PIXELS_AT_ONCE // pixels_per_frame))
        frames = rearrange(video, "b t c h w -> (b t) c h w")
        with torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
            parts = []
            with waits.bar(what=what, total=len(frames), unit="frame", shown=len(frames) > size) as bar:
                for part in frames.split(size):
                    parts.append(apply(part.to(device, dtype)))
                    bar.update(len(part))
        joined = torch.cat(parts).to(torch.promote_types(dtype, torch.float32))
        return rearrange(joined, "(b t) c h w -> b t c h w", b=video.shape[0])

    def _moments_of_frames(self, frames: Tensor) -> Tensor:
        if type(self.vae).__name__ in (TINY, PixelAutoencoder.__name__):
            mean = self.vae.encode(frames).latents
            return torch.cat([mean, torch.full_like(mean, TINY_LOG_VARIANCE)], dim=1)
        posterior = self.vae.encode(frames).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def _pixels_of_frames(self, frames: Tensor) -> Tensor:
        return self.vae.decode(frames).sample.clamp(-1.0, 1.0)


def fingerprint(name: str) -> dict[str, str]:
    """The identity of a codec for its moments: its class, and hashes of its configuration and its weights.

    Its files are read, it is not built. UserError as in `Codec.load`, and where the weights are missing.
    """
    if name == PIXELS:
        return {"class": PixelAutoencoder.__name__, "config": "", "weights": ""}
    source, subfolder, config_file = _place(name, None)
    config = {key: value for key, value in read_json(config_file).items() if not key.startswith("_")}
    files = sorted(config_file.parent.glob(f"{WEIGHTS}*.safetensors"))
    files = [file for file in files if "." not in file.name.removesuffix(".safetensors")]  # others are variants
    if not files and not Path(source).is_dir():
        try:
            files = [Path(hf_hub_download(source, f"{WEIGHTS}.safetensors", subfolder=subfolder or None))]
        except (OSError, EntryNotFoundError) as error:
            raise _unreachable(name, error) from error
    if not files:
        raise UserError(f"codec {name!r} has no {WEIGHTS}.safetensors in {config_file.parent}")
    hashes = [hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16)]
    hashes.append(hashlib.blake2b(digest_size=16))
    for file in files:
        add_file(hashes[1], file)
    said, weights = (digest.hexdigest() for digest in hashes)
    return {"class": _class_name(config_file, name), "config": said, "weights": weights}


def _place(name: str, revision: str | None) -> tuple[str, str, Path]:
    """The place of a codec: a folder or hub id, the subfolder in it ("" or "vae"), and its configuration file."""
    folder = BUNDLED_FOLDER if name == BUNDLED else Path(name).expanduser()
    if folder.is_dir():
        subfolder = "" if (folder / "config.json").is_file() else "vae"
        config_file = folder / subfolder / "config.json"
        if not config_file.is_file():
            listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise UserError(
                f"the codec folder {folder} holds neither config.json nor vae/config.json (it holds: {listed}); "
                "give a folder written by diffusers' save_pretrained"
            )
        return str(folder), subfolder, config_file
    if name == BUNDLED:
        raise UserError(f"the bundled codec is missing from {folder}: install eqm-video again")
    config_file, subfolder = hub_config(name, revision)
    return name, subfolder, config_file


def _check_video(video: Tensor, channels: int, what: str) -> None:
    if video.ndim != 5 or video.shape[2] != channels or 0 in video.shape or not video.is_floating_point():
        raise UserError(
            f"{what} are {tuple(video.shape)} {video.dtype}; the codec takes floating point (B, T, {channels}, H, W)"
        )


def hub_config(name: str, revision: str | None = None) -> tuple[Path, str]:
    """The path of a hub repository's config.json, downloaded or cached, and its subfolder, "" or "vae"."""
    if name.count("/") != 1:
        raise UserError(
            f"codec {name!r} is not a folder; give {BUNDLED!r}, {PIXELS!r}, a folder, or a hub id (OWNER/NAME)"
        )
    for subfolder in ("", "vae"):
        try:
            return Path(hf_hub_download(name, "config.json", subfolder=subfolder or None, revision=revision)), subfolder
        except LocalEntryNotFoundError as error:  # not cached, and the hub cannot be reached
            raise _unreachable(name, error) from error
        except EntryNotFoundError:
            continue
        except (OSError, HFValidationError) as error:  # no such repository, no access, no network, not an id
            raise _unreachable(name, error) from error
    raise UserError(
        f"the hub repository {name!r} has neither config.json nor vae/config.json: it is not an autoencoder"
    )


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(
        f"codec {name!r} is not a local folder and cannot be fetched from the Hugging Face hub ({first_line(error)}); "
        f"on a machine with network type `hf download {name} --local-dir FOLDER` and give that FOLDER instead, or use "
        f"{BUNDLED!r}, which needs no download"
    )


def _class(name: str) -> Any:
    """The class of an autoencoder by its name. Those of diffusers take seconds to import, and some runs need none."""
    return (
        PixelAutoencoder if name == PixelAutoencoder.__name__ else getattr(importlib.import_module("diffusers"), name)
    )


def _class_name(config_file: Path, name: str) -> str:
    try:
        class_name = read_json(config_file).get("_class_name")
    except UserError as error:
        raise UserError(f"{config_file} is not the JSON configuration of an autoencoder ({error})") from error
    if not isinstance(class_name, str) or class_name not in CLASSES:
        raise UserError(f"codec {name!r} is of class {short(class_name)}; supported are {SUPPORTED}")
    return class_name
