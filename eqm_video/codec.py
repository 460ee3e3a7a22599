"""Pixels to latents and back, frame by frame, through a diffusers autoencoder, or as they are ("pixels").

Shapes: B clips, T frames, C latent channels, H W height and width of the pixels, h w of the latents (H / downsampling).

Three named stages: pixels -> moments (mean and log-variance of the posterior, unscaled) -> latents. Latents are scaled
with the autoencoder's own numbers, latents = (raw - shift) * scale, so that their standard deviation is about one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from einops import rearrange
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Generator, Tensor, nn

from eqm_video.errors import UserError, short
from eqm_video.models.bounds import check_config, check_scaling
from eqm_video.models.pixels import PixelAutoencoder
from eqm_video.randomness import normal
from eqm_video.system.reading import read_json

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "assets" / "codec"
PIXELS = "pixels"
CLASSES = {one.__name__: one for one in (AutoencoderKL, AutoencoderTiny, PixelAutoencoder)}
SUPPORTED = f"{', '.join(list(CLASSES)[:-1])} and {list(CLASSES)[-1]}"
PIXELS_AT_ONCE = 2**20  # 16 frames of 256x256: about 3.5 GB in the decoder of a Stable Diffusion autoencoder, float32
SAVED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # by safetensors
TINY_LOG_VARIANCE = -30.0  # AutoencoderTiny and pixels have no posterior: a standard deviation of 3e-7

_UNUSABLE = (OSError, ValueError, RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


class Codec:
    """A diffusers autoencoder seen from clips: (B, T, 3, H, W) pixels in [-1, 1] <-> (B, T, C, h, w) scaled latents.

    `chunk` is the largest number of frames that go through the autoencoder together; frames above 256x256 go in
    smaller chunks still. The autoencoder computes in its own dtype, under autocast too, and results are float32
    (float64 if the autoencoder is). Nothing here needs or keeps a gradient.
    """

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny | PixelAutoencoder, chunk: int = 64, name: str | None = None
    ) -> None:
        if type(vae).__name__ not in CLASSES:
            raise UserError(f"the codec is a {type(vae).__name__}; supported are {SUPPORTED}")
        if chunk < 1:
            raise UserError(f"codec.chunk is {chunk}; it must be at least 1 frame")
        config = vae.config
        if config.in_channels != 3 or config.out_channels != 3:
            raise UserError(
                f"the codec turns {config.in_channels} into {config.out_channels} channels; RGB needs 3 and 3"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.chunk = chunk
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
    ) -> Codec:
        """Load by name: "bundled", "pixels", a local folder (of an autoencoder, or with one in `vae`), or a hub id.

        Weights must be safetensors, of the `variant` (such as "fp16") where one is asked; they become float32 unless
        `torch_dtype` says otherwise ("auto": as they were saved). Raises UserError for a
        folder that holds no supported autoencoder and for a hub id that is neither cached nor reachable.
        """
        name = str(name_or_path)
        if name == PIXELS:
            exact = torch_dtype if isinstance(torch_dtype, torch.dtype) else torch.float32
            return cls(nn.Module.to(PixelAutoencoder(), exact), chunk, name)
        folder = BUNDLED_FOLDER if name == BUNDLED else Path(name).expanduser()
        if folder.is_dir():
            source, subfolder = str(folder), "" if (folder / "config.json").is_file() else "vae"
            config_file = folder / subfolder / "config.json"
            if not config_file.is_file():
                found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
                raise UserError(
                    f"the codec folder {folder} holds neither config.json nor vae/config.json (found: {found}); "
                    "give a folder written by diffusers' save_pretrained"
                )
        elif name == BUNDLED:
            raise UserError(f"the bundled codec is missing from {folder}: install eqm-video again")
        else:
            source = name
            config_file, subfolder = _hub_config(name, revision)
        vae_class = CLASSES[_class_name(config_file, name)]
        more = {"subfolder": subfolder, "revision": revision, "torch_dtype": torch_dtype, "variant": variant}
        vae = load_weights(vae_class, source, f"codec {name!r}", **more)
        return cls(vae, chunk, name)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Codec:
        """Move the autoencoder to a device or dtype, in place; returns self."""
        nn.Module.to(self.vae, device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes (the execution device, if accelerate offloads its weights)."""
        hook = getattr(self.vae, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or self.vae.device)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """Posterior of pixels (B, T, 3, H, W) in [-1, 1]: (B, T, 2C, h, w), mean then log-variance, unscaled.

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
        return self._by_chunks(pixels, self._moments_of_frames, height * width)

    @torch.no_grad()
    def sample(self, moments: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
        """Scaled latents (B, T, C, h, w) of moments (B, T, 2C, h, w), one generator a clip; None: the mean."""
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
        return self._by_chunks(latents / scale + shift, self._pixels_of_frames, height * width * self.downsampling**2)

    def nearest_size(self, pixels: int, multiple: int = 1) -> int:
        """The nearest multiple of `downsampling * multiple` to a height or width, at least one of them."""
        unit = self.downsampling * multiple
        return max(1, round(pixels / unit)) * unit

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.vae.config
        scale, shift = config.scaling_factor, config.get("shift_factor") or 0.0
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return shift, scale
        mean, std = (rearrange(like.new_tensor(config[key]), "c -> c 1 1") for key in ("latents_mean", "latents_std"))
        return mean + shift, scale / std

    def _by_chunks(self, video: Tensor, apply: Callable[[Tensor], Tensor], pixels_per_frame: int) -> Tensor:
        device, dtype = self.device, self.vae.dtype
        size = min(self.chunk, max(1, PIXELS_AT_ONCE // pixels_per_frame))
        frames = rearrange(video, "b t c h w -> (b t) c h w")
        with torch.autocast(device.type, enabled=False):
            parts = [apply(part.to(device, dtype)) for part in frames.split(size)]
        joined = torch.cat(parts).to(torch.promote_types(dtype, torch.float32))
        return rearrange(joined, "(b t) c h w -> b t c h w", b=video.shape[0])

    def _moments_of_frames(self, frames: Tensor) -> Tensor:
        if isinstance(self.vae, AutoencoderTiny | PixelAutoencoder):
            mean = self.vae.encode(frames).latents
            return torch.cat([mean, torch.full_like(mean, TINY_LOG_VARIANCE)], dim=1)
        posterior = self.vae.encode(frames).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def _pixels_of_frames(self, frames: Tensor) -> Tensor:
        return self.vae.decode(frames).sample.clamp(-1.0, 1.0)


def load_weights(
    model_class: type[ModelMixin],
    source: str | Path,
    what: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    variant: str | None = None,
) -> Any:
    """A model from diffusers' safetensors, float32 by default. Raises UserError unless every weight fits.

    diffusers on its own only warns of missing and surplus weights, and fills what is missing with random numbers.
    `what` names the model in the message. torch_dtype: "auto" is the one that the weights in a folder were saved in.
    variant: of the weights' file names, such as "fp16"; None reads those without one.
    """
    here = Path(source) / subfolder
    if here.is_dir() and variant not in (found := _variants(here)) and found:
        known = " and ".join(f"variant={one!r}" if one else "no variant" for one in sorted(found, key=str))
        asked = f"weights of the variant {variant!r}" if variant else "plain weights"
        raise UserError(f"{here} has no {asked} of {what}; its weights have {known}")
    if here.is_dir() and (here / "config.json").is_file():
        check_config(model_class, here)
    try:
        model, report = model_class.from_pretrained(
            str(source),
            subfolder=subfolder or None,
            revision=revision,
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _UNUSABLE as error:  # missing, unreadable, of other shapes, a bad configuration
        raise UserError(
            f"cannot load {what} as {model_class.__name__} ({_first_line(error)}); needed is a complete folder of "
            "safetensors weights with the config.json they were saved with"
        ) from error
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            names = sorted(report[kind])
            raise UserError(
                f"{what} is of another architecture than its config.json says: {len(names)} {kind.replace('_', ' ')}, "
                f"such as {names[0]!r}"
            )
    if torch_dtype == "auto":
        torch_dtype = _saved_dtype(here, variant, what)
    return nn.Module.to(model, torch_dtype or torch.float32)  # diffusers' own `to` warns of every change of dtype


def _variants(folder: Path) -> dict[str | None, Path]:
    """The variants of the safetensors in a folder (None: without one), each with one of its files.

    A file is called NAME.safetensors or NAME.VARIANT.safetensors; of weights in several files, NAME-00001-of-00002 or
    NAME.VARIANT-00001-of-00002.
    """
    files = sorted(folder.glob("*.safetensors"), reverse=True)
    stems = ((re.sub(r"-\d{5}-of-\d{5}$", "", file.stem), file) for file in files)
    return {stem.partition(".")[2] or None: file for stem, file in stems}


def _saved_dtype(folder: Path, variant: str | None, what: str) -> torch.dtype:
    """The floating-point type in which the weights of a folder were saved."""
    file = _variants(folder).get(variant) if folder.is_dir() else None
    if file is None:
        raise UserError(
            f'{what} is in no folder here for torch_dtype="auto" to look at: name a dtype, such as "float16"'
        )
    with safe_open(file, framework="pt") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118
    return next((SAVED[kind] for kind in kinds if kind in SAVED), torch.float32)


def _check_video(video: Tensor, channels: int, what: str) -> None:
    if video.ndim != 5 or video.shape[2] != channels or 0 in video.shape or not video.is_floating_point():
        raise UserError(
            f"{what} are {tuple(video.shape)} {video.dtype}; the codec takes floating point (B, T, {channels}, H, W)"
        )


def _hub_config(name: str, revision: str | None) -> tuple[Path, str]:
    """The configuration of a hub repository and the subfolder it is in, "" or "vae"."""
    if name.count("/") != 1:
        raise UserError(
            f"codec {name!r} is no folder; give {BUNDLED!r}, {PIXELS!r}, a folder, or a hub id (OWNER/NAME)"
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
    raise UserError(f"the hub repository {name!r} has neither config.json nor vae/config.json: it is no autoencoder")


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(
        f"codec {name!r} is no local folder and cannot be fetched from the Hugging Face hub ({_first_line(error)}); on "
        f"a machine with network type `hf download {name} --local-dir FOLDER` and give that FOLDER instead, or use "
        f"{BUNDLED!r}, which needs no download"
    )


def _class_name(config_file: Path, name: str) -> str:
    try:
        found = read_json(config_file).get("_class_name")
    except UserError as error:
        raise UserError(f"{config_file} is not the JSON configuration of an autoencoder ({error})") from error
    if not isinstance(found, str) or found not in CLASSES:
        raise UserError(f"codec {name!r} is of class {short(found)}; supported are {SUPPORTED}")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
