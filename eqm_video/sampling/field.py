"""What a model offers beside its samples: its gradient for given labels, its codec, its decay and its samplers.

Shapes: B samples, T frames, C latent channels, H W pixels, h w latents. An image is T = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
    label_ids,
    make_generators,
)
from eqm_video.sampling.model_settings import whole

Term = tuple[Any, ...]  # (label, weight), or (label, weight, pipeline)
MOST_PIXELS = 2**34  # of all frames of a call: 200 GB as float32


class Landscape:
    """The part of `EqMPipeline` that looks at the learned landscape; it needs the pipeline's modules and config."""

    @property
    def codec(self) -> Codec:
        """The autoencoder as a Codec."""
        return Codec(self.vae)

    @property
    def labels(self) -> dict[int, str]:
        """Names of the labels by number; empty where the model has no names."""
        return {int(label): as_label(name) for label, name in self.config.id2label.items()}

    def label_ids(self, labels: Sequence[Label]) -> list[int]:
        """Numbers of labels given by name or number; None is the null label. Raises UserError for unknown ones."""
        return label_ids(labels, self.labels, self.transformer.null_label)

    @property
    def decay(self) -> Decay | None:
        """The c(gamma) of the training target; None where the model does not say."""
        return None if self.config.decay is None else make_decay(self.config.decay)

    def field(
        self,
        labels: Sequence[Label],
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        match_norm: bool = False,
    ) -> GuidedField:
        """The gradient that a call descends for these labels: latents (B, T, C, h, w) -> the same shape.

        For a network with an explicit energy it is the energy's true gradient. guidance_interval and match_norm: see
        `GuidedField`. The other arguments are those of a call.
        """
        ids, null = self.label_ids(labels), self.transformer.null_label
        times = self._times(num_frames, fps)
        device = self._execution_device
        return GuidedField(
            Field(self.transformer),
            torch.tensor(ids, device=device) if any(one != null for one in ids) else None,
            guidance_scale=self._scale(guidance_scale),
            null_label=null,
            times=times.expand(len(ids), -1).to(device),
            interval=guidance_interval,
            match_norm=match_norm,
        )

    def composed_field(
        self, terms: Sequence[Term], count: int, *, plain_sum: bool = False, **options: Any
    ) -> ComposedField:
        """The gradient of several labels, or models, at once, for `count` samples.

        terms: (label, weight) of this model, or (label, weight, pipeline) of another one on the same latents. The
        result is f_null + sum of weight * (f_label - f_null), f_null being this model's unlabelled field, so that one
        term is classifier-free guidance; with `plain_sum`, sum of weight * f_label, the paper's composition.
        options: num_frames, fps.
        """
        if not terms:
            raise UserError("a composition needs at least one term: (label, weight)")
        fields, weights = [], []
        for label, weight, *other in terms:
            pipeline = other[0] if other else self
            if not _same_codec(pipeline.vae, self.vae):
                raise UserError(
                    "the models of a composition work on latents of different codecs: they need the same one"
                )
            fields.append(pipeline.field([label] * count, guidance_scale=1.0, **options))
            weights.append(float(weight))
        if not plain_sum and sum(weights) != 1:
            fields.append(self.field([None] * count, guidance_scale=1.0, **options))
            weights.append(1 - sum(weights))
        return ComposedField(fields, weights, plain_sum=plain_sum)

    def start_noise(
        self, generators: Sequence[Generator | int], *, num_frames: int | None = None, size: Any = None
    ) -> Tensor:
        """Start latents (B, T, C, h, w): standard normal noise, one generator or seed for each sample."""
        frames, (height, width), codec = self.check_frames(num_frames), self.check_size(size), self.codec
        shape = (frames, codec.latent_channels, height // codec.downsampling, width // codec.downsampling)
        if len(generators) * frames * height * width > MOST_PIXELS:
            raise UserError(
                f"{len(generators)} samples of {frames} frames of {height}x{width} pixels do not fit into any memory "
                f"(more than {MOST_PIXELS:g} pixels): ask for fewer or smaller ones"
            )
        dtype = torch.promote_types(self.transformer.dtype, torch.float32)
        made = make_generators(len(generators), list(generators), None)
        return normal(shape, made, device=self._execution_device, dtype=dtype)

    def encode(self, clips: Any) -> Tensor:
        """Latents (B, T, C, h, w), the posterior's mean, of clips uint8 (B, T, H, W, 3)."""
        pixels = as_pixels(clips).to(self._execution_device)
        self.check_size(tuple(pixels.shape[-2:]))
        return self.codec.encode(pixels).to(torch.promote_types(self.transformer.dtype, torch.float32))

    def decode(self, latents: Tensor, output_type: str = "uint8", chunk: int = 64) -> Any:
        """Latents (B, T, C, h, w) as frames; output_type as of a call."""
        return latents if output_type == "latent" else _output(Codec(self.vae, chunk).decode(latents), output_type)

    def rule(
        self,
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
        """The sampler: the model's recommended one, with what is given here in its place.

        step_size "auto" needs the model's measured curvature, and depends on steps, guidance_scale and step_schedule,
        and on the weights of a `plain` sum of fields, which take the place of guidance.
        """
        automatic = step_size == "auto"
        given = {"step_size": None if automatic else step_size, "mu": mu, "temperature": temperature}
        rule = choose_sampler(self.config.sampler, sampler, {k: v for k, v in given.items() if v is not None})
        if not automatic:
            return rule
        if not isinstance(sampler, (str, type(None))):
            raise UserError('a sampler given as an object brings its own step_size: leave "auto" out')
        if self.config.curvature is None or self.decay is None:
            raise UserError(
                "step_size auto needs the field's largest curvature, which this model does not have: type "
                "python -m eqm_video curvature MODEL --write, or give a number"
            )
        kind, steps = sampler or self.config.sampler["kind"], steps or self.config.sampler["steps"]
        look_ahead = getattr(rule, "mu", 0.0)
        try:
            # On a falling schedule the steps add up to less, as fewer whole ones would.
            whole = max(1, round(sum(step_factors(step_schedule, steps))))
            measured, scale = self.config.curvature, self._scale(guidance_scale)
            size = auto_step(measured, kind, look_ahead, whole, self.decay, scale, plain=plain)
        except ValueError as error:
            raise UserError(str(error)) from error
        return replace(rule, step_size=size)

    def step_warning(
        self, rule: Sampler, guidance_scale: float | None = None, *, plain: Sequence[float] | None = None
    ) -> str | None:
        """What is wrong with a step size beyond the measured limit; None where nothing is, or nothing was measured.

        plain: the weights of a plain sum of fields, which take the place of guidance.
        """
        kind = next((kind for kind, sampler in SAMPLERS.items() if sampler is type(rule)), None)
        if self.config.curvature is None or kind not in ("gd", "nag", "langevin"):
            return None
        mu, scale = getattr(rule, "mu", 0.0), self._scale(guidance_scale)
        limit = step_limit(self.config.curvature, kind, mu, scale, plain=plain)
        if rule.step_size < limit:
            return None
        return (
            f"step_size {rule.step_size:g} is beyond {limit:.4g}, the limit measured for this model with {kind}: the "
            "descent overshoots and ends where no data are; use a smaller one, or auto"
        )

    def _scale(self, guidance_scale: float | None) -> float:
        return self.config.sampler["guidance_scale"] if guidance_scale is None else guidance_scale

    def check_size(self, size: int | Sequence[int] | None = None) -> tuple[int, int]:
        """(height, width) in pixels; UserError unless the codec's downsampling times the patch size divides them."""
        size = self.config.size if size is None else size
        if size is None:
            raise UserError("this model does not say what size it was trained on: give size (--size), in pixels")
        return fit_size(self.codec, self.transformer.config.patch_size, size)

    def check_frames(self, num_frames: int | None = None) -> int:
        """The number of frames; UserError where it is no number, or more than one for an image model."""
        frames = whole("frames", self.config.frames if num_frames is None else num_frames)
        if frames > 1 and not self.transformer.config.temporal:
            raise UserError(f"this is an image model (temporal: false), but {frames} frames are asked: give frames=1")
        return frames

    def _times(self, num_frames: int | None, fps: float | None) -> Tensor:
        """When the frames of a clip are, in reference frames: (T,)."""
        rate = self.config.fps if fps is None else fps
        return frame_times(self.check_frames(num_frames), rate, self.config.reference_fps)


def _same_codec(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two autoencoders have the same weights and scaling: only then do their latents mean the same."""
    if one is other:
        return True
    scales = ("scaling_factor", "shift_factor", "latent_channels")
    weights, others = one.state_dict(), other.state_dict()
    return (
        all(one.config.get(name) == other.config.get(name) for name in scales)
        and weights.keys() == others.keys()
        and all(torch.equal(weight.cpu(), others[name].cpu()) for name, weight in weights.items())
    )


def _output(pixels: Tensor, output_type: str) -> Any:
    """Pixels (B, T, 3, H, W) in [-1, 1] as the output type says."""
    if output_type in ("uint8", "pil"):
        array = to_uint8(pixels)
        return array if output_type == "uint8" else [[Image.fromarray(frame) for frame in clip] for clip in array]
    unit = pixels.float().add(1.0).div(2.0)
    return unit if output_type == "pt" else unit.movedim(2, -1).cpu().numpy()
