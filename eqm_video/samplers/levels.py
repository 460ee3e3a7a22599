"""Levels: gamma of every frame along a descent, and the step that each frame takes next.

Legend: B clips, T frames, b clips that still move (b <= B).

A field that was trained with the decay c is c(gamma) times a velocity, f = c(gamma) v, and on the straight path from
noise to data dx = -v dgamma. A step of h in gamma is therefore one of eta = h / c(gamma) along f, whatever the decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.samplers.closed_loop import ClosedLoop, LearnedLoop, noise_of
from eqm_video.samplers.warp import Identity, Warp
from eqm_video.system.devices import widest


@dataclass(frozen=True)
class Route:
    """The way of a descent along gamma.

    decay: c(gamma) of the field's training target; `ConstantDecay(1)` for a velocity, as of flow matching.
    warp: how the steps are spread over gamma.
    start_gamma: where the start stands, in [0, 1): one number, or a tensor (B, T) where frames start apart.
    loop: the filter that corrects the levels by each evaluation; None: levels follow from the steps alone.
    """

    decay: Decay
    warp: Warp = Identity()  # noqa: RUF009 (frozen)
    start_gamma: float | Tensor = 0.0
    loop: ClosedLoop | None = None


@dataclass(frozen=True)
class Step:
    """One step of the clips that move: tensors (b, T). `size` is 0 on frames that stand still."""

    gamma: Tensor  # before the step
    size: Tensor  # h, the step in gamma
    decay: Tensor  # c(gamma), above 0 where size is
    last: Tensor  # bool: the step ends at gamma = 1

    @property
    def eta(self) -> Tensor:
        """The step size along the field, h / c(gamma)."""
        return torch.where(self.size > 0, self.size / self.decay, 0)


def path(warp: Warp, steps: int, start_gamma: float = 0.0) -> Tensor:
    """The gammas of a descent of so many steps, before each and after the last: (steps + 1,) float64, to 1."""
    gammas = [torch.tensor(float(start_gamma), dtype=torch.float64)]
    for left in range(steps, 0, -1):
        gammas.append(warp.ahead(gammas[-1], torch.tensor(float(left), dtype=torch.float64)))
    return torch.stack(gammas)


class Levels:
    """Gamma of all frames of a batch, changed by `take`.

    Args:
        route: the way along gamma.
        start: (B, T, ...) or (B, d), the latents that the descent begins at.
        known: (B, T) bool, frames at gamma = 1; None: there are none.
        steps: of every unknown frame: one number, or (B, T).
    """

    def __init__(self, route: Route, start: Tensor, known: Tensor | None, steps: int | Tensor) -> None:
        shape = (len(start), start.shape[1] if start.ndim > 2 else 1)
        precision = {"dtype": widest(start.device), "device": start.device}
        self.route = route
        self.gamma = torch.as_tensor(route.start_gamma, **precision).expand(shape).clone()
        if not bool(((self.gamma >= 0) & (self.gamma < 1)).all()):
            raise ValueError(f"start_gamma is {route.start_gamma!r}; it must lie in [0, 1), where 0 is noise")
        if known is not None:
            self.gamma.masked_fill_(known.to(start.device), 1.0)
        self.left = torch.as_tensor(steps, **precision).expand(shape).clone()
        self.size = torch.zeros_like(self.gamma)  # of each frame's last step
        self.log: list[Tensor] = []  # (2, B, T) for each evaluation: corrected levels and corrections, NaN elsewhere
        if route.loop is not None:
            self.power, self.chance = noise_of(start.detach(), self.gamma)
            self.variance = torch.full_like(self.gamma, route.loop.start_error**2)

    def at(self, rows: Tensor) -> Tensor:
        """Gamma (b, T) of the clips at `rows` (b,)."""
        return self.gamma[rows]

    def observe(
        self,
        rows: Tensor,
        moving: Tensor,
        point: Tensor,
        slope: Tensor,
        look_ahead: float = 0.0,
        reading: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        """Correct the levels of the frames `moving` (b, T) by the gradient `slope` (b, T, ...) evaluated at `point`.

        slope: without guidance. look_ahead: how much further than the latents the point is, in units of the last step.
        reading: level and deviation (b, T) of a learned readout, for a `LearnedLoop`. Needs a route with a loop.
        """
        loop = self.route.loop
        gamma, variance = self.gamma[rows], self.variance[rows]
        further = torch.minimum(look_ahead * self.size[rows], 1 - gamma)
        noise = (self.power[rows], self.chance[rows])
        if not isinstance(loop, LearnedLoop):
            level, spread = loop.corrected(gamma + further, variance, self.route.decay, point, slope, *noise)
        elif reading[0] is None:
            raise ValueError("a learned loop needs a field whose network has a readout: take ClosedLoop() for this one")
        else:
            level, spread = loop.told(gamma + further, variance, *reading)
        moving = moving & (self.left[rows] >= 1)
        level = torch.where(moving, (level - further).clamp(min=0), gamma)
        self.gamma[rows] = level
        self.variance[rows] = torch.where(moving, spread, variance)
        seen = self.gamma.new_full((2, *self.gamma.shape), math.nan)
        seen[0, rows] = torch.where(moving, level, math.nan)
        seen[1, rows] = torch.where(moving, level - gamma, math.nan)
        self.log.append(seen)

    def history(self) -> Tensor | None:
        """(2, S, B, T): at each of S evaluations the corrected level of every frame that moved, and its correction.

        NaN for frames that did not move; None without a loop.
        """
        return torch.stack(self.log, dim=1) if self.log else None

    def take(self, rows: Tensor, walking: Tensor) -> Step:
        """The next step of the frames `walking` (b, T) of the clips at `rows` (b,), which then stand at its end."""
        gamma, left = self.gamma[rows], self.left[rows]
        walking = walking & (left >= 1)
        ahead = torch.where(walking, self.route.warp.ahead(gamma, left.clamp(min=1)), gamma)
        step = Step(gamma, ahead - gamma, self.route.decay(gamma), walking & (left == 1))
        self.gamma[rows] = ahead
        self.size[rows] = ahead - gamma
        if self.route.loop is not None:
            self.variance[rows] += (self.route.loop.drift * step.size).square()
        self.left[rows] = left - walking.to(left.dtype)
        return step
