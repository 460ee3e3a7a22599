"""Solvers of the ordinary differential equation dx/dgamma = -f(x): sampling seen as a flow from noise to data.

Legend: B clips, T frames, b clips that move, N steps. Dopri5's stepping is torchdiffeq's, imported where it runs.

For the flow-matching baseline (constant decay 1) the equation carries noise at gamma = 0 to data at gamma = 1. For an
Equilibrium Matching field it is gradient descent with a total step of 1: Euler with N steps equals GD with
step_size 1/N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqm_video.samplers.active import Moving
from eqm_video.samplers.checks import CHECK_EVERY, DivergenceError, check_finite, is_number
from eqm_video.samplers.descent import Descent
from eqm_video.samplers.problem import Problem
from eqm_video.system.devices import widest

Slope = Callable[[Tensor, float], Tensor]  # (latents, gamma) -> gradient


@dataclass
class _Slopes:
    """The gradient of the moving clips in one step, at latents and a gamma; it remembers what it evaluated."""

    moving: Moving
    step: int
    keep_graph: bool
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, latents: Tensor, gamma: float) -> Tensor:
        self.seen.append(self.moving.evaluate(latents, step=self.step, gamma=gamma, keep_graph=self.keep_graph))
        return self.seen[-1]


class _FixedSteps:
    """A method with equal steps."""

    def step(self, slope: Slope, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """The latents after one step of size h from gamma to end."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Descent:
        """As `Solver.solve`."""
        start, steps = problem.start, problem.steps
        grid = torch.linspace(float(problem.start_gamma), 1, steps + 1, dtype=torch.float64)
        gammas = grid.tolist()  # all on the CPU: to read them off the device would make it wait
        sizes = grid.to(torch.promote_types(start.dtype, torch.float32)).diff().tolist()
        moving, nfe = problem.active(), 0
        advice = f"use more steps than {steps}"
        for step in range(steps if moving.count else 0):
            slopes = _Slopes(moving, step, keep_graph=start.requires_grad)
            moving = moving.move(self.step(slopes, moving.latents, gammas[step], gammas[step + 1], sizes[step]))
            nfe += len(slopes.seen)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                check_finite(moving.latents, moving.rows, self, f"the latents after step {step} of {steps}", advice)
            if problem.callback is not None:
                problem.report(step, moving, moving.latents, torch.stack(slopes.seen).mean(dim=0))
        return problem.solved(moving, moving.latents, [nfe] * moving.count)


@dataclass(frozen=True)
class Euler(_FixedSteps):
    """x <- x - h f(x), h = (1 - start_gamma) / steps; one evaluation a step."""

    def step(self, slope: Slope, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """Down the slope at the start."""
        return latents - h * slope(latents, gamma)


@dataclass(frozen=True)
class Heun(_FixedSteps):
    """Heun's method of order 2, the mean of the slopes at both ends of an Euler step; two evaluations a step."""

    def step(self, slope: Slope, latents: Tensor, gamma: float, end: float, h: float) -> Tensor:
        """Down the mean of the slopes at the start and where Euler ends."""
        first = slope(latents, gamma)
        return latents - h * ((first + slope(latents - h * first, end)) / 2)


@dataclass(frozen=True)
class Dopri5:
    """Dormand and Prince's method of order 5 with its own step sizes; `steps` are only points where it reports.

    Each clip is solved alone, at its own step sizes, so that it does not depend on its batch, and its count of
    evaluations is its own. That costs the speed of batching, and a field without `select` evaluates the whole batch
    each time. The error is that of the frames that are not known: it does not depend on how many frames are held.
    """

    rtol: float = 1e-5  # error allowed in one step, relative to the unknown frames' root mean square
    atol: float = 1e-5  # and absolute, in units of the latents

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ValueError(f"Dopri5: {name} is {value!r}; it must be a finite number above 0, such as 1e-5")

    def solve(self, problem: Problem) -> Descent:
        """As `Solver.solve`; the callbacks come when all clips are done, with -(change of the latents) / h as gradient.

        A callback makes it keep the latents at all `steps` points.
        """
        start, steps, moving = problem.start, problem.steps, problem.active()
        low = float(problem.start_gamma)
        grid = torch.linspace(low, 1, steps + 1, dtype=torch.float64).to(start.device, widest(start.device))
        reports = grid if problem.callback is not None else grid[[0, -1]]
        paths, counts = [], []
        for clip in range(moving.count if steps else 0):
            chosen = torch.arange(moving.count) == clip
            path, nfe = self._one_clip(moving.keep(chosen, start), reports, steps, keep_graph=start.requires_grad)
            paths.append(path)
            counts.append(nfe)
        if not paths:
            return problem.solved(moving, moving.latents, [0] * moving.count)
        path = torch.cat(paths, dim=1)  # (points, b, T, ...)
        if problem.callback is not None:
            for step in range(steps):
                slope = (path[step] - path[step + 1]) / float(grid[1] - grid[0])
                problem.report(step, moving, path[step + 1], slope)
        return problem.solved(moving, path[-1], counts)

    def _one_clip(self, moving: Moving, reports: Tensor, steps: int, *, keep_graph: bool) -> tuple[Tensor, int]:
        """The latents (points, 1, T, ...) of one clip at the gammas of `reports`, and the evaluations it took."""
        from torchdiffeq import odeint

        low, advice, nfe = float(reports[0]), "use another sampler: the field is too steep for it", 0

        def velocity(gamma: Tensor, latents: Tensor) -> Tensor:
            nonlocal nfe
            nfe += 1
            now = min(float(gamma.detach()), 1.0)  # the first trial step may go further
            step = min(int((now - low) / (1 - low) * steps + 1e-6), steps - 1)  # the reporting step that gamma is in
            slope = moving.evaluate(latents, step=step, gamma=now, keep_graph=keep_graph)
            check_finite(slope, moving.rows, self, f"the gradient at gamma {now:.3g}", advice)
            return -slope

        tolerances = {"rtol": self.rtol, "atol": self.atol}
        options = self._options(moving, reports)
        try:
            path = odeint(velocity, moving.latents, reports, **tolerances, method="dopri5", options=options)
        except AssertionError as error:  # torchdiffeq asserts that its step has not shrunk to nothing
            clip = int(moving.rows[0])
            raise DivergenceError(f"the descent diverged: {error}, in clip {clip}, with {self!r}; {advice}") from error
        check_finite(path[-1], moving.rows, self, "the latents at the end", advice)
        return torch.stack([moving.move(latents).latents for latents in path]), nfe

    def _options(self, moving: Moving, reports: Tensor) -> dict[str, Any]:
        """What torchdiffeq is told for one clip: where it must arrive, how exact its time is, what its error is."""
        options: dict[str, Any] = {
            "step_t": reports[-1:],  # else it steps over gamma = 1, where no field is, and interpolates
            "dtype": reports.dtype,
        }
        if moving.known is not None:  # held frames make no error: counted, they would loosen the tolerance
            frames = moving.unknown[0].nonzero().squeeze(1)
            options["norm"] = lambda values: values[:, frames].square().mean().sqrt()
        return options
