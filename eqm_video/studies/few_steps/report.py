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
FIELDS = {"model": "exact, the model's decay", "velocity": "exact, velocity (EqF)"}
MEASURES = {"right": "clips that show their label", "distance": "RMS from the reference", "mmd": "MMD² from real clips"}


def views(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: right, distance, mmd, exact."""
    settings, named = numbers["settings"], {}
    for measure, heading in MEASURES.items():
        named[measure] = _table(numbers["model"][measure], measure, heading)
    real = numbers["real"]["mmd"]
    named["mmd"] += f"\n\nAs many real clips: {_cell(real, 'mmd')}."
    parts = [
        _table(numbers["exact"][field]["reached"], "right", FIELDS[field])
        for field in FIELDS
        if field in numbers["exact"]
    ]
    named["exact"] = "\n\n".join(parts)
    named["settings"] = (
        f"{settings['repeats']} × {settings['clips']} clips, guidance {settings['guidance scale']:g}; the reference is "
        f"{settings['reference']}; on the exact fields {settings['repeats']} × {settings['exact starts']} starts. "
        "Intervals are 95 %, over repeats and clips."
    )
    return named


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
    """A panel for each measure of the model, and for each exact field; intervals as bands."""
    figure = plots.figure(9, 5.4)
    panels = [(numbers["model"][key], key, heading) for key, heading in MEASURES.items()]
    panels += [(numbers["exact"][key]["reached"], "right", FIELDS[key]) for key in FIELDS if key in numbers["exact"]]
    ways = list(dict.fromkeys(name for rows, *_ in panels for name in rows))
    for place, (rows, measure, heading) in enumerate(panels, start=1):
        scales = {"xscale": "log"} | ({"yscale": "log"} if measure == "distance" else {})
        axes = plots.axes(figure, 2, 3, place, title=heading, xlabel="evaluations", **scales)
        for name, row in rows.items():
            _band(axes, row, {"label": title(name), "markersize": 4, **plots.style(ways.index(name))}, measure)
        plots.ticks_1_2_5(axes.xaxis)
        if measure == "right":
            axes.set_ylim(-0.02, 1.02)
        if measure == "mmd":
            axes.axhline(numbers["real"]["mmd"]["mean"], color=plots.GREY, linestyle=":")
    lines = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return plots.save(figure, path)


def _band(axes: Axes, row: Mapping[str, Any], look: Mapping[str, Any], measure: str) -> None:
    """A line of means over evaluations, with the intervals as a band; a distance of 0 is left out of a log scale."""
    shown = {at: cell for at, cell in row.items() if measure != "distance" or cell["mean"] > 0}
    at = [float(count) for count in shown]
    axes.plot(at, [cell["mean"] for cell in shown.values()], **look)
    low, high = ([cell[key] for cell in shown.values()] for key in ("low", "high"))
    axes.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)
