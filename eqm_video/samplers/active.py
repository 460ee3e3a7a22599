"""The active clips of a batch. A clip that stops is dropped from every tensor, so it costs no more compute.

Legend: B clips, T frames, b active clips (b <= B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqm_video.core.field import GradientField, Sight, observe
from eqm_video.samplers.checks import Gradient
from eqm_video.samplers.rules import State
from eqm_video.system.devices import send


def field_at(gradient: Gradient, step: int, gamma: float | None, condition: float | Tensor | None) -> Gradient:
    """The field at a gamma, if `gamma` is not None and the gradient has `at_gamma`; else the field at a step.

    condition: the argument of `at_gamma`, gamma as a number or (b, T). A gradient with `at_progress` is first taken to
    this progress, so that it need not read the progress off a tensor. A gradient with neither method is returned.
    """
    if isinstance(gradient, Frozen):
        return gradient.at(step, gamma, condition)
    if gamma is not None and hasattr(gradient, "at_gamma"):
        moved = gradient.at_progress(gamma) if hasattr(gradient, "at_progress") else gradient
        return moved.at_gamma(condition)
    return gradient.at_step(step) if hasattr(gradient, "at_step") else gradient


def _check_shape(slope: object, point: Tensor) -> None:
    if not isinstance(slope, Tensor) or slope.shape != point.shape:
        shape = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(f"the gradient must keep the shape of the latents: {tuple(point.shape)} in, {shape} out")


def frame_rms(slope: Tensor) -> Tensor:
    """The root mean square of each frame: (b, T, ...) -> (b, T), at least float32; (b, d) counts as a single frame."""
    squares = slope.to(torch.promote_types(slope.dtype, torch.float32)).square()
    return (squares.flatten(2).mean(dim=2) if slope.ndim > 2 else squares.mean(dim=1, keepdim=True)).sqrt()


def _spread_over(frames: Tensor, values: Tensor) -> Tensor:
    """A mask (b, T) as (b, T, 1, ...), to broadcast over values (b, T, ...)."""
    return frames.reshape(frames.shape + (1,) * (values.ndim - 2))


def _reset(state: State, frames: Tensor) -> State:
    """The state with 0 on `frames` (b, T) bool; tensors without a frame dimension stay as they are."""
    return {
        name: value.masked_fill(_spread_over(frames, value), 0) if value.shape[:2] == frames.shape else value
        for name, value in state.items()
    }


@dataclass(frozen=True)
class Active:
    """The active clips: every tensor and list that has a row for each of them."""

    gradient: Gradient
    rows: Tensor  # (b,) the positions of these clips in the whole batch
    places: Tensor  # (b,) the same on the CPU, to be read without waiting for the device
    whole: int  # B
    latents: Tensor  # (b, T, ...)
    state: State  # tensors (b, ...)
    known: Tensor | None  # (b, T, 1, ...) bool, known frames and frames at rest
    generators: list[torch.Generator] | None
    paused: Tensor | None = None  # (b, T, 1, ...) bool, frames that do not move at this step

    @classmethod
    def all_of(
        cls,
        gradient: Gradient,
        start: Tensor,
        known: Tensor | None,
        generators: Sequence[torch.Generator] | None,
    ) -> Active:
        """All clips of `start` (B, T, ...), except those whose frames are all `known` (B, T)."""
        rows, places = torch.arange(start.shape[0], device=start.device), torch.arange(start.shape[0])
        listed = None if generators is None else list(generators)
        frames = None if known is None else known.reshape(known.shape + (1,) * (start.ndim - 2))
        active = cls(gradient, rows, places, start.shape[0], start.clone(), {}, frames, listed)
        return active if known is None else active.keep(~known.all(dim=1), start)

    @property
    def count(self) -> int:
        """The number of active clips, b."""
        return self.rows.shape[0]

    @property
    def fixed(self) -> Tensor | None:
        """Mask (b, T, 1, ...) of the frames that do not move now, known or paused; None if every frame moves."""
        if self.known is None or self.paused is None:
            return self.paused if self.known is None else self.known
        return self.known | self.paused

    @property
    def unknown(self) -> Tensor:
        """Mask (b, T) of the frames that are not known, paused or not."""
        return self._outside(self.known)

    @property
    def moving(self) -> Tensor:
        """Mask (b, T) of the frames that move at this step."""
        return self._outside(self.fixed)

    def _outside(self, frames: Tensor | None) -> Tensor:
        count = self.latents.shape[1] if self.latents.ndim > 2 else 1
        if frames is None:
            return torch.ones(self.count, count, dtype=torch.bool, device=self.latents.device)
        return ~frames.reshape(self.count, count)

    def evaluate(
        self,
        point: Tensor,
        *,
        step: int,
        gamma: float | None = None,
        levels: Tensor | None = None,
        keep_graph: bool = False,
    ) -> Tensor:
        """The gradient (b, T, ...) at `point`, in its dtype, 0 on frames that do not move.

        `gamma` goes to a field that has `at_gamma`: as a number, or with known frames as (b, T), 1 on those. `levels`
        (b, T) is the gamma of every frame, and `gamma` then only the progress.
        """
        slope = self._field(point, step, gamma, levels)(point)
        _check_shape(slope, point)
        return self.hide((slope if keep_graph else slope.detach()).to(point.dtype))

    def observe(
        self, point: Tensor, *, step: int, gamma: float, levels: Tensor, keep_graph: bool = False
    ) -> tuple[Tensor, Sight]:
        """The gradient (b, T, ...) as `evaluate` gives it, and the sight of the same evaluation, without a graph."""
        slope, sight = observe(self._field(point, step, gamma, levels), point)
        _check_shape(slope, point)
        sight = replace(sight, plain=sight.plain.detach())
        return self.hide((slope if keep_graph else slope.detach()).to(point.dtype)), sight

    def _field(self, point: Tensor, step: int, gamma: float | None, levels: Tensor | None) -> Gradient:
        """The field for an evaluation at `point` (b, T, ...); the other arguments are those of `evaluate`."""
        condition: float | Tensor | None = gamma
        if levels is not None:
            condition = levels if point.ndim > 2 else levels[:, 0]  # a point has no frames
        elif gamma is not None and self.known is not None:
            dtype = torch.promote_types(point.dtype, torch.float32)
            condition = torch.full(point.shape[:2], gamma, dtype=dtype, device=point.device).masked_fill(
                ~self.unknown, 1.0
            )
        return field_at(self.gradient, step, gamma, condition)

    def hide(self, slope: Tensor) -> Tensor:
        """The gradient (b, T, ...) with 0 on frames that do not move."""
        return slope if self.fixed is None else slope.masked_fill(self.fixed, 0)

    def updated(self, latents: Tensor, state: State | None = None) -> Active:
        """The clips with new latents (b, T, ...) on the frames that move, and a new state."""
        if self.fixed is not None:  # a zero gradient is not enough: samplers may add noise, and -0.0 may become 0.0
            latents = torch.where(self.fixed, self.latents, latents)
        state = self.state if state is None else state
        if self.paused is not None:  # Adam counts updates: those of a pause must not count for the frame
            state = _reset(state, self.paused.reshape(self.paused.shape[:2]))
        return replace(self, latents=latents, state=state)

    def rest(self, frames: Tensor) -> Active:
        """The clips with `frames` (b, T) at rest: treated as known from now on."""
        frames = _spread_over(frames, self.latents)
        return replace(self, known=frames if self.known is None else self.known | frames)

    def pause(self, frames: Tensor) -> Active:
        """The clips with exactly `frames` (b, T) paused: they do not move, and lose their momentum."""
        frames = send(frames, self.latents.device)
        return replace(self, paused=_spread_over(frames, self.latents), state=_reset(self.state, frames))

    def keep(self, chosen: Tensor, resting: Tensor) -> Active:
        """Only the clips where `chosen` (b,) bool is true. `resting` (B, ...) has the latents of the stopped clips."""
        chosen = chosen.cpu()
        if bool(chosen.all()):
            return self
        chosen_places = chosen.nonzero().squeeze(1)
        indices = send(chosen_places, self.latents.device)
        gradient = self.gradient if hasattr(self.gradient, "select") else Frozen(self.gradient, self.rows, resting)
        if isinstance(gradient, Frozen):
            gradient = replace(gradient, resting=resting)
        return Active(
            gradient.select(indices) if len(indices) else gradient,
            self.rows[indices],
            self.places[chosen_places],
            self.whole,
            self.latents[indices],
            {name: value[indices] for name, value in self.state.items()},
            None if self.known is None else self.known[indices],
            None if self.generators is None else [self.generators[index] for index in chosen_places.tolist()],
            None if self.paused is None else self.paused[indices],
        )

    def spread(self, values: Tensor, *, over: Tensor) -> Tensor:
        """A copy of `over` (B, ...) with the values (b, ...) of the active clips in their rows."""
        return values if self.count == self.whole else over.index_copy(0, self.rows, values)


@dataclass(frozen=True)
class Frozen(GradientField):
    """A gradient without `select`, restricted to some clips: it is evaluated on the whole batch, and rows are taken."""

    gradient: Gradient
    rows: Tensor  # (b,) the positions of the selected clips in the batch
    resting: Tensor  # (B, ...) latents of the stopped clips, to fill the batch

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The gradient (b, ...) of the selected clips, and its sight."""
        point = self.resting.index_copy(0, self.rows, latents)
        slope, sight = observe(self.gradient, point)
        _check_shape(slope, point)
        levels = () if sight.level is None else (sight.level[self.rows], sight.spread[self.rows])
        return slope[self.rows], Sight(sight.plain[self.rows], *levels)

    def select(self, indices: Tensor) -> Frozen:
        """The gradient of the selected clips at `indices`."""
        return replace(self, rows=self.rows[indices])

    def at(self, step: int, gamma: float | None, condition: float | Tensor | None) -> Frozen:
        """The gradient at a step or gamma (see `field_at`), for the same clips."""
        if isinstance(condition, Tensor):  # the gradient of stopped clips is discarded: any gamma will do
            condition = condition.new_ones(self.resting.shape[:2]).index_copy(0, self.rows, condition)
        return replace(self, gradient=field_at(self.gradient, step, gamma, condition))
