"""The one sampling loop: updates, evaluation counts, stopping, known frames, callbacks.

Legend: B clips, T frames, b clips that still move (b <= B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eqm_video.samplers.rules import Rule, State

Gradient = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], Any]

CHECK_EVERY = 16  # updates between two looks for non-finite latents: each look makes a GPU wait


class DivergenceError(ValueError):
    """The latents or the gradient became infinite or NaN."""


@dataclass(frozen=True)
class Descent:
    """What `descend` returns."""

    latents: Tensor  # as `start`
    nfe: Tensor  # (B,) int64: evaluations of the gradient that each clip took


def descend(
    gradient: Gradient,
    start: Tensor,
    rule: Rule,
    *,
    steps: int,
    known: Tensor | None = None,
    tolerance: float | None = None,
    callback: Callback | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Descent:
    """Walk down `gradient` from `start` by `steps` updates of `rule`.

    Args:
        gradient: latents -> gradient of the same shape; clips must not depend on each other. Optional methods:
            `select(indices)` gives the gradient of some clips of the batch it stands for (stopped clips then leave the
            batch; without it they are frozen and still cost time), `at_step(step)` gives the callable for one step.
        start: (B, T, ...) floating point, usually (B, T, C, H, W); (B, d) counts as one frame. Never modified.
        rule: such as `GradientDescent(step_size)` or `NAG(step_size, mu)`.
        steps: number of updates, >= 0.
        known: (B, T) bool, frames that stay as they are in `start`, bit for bit. A clip known as a whole takes no
            evaluation.
        tolerance: a clip stops before the update when the largest root mean square, over its unknown frames, of the
            gradient just evaluated is below this; that evaluation counts. None: all clips take all steps.
        callback: `callback(step, latents, gradient)` after each update, step = 0, 1, ...: the latents after it and the
            gradient that made it (0 on known frames), of the whole batch; a stopped clip shows its last ones. To be
            read, not written. Not called once no clip moves.
        generators: one for each clip, handed to rules with randomness.

    Gradients are not recorded through the walk unless `start.requires_grad`; the caller's grad mode stays as it is, so
    wrap the call in `torch.no_grad()` to spare the network's own graph at each evaluation.

    Raises:
        ValueError: a wrong argument, or a gradient of another shape.
        DivergenceError: non-finite latents or gradient, looked for every 16 updates, at the end, and (with a tolerance)
            at every evaluation.
    """
    known = _check_arguments(gradient, start, rule, steps, known, tolerance, generators)
    nfe = torch.zeros(start.shape[0], dtype=torch.long, device=start.device)
    moving = _Moving.all_of(gradient, start, rule, known, generators)
    resting = start  # latents of the clips that have stopped; rows of moving clips are out of date
    seen = torch.zeros_like(start)  # the last gradient of each clip, kept for the callback
    if known is not None:
        moving = moving.keep(~known.all(dim=1), resting)

    for step in range(steps):
        if moving.count == 0:
            break
        slope = moving.evaluate(rule, step, keep_graph=start.requires_grad)
        nfe[moving.rows] += 1
        if callback is not None:
            seen = moving.spread(slope, over=seen)
        if tolerance is not None:
            size = _largest_frame_rms(slope)
            _check_finite(size, moving.rows, rule, f"the gradient at step {step} of {steps}")
            if (stops := size < tolerance).any():
                resting = moving.spread(moving.latents, over=resting)
                moving, slope = moving.keep(~stops, resting), slope[~stops]
                if moving.count == 0:
                    break
        moving = moving.update(rule, slope)
        if (step + 1) % CHECK_EVERY == 0:
            _check_finite(moving.latents, moving.rows, rule, f"the latents after step {step} of {steps}")
        if callback is not None:
            callback(step, moving.spread(moving.latents, over=resting), seen)

    latents = moving.spread(moving.latents, over=resting)
    _check_finite(latents, torch.arange(len(latents)), rule, f"the latents after the last of {steps} steps")
    return Descent(latents=latents, nfe=nfe)


@dataclass(frozen=True)
class _Moving:
    """Everything that has a row for each clip that still moves."""

    gradient: Gradient
    rows: Tensor  # (b,) the places of these clips in the whole batch
    whole: int  # B
    latents: Tensor  # (b, T, ...)
    state: State
    known: Tensor | None  # (b, T, 1, ...)
    generators: list[torch.Generator] | None

    @classmethod
    def all_of(
        cls,
        gradient: Gradient,
        start: Tensor,
        rule: Rule,
        known: Tensor | None,
        generators: Sequence[torch.Generator] | None,
    ) -> _Moving:
        latents = start.clone()
        if known is not None:
            known = known.reshape(known.shape + (1,) * (start.ndim - 2))
        rows = torch.arange(start.shape[0], device=start.device)
        listed = None if generators is None else list(generators)
        return cls(gradient, rows, start.shape[0], latents, rule.start(latents), known, listed)

    @property
    def count(self) -> int:
        return self.rows.shape[0]

    def evaluate(self, rule: Rule, step: int, *, keep_graph: bool) -> Tensor:
        """The gradient (b, T, ...) where the rule wants it, 0 on known frames."""
        point = rule.point(self.latents, self.state)
        slope = _at_step(self.gradient, step)(point)
        if not isinstance(slope, Tensor) or slope.shape != point.shape:
            found = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
            raise ValueError(f"the gradient must keep the shape of the latents: {tuple(point.shape)} in, {found} out")
        slope = (slope if keep_graph else slope.detach()).to(point.dtype)
        return slope if self.known is None else slope.masked_fill(self.known, 0)

    def update(self, rule: Rule, slope: Tensor) -> _Moving:
        latents, state = rule.update(self.latents, slope, self.state, self.generators)
        if self.known is not None:  # a zero gradient is not enough for rules with randomness
            latents = torch.where(self.known, self.latents, latents)
        return replace(self, latents=latents, state=state)

    def keep(self, chosen: Tensor, resting: Tensor) -> _Moving:
        """Only the clips at which `chosen` (b,) is true; the others are at rest where `resting` (B, ...) says."""
        if bool(chosen.all()):
            return self
        indices = chosen.nonzero().squeeze(1)
        gradient = self.gradient if hasattr(self.gradient, "select") else _Frozen(self.gradient, self.rows, resting)
        if isinstance(gradient, _Frozen):
            gradient = replace(gradient, resting=resting)
        return _Moving(
            gradient.select(indices) if len(indices) else gradient,
            self.rows[indices],
            self.whole,
            self.latents[indices],
            {name: value[indices] for name, value in self.state.items()},
            None if self.known is None else self.known[indices],
            None if self.generators is None else [self.generators[index] for index in indices.tolist()],
        )

    def spread(self, values: Tensor, *, over: Tensor) -> Tensor:
        """Values (b, ...) of the moving clips put into their places of `over` (B, ...), which stays as it is."""
        return values if self.count == self.whole else over.index_copy(0, self.rows, values)


@dataclass(frozen=True)
class _Frozen:
    """Gives `select` to a gradient without it: the whole batch is evaluated, stopped clips where they rest."""

    gradient: Gradient
    rows: Tensor  # (b,) the places that are asked for
    resting: Tensor  # (B, ...)

    def __call__(self, latents: Tensor) -> Tensor:
        slope = self.gradient(self.resting.index_copy(0, self.rows, latents))
        return slope[self.rows]

    def select(self, indices: Tensor) -> _Frozen:
        return replace(self, rows=self.rows[indices])

    def at_step(self, step: int) -> _Frozen:
        return replace(self, gradient=_at_step(self.gradient, step))


def _at_step(gradient: Gradient, step: int) -> Gradient:
    return gradient.at_step(step) if hasattr(gradient, "at_step") else gradient


def _largest_frame_rms(slope: Tensor) -> Tensor:
    """(b, T, ...) -> (b,): the largest root mean square of a frame. Known frames are at 0 and never win."""
    squares = slope.to(torch.promote_types(slope.dtype, torch.float32)).square()
    frames = squares.flatten(2).mean(dim=2) if slope.ndim > 2 else squares.mean(dim=1, keepdim=True)
    return frames.amax(dim=1).sqrt()


def _check_finite(values: Tensor, rows: Tensor, rule: Rule, what: str) -> None:
    """Raise if `values` (b, ...), of the clips at the places `rows` of the whole batch, are not all finite."""
    finite = values.isfinite()
    if not bool(finite.all()):
        clips = rows.to(values.device)[~finite.reshape(len(rows), -1).all(dim=1)].tolist()
        raise DivergenceError(
            f"the descent diverged: infinite or NaN values in {what}, in {len(clips)} clips (the first is clip "
            f"{clips[0]}), with {rule!r}; use a step_size smaller than {getattr(rule, 'step_size', 'this one')}"
        )


def _check_arguments(
    gradient: Gradient,
    start: Tensor,
    rule: Rule,
    steps: int,
    known: Tensor | None,
    tolerance: float | None,
    generators: Sequence[torch.Generator] | None,
) -> Tensor | None:
    """Raise a ValueError for the first wrong argument; return `known` on the latents' device."""
    if not callable(gradient):
        raise ValueError(f"gradient must be a callable latents -> gradient, got {type(gradient).__name__}")
    if not isinstance(start, Tensor) or not start.is_floating_point() or start.ndim < 2:
        found = f"{start.dtype} {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"start must be a floating-point tensor (B, T, C, H, W), got {found}")
    if not bool(start.isfinite().all()):
        raise ValueError("start holds infinite or NaN values")
    if not all(hasattr(rule, name) for name in ("start", "point", "update")):
        raise ValueError(f"rule must be such as GradientDescent(step_size=0.003), got {rule!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; it must be an integer >= 0, the number of updates")
    if tolerance is not None:
        is_number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not is_number or not math.isfinite(tolerance) or tolerance <= 0:
            raise ValueError(f"tolerance is {tolerance!r}; it must be a number above 0, or None to take all steps")
    if generators is not None and len(generators) != start.shape[0]:
        raise ValueError(f"{len(generators)} generators for {start.shape[0]} clips; give one for each clip")
    if known is None:
        return None
    if not isinstance(known, Tensor) or known.dtype != torch.bool or start.ndim < 3 or known.shape != start.shape[:2]:
        found = f"{known.dtype} {tuple(known.shape)}" if isinstance(known, Tensor) else type(known).__name__
        raise ValueError(f"known must be a bool tensor (B, T) = {tuple(start.shape[:2])}, got {found}")
    return known.to(start.device)
