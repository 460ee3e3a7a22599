"""Warps: how the steps of a descent are spread over gamma, from noise (0) to data (1).

A warp is a curve gamma(s), s from 0 (start) to 1 (end). A frame at gamma with `left` steps to go takes an equal share
of the rest of s, so that its last step ends at gamma = 1 wherever it stands. With k = 1 - gamma and N steps, a frame
on the curve moves by about w(k) / N in k, where w = -dk/ds (Equilibrium Forcing, arXiv 2608.14706, has these four):

    identity        w = 1
    shift(r)        w = (r - k (r - 1))^2 / r                       k = r u / (1 + (r - 1) u), u = 1 - s
    logsnr(max,min) w = (max - min) / 2 k (1 - k)                   log(gamma^2 / k^2) falls on a line from min to max
    decay(c)        w = A c(1 - k), A = the integral of 1 / c       the steps of a descent along a field of decay c
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from eqm_video.core.decay import DECAYS, Decay, TruncatedDecay, check_decay, check_number, make_decay

END = 0.99  # where the curve of a decay ends: c(1) = 0, so that a descent alone would never arrive at 1
CELLS = 2**14  # of the table of that curve


class Warp(Protocol):
    """The spread of steps over gamma."""

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """Gamma after the next step of frames that stand at `gamma` and have `left` >= 1 steps to go, this one too.

        All are float tensors of one shape; the result is 1 where left is 1.
        """


@dataclass(frozen=True)
class Identity:
    """Steps of equal gamma."""

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """gamma + (1 - gamma) / left."""
        return gamma + (1 - gamma) / left


@dataclass(frozen=True)
class Shift:
    """The time shift of Stable Diffusion 3 (arXiv 2403.03206): r above 1 gives more steps to noise, below 1 to data."""

    r: float = 3.0  # above 0; 1 is the identity

    def __post_init__(self) -> None:
        check_number(self, "r", 0, math.inf)

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """The next point of the curve."""
        rest = (1 - gamma) / (self.r - (self.r - 1) * (1 - gamma))  # u = 1 - s
        rest = rest * (1 - 1 / left)
        return 1 - self.r * rest / (1 + (self.r - 1) * rest)


@dataclass(frozen=True)
class LogSNR:
    """Equal steps of log(gamma^2 / (1 - gamma)^2) from `low` to `high`; the ends are moved to noise and data."""

    high: float = 10.0  # at the last step but its end, above low
    low: float = -10.0

    def __post_init__(self) -> None:
        check_number(self, "low", -math.inf, math.inf)
        check_number(self, "high", self.low, math.inf)

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """The next point of the curve; gamma itself where it is beyond the curve, and 1 at the last step."""
        span = self.high - self.low
        s = ((2 * torch.logit(gamma) - self.low) / span).clamp(0, 1)
        s = s + (1 - s) / left
        level = torch.maximum(torch.sigmoid((self.low + span * s) / 2), gamma)
        return torch.where(left <= 1, 1.0, level)


@dataclass(frozen=True)
class DecayWarp:
    """The levels that a descent along a field of `decay` passes, which a field of any decay can so be walked by.

    step_size: that of the descent, every step of which moves gamma by step_size * c(gamma): a field of another decay
    then passes the very levels of gradient descent. None: the curve in the limit of many steps, up to gamma = 0.99. The
    last step ends at 1.
    """

    decay: Any = field(default_factory=TruncatedDecay)
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_decay(self.decay, allow_constant=True)
        if self.step_size is not None:
            check_number(self, "step_size", 0, math.inf)

    def ahead(self, gamma: Tensor, left: Tensor) -> Tensor:
        """The next level."""
        if self.step_size is not None:
            level = (gamma + self.step_size * self.decay(gamma)).clamp(max=1)
        else:
            grid, s = (values.to(gamma) for values in _curve(self.decay))
            here = _between(gamma.clamp(max=END), grid, s)
            level = torch.where(gamma < END, _between(here + (1 - here) / left, s, grid), gamma + (1 - gamma) / left)
        return torch.where(left <= 1, 1.0, level)


@lru_cache(maxsize=16)
def _curve(decay: Decay) -> tuple[Tensor, Tensor]:
    """Gammas (CELLS + 1,) from 0 to END, and s at each: the integral of 1 / c up to it over that up to END."""
    grid = torch.linspace(0, END, CELLS + 1, dtype=torch.float64)
    time = torch.cumulative_trapezoid(1 / decay(grid).double(), grid)
    return grid, torch.cat([time.new_zeros(1), time / time[-1]])


def _between(values: Tensor, at: Tensor, of: Tensor) -> Tensor:
    """The piecewise linear function through the points (`at`, `of`), at rising (CELLS + 1,), evaluated at `values`."""
    cell = torch.searchsorted(at, values.contiguous(), right=True).clamp(1, len(at) - 1)
    low, high = at[cell - 1], at[cell]
    part = ((values - low) / (high - low)).clamp(0, 1)
    return of[cell - 1] + part * (of[cell] - of[cell - 1])


FORMS = "identity, shift:R, logsnr:MAX,MIN or decay:KIND (as decay:truncated,a=0.8)"


def read_warp(text: str) -> Warp:
    """The warp of a text such as shift:3, logsnr:10,-10 or decay:linear,step_size=0.02; ValueError for others."""
    kind, _, rest = text.partition(":")
    words = rest.split(",") if rest else []
    make: dict[str, Callable[[], Warp]] = {
        "identity": lambda: Identity(*map(float, words)),
        "shift": lambda: Shift(*map(float, words)),
        "logsnr": lambda: LogSNR(*map(float, words)),
        "decay": lambda: _read_decay(words),
    }
    try:
        return make[kind]()
    except (TypeError, KeyError) as error:  # too many numbers, or another kind
        raise ValueError(text) from error


def _read_decay(words: list[str]) -> DecayWarp:
    """A decay's kind, then its numbers as name=value, and step_size."""
    numbers = {name: float(value) for name, _, value in (word.partition("=") for word in words[1:])}
    size = numbers.pop("step_size", None)
    return DecayWarp(make_decay({"kind": words[0] if words else "truncated", **numbers}), size)


def warp_text(warp: Warp) -> str:
    """The text that `read_warp` reads; the `repr` of a warp of another class."""
    if isinstance(warp, Identity):
        return "identity"
    if isinstance(warp, Shift):
        return f"shift:{warp.r!r}"
    if isinstance(warp, LogSNR):
        return f"logsnr:{warp.high!r},{warp.low!r}"
    kind = next((name for name, cls in DECAYS.items() if type(getattr(warp, "decay", None)) is cls), None)
    if isinstance(warp, DecayWarp) and kind is not None:
        size = {} if warp.step_size is None else {"step_size": warp.step_size}
        return ",".join(
            [f"decay:{kind}", *(f"{name}={value!r}" for name, value in (asdict(warp.decay) | size).items())]
        )
    return repr(warp)
