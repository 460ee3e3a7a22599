"""`python -m eqm_video plane --out DIR`: flow matching beside Equilibrium Matching in the plane (the paper's Figure 1).

From the same starts, with the same step size and number of steps, points walk along the exact fields of a few data
points, and along those of two small networks that the command trains. Then they go on for as many steps again, the
flow's clock held at gamma = 1: an equilibrium rests on its data, a flow has nothing that stops it.

plane.png: fields and walks; plane.gif: the same while they walk; plane.json: settings and numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eqm_video.output import plots
from eqm_video.output.outputs import claim_output
from eqm_video.studies.plane import worlds as plane
from eqm_video.studies.plane.pictures import Scene, draw_film, draw_picture
from eqm_video.studies.request import number, whole
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser

LEAST_STEPS = 12  # below, the step is too large for the equilibrium's slope at the data: step size * 20 < 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    claim_output(options.out, "plane")
    plots.figure()  # where matplotlib is missing, say so before the training
    began = time.monotonic()
    points = plane.data_points(options.points)
    found = plane.methods(points, train_steps=options.train_steps, seed=options.seed)
    trained = time.monotonic()
    start = plane.start_points(options.starts, options.seed)
    walks = {
        kind: [method.walk(start, steps=options.steps, total=2 * options.steps) for method in pair]
        for kind, pair in found.items()
    }
    numbers = measure(found, walks, points, options)
    scene = Scene(points, found, walks, options.steps)
    draw_picture(options.out / "plane.png", scene)
    if not options.no_film:
        draw_film(options.out / "plane.gif", scene)
    numbers["seconds"] = {"training": round(trained - began, 1), "all": round(time.monotonic() - began, 1)}
    files.write_record(options.out / "plane.json", numbers)
    report(numbers, options)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video plane", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for plane.png, plane.gif and plane.json")
    add("--points", type=points, default=2, metavar="M", help="data points on a ring, 1 to 64, or moons; default: 2")
    add("--steps", type=whole(LEAST_STEPS), default=50, metavar="N", help="steps of size 1/N each; default: 50")
    add("--starts", type=whole(1), default=256, metavar="B", help="walks that are measured; default: 256")
    add("--within", type=number(0, above=True), default=0.1, metavar="R", help="counts as arrived; default: 0.1")
    add("--train-steps", type=whole(1), default=3000, metavar="K", help="updates of each network; default: 3000")
    add("--seed", type=whole(0), default=0, metavar="S", help="of starts and training; default: 0")
    add("--no-film", action="store_true", help="leave plane.gif out")
    return parser.parse_args(arguments)


def points(text: str) -> int | str:
    """Argparse type: what `plane.data_points` takes."""
    return text if text == "moons" else whole(1, plane.MAX_POINTS)(text)


def measure(
    found: dict[str, list[plane.Method]],
    walks: dict[str, list[torch.Tensor]],
    data: torch.Tensor,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Everything that plane.json says, but for the time it took."""
    numbers: dict[str, Any] = {
        "settings": {
            "points": options.points,
            "data": data.tolist(),
            "steps": options.steps,
            "step_size": 1 / options.steps,
            "starts": options.starts,
            "within": options.within,
            "train_steps": options.train_steps,
            "seed": options.seed,
            "decays": {method.name: repr(method.decay) for method in found["exact"]},
            **machine.versions(),
            "machine": machine.describe(),
        }
    }
    for kind, pair in found.items():
        numbers[kind] = {}
        for method, path in zip(pair, walks[kind], strict=True):
            at_data = method.at(1.0)(data)
            numbers[kind][method.name] = {
                **plane.measure(path, data, options.steps, options.within),
                "gradient_at_data": float(at_data.norm(dim=1).mean()),
            }
    for exact, trained in zip(found["exact"], found["trained"], strict=True):
        numbers["trained"][trained.name]["misfit"] = plane.misfit(trained, exact, data, seed=options.seed)
    return numbers


def report(numbers: dict[str, Any], options: argparse.Namespace) -> None:
    """Say what was measured and where to look."""
    short, long = (f"after {count} steps" for count in (options.steps, 2 * options.steps))
    print(f"share of {options.starts} walks within {options.within:g} of a data point (median distance):")
    print(f"{'':24}{short:>20}{long:>20}")
    for kind in ("exact", "trained"):
        for name, one in numbers[kind].items():
            ends = [f"{one[at]['share_within']:.0%} ({one[at]['median_distance']:.3f})" for at in (short, long)]
            print(f"  {kind + ' ' + name:22}{ends[0]:>20}{ends[1]:>20}")
    pictures = "plane.png" if options.no_film else "plane.png and plane.gif"
    print(f"look at {pictures} in {options.out}; numbers: {options.out / 'plane.json'}")
