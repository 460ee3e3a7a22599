"""Step schedules: the factor on a rule's step_size at each step of a descent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from eqm_video.samplers.checks import is_number

Schedule = str | Callable[[int, int], float]

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: 1 - step / steps,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2,
}


def step_factors(schedule: Schedule | None, steps: int) -> list[float]:
    """The factors on the step size at step 0 .. steps - 1.

    `schedule`: "constant" (or None), "linear" 1 - k/N, "cosine" (1 + cos(pi k/N))/2, or a callable `(step, steps)` that
    returns a finite factor >= 0. The mean factor of the three names is 1, about 1/2 and about 1/2: a descent on a
    falling schedule moves about half as far, so use about twice the step_size.

    Raises:
        ValueError: an unknown name, or a factor that is negative, not finite or not a number.
    """
    if schedule is None or isinstance(schedule, str):
        name = "constant" if schedule is None else schedule
        if name not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}, or a callable")
        schedule = SCHEDULES[name]
    if not callable(schedule):
        raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}, or a callable")
    factors = [schedule(step, steps) for step in range(steps)]
    for step, factor in enumerate(factors):
        if not is_number(factor) or factor < 0:
            raise ValueError(f"the schedule gives {factor!r} at step {step}; a factor must be a finite number >= 0")
    return [float(factor) for factor in factors]


def scaled(rule: Any, factor: float) -> Any:
    """The rule with its step_size times `factor` >= 0; the same object for factor 1.

    Raises:
        ValueError: the rule has no step_size.
    """
    if factor == 1:
        return rule
    if not hasattr(rule, "step_size"):
        raise ValueError(f"{rule!r} has no step_size to put on a schedule; leave the schedule out")
    changed = copy.copy(rule)  # not dataclasses.replace: rules refuse a step_size of 0, at which a schedule may end
    object.__setattr__(changed, "step_size", rule.step_size * factor)
    return changed
