"""The one loop of the update rules: evaluation counts, stopping, known frames, schedules, callbacks.

Legend: B clips, T frames, b clips that still move (b <= B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqm_video.samplers.active import Moving, frame_rms
from eqm_video.samplers.checks import (
    CHECK_EVERY,
    Callback,
    DivergenceError,
    Gradient,
    check_arguments,
    check_finite,
    is_number,
)
from eqm_video.samplers.frame_schedule import Turns
from eqm_video.samplers.rules import Rule
from eqm_video.samplers.step_schedule import Schedule, scaled, step_factors
from eqm_video.system.devices import send

__all__ = ["Descent", "DivergenceError", "descend"]


@dataclass(frozen=True)
class Descent:
    """What a sampler returns."""

    latents: Tensor  # as `start`
    nfe: Tensor  # (B,) int64: evaluations of the gradient that each clip took
    frame_nfe: Tensor  # (B, T) int64: those during which the frame still moved; 0 for known frames


def descend(
    gradient: Gradient,
    start: Tensor,
    rule: Rule,
    *,
    steps: int,
    known: Tensor | None = None,
    moves: Tensor | None = None,
    tolerance: float | None = None,
    per_frame: bool = False,
    schedule: Schedule | None = None,
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
        moves: (steps, T) or (steps, B, T) bool, the frames that move at each step (`frames.frame_moves` makes them);
            the others stand still, where the gradient sees them, and start later without momentum. A clip passes over
            steps at which none of its frames moves, and stops after its last move. None: all move at every step.
        tolerance: a clip stops before the update when the largest root mean square, over its unknown frames, of the
            gradient just evaluated is below this; that evaluation counts. None: all clips take all steps.
        per_frame: with a tolerance, each frame comes to rest alone: from the evaluation that finds its own root mean
            square below the tolerance, it counts as known, while the others of its clip go on. A clip stops when all
            its frames rest. Sound where a frame at rest stays data, as for fields trained with a gamma for each frame.
        schedule: "constant" (or None), "linear", "cosine", or a callable (step, steps) -> factor on the step size.
        callback: `callback(step, latents, gradient)` after each update, step = 0, 1, ...: the latents after it and the
            gradient that made it (0 on frames that stand still), of the whole batch; a stopped clip shows its last
            ones. To be read, not written. Not called once no clip moves.
        generators: one for each clip, handed to rules with randomness.

    Gradients are not recorded through the walk unless `start.requires_grad`; the caller's grad mode stays as it is, so
    wrap the call in `torch.no_grad()` to spare the network's own graph at each evaluation.

    Raises:
        ValueError: a wrong argument, or a gradient of another shape.
        DivergenceError: non-finite latents or gradient, looked for every 16 updates, at the end, and (with a tolerance)
            at every evaluation.
    """
    known = check_arguments(gradient, start, steps, known, generators)
    turns = Turns.of(moves, steps, start, known)
    _check_rule(start, rule, turns, schedule, tolerance, per_frame)
    factors, advice = step_factors(schedule, steps), _advice(rule)
    moving = Moving.all_of(gradient, start, known, generators)
    moving = replace(moving, state=rule.start(moving.latents))
    nfe = torch.zeros(len(start), dtype=torch.long, device=start.device)
    frame_nfe = nfe.new_zeros(len(start), start.shape[1] if start.ndim > 2 else 1)  # points without frames are one
    clock = torch.zeros(len(start), dtype=torch.long)  # (B,) on the CPU: the next row of `moves` of each clip
    resting = start  # latents of the clips that have stopped; rows of moving clips are out of date
    seen = torch.zeros_like(start)  # the last gradient of each clip, kept for the callback

    for step in range(steps):
        if turns is not None:
            clock[moving.places] = turns.next(clock, moving.places)
            resting = moving.spread(moving.latents, over=resting)
            moving = moving.keep(clock[moving.places] < steps, resting)
        if moving.count == 0:
            break
        now = scaled(rule, factors[step])
        if turns is not None:
            moving = moving.wait(~turns.at(clock, moving.places))
        slope = moving.evaluate(now.point(moving.latents, moving.state), step=step, keep_graph=start.requires_grad)
        nfe[moving.rows] += 1
        frame_nfe[moving.rows] += moving.walking
        stops = None
        if tolerance is not None:
            size = frame_rms(slope.detach()).cpu()  # the update's one wait for the device
            check_finite(size, moving.places, rule, f"the gradient at step {step} of {steps}", advice)
            small = size < tolerance
            if per_frame:
                moving = moving.rest(send(small, start.device) & moving.walking)
                slope = moving.hide(slope)
            stops = small.all(dim=1)
            if turns is not None:
                turns = turns.rest(moving.places, small & turns.at(clock, moving.places))
                stops = turns.next(clock, moving.places) == steps
        if callback is not None:
            seen = moving.spread(slope, over=seen)
        if stops is not None and bool(stops.any()):
            resting = moving.spread(moving.latents, over=resting)
            going = send((~stops).nonzero().squeeze(1), slope.device)
            moving, slope = moving.keep(~stops, resting), slope[going]
            if moving.count == 0:
                break
        moving = moving.move(*now.update(moving.latents, slope, moving.state, moving.generators))
        clock += 1
        if (step + 1) % CHECK_EVERY == 0:
            check_finite(moving.latents, moving.places, rule, f"the latents after step {step} of {steps}", advice)
        if callback is not None:
            callback(step, moving.spread(moving.latents, over=resting), seen)

    latents = moving.spread(moving.latents, over=resting)
    everyone = torch.arange(len(latents))
    check_finite(latents, everyone, rule, f"the latents after the last of {steps} steps", advice)
    return Descent(latents=latents, nfe=nfe, frame_nfe=frame_nfe)


def _advice(rule: Rule) -> str:
    return f"use a step_size smaller than {getattr(rule, 'step_size', 'this one')}"


def _check_rule(
    start: Tensor,
    rule: Rule,
    turns: Turns | None,
    schedule: Schedule | None,
    tolerance: float | None,
    per_frame: bool,
) -> None:
    """Raise a ValueError for the first wrong argument of those only rules take."""
    if not all(hasattr(rule, name) for name in ("start", "point", "update")):
        raise ValueError(f"rule must be such as GradientDescent(step_size=0.003), got {rule!r}")
    if tolerance is not None and (not is_number(tolerance) or tolerance <= 0):
        raise ValueError(f"tolerance is {tolerance!r}; it must be a number above 0, or None to take all steps")
    if turns is not None and tolerance is not None and not per_frame:
        raise ValueError(
            "frames that move in turn come to rest one by one: with moves (a frame schedule that is not joint) a "
            "tolerance needs per_frame=True"
        )
    if turns is not None and schedule not in (None, "constant"):
        raise ValueError(
            f"schedule {schedule!r} is one of the whole descent, but frames that move in turn (moves, a frame schedule "
            "that is not joint) each begin at another step: leave one of the two out"
        )
    if not isinstance(per_frame, bool):
        raise ValueError(f"per_frame is {per_frame!r}; it must be True or False")
    if per_frame and tolerance is None:
        raise ValueError(
            "per_frame=True needs a tolerance, the root mean square below which a frame rests; such as 0.1"
        )
    if per_frame and start.ndim < 3:
        raise ValueError(f"per_frame=True needs start with frames (B, T, ...), got {tuple(start.shape)}")
