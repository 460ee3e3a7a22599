"""A sweep: every combination of steps, step sizes, samplers and schedules from the same noise, a row for each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.samplers import NAG, SAMPLERS, SCHEDULES, SIZED
from eqm_video.sampling.arguments import own_walk
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Judged, Overwriting, Ruled, Stepping
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.quality import Judge, feature_name, titles
from eqm_video.studies.request import Request
from eqm_video.studies.study import Compared, Report
from eqm_video.studies.walk import decode, walk
from eqm_video.system import files, machine, waits

LENGTHS = (0.25, 0.5, 1.0, 2.0)  # lengths of the walk for --step-size auto, in units of the model's own
EVALUATIONS = {"heun": 2}  # evaluations of a step; 1 for other samplers
COLUMNS = ("model", "sampler", "schedule", "steps", "step_size", "nfe", "diverged", "gradient_rms", "seconds")


@dataclass(frozen=True)
class Setting:
    """The setting of a row: a model and its sampler. step_size is None for solvers and for the even schedule."""

    model: str  # "model" or "against"
    sampler: str
    schedule: str
    steps: int
    step_size: float | None


@dataclass(frozen=True, kw_only=True)
class Sweep(Compared, Ruled, Stepping, Judged, Overwriting, group="look"):
    """Quality over number of steps, step size and sampler.

    Every combination samples the same labels and seeds and becomes a row of sweep.csv, sweep.json and the table on the
    screen; sweep.png draws them (the paper's Figures 6 and 7). A setting that diverges is a row like any other. An
    interrupted sweep, or one with more settings than before, continues with the missing rows.

    `--step-size auto` takes step sizes for walks (step_size x steps) of 1/4, 1/2, 1 and 2 times the length of the
    model's own setting. `--step-schedule even` gives each step the size that moves gamma by 1/steps in the closed form
    for one data point, step_size_k = 1 / (steps c(k / steps)), as the Euler method does with a flow: the fair few-step
    setting. `--against` adds a flow model with the same numbers of evaluations. With --data every row has the --metrics
    of its samples against real clips, with 95 % intervals.
    """

    num_samples: int = 64
    steps: tuple[int, ...] = (5, 10, 25, 50)
    step_size: tuple[float | str, ...] = ("auto",)
    sampler: tuple[str, ...] | None = narrower(None, unset="the model's own, and gd")
    step_schedule: tuple[str, ...] = option(
        ("constant",), choices=(*SCHEDULES, "even"), metavar="SCHEDULE", help="schedules of the step size"
    )
    against_sampler: tuple[str, ...] = narrower(
        ("euler", "heun"), choices=tuple(name for name in SAMPLERS if name not in SIZED)
    )

    def run(self, *models: EqMPipeline) -> Report:
        """Measure the settings that have no row yet, one by one."""
        pipelines = dict(zip(("model", "against"), models, strict=False))
        request = self.request(models[0])
        wanted = self.settings(pipelines)
        judge = Judge.of(models[0], request, self)
        record = Record(self.out / self.record, self.shared(pipelines, request), self.overwrite)
        missing = [setting for setting in wanted if record.find(setting) is None]
        if len(missing) < len(wanted):
            print(f"{len(wanted) - len(missing)} of {len(wanted)} settings are there already")
        for setting in waits.bar(missing, "sweeping", unit="setting"):
            record.add(setting, measure(pipelines[setting.model], request, setting, judge, self.mu))
        scale = judge.scale(len(request.ids))
        known = {**scale, "limits": limits(models[0], self.mu)}
        return Report(
            record.content({"machine": machine.describe(models[0].device), **scale}),
            as_table(
                [record.find(setting) for setting in wanted], [judge.headline, *(self.metrics if self.data else ())]
            ),
            {"sweep.png": lambda path: draw_sweep(path, record.rows, judge.headline, known)},
            {"sweep.csv": as_csv(record.rows)},
        )

    def settings(self, pipelines: dict[str, EqMPipeline]) -> list[Setting]:
        """The settings of all combinations, each once, in order."""
        own = pipelines["model"].config.sampler
        samplers = self.sampler or list(dict.fromkeys([own["kind"], "gd"]))
        settings = []
        for steps in self.steps:
            for sampler in samplers:
                if sampler not in SIZED:
                    settings.append(Setting("model", sampler, "constant", _solver_steps(sampler, steps), None))
                    continue
                for schedule in self.step_schedule:
                    settings += [
                        Setting("model", sampler, schedule, steps, size)
                        for size in _sizes(self.step_size, own, steps, schedule)
                    ]
            if "against" in pipelines:
                settings += [
                    Setting("against", solver, "constant", _solver_steps(solver, steps), None)
                    for solver in self.against_sampler
                ]
        return list(dict.fromkeys(settings))

    def shared(self, pipelines: dict[str, EqMPipeline], request: Request) -> dict[str, Any]:
        """The settings that all rows share. A sweep is continued only if all of them are equal."""
        return {
            "models": {name: fingerprint(pipeline) for name, pipeline in pipelines.items()},
            **request.settings(),
            "mu": look_ahead(pipelines["model"], self.mu),
            "data": None if self.data is None else str(self.data),
            "measures": None
            if self.data is None
            else {"metrics": list(self.metrics), "features": feature_name(self, request.frames)},
        }


# Settings -----------------------------------------------------------------------------------------------------------


def _solver_steps(sampler: str, evaluations: int) -> int:
    return max(1, evaluations // EVALUATIONS.get(sampler, 1))


def _sizes(sizes: Sequence[float | str], own: Mapping[str, Any], steps: int, schedule: str) -> Sequence[float | None]:
    if schedule == "even":
        return [None]
    lists = [_automatic(own, steps) if size == "auto" else [size] for size in sizes]
    return sorted({float(f"{size:.6g}") for part in lists for size in part})


def _automatic(own: Mapping[str, Any], steps: int) -> list[float]:
    """Step sizes for walks of `steps` that are 1/4 to 2 times as long as the model's own; UserError if it has none."""
    own = own_walk(own)
    return [own["step_size"] * own["steps"] / steps * length for length in LENGTHS]


def even_schedule(pipeline: EqMPipeline, steps: int) -> tuple[float, Callable[[int, int], float]]:
    """(step_size, schedule): in the closed form for one data point each step moves gamma by 1 / steps.

    Gamma moves by step_size * c(gamma), so that step_size_k = 1 / (steps c(k / steps)). UserError without a decay.
    """
    if pipeline.decay is None:
        raise UserError("this model does not say its decay, which --step-schedule even needs: leave that out")
    strengths = pipeline.decay(torch.arange(steps, dtype=torch.float64) / steps).tolist()
    return 1 / (steps * strengths[0]), lambda step, _: strengths[0] / strengths[step]


def look_ahead(pipeline: EqMPipeline, mu: float | None) -> float:
    """The mu of nag: `mu`, else the model's, else nag's default."""
    return float(pipeline.config.sampler.get("mu", NAG.mu) if mu is None else mu)


def limits(pipeline: EqMPipeline, mu: float | None = None) -> dict[str, float]:
    """The step sizes from which on descents by gd and nag oscillate around the data for ever (closed form).

    `mu`: as in `look_ahead`.
    """
    decay = pipeline.decay
    if decay is None:
        return {}
    near = torch.tensor([1 - 1e-6, 1.0], dtype=torch.float64)
    values = decay(near).tolist()
    slope = (values[0] - values[1]) / 1e-6  # c falls like slope * (1 - gamma) to 0
    if slope <= 0:
        return {}
    return {"gd": 2 / slope, "nag": 2 / ((1 + 2 * look_ahead(pipeline, mu)) * slope)}


# Rows ---------------------------------------------------------------------------------------------------------------


def measure(
    pipeline: EqMPipeline, request: Request, setting: Setting, judge: Judge, mu: float | None = None
) -> dict[str, Any]:
    """Sample once and measure; clips that diverged count in the quality, but not in gradient_rms."""
    how: dict[str, Any] = {}
    if setting.sampler in SIZED:
        size, how["schedule"] = setting.step_size, setting.schedule
        if setting.schedule == "even":
            size, how["schedule"] = even_schedule(pipeline, setting.steps)
        sampler = pipeline.rule(setting.sampler, size, mu if setting.sampler == "nag" else None)
    else:
        sampler = pipeline.rule(setting.sampler)
    result = walk(pipeline, request, sampler, steps=setting.steps, **how)
    kept = result.rms.amax(1)[~result.diverged]
    return {
        "nfe": float(result.nfe.double().mean()),
        "diverged": float(result.diverged.double().mean()),
        "gradient_rms": float(kept.mean()) if len(kept) else None,
        "seconds": round(result.seconds, 3),
        **judge(decode(pipeline, result.latents), request.names),
    }


class Record:
    """The file sweep.json: shared settings `about`, and the rows. It is written after each row.

    UserError for a damaged file, and, unless `overwrite`, for a sweep with other settings.
    """

    def __init__(self, path: Path, about: dict[str, Any], overwrite: bool) -> None:
        self.path, self.about, self.rows = path, about, []
        if not path.is_file() or overwrite:
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            same, self.rows = content["settings"] == about, list(content["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); type --overwrite to begin anew") from error
        if not same:
            raise UserError(
                f"{path.parent} holds a sweep of another model, other samples or other data: give another --out, or "
                "--overwrite to throw it away"
            )

    def find(self, setting: Setting) -> dict[str, Any] | None:
        """The row of a setting, if it is there."""
        key = asdict(setting)
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, setting: Setting, values: dict[str, Any]) -> None:
        """Add a row, and write the file."""
        self.rows.append({**asdict(setting), **values})
        files.write_record(self.path, self.content({}))

    def content(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """The content of the file, with `more` entries."""
        return {"settings": self.about, **more, "rows": self.rows}


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """All rows as CSV, for other programs."""
    text = io.StringIO()
    names = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_table(rows: Sequence[dict[str, Any]], measures: Sequence[str | None]) -> str:
    """The rows as a table for the screen, with `measures` of quality."""
    quality = [name for name in dict.fromkeys(["both_accuracy", "shape_overlap", *measures]) if name in rows[0]]
    names = [*COLUMNS, *quality]
    lines = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[k]) for line in lines)) for k, name in enumerate(names)]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in [names, *lines])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# Picture --------------------------------------------------------------------------------------------------------------

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
