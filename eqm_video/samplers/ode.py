"""Solvers of the ordinary differential equation dx/dgamma = -f(x): sampling seen as a flow from noise to data.

Legend: B clips, T frames, b active clips, N steps. The steps of Dopri5 are torchdiffeq's, imported on use.

For the flow-matching baseline (constant decay 1) the equation carries noise at gamma = 0 to data at gamma = 1. For an
Equilibrium Matching field it is gradient descent with a total step of 1: Euler with N steps equals GD with
step_size 1/N.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.samplers.active import Active
from eqm_video.samplers.checks import CHECK_EVERY, DivergenceError, check_finite, is_number
from eqm_video.samplers.descent import Descent
from eqm_video.samplers.levels import path
from eqm_video.samplers.problem import Problem
from eqm_video.system.devices import widest


@dataclass
class _Slopes:
    """The gradient of the active clips during a step, at any latents and gamma; `seen` lists all results.

    With a decay c it is the velocity, the gradient divided by c(gamma).
    """

    active: Active
    step: int
    keep_graph: bool
    decay: Decay | None = None
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, latents: Tensor, gamma: float) -> Tensor:
        slope = self.active.evaluate(latents, step=self.step, gamma=gamma, keep_graph=self.keep_graph)
        self.seen.append(slope if self.decay is None else slope / self._strength(gamma))
        return self.seen[-1]

    def vanishes(self, gamma: float) -> bool:
        """Whether the velocity at gamma would be a division by c(gamma) = 0, as at the data."""
        return self.decay is not None and self._strength(gamma) <= 0

    def _strength(self, gamma: float) -> float:
        return float(self.decay(torch.tensor(gamma, dtype=torch.float64)))


class _FixedSteps:
    """A solver with equal steps in gamma, or those of a warp; a subclass writes `step`."""

    warped = True

    def step(self, slope: _Slopes, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """The latents (b, T, ...) after a step of size h from gamma to end."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Descent:
        """Carry `problem.start` to gamma = 1 in `problem.steps` equal steps, or those of a warp; see `Solver.solve`."""
        start, steps, route = problem.start, problem.steps, problem.route
        grid = torch.linspace(float(problem.start_gamma), 1, steps + 1, dtype=torch.float64)
        if route is not None:
            grid = path(route.warp, steps, float(problem.start_gamma))
        decay = None if route is None else route.decay
        gammas = grid.tolist()  # all on the CPU: reading them off the device would wait
        sizes = grid.to(torch.promote_types(start.dtype, torch.float32)).diff().tolist()
        active, nfe = problem.active(), 0
        advice = f"use more steps than {steps}"
        for step in range(steps if active.count else 0):
            slopes = _Slopes(active, step, start.requires_grad, decay)
            active = active.updated(self.step(slopes, active.latents, gammas[step], gammas[step + 1], sizes[step]))
            nfe += len(slopes.seen)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                check_finite(active.latents, active.rows, self, f"the latents after step {step} of {steps}", advice)
            if problem.stops(step, active, active.latents, slopes.seen):
                break
        return problem.solved(active, active.latents, [nfe] * active.count)


