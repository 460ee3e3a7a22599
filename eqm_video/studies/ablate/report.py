"""The tables of the ablations as Markdown, and ablations.png with a dot for each model and sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqm_video.output import plots
from eqm_video.output.tables import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILE = 1.959964  # of the standard normal distribution: intervals of 95 %
CHANCE = 1 / 8  # two shapes, four directions
# title: {name in the table: recipe}; a recipe may be in several tables
TABLES: dict[str, dict[str, str]] = {
    "objective and sampler": {
        "EqM, gain 4": "base",
        "EqM, gain 1": "lambda_1",
        "flow, told gamma": "flow",
        "flow, told, gain 4": "flow_4",
        "flow, not told": "flow_untold",
    },
    "decay c(gamma)": {
        "truncated": "base",
        "linear": "linear",
        "piecewise, b = 1.4": "piecewise",
        "constant (flow)": "flow_untold",
    },
    "where the decay begins": {"a = 0.5": "a_0.5", "a = 0.8": "base", "a = 0.9": "a_0.9"},
    "gain, equal gain x step size": {
        "lambda = 1": "lambda_1",
        "lambda = 2": "lambda_2",
        "lambda = 4": "base",
        "lambda = 8": "lambda_8",
    },
    "noise conditioning": {"not told gamma": "base", "told gamma": "told"},
    "energy": {"implicit": "base", "dot": "energy_dot", "l2": "energy_l2"},
}
MEASURE = "distance"  # stands for the title of the first metric
DESCENTS = ("nag", "gd")  # the samplers of all tables except the first
HEADS = ("", "sampler", "direction", "shape", "both (95 %)", MEASURE, "rest", "error .1", "error .9", "nfe")
GAMMAS = ("0.1", "0.9")  # the gammas whose held-out errors the tables show


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    title: str
    name: str
    line: Mapping[str, Any]


def rows(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of all tables with at least two names; recipes in none of these come last, under "others"."""
    first, listed = next(iter(TABLES)), []
    for title, table in TABLES.items():
        samplers = None if title == first else DESCENTS
        part = [row for name, recipe in table.items() for row in _rows(title, name, recipe, lines, samplers)]
        listed += part if len({row.name for row in part}) > 1 else []
    shown = {row.line["recipe"] for row in listed}
    others = dict.fromkeys(line["recipe"] for line in lines if line["recipe"] not in shown)
    return listed + [row for recipe in others for row in _rows("others", recipe, recipe, lines)]


