"""The tables of the few-step curve as Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eqm_video.output import plots
from eqm_video.output.tables import by_number, with_interval

WALKS = {"nag": "NAG", "nag own": "NAG, the model's walk", "nag 2": "NAG, walk 2 / gain", "nag 6": "NAG, walk 6 / gain"}
FIELDS = {
    "model": "exact EqM, the model's decay",
    "velocity": "exact velocity (EqF)",
    "flow": "exact velocity, γ an input (flow)",
    "composed": "exact EqM, two conditions composed",
}
GROUPS = {"eqm": "EqM", "forcing": "EqF", "flow": "flow"}
DIGITS = {"right": None, "distance": 3, "mmd": 4}  # None: a share
MEASURES = {"right": "clips that show their label", "distance": "RMS from the reference", "mmd": "MMD² from real clips"}


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: right, distance, mmd, exact, settings."""
    settings, groups, named = numbers["settings"], numbers["models"], {}
    for measure, heading in MEASURES.items():
        rows: dict[str, Mapping[str, Any]] = {}
        for name, group in groups.items():
            rows |= _titled(group.get(measure, {}), f"{GROUPS.get(name, name)}, " if len(groups) > 1 else "")
        if rows:  # composed labels have no real clips to be compared with
            named[measure] = by_number(heading, rows, DIGITS[measure])
    if numbers["real"]:
        floor = "Random halves of the real clips" if "data" in settings else "As many real clips"
        named["mmd"] += f"\n\n{floor}: {with_interval(numbers['real']['mmd'], DIGITS['mmd'])}."
    parts = [by_number(FIELDS[field], _titled(numbers["exact"][field]["reached"]), None) for field in numbers["exact"]]
    named["exact"] = "\n\n".join(parts)
    runs = f"{settings['models']} training runs of each objective, " if settings["models"] > 1 else ""
    data = f", against {settings['real clips']} of {settings['data']}" if "data" in settings else ""
    labels = "two labels of one direction composed, whose direction is what counts, " if settings["composed"] else ""
    named["settings"] = (
        f"{runs}{settings['repeats']} × {settings['clips']} clips{data}, {labels}guidance "
        f"{settings['guidance scale']:g}; the reference is {settings['reference']}; on the exact fields "
        f"{settings['repeats']} × {settings['exact starts']} starts. "
        "Intervals are 95 %, over runs, repeats and clips."
    )
    return named


def _titled(rows: Mapping[str, Mapping[str, Any]], group: str = "") -> dict[str, Mapping[str, Any]]:
    """The rows of ways by what tables call these; `group` stands before."""
    return {group + title(way): row for way, row in rows.items()}


def title(way: str) -> str:
    """A way in words."""
    return WALKS.get(way, way)


def pictures(numbers: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The picture by its file name."""
    return {"few_steps.png": partial(draw, numbers)}


def draw(numbers: Mapping[str, Any], path: Path) -> Path:
    """A row of panels for each objective, a panel a measure, and one for the exact fields; intervals as bands."""
    groups, exact = numbers["models"], numbers["exact"]
    several = len(groups) > 1
    rows = [
        [
            (group[key], key, f"{GROUPS.get(name, name)}: {heading}" if several else heading)
            for key, heading in MEASURES.items()
            if key in group
        ]
        for name, group in groups.items()
    ]
    curves = {key: values["reached"] for key, values in exact.items() if len(values["reached"]["multistep"]) > 1}
    rows += [[(curve, "right", FIELDS[key]) for key, curve in curves.items()]] if curves else []
    columns = max(map(len, rows))
    figure = plots.figure(3.2 * columns, 2.5 * len(rows) + 0.4)
    ways = list(dict.fromkeys(name for row in rows for lines, *_ in row for name in lines))
    for line, row in enumerate(rows):
        for column, (lines, measure, heading) in enumerate(row):
            scales = {"xscale": "log"} | ({"yscale": "log"} if measure == "distance" else {})
            axes = plots.axes(figure, len(rows), columns, line * columns + column + 1, **scales)
            axes.set_title(heading, fontsize=9)
            axes.set_xlabel("evaluations")
            for name, cells in lines.items():
                if measure == "distance":  # the reference's is 0, which a log scale does not show
                    cells = {count: cell for count, cell in cells.items() if cell["mean"] > 0}
                plots.band(axes, cells, label=title(name), markersize=4, **plots.style(ways.index(name)))
            plots.ticks_1_2_5(axes.xaxis)
            if measure == "right":
                axes.set_ylim(-0.02, 1.02)
            if measure == "mmd" and numbers["real"]:
                axes.axhline(numbers["real"]["mmd"]["mean"], color=plots.GREY, linestyle=":")
    drawn = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return plots.save(figure, path)
