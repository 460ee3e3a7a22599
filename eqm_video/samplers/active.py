"""The clips of a batch that still move: each has a row, and takes along its part of everything when others stop.

Legend: B clips, T frames, b clips that still move (b <= B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqm_video.samplers.checks import Gradient
from eqm_video.samplers.rules import State
from eqm_video.system.devices import send


def field_at(gradient: Gradient, step: int, gamma: float | None, told: float | Tensor | None) -> Gradient:
    """The field of one gamma, where that is given and the gradient offers `at_gamma`, else of one step (`at_step`).

    told: gamma as `at_gamma` is told it. A gradient with `at_progress` is asked for its field at this progress first,
    which then need not read the progress off a tensor.
    """
    if isinstance(gradient, Frozen):
        return gradient.at(step, gamma, told)
    if gamma is not None and hasattr(gradient, "at_gamma"):
        here = gradient.at_progress(gamma) if hasattr(gradient, "at_progress") else gradient
        return here.at_gamma(told)
    return gradient.at_step(step) if hasattr(gradient, "at_step") else gradient


def _check_shape(slope: object, point: Tensor) -> None:
    if not isinstance(slope, Tensor) or slope.shape != point.shape:
        found = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(f"the gradient must keep the shape of the latents: {tuple(point.shape)} in, {found} out")


def frame_rms(slope: Tensor) -> Tensor:
    """(b, T, ...) -> (b, T), at least float32: the root mean square of each frame; (b, d) counts as one frame."""
    squares = slope.to(torch.promote_types(slope.dtype, torch.float32)).square()
    return (squares.flatten(2).mean(dim=2) if slope.ndim > 2 else squares.mean(dim=1, keepdim=True)).sqrt()


def _spread_over(frames: Tensor, values: Tensor) -> Tensor:
    """(b, T) as (b, T, 1, ...), to stand beside values (b, T, ...)."""
    return frames.reshape(frames.shape + (1,) * (values.ndim - 2))


def _forget(state: State, frames: Tensor) -> State:
    """The state with 0 on `frames` (b, T) bool, in what belongs to frames."""
    return {
        name: value.masked_fill(_spread_over(frames, value), 0) if value.shape[:2] == frames.shape else value
        for name, value in state.items()
    }


@dataclass(frozen=True)
class Moving:
    """Everything that has a row for each clip that still moves."""

    gradient: Gradient
    rows: Tensor  # (b,) the places of these clips in the whole batch
    places: Tensor  # (b,) the same on the CPU, to be read without waiting for the device
    whole: int  # B
    latents: Tensor  # (b, T, ...)
    state: State  # tensors (b, ...)
    known: Tensor | None  # (b, T, 1, ...) frames that do not move
    generators: list[torch.Generator] | None
    waiting: Tensor | None = None  # (b, T, 1, ...) frames that do not move at this step

    @classmethod
    def all_of(
        cls,
        gradient: Gradient,
        start: Tensor,
        known: Tensor | None,
        generators: Sequence[torch.Generator] | None,
    ) -> Moving:
        """All clips of `start` (B, T, ...), except those of which `known` (B, T) covers every frame."""
        rows, places = torch.arange(start.shape[0], device=start.device), torch.arange(start.shape[0])
        listed = None if generators is None else list(generators)
        frames = None if known is None else known.reshape(known.shape + (1,) * (start.ndim - 2))
        moving = cls(gradient, rows, places, start.shape[0], start.clone(), {}, frames, listed)
        return moving if known is None else moving.keep(~known.all(dim=1), start)

    @property
    def count(self) -> int:
        """b, the number of clips that move."""
        return self.rows.shape[0]

    @property
    def still(self) -> Tensor | None:
        """(b, T, 1, ...) frames that do not move now: known, or waiting for their turn; None where all move."""
        if self.known is None or self.waiting is None:
            return self.waiting if self.known is None else self.known
        return self.known | self.waiting

    @property
    def unknown(self) -> Tensor:
        """(b, T) bool: the frames that are not known, whether they move at this step or not."""
        return self._others(self.known)

    @property
    def walking(self) -> Tensor:
        """(b, T) bool: the frames that move now."""
        return self._others(self.still)

    def _others(self, frames: Tensor | None) -> Tensor:
        count = self.latents.shape[1] if self.latents.ndim > 2 else 1
        if frames is None:
            return torch.ones(self.count, count, dtype=torch.bool, device=self.latents.device)
        return ~frames.reshape(self.count, count)

    def evaluate(self, point: Tensor, *, step: int, gamma: float | None = None, keep_graph: bool = False) -> Tensor:
        """The gradient (b, T, ...) at `point`, in its dtype, 0 on frames that do not move.

        A field that offers `at_gamma` is told `gamma`; where frames are known, as a tensor (b, T) that is 1 on those.
        """
        told: float | Tensor | None = gamma
        if gamma is not None and self.known is not None:
            dtype = torch.promote_types(point.dtype, torch.float32)
            told = torch.full(point.shape[:2], gamma, dtype=dtype, device=point.device).masked_fill(~self.unknown, 1.0)
        slope = field_at(self.gradient, step, gamma, told)(point)
        _check_shape(slope, point)
        return self.hide((slope if keep_graph else slope.detach()).to(point.dtype))

    def hide(self, slope: Tensor) -> Tensor:
        """The gradient (b, T, ...) with 0 on frames that do not move."""
        return slope if self.still is None else slope.masked_fill(self.still, 0)

    def move(self, latents: Tensor, state: State | None = None) -> Moving:
        """With new latents (b, T, ...), taken over by the frames that move, and a new state."""
        if self.still is not None:  # a zero gradient is not enough for samplers with randomness, nor for -0.0
            latents = torch.where(self.still, self.latents, latents)
        state = self.state if state is None else state
        if self.waiting is not None:  # rules count updates: those during which a frame waits are not its own
            state = _forget(state, self.waiting.reshape(self.waiting.shape[:2]))
        return replace(self, latents=latents, state=state)

    def rest(self, frames: Tensor) -> Moving:
        """With `frames` (b, T) known too from now on."""
        frames = _spread_over(frames, self.latents)
        return replace(self, known=frames if self.known is None else self.known | frames)

    def wait(self, frames: Tensor) -> Moving:
        """With `frames` (b, T), and no others, that wait: they stand still for now, without any momentum."""
        frames = send(frames, self.latents.device)
        return replace(self, waiting=_spread_over(frames, self.latents), state=_forget(self.state, frames))

    def keep(self, chosen: Tensor, resting: Tensor) -> Moving:
        """Only the clips at which `chosen` (b,) is true; the others are at rest where `resting` (B, ...) says."""
        chosen = chosen.cpu()
        if bool(chosen.all()):
            return self
        here = chosen.nonzero().squeeze(1)
        indices = send(here, self.latents.device)
        gradient = self.gradient if hasattr(self.gradient, "select") else Frozen(self.gradient, self.rows, resting)
        if isinstance(gradient, Frozen):
            gradient = replace(gradient, resting=resting)
        return Moving(
            gradient.select(indices) if len(indices) else gradient,
            self.rows[indices],
            self.places[here],
            self.whole,
            self.latents[indices],
            {name: value[indices] for name, value in self.state.items()},
            None if self.known is None else self.known[indices],
            None if self.generators is None else [self.generators[index] for index in here.tolist()],
            None if self.waiting is None else self.waiting[indices],
        )

    def spread(self, values: Tensor, *, over: Tensor) -> Tensor:
        """Values (b, ...) of the moving clips put into their places of `over` (B, ...), which stays as it is."""
        return values if self.count == self.whole else over.index_copy(0, self.rows, values)


@dataclass(frozen=True)
class Frozen:
    """Gives `select` to a gradient without it: the whole batch is evaluated, stopped clips where they rest."""

    gradient: Gradient
    rows: Tensor  # (b,) the places that are asked for
    resting: Tensor  # (B, ...)

    def __call__(self, latents: Tensor) -> Tensor:
        """The gradient (b, ...) of the clips asked for, at latents (b, ...)."""
        point = self.resting.index_copy(0, self.rows, latents)
        slope = self.gradient(point)
        _check_shape(slope, point)
        return slope[self.rows]

    def select(self, indices: Tensor) -> Frozen:
        """Fewer of the clips asked for."""
        return replace(self, rows=self.rows[indices])

    def at(self, step: int, gamma: float | None, told: float | Tensor | None) -> Frozen:
        """As `field_at`, of the whole batch."""
        if isinstance(told, Tensor):  # stopped clips are evaluated only to be thrown away: any gamma will do
            told = told.new_ones(self.resting.shape[:2]).index_copy(0, self.rows, told)
        return replace(self, gradient=field_at(self.gradient, step, gamma, told))
