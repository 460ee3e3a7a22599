"""Guidance: a weighted sum of a conditional and an unconditional field.

Legend: B clips, T frames, C channels, H W height and width.
The condition is the label (classifier-free guidance, f_null + s * (f_label - f_null)) or the known frames (history
guidance, f_without + s * (f_with - f_without)). The two fields have the weights 1 - s and s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from eqm_video.core.energy import Field
from eqm_video.core.field import FieldAround, GradientField, Sight, for_descent

_FIELD = "the field itself"  # asks a network for its gradient; any other value is an energy


def weighted_sum(gradients: Sequence[Tensor], weights: Sequence[float], *, plain_sum: bool = False) -> Tensor:
    """Sum of weight * gradient over gradients of equal shape.

    The weights must sum to 1: near data that all fields share, the sum is then as strong as each field alone. The
    paper's composition adds two fields with weights 1 and 1; `plain_sum=True` allows any sum of weights.

    Raises:
        ValueError: no gradients, a different number of weights, unequal shapes, or weights that do not sum to 1.
    """
    if len(gradients) == 0 or len(gradients) != len(weights):
        raise ValueError(f"{len(gradients)} gradients and {len(weights)} weights; give one weight for each gradient")
    shapes = {tuple(gradient.shape) for gradient in gradients}
    if len(shapes) != 1:
        raise ValueError(f"gradients of different shapes cannot be added: {sorted(shapes)}")
    total, size = sum(weights), sum(abs(weight) for weight in weights)
    if not math.isfinite(total) or (not plain_sum and abs(total - 1) > 1e-6 * max(size, 1.0)):
        raise ValueError(f"weights {list(weights)} sum to {total:g}; they must sum to 1 (or type plain_sum=True)")
    result = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        result = result + weight * gradient
    return result


@dataclass(eq=False)
class GuidedField(GradientField):
    """A network with its labels and guidance, seen as a gradient: latents -> (B, T, C, H, W).

    Every evaluation is a single network call: on the batch for guidance 1 (labels only) and 0 (null label only), else
    on the doubled batch (labels first, null label second). `forwards` counts these calls over all copies.
    """

    # network(latents, labels, times=times), with gamma=gamma too unless that is None, has a result with `.sample`.
    network: Callable[..., Any]
    labels: Tensor | None  # (B,) integers, or None for the null label everywhere
    _: KW_ONLY
    guidance_scale: float = 1.0  # s in f_null + s * (f_label - f_null), any finite number
    null_label: int  # the label that means "no label"
    times: Tensor | None = None  # (B, T) real-valued frame times, or None for the network's default
    # Guide only the first `channels` channels; the others are the labelled field's. 3 reproduces the reference's
    # ImageNet sampling; None (all) is right for everything else.
    channels: int | None = None
    gamma: float | Tensor | None = None  # the input of a network that is conditioned on it: a number, or (B, T)
    # (first, last), the part of the descent that is guided, as fractions of its steps (or of the time of an ODE);
    # outside it the labelled field acts alone. Guidance moves the points of rest away from the data. Early guidance,
    # (0, 0.5), chooses the class and leaves the end of the descent to the learned field.
    interval: tuple[float, float] | None = None
    # Scale each frame of the guided field to the norm of the labelled one: at rest exactly where the labelled field is.
    match_norm: bool = False

    def __post_init__(self) -> None:
        _check_guidance(self.labels, self.guidance_scale, self.null_label, self.times, self.channels)
        _check_interval(self.interval)
        self.guidance_scale = float(self.guidance_scale)
        # A Field decides whether its network's raw output is a gradient, and whether gamma is an input of the network.
        if hasattr(self.network, "config") and not isinstance(self.network, Field):
            self.network = Field(self.network)
        self.readout: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None  # hidden tokens -> levels, deviations
        self._calls = [0]  # a list, so that copies share it
        self._kept: dict[str, dict[Any, Any]] | None = None  # in a descent: the network's, by the labels of the batch

    @property
    def forwards(self) -> int:
        """Network calls so far, of this field and of every copy made from it."""
        return self._calls[0]

    def select(self, indices: Tensor) -> GuidedField:
        """The field of the clips at `indices` (1-D integers): labels, times and gamma shrink, the count is shared."""
        chosen = {name: getattr(self, name) for name in ("labels", "times", "gamma")}
        for name, value in chosen.items():
            if isinstance(value, Tensor) and value.ndim:  # gamma may be a number for all clips
                chosen[name] = value[indices.to(value.device)]
        return self.changed(**chosen, _kept=None if self._kept is None else {})

    def for_descent(self) -> GuidedField:
        """The field for a single descent: a network keeps what depends on the labels and times of the batch alone."""
        return self.changed(_kept={} if isinstance(self.network, Field) else None)

    @property
    def settled(self) -> bool:
        """Whether the field is the same in the whole descent."""
        return self.interval is None

    def at_progress(self, progress: float) -> GuidedField:
        """The field at a point of the descent, 0 (start) to 1 (end): unguided outside the guidance interval."""
        if self.settled:
            return self
        first, last = self.interval
        guided = first <= progress < last or (last == 1 and progress >= first)  # solvers evaluate at 1 too
        return self.changed(interval=None, guidance_scale=self.guidance_scale if guided else 1.0)

    def at_gamma(self, gamma: float | Tensor) -> GuidedField:
        """The field at a solver's time, both gamma and progress: a number, or (B, T) with 1 on known frames."""
        return _at_time(self, gamma).tell(gamma)

    def tell(self, gamma: float | Tensor) -> GuidedField:
        """The field with its network conditioned on `gamma`: a number for all frames, or (B, T)."""
        return self.changed(gamma=gamma)

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The guided field at latents (B, T, C, H, W), and the labelled one, which guidance has not changed."""
        self._check_latents(latents)
        hidden: list[Tensor] = []

        def read(output: Any) -> Tensor:
            if self.readout is not None:
                hidden.append(output.hidden[: len(latents)])
            return output.sample

        labelled, unlabelled = self._two(latents, read)
        sight = Sight(labelled, *(self.readout(hidden[0]) if hidden else ()))
        return (labelled if unlabelled is None else self._guided(labelled, unlabelled)), sight

    def _guided(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """The guided field of the two fields, all (B, T, C, H, W)."""
        guided = self._guide(labelled, unlabelled)
        if self.match_norm:
            guided = guided * (_frame_norms(labelled) / _frame_norms(guided).clamp(min=1e-12))
        if self.channels is None:
            return guided
        return torch.cat([guided[:, :, : self.channels], labelled[:, :, self.channels :]], dim=2)

    def energies(self, latents: Tensor, energy: str | None = None) -> Tensor:
        """Energy of each frame (B, T): the energies of the two fields, with the weights of guidance.

        `energy` is "dot" or "l2", or None for the network's own; ValueError if it has none. The network must be an
        `energy.Field`.
        """
        self._check_latents(latents)
        labelled, unlabelled = self._two(latents, lambda values: values, energy)
        return labelled if unlabelled is None else self._guide(labelled, unlabelled)

    def _guide(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        return weighted_sum([unlabelled, labelled], [1 - self.guidance_scale, self.guidance_scale])

    def _two(
        self, latents: Tensor, read: Callable[[Any], Tensor], energy: str | None = _FIELD
    ) -> tuple[Tensor, Tensor | None]:
        """`read` of the network's output with the labels and with the null label; None for a part with weight 0."""
        batch = latents.shape[0]
        null = torch.full((batch,), self.null_label, dtype=torch.long, device=latents.device)
        labels = null if self.labels is None else self.labels.to(latents.device)
        if self.labels is None or self.guidance_scale == 1:
            return read(self._evaluate(latents, labels, self.times, self._gammas(latents), energy, "labels")), None
        if self.guidance_scale == 0 and self.channels is None and not self.match_norm:
            return read(self._evaluate(latents, null, self.times, self._gammas(latents), energy, "null")), None
        times, gamma = (
            None if values is None else torch.cat([values, values]) for values in (self.times, self._gammas(latents))
        )
        pair, names = torch.cat([latents, latents]), torch.cat([labels, null])
        both = read(self._evaluate(pair, names, times, gamma, energy, "both"))
        return both[:batch], both[batch:]

    def _gammas(self, latents: Tensor) -> Tensor | None:
        """The network's gamma input as (B, T), in the latents' precision or float32 if that is finer."""
        if self.gamma is None:
            return None
        exact = torch.promote_types(latents.dtype, torch.float32)
        if not isinstance(self.gamma, Tensor):  # filled on the device: copying a number to it would wait
            return torch.full(latents.shape[:2], float(self.gamma), dtype=exact, device=latents.device)
        return self.gamma.to(latents.device, exact).expand(latents.shape[:2])

    def _evaluate(
        self,
        latents: Tensor,
        labels: Tensor,
        times: Tensor | None,
        gamma: Tensor | None,
        energy: str | None,
        batch: str,
    ) -> Any:
        self._calls[0] += 1
        condition: dict[str, Any] = {} if gamma is None else {"gamma": gamma}
        if energy == _FIELD:
            if self._kept is not None:
                condition["kept"] = self._kept.setdefault(batch, {})
            return self.network(latents, labels, times=times, **condition)
        return self.network.energies(latents, labels, times=times, energy=energy, **condition)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; they must be (B, T, C, H, W)")
        batch, frames, channels = latents.shape[:3]
        if self.labels is not None and self.labels.shape[0] != batch:
            raise ValueError(f"{batch} clips but {self.labels.shape[0]} labels; give one label for each clip")
        if self.times is not None and tuple(self.times.shape) != (batch, frames):
            raise ValueError(f"times have shape {tuple(self.times.shape)}; they must be (B, T) = {(batch, frames)}")
        if isinstance(self.gamma, Tensor) and self.gamma.ndim and tuple(self.gamma.shape) != (batch, frames):
            raise ValueError(f"gamma has shape {tuple(self.gamma.shape)}; it must be (B, T) = {(batch, frames)}")
        if self.channels is not None and self.channels > channels:
            raise ValueError(f"channels={self.channels} are to be guided, but the latents have {channels}")


