"""The tables of the tasks as Markdown, and plots of errors by frame and by window.

Legend: T frames of a clip; errors in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqm_video.output import plots
from eqm_video.output.tables import aligned
from eqm_video.studies.tasks.clips import NEAR
from eqm_video.studies.tasks.short import TOLD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOLD_TASKS = ("generation", "image-to-video")  # tasks that are judged by labels
KEYS = ("direction", "shape", "both")
# Tasks that are judged by positions
PLACED = ("continuation", TOLD, "in-betweening", "in-betweening, told", "inpainting")
DASHES = {"codec alone": ":", "straight line": "--", "last frame held": "-."}
MEASURES = {  # measures of a long video by window: titles of their axes
    "both": "share that shows its label",
    "position": "mean error (px)",
    "colour": "ground from the true one's\n(grey levels)",
    "drift": "gradient on known frames, RMS",
}


def best(models: Mapping[str, Any]) -> str:
    """The model whose long videos agree best with their labels, or, without long videos, that continues clips best."""
    if all("long" in result for result in models.values()):
        return max(models, key=lambda name: models[name]["long"]["mean"]["both"])
    if all("tasks" in result for result in models.values()):
        return min(models, key=lambda name: models[name]["tasks"][TOLD]["position"]["mean"])
    return next(iter(models))


def plots_of(results: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The plots of the parts that were measured, by file name."""
    models, drawn = results["models"], {}
    if all("tasks" in result for result in models.values()):
        drawn["tasks.png"] = partial(draw_tasks, models)
    if all("long" in result for result in models.values()):
        drawn["tasks_long.png"] = partial(draw_long, models)
    if "ways" in results:
        drawn["tasks_ways.png"] = partial(draw_ways, results["ways"])
    if "stopping" in results:
        drawn["tasks_stopping.png"] = partial(draw_stopping, results["stopping"])
    return drawn


# Tables -------------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """All tables, each below a sentence that explains its numbers."""
    return "\n\n".join(parts(results).values()) + "\n"


