"""Decays c(gamma): the strength of the target at each gamma, and the path of a descent along gamma.

gamma is 0 at noise and 1 at data (Equilibrium Matching, arXiv 2510.02300, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Decay = Callable[[Tensor], Tensor]


def check_number(owner: object, name: str, low: float, high: float, *, low_open: bool = True) -> None:
    """ValueError unless field `name` of `owner` is a finite number above `low` (or at it) and below `high`."""
    value = getattr(owner, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value < high or (low_open and value == low):
        allowed = f"{'above' if low_open else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; it must be a finite number {allowed}")


@dataclass(frozen=True)
class LinearDecay:
    """c = gain * (1 - gamma)."""

    gain: float = 4.0  # lambda, a factor on the target

    def __post_init__(self) -> None:
        check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        return self.gain * (1 - gamma)


@dataclass(frozen=True)
class TruncatedDecay:
    """c = gain * min(1, (1 - gamma) / (1 - a)): constant up to gamma = a, then linear to 0. The project's default."""

    a: float = 0.8  # the gamma at which the decay begins, in [0, 1)
    gain: float = 4.0  # lambda, a factor on the target

    def __post_init__(self) -> None:
        check_number(self, "a", 0, 1, low_open=False)
        check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        return self.gain * ((1 - gamma) / (1 - self.a)).clamp(max=1)


@dataclass(frozen=True)
class PiecewiseDecay:
    """c = gain * (b at gamma 0, linearly to 1 at gamma = a, linearly to 0 at gamma = 1)."""

    a: float = 0.8  # the joint, in (0, 1)
    b: float = 1.4  # the value at pure noise, above 0; 1 gives the truncated decay
    gain: float = 4.0  # lambda, a factor on the target

    def __post_init__(self) -> None:
        check_number(self, "a", 0, 1)
        check_number(self, "b", 0, math.inf)
        check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        before = self.b + (1 - self.b) * gamma / self.a
        after = (1 - gamma) / (1 - self.a)
        return self.gain * torch.where(gamma <= self.a, before, after)


@dataclass(frozen=True)
class ConstantDecay:
    """c = gain everywhere. Not an equilibrium (c(1) is not 0): for the flow-matching baseline alone."""

    gain: float = 1.0  # lambda, a factor on the target

    def __post_init__(self) -> None:
        check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """The gain, in gamma's shape and dtype."""
        return torch.full_like(gamma, self.gain)


@dataclass(frozen=True)
class ScaledDecay:
    """A decay times a factor above 0, as of a sum of fields: c = factor * decay(gamma)."""

    decay: Decay
    factor: float

    def __post_init__(self) -> None:
        check_number(self, "factor", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        return self.factor * self.decay(gamma)


DECAYS: dict[str, type] = {
    "linear": LinearDecay,
    "truncated": TruncatedDecay,
    "piecewise": PiecewiseDecay,
    "constant": ConstantDecay,
}


def check_decay(decay: Decay, *, allow_constant: bool = False) -> Decay:
    """Return `decay` if data are an equilibrium under it: finite, >= 0 on [0, 1], not 0 everywhere, and c(1) = 0.

    `decay` may be any callable from a tensor of gammas to a tensor of the same shape. `allow_constant` excepts a
    `ConstantDecay`, and nothing else, from c(1) = 0, for the flow-matching baseline.

    Raises:
        ValueError: the decay fails a condition; the message names it and the gamma.
    """
    if not callable(decay):
        raise ValueError(f"the decay must be a callable gamma -> c(gamma), got {decay!r}; such as TruncatedDecay()")
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    values = decay(grid)
    if not isinstance(values, Tensor) or values.shape != grid.shape:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"decay {decay!r} must keep the shape of gamma: {tuple(grid.shape)} in, {shape} out")
    values = values.detach().double()
    rounding = 1e-6 * values.abs().max()  # a decay computed in float32 is 0 at 1 only up to rounding
    wrong = ~values.isfinite() | (values < -rounding)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(f"decay {decay!r} is {values[place]:g} at gamma {grid[place]:g}; it must be finite and >= 0")
    if rounding == 0:
        raise ValueError(f"decay {decay!r} is 0 everywhere on [0, 1]: there is nothing to learn")
    if values[-1] > rounding and not (allow_constant and isinstance(decay, ConstantDecay)):
        raise ValueError(
            f"decay {decay!r} is {values[-1]:g} at gamma 1; it must be 0 there, so that data are at rest "
            "(use TruncatedDecay, LinearDecay or PiecewiseDecay; a constant one is for the flow baseline alone)"
        )
    return decay


def make_decay(settings: Mapping[str, Any]) -> Decay:
    """The decay of a mapping such as {"kind": "truncated", "a": 0.8, "gain": 4.0}; ValueError for an unknown kind."""
    numbers = dict(settings)
    kind = numbers.pop("kind", None)
    if kind not in DECAYS:
        raise ValueError(f"a decay of the unknown kind {kind!r}; known are {', '.join(DECAYS)}")
    return DECAYS[kind](**numbers)


def gamma_path(decay: Decay, step_size: float | Sequence[float], steps: int, start: float = 0.0) -> Tensor:
    """The gamma before each step of a descent, in closed form: (steps,) float64 in [0, 1].

    On the straight path to a single data point the field is (noise - clean) c(gamma), so gradient descent moves gamma
    by step_size * c(gamma). Descent with a network that is conditioned on gamma passes it these values. With c = 1 and
    step_size 1 / steps they are the times k / steps of the flow baseline's Euler method. `step_size` is a number, or a
    number for each step.
    """
    sizes = [float(step_size)] * steps if isinstance(step_size, (int, float)) else [float(size) for size in step_size]
    if len(sizes) != steps or not 0 <= start <= 1:
        raise ValueError(f"{len(sizes)} step sizes for {steps} steps, start gamma {start}: one each, start in [0, 1]")
    gamma, path = torch.tensor(float(start), dtype=torch.float64), []
    for size in sizes:
        path.append(gamma)
        gamma = (gamma + size * decay(gamma)).clamp(max=1)
    return torch.stack(path) if path else torch.zeros(0, dtype=torch.float64)