@dataclass(eq=False)
class HistoryField(FieldAround):
    """A field guided by the known frames: f_without + s * (f_with - f_without).

    f_without is the same field with noise, at gamma 0, in place of the known frames. A network trained with a gamma for
    each frame gets no information from such frames (history guidance in diffusion forcing, arXiv 2502.06764). s = 1 is
    the field itself; s above 1 follows the known frames more closely.
    """

    field: GradientField  # a `GuidedField` or a `ComposedField` of B clips
    known: Tensor  # (B, T) bool, the known frames; the values of the sum on them have no meaning
    noise: Tensor  # (B, T, C, H, W) standard normal noise for their places, the same at every evaluation
    scale: float  # s, any finite number

    def __post_init__(self) -> None:
        known, noise, scale = self.known, self.noise, self.scale
        if not isinstance(known, Tensor) or known.dtype != torch.bool or known.shape != noise.shape[:2]:
            shape = tuple(known.shape) if isinstance(known, Tensor) else known
            raise ValueError(f"known is {shape!r}; it must be a bool tensor (B, T) = {tuple(noise.shape[:2])}")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise ValueError(f"history guidance is {scale!r}; it must be a finite number (1 is the field itself)")
        self.known, self.scale = known.to(noise.device), float(scale)
        # The field without the known frames. It differs in the gamma input, if there is one.
        self.unconditional = self.field

    def select(self, indices: Tensor) -> HistoryField:
        """The field of the clips at `indices` (1-D integers)."""
        field, unconditional = self.field.select(indices), self.unconditional.select(indices)
        known, noise = (each[indices.to(each.device)] for each in (self.known, self.noise))
        return self.changed(field=field, unconditional=unconditional, known=known, noise=noise)

    def for_descent(self) -> HistoryField:
        """The field for a single descent."""
        return self.changed(field=for_descent(self.field), unconditional=for_descent(self.unconditional))

    def at_progress(self, progress: float) -> HistoryField:
        """The field at a point of the descent, 0 (start) to 1 (end)."""
        field, unconditional = self.field.at_progress(progress), self.unconditional.at_progress(progress)
        return self.changed(field=field, unconditional=unconditional)

    def at_gamma(self, gamma: float | Tensor) -> HistoryField:
        """The field at a solver's time, a number or (B, T): the progress, and the gamma of both networks."""
        return _at_time(self, gamma).tell(gamma)

    def tell(self, gamma: float | Tensor) -> HistoryField:
        """The field of a network conditioned on gamma, at this gamma of the frames that are not known.

        gamma: a number, or (B, T). Known frames have gamma 1, and 0 where noise stands in their place.
        """
        if not isinstance(gamma, Tensor):
            gamma = torch.full(self.known.shape, gamma, device=self.known.device)
        seen, hidden = gamma.masked_fill(self.known, 1.0), gamma.masked_fill(self.known, 0.0)
        return self.changed(field=self.field.tell(seen), unconditional=self.unconditional.tell(hidden))

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The guided field at latents (B, T, C, H, W), and the one with the known frames."""
        conditional, sight = self.field.observed(latents)
        if self.scale == 1:
            return conditional, sight
        hidden = self.known.reshape(self.known.shape + (1,) * (latents.ndim - 2))
        unconditional = self.unconditional(torch.where(hidden, self.noise.to(latents.dtype), latents))
        return weighted_sum([unconditional, conditional], [1 - self.scale, self.scale]), sight


def _at_time(field: GradientField, gamma: float | Tensor) -> GradientField:
    """The field at the progress of a solver's time. A tensor is read, which waits for the device, only if needed."""
    if field.settled:
        return field
    return field.at_progress(float(gamma.min() if isinstance(gamma, Tensor) else gamma))


