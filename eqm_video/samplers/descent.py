"""The one loop of the update rules: evaluation counts, stopping, known frames, schedules, callbacks.

Legend: B clips, T frames, b active clips (b <= B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqm_video.samplers.active import Active, frame_rms
from eqm_video.samplers.checks import (
    CHECK_EVERY,
    STOP,
    Callback,
    DivergenceError,
    Gradient,
    check_arguments,
    check_finite,
    is_number,
)
from eqm_video.samplers.frame_schedule import Turns
from eqm_video.samplers.levels import Levels, Route
from eqm_video.samplers.rules import Rule
from eqm_video.samplers.step_schedule import Schedule, scaled, step_factors
from eqm_video.system.devices import send

__all__ = ["Descent", "DivergenceError", "descend"]


@dataclass(frozen=True)
class Descent:
    """The result of a sampler: latents, and the evaluations that they took."""

    latents: Tensor  # as `start`
    nfe: Tensor  # (B,) int64: gradient evaluations of each clip
    frame_nfe: Tensor  # (B, T) int64: evaluations while the frame was moving; 0 for known frames
    levels: Tensor | None = None  # (2, S, B, T), of a closed loop: see `Levels.history`


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
    route: Route | None = None,
) -> Descent:
    """Descend `gradient` from `start` by `steps` updates of `rule`.

    Args:
        gradient: latents -> gradient of the same shape; clips must not depend on each other. Optional methods:
            `select(indices)` gives the gradient of some clips of its batch (stopped clips then leave the batch; without
            it they are evaluated and ignored), `at_step(step)` gives the callable for a step.
        start: (B, T, ...) floating point, usually (B, T, C, H, W); (B, d) counts as a single frame. Never
            modified.
        rule: such as `GradientDescent(step_size)` or `NAG(step_size, mu)`.
        steps: number of updates, >= 0.
        known: (B, T) bool, frames that stay as they are in `start`, bit for bit. A clip whose frames are all known
            takes no evaluation.
        moves: (steps, T) or (steps, B, T) bool, the frames that move at each step (see `frame_schedule.frame_moves`).
            The others are paused: the gradient sees them, and they start later without momentum. A clip skips steps at
            which none of its frames moves, and stops after its last move. None: all frames move at every step.
        tolerance: a clip stops before the update when the largest root mean square, over its unknown frames, of the
            gradient just evaluated is below this; that evaluation counts. None: all clips take all steps.
        per_frame: with a tolerance, each frame comes to rest alone. Once its own root mean square is below the
            tolerance, a frame counts as known, while the others of its clip go on; a clip stops when all its frames
            rest. Use it for fields trained with a gamma for each frame: there a frame at rest stays at rest.
        schedule: "constant" (or None), "linear", "cosine", or a callable (step, steps) -> factor on the step size.
        callback: `callback(step, latents, gradient)` after each update, step = 0, 1, ...: the latents after it and the
            gradient of the update (0 on frames that do not move), of the whole batch; a stopped clip has its last
            ones. Read them, do not write to them. Not called once no clip is active. Returning `STOP` ends the descent
            after this step.
        generators: a generator for each clip, for rules with randomness.
        route: the way along gamma: `Multistep` needs it, and to gd and nag it gives their step sizes, in place of their
            own. A gradient that has `at_gamma` is then evaluated at the gamma (b, T) of every frame.

    Autograd records the descent only if `start.requires_grad`. The caller's grad mode is not changed: wrap the call in
    `torch.no_grad()`, so that the network builds no graph at each evaluation.

    Raises:
        ValueError: a wrong argument, or a gradient of another shape than the latents.
        DivergenceError: non-finite latents or gradient; checked every 16 updates, at the end, and (with a tolerance) at
            every evaluation.
    """
    known = check_arguments(gradient, start, steps, known, generators)
    turns = Turns.of(moves, steps, start, known)
    _check_rule(start, rule, turns, schedule, tolerance, per_frame)
    levels = _levels(rule, route, start, known, turns, steps, schedule)
    factors, advice = step_factors(schedule, steps), _advice(rule)
    active = Active.all_of(gradient, start, known, generators)
    active = replace(active, state=rule.start(active.latents))
    nfe = torch.zeros(len(start), dtype=torch.long, device=start.device)
    frame_nfe = nfe.new_zeros(len(start), start.shape[1] if start.ndim > 2 else 1)  # (B, d) is a single frame
    clock = torch.zeros(len(start), dtype=torch.long)  # (B,) on the CPU: the next row of `moves` for each clip
    resting = start  # latents of the stopped clips; the rows of active clips are out of date
    seen = torch.zeros_like(start)  # the last gradient of each clip, kept for the callback

    for step in range(steps):
        if turns is not None:
            clock[active.places] = turns.next(clock, active.places)
            resting = active.spread(active.latents, over=resting)
            active = active.keep(clock[active.places] < steps, resting)
            active = active.pause(~turns.at(clock, active.places))
        if active.count == 0:
            break
        now = scaled(rule, factors[step])
        slope = _evaluated(active, now, levels, step, steps, keep_graph=start.requires_grad)
        nfe[active.rows] += 1
        frame_nfe[active.rows] += active.moving
        stops = None
        if tolerance is not None:
            size = frame_rms(slope.detach()).cpu()  # the update's one wait for the device
            check_finite(size, active.places, rule, f"the gradient at step {step} of {steps}", advice)
            active, slope, turns, stops = _at_rest(active, slope, turns, clock, size < tolerance, per_frame)
        if callback is not None:
            seen = active.spread(slope, over=seen)
        if stops is not None and bool(stops.any()):
            resting = active.spread(active.latents, over=resting)
            active, slope = active.keep(~stops, resting), slope[send((~stops).nonzero().squeeze(1), slope.device)]
            if active.count == 0:
                break
        if levels is not None:
            now = now.along(levels.take(active.rows, active.moving))
        active = active.updated(*now.update(active.latents, slope, active.state, active.generators))
        clock += 1
        if (step + 1) % CHECK_EVERY == 0:
            check_finite(active.latents, active.places, rule, f"the latents after step {step} of {steps}", advice)
        if callback is not None and callback(step, active.spread(active.latents, over=resting), seen) is STOP:
            break

    latents = active.spread(active.latents, over=resting)
    check_finite(latents, torch.arange(len(latents)), rule, f"the latents after the last of {steps} steps", advice)
    return Descent(latents, nfe, frame_nfe, None if levels is None else levels.history())


def _evaluated(active: Active, rule: Rule, levels: Levels | None, step: int, steps: int, *, keep_graph: bool) -> Tensor:
    """The gradient (b, T, ...) where the rule wants it; a closed loop then corrects the levels."""
    point = rule.point(active.latents, active.state)
    if levels is None:
        return active.evaluate(point, step=step, keep_graph=keep_graph)
    where = {"step": step, "gamma": step / steps, "levels": levels.at(active.rows), "keep_graph": keep_graph}
    if levels.route.loop is None:
        return active.evaluate(point, **where)
    slope, sight = active.observe(point, **where)
    levels.observe(
        active.rows, active.moving, point, sight.plain, getattr(rule, "mu", 0.0), (sight.level, sight.spread)
    )
    return slope


def _at_rest(
    active: Active, slope: Tensor, turns: Turns | None, clock: Tensor, small: Tensor, per_frame: bool
) -> tuple[Active, Tensor, Turns | None, Tensor]:
    """The same after frames have come to rest, and the clips (b,) bool that stop; small (b, T) bool: their gradient."""
    if per_frame:
        active = active.rest(send(small, slope.device) & active.moving)
        slope = active.hide(slope)
    if turns is None:
        return active, slope, None, small.all(dim=1)
    turns = turns.rest(active.places, small & turns.at(clock, active.places))
    return active, slope, turns, turns.next(clock, active.places) == len(turns.moves)


def _levels(
    rule: Rule,
    route: Route | None,
    start: Tensor,
    known: Tensor | None,
    turns: Turns | None,
    steps: int,
    schedule: Schedule | None,
) -> Levels | None:
    """The levels of the frames, for a rule that steps in gamma; ValueError where rule and route do not fit."""
    if route is not None and schedule not in (None, "constant"):
        raise ValueError(
            f"schedule {schedule!r} and a route (a warp) both say how long steps are: leave one of them out"
        )
    needs = getattr(rule, "needs_route", False)
    if needs and route is None:
        raise ValueError(
            f"{rule!r} steps in gamma and divides the field by its decay c(gamma), which is not given: give decay=, "
            "such as TruncatedDecay() for an equilibrium field or ConstantDecay() for a velocity"
        )
    if route is None:
        return None
    if not hasattr(rule, "along"):
        raise ValueError(
            f"{rule!r} takes no steps in gamma: a warp is for gd, nag, multistep, euler and heun; leave it out"
        )
    return Levels(route, start, known, steps if turns is None else turns.moves.sum(dim=0))


def _advice(rule: Rule) -> str:
    if getattr(rule, "needs_route", False):
        return "use more steps"
    return f"use a step_size smaller than {getattr(rule, 'step_size', 'this one')}"


def _check_rule(
    start: Tensor,
    rule: Rule,
    turns: Turns | None,
    schedule: Schedule | None,
    tolerance: float | None,
    per_frame: bool,
) -> None:
    """Raise a ValueError for the first wrong argument that only rules have."""
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
