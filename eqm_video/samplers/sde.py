"""The stochastic sampler of the flow-matching baseline.

Legend: B clips, T frames, b clips that move, N steps.

The field of the baseline (constant decay 1) predicts f = noise - clean at x = gamma * clean + (1 - gamma) * noise, so
that the velocity is -f, the noise x + gamma * f, and the score of the density at gamma is -noise / (1 - gamma). Every

    dx = (-f + w * score) dgamma + sqrt(2 w) dW,   w(gamma) >= 0,

has the same densities as the ordinary differential equation dx = -f dgamma (Ma et al., SiT, arXiv 2401.08740,
section 2.3): w only says how strongly noise is renewed on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.samplers.active import Moving
from eqm_video.samplers.checks import CHECK_EVERY, check_finite, check_start_gamma, is_number
from eqm_video.samplers.descent import Descent
from eqm_video.samplers.problem import Problem
from eqm_video.samplers.rules import clip_noise

METHODS = ("heun", "euler")
DIFFUSIONS = ("sigma", "sbdm")
CUT = 4  # "sbdm" is cut off below gamma = CUT * h, so that an Euler step renews at most norm / CUT of the noise


@dataclass(frozen=True)
class SDE:
    """Stochastic sampling of a flow-matching field, as SiT does it. Not for Equilibrium Matching fields.

    Diffusions (w above):
        "sigma": w = norm * (1 - gamma), the noise's share.
        "sbdm": w = norm * (1 - gamma) / gamma. On the straight path x / gamma = clean + noise * (1 - gamma) / gamma, so
            the velocity is x / gamma + score * (1 - gamma) / gamma: with norm = 1 the equation is the time reversal of
            the diffusion dx = -x / gamma ds + sqrt(2 (1 - gamma) / gamma) dW that score-based models are built on.
            It is infinite at gamma = 0; since every w >= 0 has the same densities, 4 h (h the step) takes the place of
            a smaller gamma.

    Steps: N - 1 equal ones of size h = (1 - last_step - start_gamma) / (N - 1), then one of size `last_step` along the
    mean drift alone, since noise added at the end would stay. With N = 1 that one is the whole way.

    Methods: "euler" (Euler-Maruyama): noise and drift at the same latents, N evaluations. "heun": the noise is added
    first, then the mean of the drifts there and after an Euler step is taken, 2 (N - 1) + 1 evaluations.
    """

    method: str = "heun"
    diffusion: str = "sigma"
    norm: float = 1.0  # the factor in w, at least 0; 0 gives the ordinary differential equation
    last_step: float = 0.04  # gamma left to the last step, in (0, 1)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"SDE: method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if self.diffusion not in DIFFUSIONS:
            raise ValueError(f"SDE: diffusion is {self.diffusion!r}; it must be one of {', '.join(DIFFUSIONS)}")
        if not is_number(self.norm) or self.norm < 0:
            raise ValueError(f"SDE: norm is {self.norm!r}; it must be a finite number >= 0, such as 1.0")
        if not is_number(self.last_step) or not 0 < self.last_step < 1:
            raise ValueError(f"SDE: last_step is {self.last_step!r}; it must be a number between 0 and 1, such as 0.04")

    def solve(self, problem: Problem) -> Descent:
        """As `Solver.solve`; start_gamma lies below 1 - last_step, and noise comes from the clips' own generators."""
        start, steps = problem.start, problem.steps
        low = check_start_gamma(problem.start_gamma, 1 - self.last_step)
        moving, nfe = problem.active(), 0
        advice = f"use more steps than {steps}, or a smaller norm"
        grid = self._grid(low, steps)
        for step in range(steps if moving.count else 0):
            walk = _Walk(moving, self, step, grid[step], grid[step + 1] - grid[step], start.requires_grad)
            latents, slopes = walk.mean() if step + 1 == steps else getattr(walk, self.method)()
            moving = moving.move(latents)
            nfe += len(slopes)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                check_finite(moving.latents, moving.rows, self, f"the latents after step {step} of {steps}", advice)
            if problem.callback is not None:
                problem.report(step, moving, moving.latents, torch.stack(slopes).mean(dim=0))
        return problem.solved(moving, moving.latents, [nfe] * moving.count)

    def renewal(self, gamma: float, h: float) -> float:
        """w / (1 - gamma) for steps of size h: w times the score is this times -noise, with nothing infinite at 1."""
        return self.norm if self.diffusion == "sigma" else self.norm / max(gamma, CUT * h)

    def _grid(self, low: float, steps: int) -> list[float]:
        """The gammas between the steps, steps + 1 of them."""
        size = (1 - self.last_step - low) / max(steps - 1, 1)
        return [low + size * step for step in range(steps)] + [1.0]


@dataclass(frozen=True)
class _Walk:
    """One step of size h from gamma; its methods return the new latents (b, T, ...) and the gradients evaluated."""

    moving: Moving
    sampler: SDE
    step: int
    gamma: float
    h: float
    keep_graph: bool

    def drift(self, latents: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """velocity + w * score at `gamma`, and the gradient it comes from."""
        slope = self.moving.evaluate(latents, step=self.step, gamma=gamma, keep_graph=self.keep_graph)
        noise = latents + gamma * slope
        return -slope - self.sampler.renewal(gamma, self.h) * noise, slope

    def mean(self) -> tuple[Tensor, list[Tensor]]:
        """Along the drift, without noise."""
        drift, slope = self.drift(self.moving.latents, self.gamma)
        return self.moving.latents + self.h * drift, [slope]

    def euler(self) -> tuple[Tensor, list[Tensor]]:
        """Along the drift, plus noise."""
        latents, slopes = self.mean()
        return latents + self.push(), slopes

    def heun(self) -> tuple[Tensor, list[Tensor]]:
        """Noise first; then along the mean of the drifts at both ends."""
        pushed = self.moving.move(self.moving.latents + self.push()).latents  # known frames are shown without noise
        first, slope_first = self.drift(pushed, self.gamma)
        ahead = self.moving.move(pushed + self.h * first).latents
        second, slope_second = self.drift(ahead, self.gamma + self.h)
        return pushed + self.h * (first + second) / 2, [slope_first, slope_second]

    def push(self) -> Tensor | float:
        """sqrt(2 w h) times standard normal noise (b, T, ...)."""
        strength = 2 * self.sampler.renewal(self.gamma, self.h) * (1 - self.gamma) * self.h
        if strength == 0:
            return 0.0
        return math.sqrt(strength) * clip_noise(self.moving.latents, self.moving.generators, self.sampler)