def _rows(
    title: str, name: str, recipe: str, lines: Sequence[Mapping[str, Any]], samplers: Sequence[str] | None = None
) -> list[Row]:
    """The rows of a recipe in a table, for `samplers` (None: all)."""
    chosen = [line for line in lines if line["recipe"] == recipe and (samplers is None or line["sampler"] in samplers)]
    return [Row(title, name, line) for line in chosen]


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share (0 to 1) of `count` trials: (low, high)."""
    squared = QUANTILE**2 / count
    centre = (share + squared / 2) / (1 + squared)
    half = (squared * (share * (1 - share) + squared / 4)) ** 0.5 / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)


def tables(summary: Mapping[str, Any]) -> str:
    """The tables as Markdown, with columns aligned for the screen, below a legend."""
    listed, parts = rows(summary["lines"]), [legend(summary)]
    for title in dict.fromkeys(row.title for row in listed):
        cells = [(title, *HEADS[1:]), *(_cells(row, summary) for row in listed if row.title == title)]
        parts.append(aligned(cells, left=2))
    return "\n\n".join(parts) + "\n"


def legend(summary: Mapping[str, Any]) -> str:
    """The legend of the tables' columns."""
    _, metric = first_metric(summary)
    real = (metric.get("real") or {}).get("value")
    scale = "" if real is None else f" (as many real clips: {real:.4g})"
    return (
        f"{summary['samples']} samples a line, from the same noise; one training run of each recipe. direction, shape, "
        f"both: clips that agree with their label (chance 25, 50, 12 %), with Wilson's interval. {MEASURE}: "
        f"{metric['title']} to the data{scale}. rest: RMS gradient at the end of the descents, over the gain. error: "
        "of the field on unseen clips at gamma 0.1 and 0.9, over c². nfe: evaluations of the field."
    )


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw a line for each model of each table, with a dot for each sampler: label accuracy, and distance."""
    listed = rows(summary["lines"])
    titles = list(dict.fromkeys(row.title for row in listed))
    groups = [list(dict.fromkeys(row.name for row in listed if row.title == title)) for title in titles]
    heights, marks, place = {}, [], 0.0
    for title, names in zip(titles, groups, strict=True):
        marks.append((place, title, True))
        for name in names:
            place += 1
            heights[title, name] = place
            marks.append((place, name, False))
        place += 1.4
    figure = plots.figure(8, 0.9 + 0.27 * place)
    key, metric = first_metric(summary)
    left = plots.axes(figure, 1, 2, 1, xlabel="clips that show their label (%)", xlim=(-2, 102))
    right = plots.axes(figure, 1, 2, 2, xlabel=metric["title"])
    _dots(left, right, listed, heights, summary["samples"], key)
    left.axvline(100 * CHANCE, color=plots.GREY, linestyle=":", label="chance")
    if (real := metric.get("real")) is not None:
        right.axvline(real["value"], color=plots.GREY, linestyle="--", label="real clips")
    for axes in (left, right):
        axes.set_ylim(place - 0.6, -0.8)
        axes.grid(axis="y", visible=False)
        axes.set_yticks([height for height, _, _ in marks], [text for _, text, _ in marks] if axes is left else [])
        axes.tick_params(axis="y", length=0)
    for text, (_, _, is_title) in zip(left.get_yticklabels(), marks, strict=True):
        text.set_fontweight("bold" if is_title else "normal")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    plots.save(figure, path)


def _dots(
    left: Axes, right: Axes, listed: Sequence[Row], heights: Mapping[tuple[str, str], float], samples: int, key: str
) -> None:
    """Draw the accuracy of every row and its metric `key`, with intervals, in the style of its sampler."""
    samplers = list(dict.fromkeys(row.line["sampler"] for row in listed))
    for row in listed:
        mates = [mate.line["sampler"] for mate in listed if (mate.title, mate.name) == (row.title, row.name)]
        sampler = row.line["sampler"]
        height = heights[row.title, row.name] + 0.22 * (mates.index(sampler) - (len(mates) - 1) / 2)
        look = {**plots.style(samplers.index(sampler)), "markersize": 5, "linestyle": "none", "label": sampler}
        share = row.line.get("both_accuracy")
        if share is not None:
            low, high = interval(share, samples)
            spread = [[max(0.0, 100 * (share - low))], [max(0.0, 100 * (high - share))]]  # rounding at 0 and at 1
            left.errorbar(100 * share, height, xerr=spread, elinewidth=1, capsize=0, **look)
        if (value := row.line.get(key)) is not None:
            low, high = row.line.get(f"{key}_low", value), row.line.get(f"{key}_high", value)
            right.errorbar(value, height, xerr=[[value - low], [high - value]], elinewidth=1, capsize=0, **look)


def first_metric(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The key of the first metric in the lines of a record, and its title and floor."""
    return next(iter(summary["measures"]["metrics"].items()))


def _cells(row: Row, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """A row as text, in the order of `HEADS`."""
    line, (key, _) = row.line, first_metric(summary)
    low, high = (f"{100 * value:.0f}" for value in interval(line["both_accuracy"], summary["samples"]))
    span = f" ({line[f'{key}_low']:.3g} to {line[f'{key}_high']:.3g})" if f"{key}_low" in line else ""
    gone = f", {line['diverged']} diverged" if line["diverged"] else ""
    return (
        row.name,
        line["sampler"] + gone,
        *(f"{100 * line[f'{key}_accuracy']:.0f} %" for key in ("direction", "shape")),
        f"{100 * line['both_accuracy']:.0f} % ({low}-{high})",
        f"{line[key]:.4g}{span}",
        f"{line['rest']:.3f}",
        *(f"{line['held_out_error'].get(gamma, float('nan')):.3f}" for gamma in GAMMAS),
        f"{line['nfe']:g}",
    )
