"""The tables of the comparison as Markdown, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eqm_video.output import plots
from eqm_video.output.tables import aligned, amount, runs_of, with_interval
from eqm_video.studies.forcing.results import BLIND, CONDITIONED, CURVES, LONG

TITLES = {  # of the targets and the exact field
    "eqm": "EqM, truncated, gain 4",
    "eqm_linear": "EqM, linear, gain 4",
    "eqf": "EqF",
    "eqf_decay": "EqF, gamma drawn by c²",
    "flow": "flow matching",
    "exact, own": "exact field, its clips",
    "exact, others": "exact field, other clips",
}
COLUMNS = {  # (task, measure): heading
    ("generation", "both"): "generation",
    ("generation, no guidance", "both"): "no guidance",
    ("image-to-video", "both"): "image-to-video",
    ("continuation", "error"): "continuation (px)",
    ("continuation, told", "error"): "with label (px)",
    ("in-betweening", "error"): "in-betweening (px)",
    (LONG, "windows"): "long video",
}
DIGITS = {"error": 2}  # decimals of a measure; others are shares
MAIN = (("eqm", "eqf"), ("eqm", "eqf_decay"), ("eqf", "eqf_decay"), ("eqm", "flow"), ("eqf", "flow"))
ERRORS = {"velocity": "held-out velocity error (mean square)", "level": "error of the estimated gamma"}


def tables(numbers: Mapping[str, Any]) -> str:
    """All tables, for each draw of gamma."""
    return "\n\n".join(text for parts in views(numbers).values() for text in parts) + "\n"


def views(numbers: Mapping[str, Any]) -> dict[str, list[str]]:
    """The texts of a document's parts, by name: `results`, `differences`, `main differences`, `field` ..."""
    draws = list(numbers["results"])
    titled = {"results": results, "differences": differences, "evaluations": evaluations, "field": field_errors}
    values = {name: [make(numbers, draw) for draw in draws] for name, make in titled.items()}
    main = [differences(numbers, draw, MAIN) for draw in draws]
    loss = [loss_gaps(numbers, draw) for draw in draws if draw in numbers["loss"]]
    measured = {"metrics": [metrics(numbers, draw) for draw in draws]} if "metrics" in numbers else {}
    return values | {"main differences": main, "loss": loss, "choices": [choices(numbers)]} | measured


def title(name: str) -> str:
    """A target in words."""
    return TITLES.get(name, name)


def results(numbers: Mapping[str, Any], draw: str) -> str:
    """A line for each target: means, and below each its 95 % interval."""
    values = numbers["results"][draw]
    cells: list[Sequence[str]] = [[f"gamma: {draw}", *COLUMNS.values(), "runs"]]
    for name, tasks in values.items():
        shown = [with_interval(tasks[task][measure], DIGITS.get(measure)) for task, measure in COLUMNS]
        cells.append([title(name), *shown, runs_of(tasks["generation"]["both"])])
    settings = numbers["settings"]
    legend = (
        f"Means and 95 % intervals over runs and {settings['clips']} clips ({settings['long clips']} of the long "
        f"video, {settings['length']} frames). Generation, image-to-video, long video: clips, and windows, that show "
        f"direction and shape of their label. Else: pixels from the right place. {settings['budget']} evaluations of "
        f"each target's best sampler, guidance {settings['guidance scale']:g}."
    )
    return f"{legend}\n\n{aligned(cells)}"


