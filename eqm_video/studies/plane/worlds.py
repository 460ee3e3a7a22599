"""Equilibrium Matching and flow matching of points in the plane, where fields and descents can be drawn.

Legend: M data points, B walks, N steps. Points are (B, 2); the noise is standard normal.

The exact fields are those of `OracleField`; the learned ones are two small networks of one architecture, trained on the
package's own objective. A flow is conditioned on gamma and takes Euler steps of 1 / N, which are N steps
of gradient descent along a field that changes. An equilibrium has no condition, and takes the same steps along a single
field.

In the plane the gamma of a noisy point is uncertain. The best time-independent field, the oracle, averages over all
possible gammas: it still rests at the data alone, but walks have no closed-form pace, and data that lie close together
slow them. In high dimension the length of the noise reveals gamma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, Decay, TruncatedDecay
from eqm_video.core.field import GradientField
from eqm_video.core.gamma import PerFrameGamma
from eqm_video.core.objective import EqMObjective, interpolate
from eqm_video.randomness import generator, normal
from eqm_video.samplers import GradientDescent, descend
from eqm_video.system import waits
from eqm_video.training.optim import Schedule, adamw, set_lr

EQUILIBRIUM, FLOW = TruncatedDecay(), ConstantDecay()
MAX_POINTS = 64
MOONS = 32  # points of "moons"
BATCH = 512
RADIUS = 1.5  # radius of the ring of data points, in standard deviations of the noise


def data_points(kind: int | str) -> Tensor:
    """Data (M, 2), float32: `kind` points evenly on a ring of radius 1.5 (2: left and right), or "moons".

    Raises:
        ValueError: neither a number from 1 to 64 nor "moons".
    """
    if kind == "moons":
        angle = torch.linspace(0, math.pi, MOONS // 2)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        return 1.2 * torch.cat([upper, -upper])
    if isinstance(kind, bool) or not isinstance(kind, int) or not 1 <= kind <= MAX_POINTS:
        raise ValueError(f"points are {kind!r}; give a number from 1 to {MAX_POINTS}, or moons")
    angle = math.pi + 2 * math.pi * torch.arange(kind, dtype=torch.float64) / kind
    return (RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)).float()


def start_points(count: int, seed: int) -> Tensor:
    """Noise (B, 2), float32, a point for each of `count` seeds."""
    return normal((2,), [generator("plane start", seed, index) for index in range(count)])


# Fields -------------------------------------------------------------------------------------------------------------


class PlaneNetwork(nn.Module):
    """A perceptron (B, 2) -> (B, 2) with three hidden layers, and an input for gamma, always 0 for an equilibrium."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        layers = [nn.Linear(3, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, latents: Tensor, gamma: Tensor | float = 0.0) -> Tensor:
        """The field at (B, 2); gamma is a number or (B, 1)."""
        condition = torch.as_tensor(gamma, dtype=latents.dtype).expand(len(latents), 1)
        return self.layers(torch.cat([latents, condition], dim=1))


@dataclass(frozen=True)
class PlaneField(GradientField):
    """The field of a network at a fixed gamma, which is 0 for an equilibrium."""

    network: PlaneNetwork
    gamma: float = 0.0

    def __call__(self, latents: Tensor) -> Tensor:
        """The gradient at (B, 2), of the same shape."""
        return self.network(latents, self.gamma)

    def at_gamma(self, gamma: float) -> PlaneField:
        """The field at another gamma."""
        return PlaneField(self.network, gamma)


