"""The ablations: each choice of Equilibrium Matching against the base, on moving shapes.

Legend: N samples, T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eqm_video.core.decay import ConstantDecay
from eqm_video.output import plots
from eqm_video.output.tables import aligned
from eqm_video.samplers import NAG, SAMPLERS
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Guided, Labelled, Many, Measuring, Seeded, Shaped
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.demo import write_videos
from eqm_video.studies.measured import Clips, Measured
from eqm_video.studies.quality import Judge, check_evaluation, feature_name
from eqm_video.studies.recipes import Recipes, Trained
from eqm_video.studies.request import Request, open_model
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.walk import decode, walk
from eqm_video.system import machine
from eqm_video.training.config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "base"
RECIPES = Recipes("ablations", BASE)
STRIDE = 0.08  # step_size * gain of all recipes: the length of a step while the decay is at its maximum
ADAM = {"step_size": 0.05, "beta1": 0.9, "beta2": 0.999}  # the best of eight tried on the base, with 48 samples


@dataclass(frozen=True, kw_only=True)
class Ablate(
    Opening,
    Trained,
    Labelled,
    Many,
    Shaped,
    Guided,
    Seeded,
    Batched,
    Measuring,
    group="compare",
    record="ablations.json",
):
    """Train and compare objectives, decays and samplers on moving shapes.

    The recipes of ablations/ differ from base in a single choice each. All of them are trained, and sampled from the
    same noise with the samplers that fit them. Measured are the share of clips with the motion and the shape of their
    labels (in closed form), --metrics against the data with 95 % intervals, the gradient at the end of the descents,
    and the error of the field on held-out clips. Finished runs and measurements are reused, interrupted runs continue.
    Every recipe is trained once: a difference of a few clips means nothing.

    The runs lie in --out. The videos are written if --data does not exist. Words such as train.steps=100 replace values
    in all recipes.
    """

    data: Path = Path("data/moving_shapes")
    num_samples: int = 128

    def run(self) -> Report:
        """Train missing runs, and make missing measurements."""
        names = RECIPES.chosen(self.chosen)
        check_evaluation(self, RECIPES.config(names[0], self))
        RECIPES.claim(names, self)
        write_videos(self.data)
        for name in names:
            RECIPES.train(name, self)
        lines = [line for name in names for line in self.measure(name)]
        numbers = {
            "samples": self.num_samples,
            "seeds": [self.seed, self.seed + self.num_samples - 1],
            "training runs of each recipe": 1,
            "machine": machine.describe(),
            **lines[0]["reference"],
            "lines": [{key: value for key, value in line.items() if key != "reference"} for line in lines],
        }
        text = tables(numbers)
        pictures = {"ablations.png": lambda path: draw(numbers, path)}
        return Report(numbers, text, pictures, {"ablations.md": text})

    def measure(self, name: str) -> list[dict[str, Any]]:
        """The lines of a model, one for each way to sample it. Earlier measurements are reused."""
        config = RECIPES.config(name, self)
        pipeline = open_model(self, config.run.folder / "export")
        request = Request.of(pipeline, self)
        wanted = {"weights": fingerprint(pipeline), **request.settings(), "data": str(self.data)}
        wanted["measures"] = {"metrics": list(self.metrics), "features": feature_name(self, request.frames)}
        judge = cache(lambda: Judge.of(pipeline, request, self))  # reads the data, so only if it is needed
        measured, lines = Measured(self.out, self.again), []
        for way in ways(name, config):

            def measure(way: Way = way) -> tuple[dict[str, Any], Clips]:
                print(f"sampling {name} with {way.sampler}", flush=True)
                clips, numbers = sample(pipeline, way, request)
                rest = numbers.pop("rms") / config.objective.decay.gain
                numbers |= {**judge()(clips, request.names), "rest": rest}
                return {"found": numbers, "reference": judge().scale(len(request.ids))}, (
                    clips,
                    np.asarray(request.ids),
                )

            known = measured.keep(f"{name}_{way.sampler}", {**wanted, **asdict(way)}, measure)
            line = {"recipe": name, **asdict(way), **known["found"], **training_log(config)}
            lines.append({**line, "reference": known["reference"]})
        return lines


# Sampling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to sample a model: a sampler of `SAMPLERS`, its number of steps, and its own numbers."""

    sampler: str
    steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)


def ways(name: str, config: Config) -> list[Way]:
    """The samplers that fit a model, at equal evaluations of the field.

    Equilibria are descended. Flows are integrated up to gamma = 1, their end. Descent along a flow has no such end; it
    is tried, with the base's stride, if the network is not conditioned on gamma.
    """
    steps, rule, decay = config.sampler.steps, config.sampler.rule, config.objective.decay
    if isinstance(decay, ConstantDecay) and decay.gain != 1:
        # The field is not a velocity, which solvers need: descent by 1 / (steps gain) is Euler's method.
        return [Way("gd", steps, {"step_size": 1 / (steps * decay.gain)})]
    if isinstance(decay, ConstantDecay):
        half = max(1, steps // 2)  # heun and sde evaluate twice a step
        solved = [Way("euler", steps), Way("heun", half), Way("sde", half)]
        endless = Way("gd", steps, {"step_size": STRIDE / decay.gain})
        return solved if config.model.conditioned_on_gamma else [*solved, endless]
    step = {"step_size": rule.step_size}
    descents = [Way("nag", steps, {"mu": NAG.mu, **asdict(rule)}), Way("gd", steps, step)]
    return [*descents, Way("adam", steps, ADAM)] if name == BASE else descents


def sample(pipeline: EqMPipeline, way: Way, request: Request) -> tuple[np.ndarray, dict[str, Any]]:
    """Clips (N, T, H, W, 3), and numbers of their descents.

    diverged: number of clips; rms: of the gradient at their ends (at gamma = 1 for a network that is conditioned on
    gamma), mean over clips; nfe: mean evaluations of a clip; seconds: of all descents.
    """
    sampler = SAMPLERS[way.sampler](**way.numbers)
    result = walk(pipeline, request, sampler, steps=way.steps)
    return decode(pipeline, result.latents), {
        "diverged": int(result.diverged.sum()),
        "rms": float(result.rms.square().mean(dim=1).sqrt().mean()),
        "nfe": float(result.nfe.double().mean()),
        "seconds": round(result.seconds, 1),
    }


def training_log(config: Config) -> dict[str, Any]:
    """The end of a run's log: steps, seconds of training, and the loss on held-out clips over the decay squared.

    The loss at gamma is the mean of (f - (noise - clean) c)². Divided by c² it is the loss of f / c as a prediction of
    noise - clean, comparable between decays and gains. It has a number for each gamma of the recipe.
    """
    text = (config.run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    losses = next((line["held_out"] for line in reversed(log) if "held_out" in line), {})
    names = {f"{gamma:g}": config.objective.decay(torch.tensor(gamma)) for gamma in config.held_out.gammas}
    return {
        "training_steps": log[-1]["step"],
        "training_seconds": round(log[-1]["seconds"], 1),
        "held_out_error": {name: losses[name] / float(decay) ** 2 for name, decay in names.items() if name in losses},
    }


# Tables and picture ---------------------------------------------------------------------------------------------------

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
