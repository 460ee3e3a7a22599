"""The teacher's descents from noise: their states, and the points where they rest.

A descent along a field is a path, so that every state of it rests at the same point r. The equilibrium map x -> r(x) is
a function of the point alone, with no time in it, and r(r) = r. A student field f with x - f(x) = r(x) on all states
takes one step of size 1 to the rest. On the straight path to a single clip f = (1 - gamma) (noise - clean): the student
is the field of the linear decay with gain 1.

Legend: N paths, S steps of the teacher, B rows of a batch, T frames, C h w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.randomness import generator
from eqm_video.samplers import Gradient, Multistep, run
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches
from eqm_video.system import waits

FLOOR = 0.01  # added to a row's mean square displacement, in its weight
NOISE = 0.25  # share of rows at the start of their path, from which every sample begins
OWN = 0.5  # share of rows that first go a step of the student


@dataclass(frozen=True)
class Paths:
    """states (N, S + 1, T, C, h, w), from noise to rest, on the CPU; labels: the label of each path, None for none."""

    states: Tensor
    labels: list[str | None]

    @classmethod
    def of_field(cls, field: Gradient, noise: Tensor, steps: int, decay: Decay, labels: Sequence[str | None]) -> Paths:
        """The paths of a field by the multistep rule, from noise (N, T, C, h, w)."""
        states = [noise]
        run(field, noise, Multistep(), steps=steps, decay=decay, callback=lambda step, x, slope: states.append(x))
        return cls(torch.stack(states, dim=1).cpu(), list(labels))

    @classmethod
    def of_model(
        cls, teacher: EqMPipeline, labels: Sequence[str | None], seeds: Sequence[int], how: Sampling, batch_size: int
    ) -> Paths:
        """The paths of a model with these labels and seeds, sampled as `how` says by a rule of `samplers.RULES`."""
        parts = []
        for part in waits.bar(batches(len(labels), batch_size), "descents of the teacher", unit="batch"):
            states: list[Tensor] = []
            noise = teacher.start_noise(list(seeds[part]))
            teacher.sample(
                how,
                labels[part],
                seeds=seeds[part],
                output_type="latent",
                callback=lambda step, x, slope, states=states: states.append(x.cpu()),
            )
            parts.append(torch.stack([noise.cpu(), *states], dim=1))
        return cls(torch.cat(parts), list(labels))

    def draw(self, rows: int, seed: int, step: int) -> tuple[Tensor, Tensor, list[str | None]]:
        """States (B, ...), the rests of their paths (B, ...) and their labels, from (seed, step) alone.

        A share `NOISE` of the rows stands at the start of a path, the others at any state, the rest included.
        """
        source = generator(seed, "distill", step)
        path = torch.randint(len(self.states), (rows,), generator=source)
        place = torch.randint(self.states.shape[1], (rows,), generator=source)
        place[: round(NOISE * rows)] = 0
        return self.states[path, place], self.states[path, -1], [self.labels[k] for k in path.tolist()]


def loss_of(field: Callable[[Tensor], Tensor], states: Tensor, rests: Tensor) -> Tensor:
    """The loss (): mean square of f(x) - (x - r), where each row is divided by the root of its mean square way."""
    way = states - rests
    size = way.square().flatten(1).mean(dim=1) + FLOOR
    error = (field(states) - way).square().flatten(1).mean(dim=1)
    return (error / size.sqrt()).mean()


def step_ahead(field: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """States of which the last share `OWN` has gone one step of the student, x - f(x). No gradient."""
    count = round((1 - OWN) * len(states))
    if count == len(states):
        return states
    with torch.no_grad():
        return torch.cat([states[:count], states[count:] - field(states)[count:]])