def train(points: Tensor, decay: Decay, *, told_gamma: bool, steps: int, seed: int) -> PlaneField:
    """The field of a network after `steps` updates on batches of 512 noisy points, by AdamW and a cosine schedule.

    A batch has the layout of a clip whose frames are the points, each with a gamma of its own. told_gamma: whether the
    network is conditioned on gamma.
    """
    random = generator("plane training", seed)
    objective = EqMObjective(decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PlaneNetwork()
    schedule = Schedule(lr=2e-3, steps=steps, warmup=min(50, steps), kind="cosine")
    optimizer = adamw(network, lr=schedule.lr)
    for step in waits.bar(range(1, steps + 1), "training a network", unit="step"):
        chosen = torch.randint(len(points), (BATCH,), generator=random)
        clean = points[chosen].reshape(1, BATCH, 1, 1, 2)
        noise = torch.randn(clean.shape, generator=random)
        gamma = PerFrameGamma().draw(BATCH, random)[None]
        noisy = interpolate(clean, noise, gamma)
        sample = network(noisy.reshape(BATCH, 2), gamma.reshape(BATCH, 1) if told_gamma else 0.0)
        loss = objective.loss(sample.reshape(clean.shape), clean, noise, gamma).mean()
        optimizer.zero_grad()
        loss.backward()
        set_lr(optimizer, schedule(step))
        optimizer.step()
    return PlaneField(network.eval().requires_grad_(False))


@dataclass(frozen=True)
class Clocked(GradientField):
    """A flow's field with its clock: gamma = step / steps, and 1 after that."""

    field: GradientField
    steps: int

    @property
    def settled(self) -> bool:
        """False: the field changes at every step."""
        return False

    def at_step(self, step: int) -> GradientField:
        """The field of one step of a descent."""
        return self.field.at_gamma(min(step / self.steps, 1.0))

    def __call__(self, latents: Tensor) -> Tensor:
        """Raise ValueError: a flow has no field without a gamma."""
        raise ValueError("a flow's field changes with gamma; call at_step(step)")


# Walks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to sample: its name, its field, and the decay that decides whether the field needs a clock."""

    name: str  # flow or equilibrium
    field: GradientField
    decay: Decay

    @property
    def needs_clock(self) -> bool:
        """Whether the field changes with gamma: a flow's does."""
        return self.decay == FLOW

    def at(self, gamma: float) -> GradientField:
        """The field when a flow's clock shows gamma; an equilibrium's field is always the same."""
        return self.field.at_gamma(gamma) if self.needs_clock else self.field

    @torch.no_grad()
    def walk(self, start: Tensor, *, steps: int, total: int) -> Tensor:
        """The path (total + 1, B, 2) of `total` steps of size 1 / steps down the field, with the start first."""
        gradient = Clocked(self.field, steps) if self.needs_clock else self.field
        path = [start]
        rule = GradientDescent(1 / steps)
        descend(gradient, start, rule, steps=total, callback=lambda step, latents, _: path.append(latents))
        return torch.stack(path)


def methods(points: Tensor, *, train_steps: int, seed: int) -> dict[str, list[Method]]:
    """The flow and the equilibrium, exact and trained (two networks that differ only in gamma and decay)."""
    exact = [Method(name, OracleField(points, decay), decay) for name, decay in _PAIR]
    trained = [
        Method(name, train(points, decay, told_gamma=decay == FLOW, steps=train_steps, seed=seed), decay)
        for name, decay in _PAIR
    ]
    return {"exact": exact, "trained": trained}


_PAIR: tuple[tuple[str, Decay], ...] = (("flow", FLOW), ("equilibrium", EQUILIBRIUM))


# Numbers ------------------------------------------------------------------------------------------------------------


def distances(walks: Tensor, points: Tensor) -> Tensor:
    """Distances (...) from points (..., 2) to the nearest data point."""
    return (walks[..., None, :] - points).norm(dim=-1).amin(dim=-1)


def measure(path: Tensor, points: Tensor, steps: int, within: float) -> dict[str, dict[str, float]]:
    """Numbers after `steps` and after all steps of a path (total + 1, B, 2).

    share_within: the share of walks within the radius `within` of a data point; median_distance: the median distance to
    the nearest data point.
    """
    numbers = {}
    for count in (steps, len(path) - 1):
        away = distances(path[count], points)
        numbers[f"after {count} steps"] = {
            "share_within": float((away < within).double().mean()),
            "median_distance": float(away.median()),
        }
    return numbers


@torch.no_grad()
def misfit(trained: Method, exact: Method, points: Tensor, *, count: int = 4096, seed: int = 0) -> float:
    """The relative error of a trained field on noisy data: RMS of the difference from the exact field, over its RMS.

    There is a batch for each gamma 0.05, 0.15, ... 0.95, which approximates the distribution in the objective.
    """
    random = generator("plane misfit", seed)
    difference = size = 0.0
    for gamma in (torch.arange(10) / 10 + 0.05).tolist():
        clean = points[torch.randint(len(points), (count // 10,), generator=random)]
        noisy = gamma * clean + (1 - gamma) * torch.randn(clean.shape, generator=random)
        target = exact.at(gamma)(noisy)
        difference += float((trained.at(gamma)(noisy) - target).square().sum())
        size += float(target.square().sum())
    return math.sqrt(difference / size)
