"""The tables of the few-step curve as Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqm_video.output import plots
from eqm_video.output.tables import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WALKS = {"nag": "NAG", "nag own": "NAG, the model's walk", "nag 2": "NAG, walk 2 / gain", "nag 6": "NAG, walk 6 / gain"}
FIELDS = {
    "model": "exact EqM, the model's decay",
    "velocity": "exact velocity (EqF)",
    "flow": "exact velocity, γ an input (flow)",
    "composed": "exact EqM, two conditions composed",
}
GROUPS = {"eqm": "EqM", "forcing": "EqF", "flow": "flow"}
MEASURES = {"right": "clips that show their label", "distance": "RMS from the reference", "mmd": "MMD² from real clips"}


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: right, distance, mmd, exact, settings."""
    settings, groups, named = numbers["settings"], numbers["models"], {}
    for measure, heading in MEASURES.items():
        rows = {label: row for name, group in groups.items() for label, row in _labelled(name, group, measure, groups)}
        if rows:  # composed labels have no real clips to be compared with
            named[measure] = _table(rows, measure, heading)
    if numbers["real"]:
        named["mmd"] += f"\n\nAs many real clips: {_cell(numbers['real']['mmd'], 'mmd')}."
    parts = [_table(numbers["exact"][field]["reached"], "right", FIELDS[field]) for field in numbers["exact"]]
    named["exact"] = "\n\n".join(parts)
    runs = f"{settings['models']} training runs of each objective, " if settings["models"] > 1 else ""
    labels = "two labels of one direction composed, whose direction is what counts, " if settings["composed"] else ""
    named["settings"] = (
        f"{runs}{settings['repeats']} × {settings['clips']} clips, {labels}guidance {settings['guidance scale']:g}; "
        f"the reference is {settings['reference']}; on the exact fields {settings['repeats']} × "
        f"{settings['exact starts']} starts. Intervals are 95 %, over runs, repeats and clips."
    )
    return named


def _labelled(
    name: str, group: Mapping[str, Any], measure: str, groups: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a measure with their names; with several groups the group's name stands before."""
    before = f"{GROUPS.get(name, name)}, " if len(groups) > 1 else ""
    return [(before + title(way), row) for way, row in group.get(measure, {}).items()]


def title(way: str) -> str:
    """A way in words."""
    return WALKS.get(way, way)


def _table(rows: Mapping[str, Mapping[str, Any]], measure: str, heading: str) -> str:
    counts = sorted({int(count) for row in rows.values() for count in row})
    cells: list[Sequence[str]] = [[heading, *map(str, counts)]]
    for name, row in rows.items():
        cells.append([title(name), *(_cell(row[str(n)], measure) if str(n) in row else "" for n in counts)])
    return aligned(cells)


def _cell(value: Mapping[str, Any], measure: str) -> str:
    """A mean with its interval, as per cent for shares."""
    if measure == "right":
        return f"{100 * value['mean']:.0f} % ({100 * value['low']:.0f}–{100 * value['high']:.0f})"
    digits = 3 if measure == "distance" else 4
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


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
                _band(axes, cells, {"label": title(name), "markersize": 4, **plots.style(ways.index(name))}, measure)
            plots.ticks_1_2_5(axes.xaxis)
            if measure == "right":
                axes.set_ylim(-0.02, 1.02)
            if measure == "mmd" and numbers["real"]:
                axes.axhline(numbers["real"]["mmd"]["mean"], color=plots.GREY, linestyle=":")
    drawn = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return plots.save(figure, path)


def _band(axes: Axes, row: Mapping[str, Any], look: Mapping[str, Any], measure: str) -> None:
    """A line of means over evaluations, with the intervals as a band; a distance of 0 is left out of a log scale."""
    shown = {at: cell for at, cell in row.items() if measure != "distance" or cell["mean"] > 0}
    at = [float(count) for count in shown]
    axes.plot(at, [cell["mean"] for cell in shown.values()], **look)
    low, high = ([cell[key] for cell in shown.values()] for key in ("low", "high"))
    axes.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)