def _frame_norms(field: Tensor) -> Tensor:
    """Euclidean norm of each frame: (B, T, C, H, W) -> (B, T, 1, 1, 1)."""
    return field.square().sum(dim=(2, 3, 4), keepdim=True).sqrt()


def _check_interval(interval: object) -> None:
    if interval is None:
        return
    numbers = isinstance(interval, (tuple, list)) and len(interval) == 2
    if (
        not numbers
        or not all(isinstance(end, (int, float)) for end in interval)
        or not 0 <= interval[0] < interval[1] <= 1
    ):
        raise ValueError(
            f"the guidance interval is {interval!r}; it must be (first, last) with 0 <= first < last <= 1, the guided "
            "part of the descent, such as (0, 0.5)"
        )


def _check_guidance(
    labels: Tensor | None, guidance_scale: float, null_label: int, times: Tensor | None, channels: int | None
) -> None:
    if labels is not None and (not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point()):
        raise ValueError(f"labels must be a tensor (B,) of integers or None, got {labels!r}")
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; it must be a number (1 is the labelled field itself)")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; it must be finite")
    if isinstance(null_label, bool) or not isinstance(null_label, int) or null_label < 0:
        raise ValueError(f"null_label is {null_label!r}; it must be an integer >= 0 (the network's number of labels)")
    if times is not None and (not isinstance(times, Tensor) or times.ndim != 2):
        raise ValueError(f"times must be a tensor (B, T) or None, got {times!r}")
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise ValueError(f"channels is {channels!r}; it must be an integer >= 1, or None to guide all channels")
