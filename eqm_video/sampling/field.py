"""Parts of a pipeline that also serve outside sampling: its gradient field, its codec, its decay and its samplers.

Every function here is also a method or a property of `EqMPipeline`, under the same name.

Shapes: B samples, T frames, C latent channels, H W pixels, h w latents. An image is T = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Generator, Tensor

from eqm_video.analysis.curvature import auto_step, step_limit
from eqm_video.codec import Codec
from eqm_video.core.composition import ComposedField
from eqm_video.core.decay import Decay, make_decay
from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField
from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.output.media import to_uint8
from eqm_video.randomness import normal
from eqm_video.samplers import SAMPLERS, Sampler, Schedule, step_factors
from eqm_video.sampling.arguments import (
    Label,
    as_pixels,
    choose_sampler,
    fit_size,
    frame_times,
    make_generators,
)
from eqm_video.sampling.arguments import label_ids as numbers_of
from eqm_video.sampling.model_settings import whole

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Term = tuple[Any, ...]  # (label, weight), or (label, weight, pipeline)
MOST_PIXELS = 2**34  # over all frames of a call: 200 GB as float32


def codec(pipeline: DiffusionPipeline) -> Codec:
    """The autoencoder as a Codec."""
    return Codec(pipeline.vae)


def labels(pipeline: DiffusionPipeline) -> dict[int, str]:
    """Names of the labels by number; empty where the model has no names."""
    return {int(label): as_label(name) for label, name in pipeline.config.id2label.items()}


def label_ids(pipeline: DiffusionPipeline, labels: Sequence[Label]) -> list[int]:
    """The numbers of labels, which are names or numbers; None is the null label. UserError for unknown labels."""
    return numbers_of(labels, pipeline.labels, pipeline.transformer.null_label)


def decay(pipeline: DiffusionPipeline) -> Decay | None:
    """The decay c(gamma) of the training target; None if the model was saved without it."""
    return None if pipeline.config.decay is None else make_decay(pipeline.config.decay)


def field(
    pipeline: DiffusionPipeline,
    labels: Sequence[Label],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    match_norm: bool = False,
) -> GuidedField:
    """The field that a call with these labels descends: latents (B, T, C, h, w) -> gradient of the same shape.

    A network with an explicit energy gives the energy's true gradient. guidance_interval and match_norm: see
    `GuidedField`. The other arguments are those of a call.
    """
    ids, null = pipeline.label_ids(labels), pipeline.transformer.null_label
    times = _times(pipeline, num_frames, fps)
    device = pipeline._execution_device
    return GuidedField(
        Field(pipeline.transformer),
        torch.tensor(ids, device=device) if any(label != null for label in ids) else None,
        guidance_scale=_scale(pipeline, guidance_scale),
        null_label=null,
        times=times.expand(len(ids), -1).to(device),
        interval=guidance_interval,
        match_norm=match_norm,
    )


def composed_field(
    pipeline: DiffusionPipeline, terms: Sequence[Term], count: int, *, plain_sum: bool = False, **options: Any
) -> ComposedField:
    """The field of several labels, or of several models, at once, for `count` samples.

    terms: (label, weight) of this model, or (label, weight, pipeline) of another model on the same latents. The field
    is f_null + sum of weight * (f_label - f_null), where f_null is this model's unlabelled field: a single term is
    classifier-free guidance. With `plain_sum` it is the sum of weight * f_label, the paper's composition. options:
    num_frames, fps. UserError for no terms, and for models with different codecs.
    """
    if not terms:
        raise UserError("a composition needs at least one term: (label, weight)")
    fields, weights = [], []
    for label, weight, *other in terms:
        model = other[0] if other else pipeline
        if not _same_codec(model.vae, pipeline.vae):
            raise UserError("the models of a composition work on latents of different codecs: they need the same one")
        fields.append(model.field([label] * count, guidance_scale=1.0, **options))
        weights.append(float(weight))
    if not plain_sum and sum(weights) != 1:
        fields.append(pipeline.field([None] * count, guidance_scale=1.0, **options))
        weights.append(1 - sum(weights))
    return ComposedField(fields, weights, plain_sum=plain_sum)


def start_noise(
    pipeline: DiffusionPipeline,
    generators: Sequence[Generator | int],
    *,
    num_frames: int | None = None,
    size: Any = None,
) -> Tensor:
    """Start latents (B, T, C, h, w): standard normal noise from a generator or seed for each sample.

    UserError for a size or a number of frames that the model cannot have, or that fits into no memory.
    """
    frames, (height, width), codec = pipeline.check_frames(num_frames), pipeline.check_size(size), pipeline.codec
    shape = (frames, codec.latent_channels, height // codec.downsampling, width // codec.downsampling)
    if len(generators) * frames * height * width > MOST_PIXELS:
        raise UserError(
            f"{len(generators)} samples of {frames} frames of {height}x{width} pixels do not fit into any memory "
            f"(more than {MOST_PIXELS:g} pixels): ask for fewer or smaller ones"
        )
    dtype = torch.promote_types(pipeline.transformer.dtype, torch.float32)
    made = make_generators(len(generators), list(generators), None)
    return normal(shape, made, device=pipeline._execution_device, dtype=dtype)


def encode(pipeline: DiffusionPipeline, clips: Any) -> Tensor:
    """Latents (B, T, C, h, w) of clips uint8 (B, T, H, W, 3): the mean of the codec's posterior."""
    pixels = as_pixels(clips).to(pipeline._execution_device)
    pipeline.check_size(tuple(pixels.shape[-2:]))
    return pipeline.codec.encode(pixels).to(torch.promote_types(pipeline.transformer.dtype, torch.float32))


