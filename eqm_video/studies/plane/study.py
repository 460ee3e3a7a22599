"""Flow matching beside Equilibrium Matching in the plane (the paper's Figure 1)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.sampling.option_groups import Filmed, Seeded, Stepped
from eqm_video.studies.plane import worlds as plane
from eqm_video.studies.plane.pictures import Scene, draw_film, draw_picture
from eqm_video.studies.study import Report, Study
from eqm_video.system import machine

LEAST_STEPS = 12  # with fewer, steps are unstable at the data: step size * 20 < 2 must hold


@dataclass(frozen=True, kw_only=True)
class Plane(Study, Stepped, Seeded, Filmed, group="compare"):
    """Flow matching and Equilibrium Matching in two dimensions.

    From the same starts, with equal step size and number of steps, points walk along the exact fields of a few data
    points, and along the fields of two small networks that the command trains (the paper's Figure 1). Then they go on
    for as many steps again, with the flow's clock fixed at gamma = 1: an equilibrium rests on its data, a flow has
    nothing that stops it. Each of the --steps N has size 1/N.

    plane.png: fields and walks; plane.gif: the same while they walk; plane.json: settings and numbers.
    """

    points: int | str = option(
        2, least=1, most=plane.MAX_POINTS, words=("moons",), metavar="M", help="data points on a ring, or moons"
    )
    steps: int = narrower(50, least=LEAST_STEPS)
    starts: int = option(256, least=1, metavar="B", help="number of measured walks")
    within: float = option(0.1, above=0, metavar="R", help="distance from a data point that counts as arrived")
    train_steps: int = option(3000, least=1, metavar="K", help="updates of each of the two networks")

    def run(self) -> Report:
        """Train the two networks, walk along all four fields, and measure."""
        plots.figure()  # a missing matplotlib stops the command here, not after the training
        began = time.monotonic()
        points = plane.data_points(self.points)
        methods = plane.methods(points, train_steps=self.train_steps, seed=self.seed)
        trained = time.monotonic()
        start = plane.start_points(self.starts, self.seed)
        walks = {
            kind: [method.walk(start, steps=self.steps, total=2 * self.steps) for method in pair]
            for kind, pair in methods.items()
        }
        numbers = {"settings": self.settings(points, methods), **self.measure(methods, walks, points)}
        numbers["seconds"] = {"training": round(trained - began, 1), "all": round(time.monotonic() - began, 1)}
        scene = Scene(points, methods, walks, self.steps)
        pictures = {"plane.png": lambda path: draw_picture(path, scene)}
        if not self.no_film:
            pictures["plane.gif"] = lambda path: draw_film(path, scene)
        return Report(numbers, self.table(numbers), pictures)

    def settings(self, points: torch.Tensor, methods: Mapping[str, list[plane.Method]]) -> dict[str, Any]:
        """The settings for the record; `points` are the data (M, 2)."""
        return {
            "points": self.points,
            "data": points.tolist(),
            "steps": self.steps,
            "step_size": 1 / self.steps,
            "starts": self.starts,
            "within": self.within,
            "train_steps": self.train_steps,
            "seed": self.seed,
            "decays": {method.name: repr(method.decay) for method in methods["exact"]},
            **machine.versions(),
            "machine": machine.describe(),
        }

    def measure(
        self, methods: Mapping[str, list[plane.Method]], walks: Mapping[str, list[torch.Tensor]], data: torch.Tensor
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Numbers by kind (exact, trained) and method: ends of walks (2N + 1, B, 2), and errors of networks."""
        numbers: dict[str, dict[str, dict[str, Any]]] = {}
        for kind, pair in methods.items():
            numbers[kind] = {}
            for method, path in zip(pair, walks[kind], strict=True):
                at_data = method.at(1.0)(data)
                numbers[kind][method.name] = {
                    **plane.measure(path, data, self.steps, self.within),
                    "gradient_at_data": float(at_data.norm(dim=1).mean()),
                }
        for exact, trained in zip(methods["exact"], methods["trained"], strict=True):
            numbers["trained"][trained.name]["misfit"] = plane.misfit(trained, exact, data, seed=self.seed)
        return numbers

    def table(self, numbers: Mapping[str, Any]) -> str:
        """A table for the screen: the share of walks that arrived."""
        short, long = (f"after {count} steps" for count in (self.steps, 2 * self.steps))
        lines = [
            f"share of {self.starts} walks within {self.within:g} of a data point (median distance):",
            f"{'':24}{short:>20}{long:>20}",
        ]
        for kind in ("exact", "trained"):
            for name, walks in numbers[kind].items():
                ends = [f"{walks[at]['share_within']:.0%} ({walks[at]['median_distance']:.3f})" for at in (short, long)]
                lines.append(f"  {kind + ' ' + name:22}{ends[0]:>20}{ends[1]:>20}")
        return "\n".join(lines)
