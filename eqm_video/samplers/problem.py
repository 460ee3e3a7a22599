"""The problem that a solver solves, and the protocol of solvers.

Legend: B clips, T frames, b active clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eqm_video.samplers.active import Active
from eqm_video.samplers.checks import STOP, Callback, Gradient, check_arguments, check_start_gamma
from eqm_video.samplers.descent import Descent
from eqm_video.samplers.levels import Route


@dataclass(frozen=True)
class Problem:
    """A start between noise and data, and the gradient that a solver follows from `start_gamma` to gamma = 1.

    Args:
        gradient: as for `descend`. If it has `at_gamma(gamma)`, that is evaluated instead of `at_step`; gamma is a
            float, or with known frames a tensor (b, T) that is 1 on those.
        start: (B, T, ...) floating point. Never modified.
        steps: number of steps, >= 0; with 0 the result is the start.
        start_gamma: the position of `start` between noise (0) and data (1), in [0, 1).
        known: (B, T) bool, frames that stay as they are in `start`, bit for bit; a clip whose frames are all known
            takes no evaluation. None: no frame is known.
        callback: `callback(step, latents, gradient)` once for each step: the latents (B, ...) after it and the mean
            gradient along it (0 on known frames). Returning `STOP` ends it after this step.
        generators: a generator for each clip, for solvers with randomness.
        route: the decay of the field and the warp of the steps, for the velocity f / c(gamma). None: the field itself,
            in equal steps.

    Raises:
        ValueError: a wrong argument.
    """

    gradient: Gradient
    start: Tensor
    steps: int
    start_gamma: float = 0.0
    known: Tensor | None = None
    callback: Callback | None = None
    generators: Sequence[torch.Generator] | None = None
    route: Route | None = None

    def __post_init__(self) -> None:
        known = check_arguments(self.gradient, self.start, self.steps, self.known, self.generators)
        object.__setattr__(self, "known", known)  # on the latents' device
        check_start_gamma(self.start_gamma)

    def active(self) -> Active:
        """The active clips at the start: all except those whose frames are all known."""
        return Active.all_of(self.gradient, self.start, self.known, self.generators)

    def stops(self, step: int, active: Active, latents: Tensor, slopes: Sequence[Tensor]) -> bool:
        """Call the callback with the latents (b, ...) after a step and the mean gradient along it.

        True if it returned `STOP`; False without a callback.
        """
        if self.callback is None:
            return False
        mean = active.spread(torch.stack(list(slopes)).mean(dim=0), over=torch.zeros_like(self.start))
        return self.callback(step, active.spread(latents, over=self.start), mean) is STOP

    def solved(self, active: Active, latents: Tensor, nfe: Sequence[int]) -> Descent:
        """The result: `latents` (b, ...) at gamma = 1 of the active clips, and `nfe`, the evaluations of each (b,)."""
        counts = torch.tensor(nfe, dtype=torch.long, device=self.start.device)
        frame_nfe = torch.zeros(len(self.start), active.unknown.shape[1], dtype=torch.long, device=self.start.device)
        frame_nfe[active.rows] = counts[:, None] * active.unknown
        whole = active.spread(latents, over=self.start)
        return Descent(latents=whole, nfe=frame_nfe.amax(dim=1), frame_nfe=frame_nfe)


class Solver(Protocol):
    """A sampler that follows the field along gamma, from `start_gamma` to 1."""

    def solve(self, problem: Problem) -> Descent:
        """Carry `problem.start` (B, T, ...) to gamma = 1.

        Raises:
            ValueError: an argument that this solver refuses, or a gradient of another shape.
            DivergenceError: non-finite latents or gradient.
        """
