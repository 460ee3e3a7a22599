"""The tables of long videos as Markdown, and their pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eqm_video.output import plots
from eqm_video.output.tables import aligned, amount, runs_of, with_interval
from eqm_video.studies.tasks.clips import said_centred

TITLES = {
    "right": "windows that show their label",
    "speed": "speed over the true one",
    "speed error": "speed error (px a frame)",
    "drift": "gradient on known frames",
    "level": "estimated less scheduled level",
    "level error": "its absolute value",
}
DIGITS = {"right": None, "level": 3, "level error": 3}  # decimals, 2 for others; None: a share
DRAWN = ("right", "speed error", "drift", "level")


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: summary, one for each measure by frame, differences, settings."""
    named = {"summary": summary(numbers)}
    named |= {measure: curve(numbers, measure) for measure in TITLES}
    return named | {"differences": differences(numbers), "settings": settings(numbers)}


def summary(numbers: Mapping[str, Any]) -> str:
    """A line for each cell: the measures in the first span and in the last."""
    ends = numbers["ends"]
    first, last = f"to {ends[0]}", f"{([0, *ends])[-2]} to {ends[-1]}"
    shown = ("right", "speed error", "level error")
    heads = [f"{TITLES[name]}, {span}" for name in shown for span in (first, last)]
    cells: list[Sequence[str]] = [["target", "windows", "loop", *heads, "models"]]
    for kind, cell, values in _rows(numbers):
        row = [with_interval(values[name][place], DIGITS.get(name, 2)) for name in shown for place in (0, -1)]
        cells.append([kind, *cell, *row, runs_of(values["right"][0])])
    return aligned(cells, left=3)


def curve(numbers: Mapping[str, Any], measure: str) -> str:
    """A measure by the span of frames, a line for each cell."""
    bounds = [0, *numbers["ends"]]
    heads = [f"{first}–{last}" for first, last in itertools.pairwise(bounds)]
    cells: list[Sequence[str]] = [[f"{TITLES[measure]}, by frame", "windows", "loop", *heads]]
    for kind, cell, values in _rows(numbers):
        cells.append([kind, *cell, *(amount(each["mean"], DIGITS.get(measure, 2)) for each in values[measure])])
    return aligned(cells, left=3)


def differences(numbers: Mapping[str, Any]) -> str:
    """A line for each difference in the last span of frames; a sentence where one model in one loop has none."""
    if not numbers["differences"]:
        return "a single model in a single loop: no difference to measure"
    cells: list[Sequence[str]] = [["measure", "difference", "mean", "95 %", "p (Holm)", "models of its sign"]]
    for row in numbers["differences"]:
        (kind, cell), (other, also) = row["one"], row["other"]
        named = f"{kind}, {cell} - {also.rpartition(', ')[2]}" if kind == other else f"{kind} - {other}, {cell}"
        low, high = (amount(row[key], DIGITS.get(row["measure"], 2)) for key in ("low", "high"))
        signs = f"{row['signs']} of {row['runs']}"
        mean = amount(row["mean"], DIGITS.get(row["measure"], 2))
        cells.append([TITLES[row["measure"]], named, mean, f"{low} to {high}", f"{row['p adjusted']:.2g}", signs])
    return aligned(cells, left=2)


def settings(numbers: Mapping[str, Any]) -> str:
    """A sentence of the settings, the cost and the memory."""
    own, cells = numbers["settings"], [values for *_, values in _rows(numbers)]
    seconds = sorted(each for values in cells for each in values["seconds"])
    spread = " to ".join(dict.fromkeys(f"{each:.0f}" for each in (seconds[0], seconds[-1])))
    grown = max(values["memory"][-1] - values["memory"][0] for values in cells)
    most = max(values["memory"][-1] for values in cells)
    return (
        f"{own['clips']} clips of each model, {own['length']} frames in windows of {own['frames']}, "
        f"{own['evaluations']} multistep evaluations a window, guidance {own['guidance scale']:g}, history guidance "
        f"{own['history guidance']:g}. {spread} CPU seconds per 1,000 frames. "
        f"Largest resident memory {most:.0f} MiB; it grew by {grown:.0f} MiB at most after frame {numbers['ends'][0]}."
        f"{said_centred(own)}"
    )


def _rows(numbers: Mapping[str, Any]) -> list[tuple[str, tuple[str, str], Mapping[str, Any]]]:
    """(target, (schedule, loop), values) of every cell."""
    rows = []
    for kind, each in numbers["cells"].items():
        for cell, values in each.items():
            schedule, _, loop = cell.rpartition(", ")
            rows.append((kind, (schedule, loop), values))
    return rows


# Pictures -----------------------------------------------------------------------------------------------------------


def pictures(numbers: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The pictures by file name: one for each schedule; the first one's name carries none."""
    schedules = list(dict.fromkeys(cell[0] for _, cell, _ in _rows(numbers)))
    names = ["rollouts.png", *(f"rollouts_{schedule.replace('-', '_')}.png" for schedule in schedules[1:])]
    return {name: partial(draw, numbers, schedule) for name, schedule in zip(names, schedules, strict=True)}


def draw(numbers: Mapping[str, Any], schedule: str, path: Path) -> Path:
    """A panel for each measure against the frame: a colour for each target, closed loops dashed, intervals as bands."""
    figure, kinds = plots.figure(9, 5.6), list(numbers["cells"])
    bounds = [0, *numbers["ends"]]
    middles = [max(1.0, (first + last) / 2) for first, last in itertools.pairwise(bounds)]
    rows = [row for row in _rows(numbers) if row[1][0] == schedule]
    loops = list(dict.fromkeys(cell[1] for _, cell, _ in rows))
    for place, measure in enumerate(DRAWN, start=1):
        axes = plots.axes(figure, 2, 2, place, title=TITLES[measure], xlabel="frame", xscale="log")
        for kind, (_, loop), values in rows:
            look = {**plots.style(kinds.index(kind)), "markersize": 4, "linestyle": "-" if loop == loops[0] else "--"}
            each = dict(zip(middles, values[measure], strict=True))
            plots.band(axes, each, label=f"{kind}, {loop} loop", **look)
        plots.ticks_1_2_5(axes.xaxis)
        if measure == "right":
            axes.set_ylim(-0.02, 1.02)
            axes.axhline(1 / 8, color=plots.GREY, linestyle=":")
        elif measure != "level":
            axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return plots.save(figure, path)
