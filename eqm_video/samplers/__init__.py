"""Samplers: update rules with the loop that runs them, solvers of the field's differential equations, and `run`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.core.field import for_descent
from eqm_video.samplers.checks import STOP, Callback, DivergenceError, Gradient, check_start_gamma
from eqm_video.samplers.closed_loop import ClosedLoop
from eqm_video.samplers.descent import Descent, descend
from eqm_video.samplers.frame_schedule import FRAME_SCHEDULES, frame_moves
from eqm_video.samplers.levels import Route
from eqm_video.samplers.ode import Dopri5, Euler, Heun
from eqm_video.samplers.presets import SAMPLER_PRESETS
from eqm_video.samplers.problem import Problem, Solver
from eqm_video.samplers.rules import NAG, RULES, Adam, GradientDescent, Langevin, Multistep, Rule
from eqm_video.samplers.sde import SDE
from eqm_video.samplers.step_schedule import SCHEDULES, Schedule, step_factors
from eqm_video.samplers.warp import Identity, Warp

Sampler = Rule | Solver
SAMPLERS: dict[str, type] = {**RULES, "euler": Euler, "heun": Heun, "dopri5": Dopri5, "sde": SDE}

SIZED = tuple(name for name, kind in SAMPLERS.items() if "step_size" in kind.__dataclass_fields__)

__all__ = [
    "FRAME_SCHEDULES",
    "NAG",
    "RULES",
    "SAMPLERS",
    "SAMPLER_PRESETS",
    "SCHEDULES",
    "SDE",
    "SIZED",
    "STOP",
    "Adam",
    "Callback",
    "ClosedLoop",
    "Descent",
    "DivergenceError",
    "Dopri5",
    "Euler",
    "Gradient",
    "GradientDescent",
    "Heun",
    "Langevin",
    "Multistep",
    "Problem",
    "Route",
    "Rule",
    "Sampler",
    "Schedule",
    "Solver",
    "descend",
    "frame_moves",
    "knows_gamma",
    "run",
    "step_factors",
]


def knows_gamma(sampler: Sampler) -> bool:
    """Whether a sampler tells the field gamma itself: solvers, and rules that step in gamma."""
    return hasattr(sampler, "solve") or getattr(sampler, "needs_route", False)


def run(
    gradient: Gradient,
    start: Tensor,
    sampler: Sampler,
    *,
    steps: int,
    start_gamma: float | Tensor = 0.0,
    known: Tensor | None = None,
    moves: Tensor | None = None,
    tolerance: float | None = None,
    per_frame: bool = False,
    schedule: Schedule | None = None,
    callback: Callback | None = None,
    generators: Sequence[torch.Generator] | None = None,
    decay: Decay | None = None,
    warp: Warp | None = None,
    loop: ClosedLoop | None = None,
) -> Descent:
    """Sample with any sampler: rules through `descend`, solvers through their own `solve`.

    `start_gamma` is for solvers, `Multistep` and all that have a warp, which begin at it; other rules ignore it. Rules
    take a tensor (B, T) as well, of frames that start apart.
    `moves`, `tolerance`, `per_frame` and `schedule` are for rules. `decay` is the c(gamma) of the field's training
    target, which `Multistep` and warps need. `warp` spreads the steps over gamma: with it gd, nag, euler and heun take
    the velocity f / c(gamma). None: equal steps for `Multistep`, the field itself for the others. `loop` corrects
    the levels of rules that step by them at every evaluation. The other arguments are those of `descend` and `Problem`.

    Raises:
        ValueError: a wrong argument, or an argument that this sampler does not have.
        DivergenceError: non-finite latents or gradient.
    """
    rules = ", ".join(RULES)
    solves, updates = (hasattr(sampler, name) for name in ("solve", "update"))
    if isinstance(sampler, type) or not (solves or updates):
        raise ValueError(f"sampler must be such as NAG(step_size=0.003) or Heun(), got {sampler!r}")
    if warp is not None and decay is None:
        raise ValueError("a warp divides the field by its decay c(gamma), which is not given: give decay= too")
    if loop is not None and (solves or (warp is None and not getattr(sampler, "needs_route", False))):
        raise ValueError(
            f"{sampler!r} does not step by levels, which a loop corrects: take multistep, or gd or nag with a warp"
        )
    gradient = for_descent(gradient)
    if not solves:
        route = None
        if decay is not None and (warp is not None or getattr(sampler, "needs_route", False)):
            begin = start_gamma if isinstance(start_gamma, Tensor) else check_start_gamma(start_gamma)
            route = Route(decay, Identity() if warp is None else warp, begin, loop)
        return descend(
            gradient,
            start,
            sampler,
            steps=steps,
            known=known,
            moves=moves,
            tolerance=tolerance,
            per_frame=per_frame,
            schedule=schedule,
            callback=callback,
            generators=generators,
            route=route,
        )
    if tolerance is not None or per_frame:
        raise ValueError(
            f"{sampler!r} goes all the way: stopping at a tolerance is for the rules {rules}; leave it out"
        )
    if moves is not None:
        raise ValueError(
            f"{sampler!r} carries all frames together: frames that move in turn are for the rules {rules}; leave moves "
            "out (a frame schedule that is joint)"
        )
    if schedule not in (None, "constant"):
        raise ValueError(f"{sampler!r} has no step_size: a schedule is for the rules {rules}; leave it out")
    if warp is not None and not getattr(sampler, "warped", False):
        raise ValueError(f"{sampler!r} has its own steps: a warp is for gd, nag, multistep, euler, heun; leave it out")
    route = None if warp is None else Route(decay, warp, check_start_gamma(start_gamma))
    return sampler.solve(Problem(gradient, start, steps, start_gamma, known, callback, generators, route))
