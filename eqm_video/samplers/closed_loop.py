"""Closed loop: the level of every frame, corrected at every step by the gradient just evaluated.

Legend: b active clips, T frames, D numbers in a frame.

At gamma the field f = c(gamma) v implies the noise of a frame, x + gamma v = x + gamma f / c(gamma), and noise has a
known size: its mean square is that of the frame at its start where that was noise, and about 1 (with variance 2 / D)
elsewhere. So the innovation

    g = mean square of (x + gamma f / c(gamma)) - that of the noise
    g' = 2 mean((x + gamma f / c) f) d/dgamma (gamma / c)

is 0 at the right level, for every decay: below a the direction of f tells it, where c falls its size. Nothing of the
data has to be known. g is off by chance, and where the field is unsure of its data, so it is weighed against the level
that the last steps should have led to, by an extended Kalman filter of one number for each frame, with variance P:

    K = P g' / (g'^2 P + R),   gamma <- gamma - K g,   P <- (1 - K g') P
    P <- P + (drift h)^2       after a step of size h
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.core.decay import Decay, check_number

NEAR_1 = 0.999  # corrected levels stay below: the last step of a frame goes on to 1
HALF = 1e-4  # of the difference that c' is computed from


@dataclass(frozen=True)
class ClosedLoop:
    """The filter's standard deviations; large `drift` and `start_error` trust the field, a large `bias` the schedule.

    drift: of the level's error after a step, in units of the step. start_error: of the start's level. bias: of the
    noise's mean square that the field implies, beyond chance.
    """

    drift: float = 0.1
    start_error: float = 0.02
    bias: float = 0.05

    def __post_init__(self) -> None:
        for name in ("drift", "start_error"):
            check_number(self, name, 0, math.inf, low_open=False)
        check_number(self, "bias", 0, math.inf)

    def corrected(
        self, gamma: Tensor, variance: Tensor, decay: Decay, point: Tensor, slope: Tensor, power: Tensor, chance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The levels (b, T) in [0, 0.999] and their variances after an evaluation.

        Args:
            gamma, variance: (b, T), the levels of `point` before it, and their variances.
            decay: c(gamma) of the field.
            point, slope: (b, T, ...) or (b, d), where the field was evaluated, and its gradient there.
            power, chance: (b, T), the mean square of the frame's noise, and the variance of that number.
        """
        gamma = gamma.clamp(max=NEAR_1)
        strength = decay(gamma)
        rise = (decay((gamma + HALF).clamp(max=1)) - decay((gamma - HALF).clamp(min=0))) / (
            (gamma + HALF).clamp(max=1) - (gamma - HALF).clamp(min=0)
        )
        squares, crosses, slopes = (
            _mean(left * right).to(gamma) for left, right in ((point, point), (point, slope), (slope, slope))
        )
        ratio = gamma / strength
        innovation = squares + 2 * ratio * crosses + ratio.square() * slopes - power
        change = 2 * (crosses + ratio * slopes) * (1 / strength - gamma * rise / strength.square())
        gain = variance * change / (change.square() * variance + chance + self.bias**2)
        return (gamma - gain * innovation).clamp(0, NEAR_1), ((1 - gain * change) * variance).clamp(min=0)


@dataclass(frozen=True)
class LearnedLoop(ClosedLoop):
    """A closed loop whose measurement is a learned readout of the levels, with its own standard deviation.

    bias: of the level that is read, beyond its standard deviation.
    """

    bias: float = 0.01

    def told(self, gamma: Tensor, variance: Tensor, level: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """The levels (b, T) in [0, 0.999] and their variances after a reading `level` with deviation `spread`."""
        gain = variance / (variance + spread.to(gamma).square() + self.bias**2)
        return (gamma + gain * (level.to(gamma) - gamma)).clamp(0, NEAR_1), (1 - gain) * variance


def _mean(values: Tensor) -> Tensor:
    """(b, T, ...) or (b, d) -> (b, T), at least float32: the mean over each frame."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.flatten(2).mean(dim=2) if values.ndim > 2 else values.mean(dim=1, keepdim=True)


def noise_of(start: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The mean square of the noise in each frame of `start` (B, T, ...) at levels (B, T), and its variance; (B, T)."""
    size = start[0, 0].numel() if start.ndim > 2 else start.shape[1]
    plain = gamma == 0
    power = torch.where(plain, _mean(start.square()).to(gamma), 1)
    return power, torch.where(plain, 0, torch.full_like(gamma, 2 / size))
