"""The picture of `python -m eqm_video adaptive`: when clips come to rest, and what quality each evaluation buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.cli import plots
from eqm_video.cli.quality import NAMES

Result = Mapping[str, Any]


def draw_adaptive(path: Path, results: Sequence[Result], headline: str | None) -> None:
    """For each fixed setting a histogram of the steps at each tolerance; below, quality and distance over evaluations.

    `headline`: the measure of quality, None where there is none.
    """
    measures = [*([headline] if headline else []), "pixels_from_all_steps"]
    rows = len(results) + len(measures)
    figure = plots.figure(6.5, 2.3 * rows)
    for place, one in enumerate(results, start=1):
        axes = plots.axes(figure, rows, 1, place, xlabel="evaluations of a clip", ylabel="clips")
        histogram(axes, one)
    for place, measure in enumerate(measures, start=len(results) + 1):
        label = NAMES.get(measure, measure)
        axes = plots.axes(figure, rows, 1, place, xlabel="mean evaluations of a clip", ylabel=label)
        over_evaluations(axes, results, measure)
    plots.save(figure, path)


def histogram(axes: Any, one: Result) -> None:
    """How many clips took how many evaluations, for each tolerance of one fixed setting."""
    limit = one["steps"]
    width = max(1, limit // 50)
    edges = np.arange(0, limit + 2 * width, width) + 0.5
    for index, row in enumerate(one["adaptive"]):
        colour = plots.PALETTE[index % len(plots.PALETTE)]
        label = f"tolerance {row['tolerance']:g}\n({row['nfe_ratio']:.0%} of all steps)"
        axes.hist(row["nfe_of_clips"], edges, color=colour, alpha=0.75, label=label)
    axes.axvline(limit, color=plots.GREY, linestyle=":", label=f"all {limit} steps")
    axes.set_xlim(0, limit * 1.02)
    axes.set_title(f"{one['sampler']}, step size {one['step_size']:g}", fontsize=10)
    plots.legend(axes, beside=True)


def over_evaluations(axes: Any, results: Sequence[Result], measure: str) -> None:
    """Adaptive descents (filled), and fixed ones of as many steps for every clip (open), for each fixed setting."""
    for index, one in enumerate(results):
        look = plots.style(index)
        name = f"step size {one['step_size']:g}:"
        stops = [(row["nfe"], row[measure]) for row in one["adaptive"]]
        fixed = [(row["fixed with as many"]["steps"], row["fixed with as many"][measure]) for row in one["adaptive"]]
        if measure in one["all steps"]:
            stops.append((one["all steps"]["nfe"], one["all steps"][measure]))
        axes.plot(*zip(*sorted(stops), strict=True), markersize=6, label=f"{name}\nstops at rest", **look)
        axes.plot(
            *zip(*sorted(fixed), strict=True),
            linestyle="--",
            markersize=6,
            markerfacecolor="white",
            label=f"{name}\nas many for all clips",
            **look,
        )
    axes.set_xlim(0, 1.02 * max(one["steps"] for one in results))
    if measure == "both_accuracy":
        axes.set_ylim(0, 1.05)
    plots.legend(axes, beside=True)