def decode(pipeline: DiffusionPipeline, latents: Tensor, output_type: str = "uint8", chunk: int = 64) -> Any:
    """Latents (B, T, C, h, w) as frames of an `output_type` (see `EqMPipelineOutput`), `chunk` decoded at once."""
    return latents if output_type == "latent" else _output(Codec(pipeline.vae, chunk).decode(latents), output_type)


def rule(
    pipeline: DiffusionPipeline,
    sampler: str | Sampler | None = None,
    step_size: float | str | None = None,
    mu: float | None = None,
    *,
    temperature: float | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    step_schedule: Schedule = "constant",
    plain: Sequence[float] | None = None,
) -> Sampler:
    """The model's recommended sampler; arguments that are not None replace its settings.

    step_size "auto" needs the model's measured curvature. It depends on steps, guidance_scale and step_schedule, and on
    `plain`, the weights of a plain sum of fields, which take the place of guidance. UserError for settings that the
    sampler cannot have.
    """
    automatic = step_size == "auto"
    chosen = {"step_size": None if automatic else step_size, "mu": mu, "temperature": temperature}
    rule = choose_sampler(pipeline.config.sampler, sampler, {k: v for k, v in chosen.items() if v is not None})
    if not automatic:
        return rule
    if not isinstance(sampler, (str, type(None))):
        raise UserError('a sampler given as an object brings its own step_size: leave "auto" out')
    if pipeline.config.curvature is None or pipeline.decay is None:
        raise UserError(
            "step_size auto needs the field's largest curvature, which this model does not have: type "
            "eqm-video curvature MODEL --write, or give a number"
        )
    kind, steps = sampler or pipeline.config.sampler["kind"], steps or pipeline.config.sampler["steps"]
    look_ahead = getattr(rule, "mu", 0.0)
    try:
        # The steps of a falling schedule add up to less, like fewer steps of full size.
        whole = max(1, round(sum(step_factors(step_schedule, steps))))
        measured, scale = pipeline.config.curvature, _scale(pipeline, guidance_scale)
        size = auto_step(measured, kind, look_ahead, whole, pipeline.decay, scale, plain=plain)
    except ValueError as error:
        raise UserError(str(error)) from error
    return replace(rule, step_size=size)


def step_warning(
    pipeline: DiffusionPipeline,
    rule: Sampler,
    guidance_scale: float | None = None,
    *,
    plain: Sequence[float] | None = None,
) -> str | None:
    """A warning if the step size is beyond the measured limit; None if it is not, or if no curvature was measured.

    plain: the weights of a plain sum of fields, which take the place of guidance.
    """
    kind = next((kind for kind, sampler in SAMPLERS.items() if sampler is type(rule)), None)
    if pipeline.config.curvature is None or kind not in ("gd", "nag", "langevin"):
        return None
    mu, scale = getattr(rule, "mu", 0.0), _scale(pipeline, guidance_scale)
    limit = step_limit(pipeline.config.curvature, kind, mu, scale, plain=plain)
    if rule.step_size < limit:
        return None
    return (
        f"step_size {rule.step_size:g} is beyond {limit:.4g}, the limit measured for this model with {kind}: the "
        "descent overshoots and ends away from the data: give a smaller step_size, or auto"
    )


def _scale(pipeline: DiffusionPipeline, guidance_scale: float | None) -> float:
    return pipeline.config.sampler["guidance_scale"] if guidance_scale is None else guidance_scale


def check_size(pipeline: DiffusionPipeline, size: int | Sequence[int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels, by default the model's. UserError unless the codec and the patch size divide them."""
    size = pipeline.config.size if size is None else size
    if size is None:
        raise UserError("this model does not say what size it was trained on: give size (--size), in pixels")
    return fit_size(pipeline.codec, pipeline.transformer.config.patch_size, size)


def check_frames(pipeline: DiffusionPipeline, num_frames: int | None = None) -> int:
    """The number of frames, by default the model's.

    UserError for no whole number, and for T > 1 with an image model.
    """
    frames = whole("frames", pipeline.config.frames if num_frames is None else num_frames)
    if frames > 1 and not pipeline.transformer.config.temporal:
        raise UserError(f"this is an image model (temporal: false), not one for {frames} frames: give frames=1")
    return frames


def _times(pipeline: DiffusionPipeline, num_frames: int | None, fps: float | None) -> Tensor:
    """Times of a clip's frames (T,), in reference frames."""
    rate = pipeline.config.fps if fps is None else fps
    return frame_times(pipeline.check_frames(num_frames), rate, pipeline.config.reference_fps)


def _same_codec(first: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two autoencoders have the same weights and scaling: only then do their latents mean the same."""
    if first is other:
        return True
    scales = ("scaling_factor", "shift_factor", "latent_channels")
    weights, others = first.state_dict(), other.state_dict()
    return (
        all(first.config.get(name) == other.config.get(name) for name in scales)
        and weights.keys() == others.keys()
        and all(torch.equal(weight.cpu(), others[name].cpu()) for name, weight in weights.items())
    )


def _output(pixels: Tensor, output_type: str) -> Any:
    """Pixels (B, T, 3, H, W) in [-1, 1] as frames of an `output_type`, see `EqMPipelineOutput`."""
    if output_type in ("uint8", "pil"):
        array = to_uint8(pixels)
        return array if output_type == "uint8" else [[Image.fromarray(frame) for frame in clip] for clip in array]
    unit = pixels.float().add(1.0).div(2.0)
    return unit if output_type == "pt" else unit.movedim(2, -1).cpu().numpy()
