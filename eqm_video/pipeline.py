"""`EqMPipeline`: a trained network, its codec and its sampler's settings, from labels and seeds to frames.

Shapes: B samples, T frames, C latent channels, H W pixels, h w latents. An image is T = 1.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Generator, Tensor

from eqm_video.codec import Codec
from eqm_video.errors import UserError
from eqm_video.folders import (
    describe_folder,
    is_checkpoint,
    load_transformer,
    local_folder,
    read_json,
)
from eqm_video.guidance import GuidedField
from eqm_video.media import to_uint8
from eqm_video.models.transformer import EqMTransformer
from eqm_video.randomness import normal
from eqm_video.requests import Label, as_list, make_generators, unknown_label
from eqm_video.samplers import RULES, Rule, descend

SAMPLER = {"kind": "nag", "step_size": 0.003, "mu": 0.35, "steps": 250, "guidance_scale": 1.0}  # where a model has none
OUTPUT_TYPES = ("pil", "np", "pt", "uint8", "latent")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class EqMPipelineOutput(BaseOutput):
    """What a call returns.

    frames: by `output_type`: "pil" a list per sample of T PIL images; "np" float32 (B, T, H, W, 3) in [0, 1]; "pt"
        float32 (B, T, 3, H, W) in [0, 1]; "uint8" an array (B, T, H, W, 3); "latent" the latents (B, T, C, h, w).
    nfe: (B,) int64 on the CPU: how often the field was evaluated for each sample (a guided evaluation counts once).
    """

    frames: Any
    nfe: Tensor


class EqMPipeline(DiffusionPipeline):
    """Samples clips and images by descending the learned gradient (arXiv 2510.02300, section 3.3).

    transformer, vae: the network and the autoencoder, whose latent channels must agree.
    id2label: names of the labels. decay: the c(gamma) it was trained with, for the record. sampler: recommended
    settings: kind, step_size, mu, steps, guidance_scale. frames, fps, size (pixels, or [height, width]): what is
    sampled by default. reference_fps: the network's unit of time is 1 / reference_fps seconds.

    Load exports with `EqMPipeline.from_pretrained`; diffusers' base class does not know this one.
    """

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        transformer: EqMTransformer,
        vae: AutoencoderKL | AutoencoderTiny,
        id2label: Mapping[Any, str] | Sequence[str] | None = None,
        decay: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        frames: int = 16,
        fps: float = 8.0,
        reference_fps: float = 8.0,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if transformer.config.in_channels != vae.config.latent_channels:
            raise UserError(
                f"the network works on {transformer.config.in_channels} latent channels, the codec has "
                f"{vae.config.latent_channels}: choose the codec that the network was trained with"
            )
        if id2label is not None and not isinstance(id2label, Mapping):
            id2label = dict(enumerate(id2label))
        names = {str(int(label)): str(name) for label, name in (id2label or {}).items()}  # JSON has text keys only
        settings = {**SAMPLER, **(sampler or {})}
        if unknown := set(settings) - set(SAMPLER):
            raise UserError(f"unknown sampler settings {sorted(unknown)}; known are {', '.join(SAMPLER)}")
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(
            id2label=names,
            decay=dict(decay) if decay is not None else None,
            sampler=settings,
            frames=frames,
            fps=float(fps),
            reference_fps=float(reference_fps),
            size=size if size is None or isinstance(size, int) else list(size),
        )

    # Loading --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> EqMPipeline:
        """Load an export: a local folder, or a hub id, which is downloaded first.

        Keywords are diffusers' own (`torch_dtype`, `revision`, `token` ...); weights become float32 unless
        `torch_dtype` says otherwise, and only safetensors are read. Raises UserError, saying what was found, for
        anything else than an export, and for weights that do not fit the architecture.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, hub)
        index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        if index.get("_class_name") != cls.__name__:
            raise UserError(f"{folder} is no export of {cls.__name__}: {describe_folder(folder, index)}")
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))  # newer and older name
        if "transformer" not in kwargs:
            kwargs["transformer"] = load_transformer(folder / "transformer", dtype)
        if "vae" not in kwargs:
            kwargs["vae"] = Codec.load(folder / "vae", torch_dtype=dtype).vae
        return super().from_pretrained(str(folder), **kwargs)

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, *, codec: str | Codec | None = None, torch_dtype: torch.dtype | None = None
    ) -> EqMPipeline:
        """The averaged network of a training checkpoint, with the codec that its `pipeline.json` names, or `codec`."""
        folder = Path(folder)
        if not is_checkpoint(folder):
            raise UserError(f"{folder} is no whole checkpoint (checkpoint.json, pipeline.json, ema/config.json)")
        settings = read_json(folder / "pipeline.json")
        trained_with = settings.pop("codec", None)
        if codec is None and trained_with is None:
            raise UserError(f"{folder / 'pipeline.json'} names no codec: give one (--codec, or codec=...)")
        transformer = load_transformer(folder / "ema", torch_dtype)
        vae = as_codec(codec if codec is not None else trained_with, torch_dtype).vae
        try:
            return cls(transformer, vae, **settings)
        except TypeError as error:
            raise UserError(f"{folder / 'pipeline.json'} does not hold the pipeline's settings ({error})") from error

    # Sampling -------------------------------------------------------------------------------------------------------

    @property
    def codec(self) -> Codec:
        """The autoencoder as a Codec."""
        return Codec(self.vae)

    @property
    def labels(self) -> dict[int, str]:
        """Names of the labels by number; empty where the model has no names."""
        return {int(label): name for label, name in self.config.id2label.items()}

    def label_ids(self, labels: Sequence[Label]) -> list[int]:
        """Numbers of labels given by name or number; None is the null label. Raises UserError for unknown ones."""
        null = self.transformer.null_label
        numbers_of = {name: label for label, name in self.labels.items()}
        found = []
        for label in labels:
            if label is None:
                found.append(null)
                continue
            if isinstance(label, str):
                if label not in numbers_of and not label.isdecimal():
                    raise unknown_label(label, numbers_of, null)
                label = numbers_of.get(label, label)
            elif isinstance(label, Tensor):
                label = label.item()
            label = int(label)
            if not 0 <= label < null:
                raise UserError(f"label {label} is out of range: this model has {null} labels (0 to {null - 1})")
            found.append(label)
        return found

    @torch.no_grad()
    def __call__(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        num_samples: int | None = None,
        num_frames: int | None = None,
        steps: int | None = None,
        sampler: str | Rule | None = None,
        step_size: float | None = None,
        mu: float | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        fps: float | None = None,
        size: int | tuple[int, int] | None = None,
        tolerance: float | None = None,
        output_type: str = "pil",
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
        decode_chunk_size: int = 64,
    ) -> EqMPipelineOutput:
        """Sample one clip for each label. What is not given comes from the model's own settings.

        labels: a list of names or numbers (None: unlabelled), or one for all `num_samples` samples.
        num_frames: T. fps: frames per second of the clip; frame k is at time k * reference_fps / fps for the network.
        size: pixels, or (height, width); a multiple of the codec's downsampling times the patch size.
        steps: number of updates. sampler: "nag", "gd" or a rule such as `NAG(0.003, 0.35)`, which brings its own
        step_size (eta) and mu. guidance_scale: 1 is the plain labelled field, 0 the unlabelled one.
        seeds: one for each sample; a seed gives the same start noise whatever the batch or the device. generator:
        torch's instead of seeds, one or a list. Neither: fresh seeds from torch's global generator.
        tolerance: a clip stops once the gradient's RMS is below it in every frame. callback(step, latents, gradient).
        output_type: see EqMPipelineOutput. decode_chunk_size: frames decoded at once.
        Raises UserError for whatever cannot be sampled, and when the descent diverges.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if self.transformer.config.conditioned_on_gamma:
            raise UserError(
                "this network is told gamma (conditioned_on_gamma: true), which a descent does not know: only networks "
                "trained with conditioned_on_gamma: false can be sampled here"
            )
        settings, null = self.config.sampler, self.transformer.null_label
        ids = self.label_ids(as_list(labels, num_samples, seeds, generator))
        generators = make_generators(len(ids), seeds, generator)
        codec = Codec(self.vae, decode_chunk_size)
        height, width = self.check_size(size)
        times = self._times(num_frames, fps)
        shape = (len(times), codec.latent_channels, height // codec.downsampling, width // codec.downsampling)
        steps = settings["steps"] if steps is None else steps
        rule = self.rule(sampler, step_size, mu)
        device = self._execution_device
        try:
            field = GuidedField(
                self.transformer,
                torch.tensor(ids, device=device) if any(one != null for one in ids) else None,
                guidance_scale=settings["guidance_scale"] if guidance_scale is None else guidance_scale,
                null_label=null,
                times=times.expand(len(ids), -1).to(device),
            )
            dtype = torch.promote_types(self.transformer.dtype, torch.float32)
            start = normal(shape, generators, device=device, dtype=dtype)
            with self.progress_bar(total=steps) as bar:
                descent = descend(
                    field,
                    start,
                    rule,
                    steps=steps,
                    tolerance=tolerance,
                    callback=_both(lambda *_: bar.update(), callback),
                    generators=generators,
                )
        except ValueError as error:  # wrong numbers and divergence; the message says which
            raise UserError(str(error)) from error
        result = descent.latents if output_type == "latent" else _output(codec.decode(descent.latents), output_type)
        self.maybe_free_model_hooks()
        return EqMPipelineOutput(frames=result, nfe=descent.nfe.cpu())

    def rule(self, sampler: str | Rule | None = None, step_size: float | None = None, mu: float | None = None) -> Rule:
        """The update rule: the model's recommended one, with what is given here in its place."""
        if sampler is not None and not isinstance(sampler, str):
            if step_size is not None or mu is not None:
                raise UserError("a sampler given as an object brings its own step_size and mu: leave those out")
            return sampler
        kind = sampler or self.config.sampler["kind"]
        if kind not in RULES:
            raise UserError(f"sampler {kind!r} is not one of {', '.join(RULES)}")
        names = {entry.name for entry in fields(RULES[kind])}
        given = {name: value for name, value in (("step_size", step_size), ("mu", mu)) if value is not None}
        if surplus := set(given) - names:
            raise UserError(f"sampler {kind!r} has no {' and no '.join(sorted(surplus))}: leave it out")
        known = {name: value for name, value in self.config.sampler.items() if name in names}
        try:
            return RULES[kind](**{**known, **given})
        except ValueError as error:
            raise UserError(str(error)) from error

    def check_size(self, size: int | Sequence[int] | None = None) -> tuple[int, int]:
        """(height, width) in pixels; UserError unless the codec's downsampling times the patch size divides them."""
        size = self.config.size if size is None else size
        if size is None:
            raise UserError("this model does not say what size it was trained on: give size (--size), in pixels")
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        codec, patch = self.codec, self.transformer.config.patch_size
        unit = codec.downsampling * patch
        if height < 1 or width < 1 or height % unit or width % unit:
            nearest = f"{codec.nearest_size(height, patch)}x{codec.nearest_size(width, patch)}"
            raise UserError(
                f"size {height}x{width} (height x width) is not divisible by {unit} = {codec.downsampling} (codec) x "
                f"{patch} (patch); the nearest is {nearest}"
            )
        return height, width

    def check_frames(self, num_frames: int | None = None) -> int:
        """The number of frames; UserError where it is no number, or more than one for an image model."""
        frames = self.config.frames if num_frames is None else num_frames
        if not isinstance(frames, int) or frames < 1:
            raise UserError(f"frames is {frames!r}; it must be a whole number of at least 1")
        if frames > 1 and not self.transformer.config.temporal:
            raise UserError(f"this is an image model (temporal: false), but {frames} frames are asked: give frames=1")
        return frames

    def _times(self, num_frames: int | None, fps: float | None) -> Tensor:
        """When the frames of a clip are, in reference frames: (T,)."""
        frames = self.check_frames(num_frames)
        rate = self.config.fps if fps is None else fps
        if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate > 0):
            raise UserError(f"fps is {rate!r}; it must be a number above 0, such as {self.config.fps:g}")
        return torch.arange(frames, dtype=torch.float32) * (self.config.reference_fps / rate)


def _both(first: Callable[..., Any], second: Callable[..., Any] | None) -> Callable[..., Any]:
    def call(*arguments: Any) -> None:
        first()
        if second is not None:
            second(*arguments)

    return call


def _output(pixels: Tensor, output_type: str) -> Any:
    """Pixels (B, T, 3, H, W) in [-1, 1] as the output type says."""
    if output_type in ("uint8", "pil"):
        array = to_uint8(pixels)
        return array if output_type == "uint8" else [[Image.fromarray(frame) for frame in clip] for clip in array]
    unit = pixels.float().add(1.0).div(2.0)
    return unit if output_type == "pt" else unit.movedim(2, -1).cpu().numpy()


def as_codec(codec: str | Codec, dtype: torch.dtype | None) -> Codec:
    """A codec as it is, or by its name."""
    return codec if isinstance(codec, Codec) else Codec.load(codec, torch_dtype=dtype)