def parts(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the parts that were measured (tasks, long, ways, stopping), each below its explanation."""
    models, settings, texts = results["models"], results["settings"], {}
    if all("tasks" in result for result in models.values()):
        texts["tasks"] = f"{legend(settings)}\n\n{task_table(models)}"
    if all("long" in result for result in models.values()):
        texts["long"] = (
            f"{settings['long clips']} clips continued to {settings['length']} frames, with their labels: the share "
            "that shows its label in the first window, the last, all; the median error in px of first and last; of the "
            "last, the speed over the true one, and the ground's grey levels from the true one's; the RMS gradient on "
            "known frames; evaluations for a frame.\n\n"
            + long_table({name: result["long"] for name, result in models.items()}, "gamma in training")
        )
    if "ways" in results:
        title = f"The same of {settings['way clips']} clips with {results['best']}, one choice at a time."
        texts["ways"] = "\n\n".join([title, *(long_table(rows, name) for name, rows in results["ways"].items())])
    if "stopping" in results:
        texts["stopping"] = (
            f"Adaptive compute of {results['best']} in {TOLD}: evaluations of a clip, steps that its unknown frames "
            f"moved, and errors in px.\n\n{stopping_table(results['stopping'])}"
        )
    return texts


def legend(settings: Mapping[str, Any]) -> str:
    """The legend of the first table."""
    return (
        f"{settings['clips']} clips of {settings['frames']} frames, {settings['size']} px, the same clips and noise "
        "for all. Generation, image-to-video: clips that show the direction, the shape, both of their label. Else: "
        f"pixels between the shape and its right place, mean (share within {NEAR:g}); told: with the label as a "
        f"condition. Continuation is from {settings['context']} frames."
    )


def task_table(models: Mapping[str, Any]) -> str:
    """A line for each model, and for each baseline without a model."""
    heads = ["gamma in training", *(f"{task} (direction, shape, both)" for task in TOLD_TASKS), *PLACED]
    cells: list[Sequence[str]] = [heads]
    for name, result in models.items():
        shares = [" ".join(_percent(result["tasks"][task][f"{key}_accuracy"]) for key in KEYS) for task in TOLD_TASKS]
        cells.append([name, *shares, *(_error(result["tasks"][task]["position"]) for task in PLACED)])
    floors = next(iter(models.values()))["baselines"]
    for name in DASHES:
        cells.append([name, "", "", *(_error(floors[task][name]) for task in PLACED)])
    return aligned(cells)


def long_table(rows: Mapping[str, Any], title: str) -> str:
    """A line for each long video: the first window, the last one, and the mean of all."""
    heads = ("first", "last", "all", "px first", "px last", "speed", "grey", "drift first", "drift last", "nfe")
    cells: list[Sequence[str]] = [(title, *heads)]
    for name, result in rows.items():
        windows = result["windows"]
        both, error, drift = windows["both"], windows["position median"], windows["drift"]
        cells.append(
            [
                name,
                *(_percent(value) for value in (both[0], both[-1], result["mean"]["both"])),
                *(f"{value:.2f}" for value in (error[0], error[-1], windows["speed"][-1])),
                f"{windows['colour'][-1]:.0f}",
                *(f"{value:.3f}" for value in (drift[0], drift[-1])),
                f"{result['nfe a frame']:.1f}",
            ]
        )
    return aligned(cells)


def stopping_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each tolerance."""
    cells: list[Sequence[str]] = [["tolerance", "stops", "nfe", "moves", "error"]]
    for row in rows:
        stops = "frames" if row["per_frame"] else "clips"
        named = ["all steps", ""] if row["tolerance"] is None else [f"{row['tolerance']:g}", stops]
        cells.append([*named, f"{row['nfe']:.1f}", f"{row['moves']:.1f}", _error(row["position"])])
    return aligned(cells, left=2)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _error(position: Mapping[str, Any]) -> str:
    return f"{position['mean']:.2f} ({_percent(position['near'])})"


# Plots --------------------------------------------------------------------------------------------------------------


def draw_tasks(models: Mapping[str, Any], path: Path) -> Path:
    """Draw shares of clips that agree with their label, and errors by frame, a line for each model; returns `path`."""
    figure = plots.figure(9, 5.6)
    shares = plots.axes(figure, 2, 2, 1, title="told the label", ylabel="share that shows its label", ylim=(0, 1.02))
    for index, (name, result) in enumerate(models.items()):
        values = [result["tasks"][task]["both_accuracy"] for task in TOLD_TASKS]
        shift = 0.12 * (index - (len(models) - 1) / 2)
        shares.plot([k + shift for k in range(len(values))], values, linestyle="none", label=name, **plots.style(index))
    shares.set_xticks(range(len(TOLD_TASKS)), TOLD_TASKS)
    shares.set_xlim(-0.6, len(TOLD_TASKS) - 0.4)
    shares.axhline(1 / 8, color=plots.GREY, linestyle=":")
    for place, task in enumerate(("continuation", TOLD, "in-betweening"), start=2):
        axes = plots.axes(figure, 2, 2, place, title=task, xlabel="frame", ylabel="mean error (px)", yscale="log")
        _by_frame(axes, models, task)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return plots.save(figure, path)


def _by_frame(axes: Axes, models: Mapping[str, Any], task: str) -> None:
    """Draw the mean errors of the unknown frames of a task."""
    first = next(iter(models.values()))
    known = first["tasks"][task]["known"]
    count = len(first["tasks"][task]["position"]["mean by frame"]) + len(known)
    frames = [frame for frame in range(count) if frame not in known]
    for index, (name, result) in enumerate(models.items()):
        axes.plot(frames, result["tasks"][task]["position"]["mean by frame"], label=name, **plots.style(index))
    for name, dash in DASHES.items():
        axes.plot(frames, first["baselines"][task][name]["mean by frame"], dash, color=plots.GREY, label=name)
    axes.set_xticks(range(count))


def draw_long(models: Mapping[str, Any], path: Path) -> Path:
    """Draw every measure over the frames of the long videos, a line for each model; returns `path`."""
    figure = plots.figure(9, 5.6)
    for place, (key, title) in enumerate(MEASURES.items(), start=1):
        axes = plots.axes(figure, 2, 2, place, ylabel=title, xlabel="frame of the video" if place > 2 else "")
        for index, (name, result) in enumerate(models.items()):
            axes.plot(
                result["long"]["ends"], result["long"]["windows"][key], label=name, markersize=4, **plots.style(index)
            )
        if key == "position":
            first = next(iter(models.values()))["long"]
            axes.plot(first["ends"], first["straight line"], "--", color=plots.GREY, label="straight line")
            handles, names = axes.get_legend_handles_labels()
        elif key == "both":
            axes.set_ylim(0, 1.02)
            axes.axhline(1 / 8, color=plots.GREY, linestyle=":")
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return plots.save(figure, path)


def draw_ways(ways: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Draw a column for each choice: label agreement above, errors below, over the frames; returns `path`."""
    figure, count = plots.figure(3.1 * len(ways), 5), len(ways)
    for column, (title, rows) in enumerate(ways.items(), start=1):
        above = plots.axes(figure, 2, count, column, title=title, ylim=(0, 1.02))
        below = plots.axes(figure, 2, count, count + column, xlabel="frame of the video", yscale="log")
        for index, (name, result) in enumerate(rows.items()):
            look = {"label": name, "markersize": 3, "linewidth": 1, **plots.style(index)}
            above.plot(result["ends"], result["windows"]["both"], **look)
            below.plot(result["ends"], result["windows"]["position median"], **look)
        if column == 1:
            above.set_ylabel(MEASURES["both"])
            below.set_ylabel("median error (px)")
        plots.legend(below, loc="lower right")
    return plots.save(figure, path)


def draw_stopping(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw errors over active steps, for clips that stop as a whole and frame by frame; returns `path`."""
    figure = plots.figure(5, 3.4)
    axes = plots.axes(figure, xlabel="steps that an unknown frame moved, mean", ylabel="mean error (px)", yscale="log")
    for index, (per_frame, name) in enumerate([(False, "clips stop"), (True, "frames stop")]):
        chosen = [row for row in rows if row["tolerance"] is not None and row["per_frame"] == per_frame]
        points = [(row["moves"], row["position"]["mean"]) for row in chosen]
        axes.plot(*zip(*points, strict=True), label=name, **plots.style(index))
    whole = next(row for row in rows if row["tolerance"] is None)
    axes.plot(whole["moves"], whole["position"]["mean"], "X", color=plots.GREY, label="all steps")
    plots.legend(axes)
    return plots.save(figure, path)
