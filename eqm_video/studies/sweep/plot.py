"""The picture of `eqm-video sweep`: quality over evaluations, and over step sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eqm_video.output import plots
from eqm_video.studies.quality import titles

Row = Mapping[str, Any]


def draw_sweep(path: Path, rows: Sequence[Row], headline: str | None, known: Mapping[str, Any]) -> None:
    """Draw the best of all step sizes over the evaluations; below, quality over step sizes for the first sampler.

    `headline` is the measure of quality, or None. `known` has the `limits` of stability of samplers, and `measures`
    with the values of real clips.
    """
    names = titles(known.get("measures", {}))
    measures = [headline, "gradient_rms"] if headline else ["gradient_rms"]
    first = next((row["sampler"] for row in rows if row["step_size"] is not None), None)  # a sampler with step sizes
    varied = [row for row in rows if row["sampler"] == first and row["schedule"] == "constant"]
    panels = 1 + (len(measures) if first else 0)
    figure = plots.figure(6.5, 2.6 * panels)
    settings = {"xscale": "log", "xlabel": "evaluations of the field", "ylabel": names.get(measures[0], "")}
    over_evaluations(plots.axes(figure, panels, 1, 1, **settings), rows, measures[0], known)
    for place, measure in enumerate(measures if first else [], start=2):
        axes = plots.axes(figure, panels, 1, place, xscale="log", xlabel="step size", ylabel=names[measure])
        over_step_sizes(axes, varied, measure, known.get("limits", {}).get(first))
        axes.set_title(f"{first}, constant step size", fontsize=10)
        if place == 2:
            plots.legend(axes, beside=True)
    plots.save(figure, path)


def over_evaluations(axes: Any, rows: Sequence[Row], measure: str, known: Mapping[str, Any]) -> None:
    """Draw the best row of each number of evaluations, a line for each model, sampler and schedule."""
    series: dict[tuple[str, str, str], dict[float, float]] = {}
    lower = measure != "both_accuracy" and _metric(known, measure).get("better") != "higher"
    for row in sorted(rows, key=lambda row: row["model"] != "model"):  # the model's own lines first
        value = row.get(measure)
        if value is None:
            continue
        points = series.setdefault((row["model"], row["sampler"], row["schedule"]), {})
        best = points.get(row["nfe"], value)
        points[row["nfe"]] = min(best, value) if lower else max(best, value)
    for index, ((model, sampler, schedule), points) in enumerate(series.items()):
        name = sampler if schedule == "constant" else f"{sampler}, {schedule} steps"
        line = "-" if model == "model" else "--"
        name = name if model == "model" else f"flow, {name}"
        places = sorted(points)
        axes.plot(places, [points[k] for k in places], line, label=name, markersize=5, **plots.style(index))
    _reference(axes, measure, known)
    plots.ticks_1_2_5(axes.xaxis)
    axes.set_title("best of all step sizes", fontsize=10)
    plots.legend(axes, beside=True)


def over_step_sizes(axes: Any, rows: Sequence[Row], measure: str, limit: float | None) -> None:
    """Draw a line for each number of steps, crosses where clips diverged, and the limit of stability."""
    for index, steps in enumerate(sorted({row["steps"] for row in rows})):
        points = sorted((row["step_size"], row[measure]) for row in rows if _shows(row, steps, measure))
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{steps} steps", markersize=5, **plots.style(index))
    lost = [(row["step_size"], row[measure]) for row in rows if row["diverged"] and row.get(measure) is not None]
    if lost:
        look = {"color": "black", "markersize": 10, "zorder": 5, "clip_on": False}
        axes.plot(*zip(*lost, strict=True), "x", label="clips diverged", **look)
    if limit is not None:
        axes.axvline(limit, color=plots.GREY, linestyle=":", label="unstable beyond\n(closed form)")
    if measure == "both_accuracy":
        axes.set_ylim(0, 1.05)
    elif measure == "gradient_rms":
        axes.set_yscale("log")
        plots.ticks_1_2_5(axes.yaxis)


def _metric(known: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    return known.get("measures", {}).get("metrics", {}).get(measure, {})


def _shows(row: Row, steps: int, measure: str) -> bool:
    return row["steps"] == steps and row.get(measure) is not None


def _reference(axes: Any, measure: str, known: Mapping[str, Any]) -> None:
    if measure == "both_accuracy":
        axes.set_ylim(0, 1.05)
    elif real := _metric(known, measure).get("real"):
        axes.axhline(real["value"], color=plots.GREY, linestyle=":", label="real clips")