def differences(numbers: Mapping[str, Any], draw: str, pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """A line for each of some (None: all) pairs of targets and each measure: difference, interval, adjusted p."""
    cells: list[Sequence[str]] = [["measure", "difference", "mean", "95 %", "p (Holm)", "runs of its sign"]]
    for named, rows in numbers["differences"][draw].items():
        task, _, measure = named.rpartition(": ")
        for row in rows:
            if pairs is not None and (row["one"], row["other"]) not in pairs:
                continue
            low, high = amount(row["low"], DIGITS.get(measure)), amount(row["high"], DIGITS.get(measure))
            pair = f"{title(row['one'])} - {title(row['other'])}"
            signs = f"{row['signs']} of {row['runs']}"
            p = f"{row['p adjusted']:.2g}"
            cells.append(
                [COLUMNS[task, measure], pair, amount(row["mean"], DIGITS.get(measure)), f"{low} to {high}", p, signs]
            )
    return aligned(cells, left=2)


def evaluations(numbers: Mapping[str, Any], draw: str) -> str:
    """The means of the tasks of `CURVES`, by target, sampler and number of evaluations."""
    values = numbers["curve"][draw]
    rows = [
        (COLUMNS[task, key], name, way, row, key)
        for task, key in CURVES.items()
        for name, tasks in values.items()
        for way, row in tasks[task].items()
    ]
    counts = sorted({int(count) for *_, row, _ in rows for count in row})
    cells: list[Sequence[str]] = [["measure", "target", "sampler", *map(str, counts)]]
    for heading, name, way, row, key in rows:
        shown = [amount(row[str(count)]["mean"], DIGITS.get(key)) if str(count) in row else "" for count in counts]
        cells.append([heading, title(name), way, *shown])
    return aligned(cells, left=3)


def field_errors(numbers: Mapping[str, Any], draw: str) -> str:
    """The errors of the field and of its estimate of gamma, by gamma."""
    values = numbers["field"][draw]
    gammas = list(next(iter(values.values()))["velocity"])
    cells: list[Sequence[str]] = [["target", "error of", *gammas]]
    for name, kinds in values.items():
        for kind, row in kinds.items():
            if row:
                cells.append([title(name), kind, *(f"{row[gamma]['mean']:.3f}" for gamma in gammas)])
    return aligned(cells, left=2)


def metrics(numbers: Mapping[str, Any], draw: str) -> str:
    """The metrics of generated clips: the mean of the runs, the least and the largest, and what real clips reach."""
    measures, values = numbers["metrics"]["metrics"], numbers["metrics"]["values"][draw]
    titles = {name: metric["title"] for name, metric in measures.items()}
    cells: list[Sequence[str]] = [[f"gamma: {draw}", *titles.values(), "runs"]]
    for name, row in values.items():
        spreads = [f"{row[key]['mean']:.3g} ({row[key]['low']:.3g} to {row[key]['high']:.3g})" for key in titles]
        cells.append([title(name), *spreads, runs_of(next(iter(row.values())))])
    floors = [measures[key]["real"] for key in titles]
    cells.append(["real clips", *("-" if floor is None else f"{floor['value']:.3g}" for floor in floors), ""])
    return aligned(cells)


def loss_gaps(numbers: Mapping[str, Any], draw: str) -> str:
    """The held-out losses of a velocity without and with gamma as an input over training, and their gap."""
    rows = numbers["loss"][draw]
    cells: list[Sequence[str]] = [["held-out loss after", *(f"{step:.0f} steps" for step in rows["steps"])]]
    cells += [[title(name), *(f"{loss:.4f}" for loss in rows[name])] for name in (BLIND, CONDITIONED)]
    bounds = zip(rows["gap"], rows["gap low"], rows["gap high"], strict=True)
    runs = f"least and largest of {rows['runs'][0]:.0f} runs" if rows["runs"][0] > 1 else "n = 1"
    cells.append([f"gap ({runs})", *(f"{gap:.4f} ({low:.4f}–{high:.4f})" for gap, low, high in bounds)])
    return aligned(cells)


def choices(numbers: Mapping[str, Any]) -> str:
    """The choices for each target: the learning rate by its held-out loss, the sampler by its share of clips."""
    cells: list[Sequence[str]] = [["target", "learning rates: held-out loss", "samplers: clips that show their label"]]
    ways = next(iter(numbers["samplers"].values()))
    for name, rate in numbers["learning rates"].items():
        best = "" if rate["chosen"] is None else f"{rate['chosen']:g}"
        tried = ", ".join(f"{mark(lr, lr == best)}: {loss:.3f}" for lr, loss in rate["tried"].items())
        chosen = ways.get(name, {"tried": {}, "chosen": None})
        shares = [
            f"{mark(way, way == chosen['chosen'])}: {100 * share:.0f} %" for way, share in chosen["tried"].items()
        ]
        cells.append([title(name), tried, ", ".join(shares)])
    return aligned(cells, left=3)


def mark(text: str, chosen: bool) -> str:
    """A choice in bold."""
    return f"**{text}**" if chosen else text


# Pictures -----------------------------------------------------------------------------------------------------------


def pictures(numbers: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The pictures of every draw of gamma, by file name; the first draw's names carry none."""
    drawn: dict[str, Callable[[Path], Any]] = {}
    for place, draw in enumerate(numbers["results"]):
        more = f"_{draw}" if place else ""
        drawn[f"forcing{more}.png"] = partial(draw_results, numbers["results"][draw])
        for task, key in CURVES.items():
            name = f"forcing_evaluations_{task.partition(',')[0]}{more}.png"
            drawn[name] = partial(draw_evaluations, numbers, draw, task, key)
        drawn[f"forcing_field{more}.png"] = partial(draw_field, numbers, draw)
        drawn[f"forcing_long{more}.png"] = partial(draw_long, numbers["long"][draw])
    return drawn


def draw_results(values: Mapping[str, Any], path: Path) -> Path:
    """A panel for each measure, a dot with its interval for each target."""
    figure, names = plots.figure(9, 4.6), list(values)
    for place, ((task, measure), heading) in enumerate(COLUMNS.items(), start=1):
        axes = plots.axes(figure, 2, 4, place, title=heading)
        for index, name in enumerate(names):
            cell = values[name][task][measure]
            spread = [[max(0.0, cell["mean"] - cell["low"])], [max(0.0, cell["high"] - cell["mean"])]]
            look = {**plots.style(index), "label": title(name), "linestyle": "none", "markersize": 6}
            axes.errorbar(cell["mean"], index, xerr=spread, elinewidth=1.2, **look)
        axes.set_yticks([])
        axes.set_ylim(len(names) - 0.5, -0.5)
        if measure == "error":
            axes.set_xlim(left=0)
            axes.set_xlabel("pixels")
        else:
            axes.set_xlim(-0.02, 1.02)
            axes.set_xlabel("share")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return plots.save(figure, path)


def draw_evaluations(numbers: Mapping[str, Any], draw: str, task: str, key: str, path: Path) -> Path:
    """Quality against evaluations, intervals as bands: a panel for each target, then all with their best samplers."""
    values = {name: tasks[task] for name, tasks in numbers["curve"][draw].items()}
    chosen, limits = numbers["samplers"][draw], {"ylim": (-0.02, 1.02)} if key == "both" else {}
    figure, ways = plots.figure(9, 5.4), list(dict.fromkeys(way for row in values.values() for way in row))
    panels = [*values, None]
    for place, name in enumerate(panels, start=1):
        heading = "each with its best sampler" if name is None else title(name)
        axes = plots.axes(figure, 2, 3, place, title=heading, xscale="log", **limits)
        if name is None:
            for index, (other, way) in enumerate(chosen.items()):
                plots.band(axes, values[other][way["chosen"]], markersize=4, **plots.style(index), linestyle="--")
                axes.lines[-1].set_label(f"{title(other)}, {way['chosen']}")
            plots.legend(axes, fontsize=6)
        for way, row in values.get(name, {}).items():
            plots.band(axes, row, label=way, markersize=4, **plots.style(ways.index(way)))
        axes.set_xlabel("evaluations")
        plots.ticks_1_2_5(axes.xaxis)
        if key == "both":
            axes.axhline(1 / 8, color=plots.GREY, linestyle=":")
        else:
            axes.set_ylim(bottom=0)
        if place in (1, 4):
            axes.set_ylabel("clips that show their label" if key == "both" else "error (px)")
    each = figure.axes[: len(values)]
    lines = {label: line for axes in each for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return plots.save(figure, path)


def draw_field(numbers: Mapping[str, Any], draw: str, path: Path) -> Path:
    """The errors of the field and of its estimate of gamma by gamma, and the losses of EqF and flow over training."""
    figure, values = plots.figure(9, 3.6), numbers["field"][draw]
    for place, (kind, label) in enumerate(ERRORS.items(), start=1):
        axes = plots.axes(figure, 1, 3, place, xlabel="gamma", ylabel=label, yscale="log")
        for index, (name, kinds) in enumerate(values.items()):
            plots.band(axes, kinds[kind], label=title(name), markersize=4, **plots.style(index))
        plots.ticks_1_2_5(axes.yaxis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    axes = plots.axes(figure, 1, 3, 3, xlabel="training step", ylabel="held-out loss")
    if draw in numbers["loss"]:
        for name in (BLIND, CONDITIONED):
            look = plots.style(list(values).index(name)) if name in values else plots.style(0)
            axes.plot(numbers["loss"][draw]["steps"], numbers["loss"][draw][name], markersize=4, **look)
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return plots.save(figure, path)


def draw_long(values: Mapping[str, Any], path: Path) -> Path:
    """Right windows, errors and the gradient on known frames over the frames of the long videos."""
    figure = plots.figure(9, 3.2)
    panels = {
        "right": "windows that show their label",
        "error": "median error (px)",
        "drift": "gradient on known frames",
    }
    for place, (key, label) in enumerate(panels.items(), start=1):
        axes = plots.axes(figure, 1, 3, place, xlabel="frame", ylabel=label)
        for index, (name, row) in enumerate(values.items()):
            axes.plot(row["ends"], row[key], label=title(name), markersize=3, **plots.style(index))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return plots.save(figure, path)