@dataclass(frozen=True)
class Euler(_FixedSteps):
    """Euler's method: x <- x - h f(x), h = (1 - start_gamma) / steps; one evaluation a step."""

    def step(self, slope: _Slopes, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """The latents moved down the slope at the start of the step."""
        return latents - h * slope(latents, gamma)


@dataclass(frozen=True)
class Heun(_FixedSteps):
    """Heun's method of order 2, the mean of the slopes at both ends of an Euler step; two evaluations a step."""

    def step(self, slope: _Slopes, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """The latents moved down the mean of the slopes at the start and at the end of an Euler step."""
        first = slope(latents, gamma)
        if slope.vanishes(end):  # at the data an equilibrium field has no velocity: the last step is Euler's
            return latents - h * first
        return latents - h * ((first + slope(latents - h * first, end)) / 2)


@dataclass(frozen=True)
class Dopri5:
    """Dormand and Prince's method of order 5 with its own step sizes; `steps` only sets the points for callbacks.

    Each clip is solved alone, with its own step sizes and its own count of evaluations, so it does not depend on its
    batch. This gives up the speed of batching, and a field without `select` evaluates the whole batch each time. The
    error is measured on the unknown frames, so it does not depend on the number of known ones.
    """

    rtol: float = 1e-5  # error allowed in a step, relative to the root mean square of the unknown frames
    atol: float = 1e-5  # absolute error allowed in a step, in units of the latents

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ValueError(f"Dopri5: {name} is {value!r}; it must be a finite number above 0, such as 1e-5")

    def solve(self, problem: Problem) -> Descent:
        """Carry `problem.start` to gamma = 1, clip by clip; see `Solver.solve`.

        Callbacks come after all clips are done, with -(change of the latents) / h as the gradient. With a callback the
        latents at all `steps` points stay in memory.
        """
        start, steps, active = problem.start, problem.steps, problem.active()
        low = float(problem.start_gamma)
        grid = torch.linspace(low, 1, steps + 1, dtype=torch.float64).to(start.device, widest(start.device))
        reports = grid if problem.callback is not None else grid[[0, -1]]
        paths, counts = [], []
        for clip in range(active.count if steps else 0):
            chosen = torch.arange(active.count) == clip
            path, nfe = self._one_clip(active.keep(chosen, start), reports, steps, keep_graph=start.requires_grad)
            paths.append(path)
            counts.append(nfe)
        if not paths:
            return problem.solved(active, active.latents, [0] * active.count)
        path = torch.cat(paths, dim=1)  # (points, b, T, ...)
        if problem.callback is not None:
            for step in range(steps):
                slope = (path[step] - path[step + 1]) / float(grid[1] - grid[0])
                if problem.stops(step, active, path[step + 1], [slope]):
                    return problem.solved(active, path[step + 1], counts)
        return problem.solved(active, path[-1], counts)

    def _one_clip(self, active: Active, reports: Tensor, steps: int, *, keep_graph: bool) -> tuple[Tensor, int]:
        """The latents (points, 1, T, ...) of a single clip at the gammas `reports`, and its evaluations."""
        from torchdiffeq import odeint

        low, advice, nfe = float(reports[0]), "use another sampler: the field is too steep for it", 0

        def velocity(gamma: Tensor, latents: Tensor) -> Tensor:
            nonlocal nfe
            nfe += 1
            now = min(float(gamma.detach()), 1.0)  # the first trial step may go beyond 1
            step = min(int((now - low) / (1 - low) * steps + 1e-6), steps - 1)  # the reporting step that gamma is in
            slope = active.evaluate(latents, step=step, gamma=now, keep_graph=keep_graph)
            check_finite(slope, active.rows, self, f"the gradient at gamma {now:.3g}", advice)
            return -slope

        tolerances = {"rtol": self.rtol, "atol": self.atol}
        options = self._options(active, reports)
        try:
            path = odeint(velocity, active.latents, reports, **tolerances, method="dopri5", options=options)
        except AssertionError as error:  # torchdiffeq asserts that its step has not shrunk to nothing
            clip = int(active.rows[0])
            raise DivergenceError(f"the descent diverged: {error}, in clip {clip}, with {self!r}; {advice}") from error
        check_finite(path[-1], active.rows, self, "the latents at the end", advice)
        return torch.stack([active.updated(latents).latents for latents in path]), nfe

    def _options(self, active: Active, reports: Tensor) -> dict[str, Any]:
        """Options of torchdiffeq for a single clip: a step's end at gamma = 1, the time's dtype, the error norm."""
        options: dict[str, Any] = {
            "step_t": reports[-1:],  # else it steps beyond gamma = 1, where there is no field, and interpolates
            "dtype": reports.dtype,
        }
        if active.known is not None:  # known frames have no error: their zeros would loosen the tolerance
            frames = active.unknown[0].nonzero().squeeze(1)
            options["norm"] = lambda values: values[:, frames].square().mean().sqrt()
        return options
