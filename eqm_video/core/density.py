"""Densities of gamma: how often training visits each level between noise (0) and data (1).

A density is a function from uniform numbers to gammas, the inverse of its cumulative distribution: one random number a
gamma, whatever the density, so that `Uniform` leaves every draw as it is without one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from eqm_video.core.decay import DECAYS, Decay, TruncatedDecay, check_decay, check_number
from eqm_video.system.devices import double

BELOW_1 = 1 - 2.0**-24  # the largest float32 below 1: a gamma of exactly 1 marks a clean frame
CELLS = 2**14  # of the table by which a density without a closed form is inverted


class Density(Protocol):
    """A density of gamma on [0, 1)."""

    def __call__(self, uniform: Tensor) -> Tensor:
        """Gammas in [0, 1), of the shape and dtype of `uniform`, numbers in [0, 1)."""


@dataclass(frozen=True)
class Uniform:
    """Every gamma equally often."""

    def __call__(self, uniform: Tensor) -> Tensor:
        """The numbers themselves."""
        return uniform


@dataclass(frozen=True)
class LogitNormal:
    """log(gamma / (1 - gamma)) is normal (Esser et al., arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0  # above 0: nearer to data
    std: float = 1.0  # above 0

    def __post_init__(self) -> None:
        check_number(self, "mean", -math.inf, math.inf)
        check_number(self, "std", 0, math.inf)

    def __call__(self, uniform: Tensor) -> Tensor:
        """sigmoid(mean + std * the standard normal's quantile)."""
        quantile = torch.special.ndtri(double(uniform))
        return _below_1(torch.sigmoid(self.mean + self.std * quantile), uniform)


@dataclass(frozen=True)
class Beta:
    """p(gamma) ~ gamma^(a - 1) (1 - gamma)^(b - 1)."""

    a: float = 1.5  # above 0; larger: nearer to data
    b: float = 1.0  # above 0; larger: nearer to noise

    def __post_init__(self) -> None:
        check_number(self, "a", 0, math.inf)
        check_number(self, "b", 0, math.inf)

    def __call__(self, uniform: Tensor) -> Tensor:
        """The quantile, by scipy."""
        from scipy.special import betaincinv

        gammas = betaincinv(self.a, self.b, double(uniform.cpu()).numpy())
        return _below_1(torch.from_numpy(gammas).to(uniform.dtype).to(uniform.device), uniform)


@dataclass(frozen=True)
class DecayDensity:
    """p(gamma) ~ c(gamma)^2: a velocity drawn so has the expected loss of Equilibrium Matching, up to its scale.

    The loss of the target (noise - clean) c(gamma) weighs the error of the velocity by c(gamma)^2. The gain of c does
    not matter.
    """

    decay: Any = field(default=TruncatedDecay(), metadata={"kinds": DECAYS, "flat": False})

    def __post_init__(self) -> None:
        check_decay(self.decay, allow_constant=True)

    def __call__(self, uniform: Tensor) -> Tensor:
        """The quantile, by a table of the cumulative density with straight lines between its points."""
        grid, share = _table(self.decay)
        wanted = double(uniform.cpu())
        cell = torch.searchsorted(share, wanted, right=True).clamp(1, CELLS)
        low, high = share[cell - 1], share[cell]
        part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        return _below_1((grid[cell - 1] + part * (grid[cell] - grid[cell - 1])).to(uniform.device), uniform)


@lru_cache(maxsize=16)
def _table(decay: Decay) -> tuple[Tensor, Tensor]:
    """Gammas (CELLS + 1,) and the share of c^2 below each, both float64 from 0 to 1."""
    grid = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64)
    weight = double(decay(grid)).square()
    share = torch.cumulative_trapezoid(weight, grid)
    return grid, torch.cat([share.new_zeros(1), share / share[-1]])


def _below_1(gamma: Tensor, like: Tensor) -> Tensor:
    return gamma.to(like.dtype).clamp(max=BELOW_1)


DENSITIES: dict[str, type] = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "beta": Beta,
    "decay": DecayDensity,
}


def density_field() -> Any:
    """The field `density` of a draw of gamma: uniform unless it is given."""
    return field(default=Uniform(), metadata={"kinds": DENSITIES, "flat": False})
