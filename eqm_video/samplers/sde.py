"""The stochastic sampler of the flow-matching baseline.

Legend: B clips, T frames, b active clips, N steps.

The field of the baseline (constant decay 1) predicts f = noise - clean at x = gamma * clean + (1 - gamma) * noise, so
that the velocity is -f, the noise x + gamma * f, and the score of the density at gamma is -noise / (1 - gamma). Every

    dx = (-f + w * score) dgamma + sqrt(2 w) dW,   w(gamma) >= 0,

has the same densities as the ordinary differential equation dx = -f dgamma (Ma et al., SiT, arXiv 2401.08740,
section 2.3): w only sets how strongly noise is renewed on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from eqm_video.samplers.active import Active
from eqm_video.samplers.checks import CHECK_EVERY, check_finite, check_start_gamma, is_number
from eqm_video.samplers.descent import Descent
from eqm_video.samplers.problem import Problem
from eqm_video.samplers.rules import clip_noise

METHODS = ("heun", "euler")
DIFFUSIONS = ("sigma", "sbdm")
CUT = 4  # "sbdm" is cut off below gamma = CUT * h: an Euler step renews at most norm / CUT of the noise


@dataclass(frozen=True)
class SDE:
    """Stochastic sampling of a flow-matching field, as SiT does it. Not for Equilibrium Matching fields.

    Diffusions (w above):
        "sigma": w = norm * (1 - gamma), the noise's share.
        "sbdm": w = norm * (1 - gamma) / gamma. On the straight path x / gamma = clean + noise * (1 - gamma) / gamma, so
            the velocity is x / gamma + score * (1 - gamma) / gamma: with norm = 1 the equation is the time reversal of
            the diffusion dx = -x / gamma ds + sqrt(2 (1 - gamma) / gamma) dW that score-based models are built on.
            It is infinite at gamma = 0. Every w >= 0 has the same densities, so a gamma below 4 h (h the step size) is
            replaced by 4 h.

    Steps: N - 1 equal ones of size h = (1 - last_step - start_gamma) / (N - 1), then one of size `last_step` along the
    mean drift alone, since noise added at the end would stay. With N = 1 the last step is the whole way.

    Methods: "euler" (Euler-Maruyama): noise and drift at the same latents, N evaluations. "heun": noise is added
    first, then the step follows the mean of the drifts at its start and after an Euler step, 2 (N - 1) + 1 evaluations.
    """

    method: str = "heun"  # of a step: euler or heun
    diffusion: str = "sigma"  # the form of w: sigma or sbdm
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
        """Carry `problem.start` to gamma = 1; see `Solver.solve`. start_gamma must lie below 1 - last_step.

        Noise comes from `problem.generators`, one for each clip; ValueError without them.
        """
        start, steps = problem.start, problem.steps
        low = check_start_gamma(problem.start_gamma, 1 - self.last_step)
        active, nfe = problem.active(), 0
        advice = f"use more steps than {steps}, or a smaller norm"
        grid = self._grid(low, steps)
        for step in range(steps if active.count else 0):
            walk = _Walk(active, self, step, grid[step], grid[step + 1] - grid[step], start.requires_grad)
            latents, slopes = walk.mean() if step + 1 == steps else getattr(walk, self.method)()
            active = active.updated(latents)
            nfe += len(slopes)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                check_finite(active.latents, active.rows, self, f"the latents after step {step} of {steps}", advice)
            if problem.stops(step, active, active.latents, slopes):
                break
        return problem.solved(active, active.latents, [nfe] * active.count)

    def renewal(self, gamma: float, h: float) -> float:
        """The factor w / (1 - gamma) for steps of size h: w * score is -noise times this, finite at gamma = 1."""
        return self.norm if self.diffusion == "sigma" else self.norm / max(gamma, CUT * h)

    def _grid(self, low: float, steps: int) -> list[float]:
        """The gammas at the ends of the steps, steps + 1 of them."""
        size = (1 - self.last_step - low) / max(steps - 1, 1)
        return [low + size * step for step in range(steps)] + [1.0]


@dataclass(frozen=True)
class _Walk:
    """A step of size h from gamma. `mean`, `euler` and `heun` return latents (b, T, ...) and evaluated gradients."""

    active: Active
    sampler: SDE
    step: int
    gamma: float
    h: float
    keep_graph: bool

    def drift(self, latents: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """The drift velocity + w * score at `gamma`, and the gradient it comes from."""
        slope = self.active.evaluate(latents, step=self.step, gamma=gamma, keep_graph=self.keep_graph)
        noise = latents + gamma * slope
        return -slope - self.sampler.renewal(gamma, self.h) * noise, slope

    def mean(self) -> tuple[Tensor, list[Tensor]]:
        """A step along the drift, without noise."""
        drift, slope = self.drift(self.active.latents, self.gamma)
        return self.active.latents + self.h * drift, [slope]

    def euler(self) -> tuple[Tensor, list[Tensor]]:
        """A step along the drift, plus noise."""
        latents, slopes = self.mean()
        return latents + self.push(), slopes

    def heun(self) -> tuple[Tensor, list[Tensor]]:
        """Noise, then a step along the mean of the drifts at both ends."""
        pushed = self.active.updated(self.active.latents + self.push()).latents  # known frames stay without noise
        first, slope_first = self.drift(pushed, self.gamma)
        ahead = self.active.updated(pushed + self.h * first).latents
        second, slope_second = self.drift(ahead, self.gamma + self.h)
        return pushed + self.h * (first + second) / 2, [slope_first, slope_second]

    def push(self) -> Tensor | float:
        """The noise of the step: sqrt(2 w h) times a standard normal draw (b, T, ...)."""
        strength = 2 * self.sampler.renewal(self.gamma, self.h) * (1 - self.gamma) * self.h
        if strength == 0:
            return 0.0
        return math.sqrt(strength) * clip_noise(self.active.latents, self.active.generators, self.sampler)
