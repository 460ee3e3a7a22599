"""Adaptive compute: descents that stop where clips are at rest, and what that saves (the paper's Figure 8)."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.samplers import SIZED
from eqm_video.sampling.option_groups import Data, PerFrame, Ruled
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.quality import NAMES, Judge
from eqm_video.studies.request import Request, describe_rule
from eqm_video.studies.study import Report, Sampled
from eqm_video.studies.walk import Walk, decode, walk
from eqm_video.system import machine


def read_fixed(text: str) -> tuple[int, float]:
    """STEPS:STEP_SIZE; ValueError for anything else."""
    steps, _, size = text.partition(":")
    if not re.fullmatch(r"0*[1-9]\d{0,8}", steps) or not 0 < float(size) <= 1e9:
        raise ValueError(text)
    return int(steps), float(size)


@dataclass(frozen=True, kw_only=True)
class Adaptive(Sampled, Ruled, PerFrame, Data, group="look"):
    """Stop clips when they rest: evaluations, time and quality.

    A clip stops once the gradient of every frame has a root mean square below the tolerance, and leaves the batch; with
    --per-frame each frame comes to rest by itself. For each fixed setting STEPS:STEP_SIZE, all steps are compared with
    the same setting that may stop at each of the tolerances: evaluations, time, quality, and how far the clips are from
    those of all steps (root mean squared difference of pixels, of 0 to 255, from the same noise). Beside it stands a
    descent that takes for every clip the mean number of steps that the adaptive one took. With --data quality is also a
    Fréchet distance from real clips.

    Times are of the descents alone. All runs of a fixed setting alternate, --repeats times, in this one process;
    reported are medians. CPU seconds are this process's own, which other work on the machine lengthens less.
    """

    num_samples: int = 64
    sampler: str | None = narrower(None, choices=SIZED)
    tolerances: tuple[float, ...] = option((0.1, 0.2, 0.4, 0.8), above=0, metavar="R", help="of the gradient's RMS")
    fixed: tuple[tuple[int, float], ...] | None = option(
        None,
        read=read_fixed,
        kind="STEPS:STEP_SIZE, such as 50:0.02",
        metavar="STEPS:STEP_SIZE",
        help="descents to compare",
        unset="the model's own setting, and four times its steps at a quarter of its step size",
    )
    repeats: int = option(3, least=1, metavar="K", help="of everything that is timed")

    def run(self, pipeline: EqMPipeline) -> Report:
        """Every fixed setting in turn."""
        request = self.request(pipeline)
        self.check_sampler(pipeline)
        fixed = self.fixed or own_settings(pipeline)
        judge = Judge.of(pipeline, request, self.data)
        runs = len(fixed) * (1 + len(self.tolerances)) * self.repeats
        with tqdm(total=runs, unit="run", disable=None) as bar:
            results = [self.compare(pipeline, request, judge, one, bar) for one in fixed]
        numbers = {
            "settings": {**request.settings(), "repeats": self.repeats, "per_frame": self.per_frame},
            "machine": machine.describe(pipeline.device),
            **judge.scale,
            "results": results,
        }
        draw = {"adaptive.png": lambda path: draw_adaptive(path, results, judge.headline)}
        return Report(numbers, as_table(results, judge.headline), draw)

    def check_sampler(self, pipeline: EqMPipeline) -> None:
        """UserError where a model's own sampler is a solver, which has nothing to stop at."""
        kind = self.sampler or pipeline.config.sampler["kind"]
        if kind not in SIZED:
            raise UserError(f"the model's own sampler {kind!r} goes all the way: type --sampler {' or '.join(SIZED)}")

    def compare(
        self,
        pipeline: EqMPipeline,
        request: Request,
        judge: Judge,
        fixed: tuple[int, float],
        bar: tqdm,
    ) -> dict[str, Any]:
        """All steps, then the same descent with each tolerance, and fixed descents of as many evaluations."""
        steps, step_size = fixed
        rule = pipeline.rule(self.sampler, step_size, self.mu)
        walk(pipeline, request, rule, steps=1)  # the first evaluation of a process is slower than all others
        tolerances: list[float | None] = [None, *sorted(self.tolerances)]
        walks: dict[float | None, list[Walk]] = {tolerance: [] for tolerance in tolerances}
        for repeat in range(self.repeats):
            # Every second time backwards, so that what slows the machine down for a while is shared.
            for tolerance in tolerances if repeat % 2 == 0 else tolerances[::-1]:
                how = {} if tolerance is None else {"tolerance": tolerance, "per_frame": self.per_frame}
                walks[tolerance].append(walk(pipeline, request, rule, steps=steps, **how))
                bar.update()
        whole_ = summary(pipeline, request, judge, walks[None])
        reference = decode(pipeline, walks[None][0].latents)
        rows = []
        for tolerance in tolerances[1:]:
            row = {"tolerance": tolerance, **summary(pipeline, request, judge, walks[tolerance], reference)}
            for name in ("nfe", "seconds", "cpu_seconds"):
                row[f"{name}_ratio"] = row[name] / whole_[name] if whole_[name] else None
            fewer = max(1, round(row["nfe"]))
            same = [walk(pipeline, request, rule, steps=fewer)]
            row["fixed with as many"] = {"steps": fewer, **summary(pipeline, request, judge, same, reference)}
            rows.append(row)
        sampler = self.sampler or pipeline.config.sampler["kind"]
        setting = {"sampler": sampler, "steps": steps, "step_size": step_size, "rule": describe_rule(rule)}
        return {**setting, "all steps": whole_, "adaptive": rows}


def own_settings(pipeline: EqMPipeline) -> list[tuple[int, float]]:
    """The model's own steps and step size, and a finer descent of the same length; UserError where it has none."""
    own = pipeline.config.sampler
    if "step_size" not in own:
        raise UserError(
            f"the model's own sampler {own['kind']!r} has no step size: say which descents to compare, such as "
            f"--fixed {own['steps']}:0.01"
        )
    return [(own["steps"], own["step_size"]), (4 * own["steps"], own["step_size"] / 4)]


def summary(
    pipeline: EqMPipeline, request: Request, judge: Judge, walks: Sequence[Walk], reference: np.ndarray | None = None
) -> dict[str, Any]:
    """What repeated walks took and made; the walks are equal but for their times."""
    one = walks[0]
    clips, kept = decode(pipeline, one.latents), one.rms.amax(1)[~one.diverged]
    found = {
        "nfe": float(one.nfe.double().mean()),
        "nfe_of_clips": one.nfe.tolist(),
        "nfe_of_frames": float(one.frame_nfe.double().mean()),
        "seconds": statistics.median(each.seconds for each in walks),
        "cpu_seconds": statistics.median(each.cpu_seconds for each in walks),
        "all_seconds": [each.seconds for each in walks],
        "gradient_rms": float(kept.mean()) if len(kept) else None,
        "diverged": float(one.diverged.double().mean()),
        **judge(clips, request.names),
    }
    if reference is not None:
        difference = clips.astype(np.float32) - reference
        found["pixels_from_all_steps"] = float(np.sqrt(np.square(difference).mean()))
    return found


def as_table(results: Sequence[dict[str, Any]], headline: str | None) -> str:
    """The results for the screen; shares are of all steps."""
    lines = []
    for one in results:
        names = [
            "tolerance",
            "nfe",
            "seconds",
            "CPU s",
            "of nfe",
            "of time",
            "of CPU",
            *([headline] if headline else []),
        ]
        lines.append(f"{one['sampler']}, {one['steps']} steps of {one['step_size']:g}")
        lines.append("  ".join(f"{name:>9}" for name in names))
        lines.append(_line("-", one["all steps"], headline))
        lines += [_line(f"{row['tolerance']:g}", row, headline) for row in one["adaptive"]]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], headline: str | None) -> str:
    cells = [name, f"{row['nfe']:.1f}", f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}"]
    shares = [row.get(f"{each}_ratio", 1.0) for each in ("nfe", "seconds", "cpu_seconds")]
    cells += ["-" if share is None else f"{share:.0%}" for share in shares]
    if headline is not None:
        cells.append(f"{row[headline]:.3g}".rjust(len(headline)))
    far = f"  {row['pixels_from_all_steps']:.1f} of 255 from all steps" if "pixels_from_all_steps" in row else ""
    return "  ".join(f"{cell:>9}" for cell in cells) + far


# Picture ------------------------------------------------------------------------------------------------------------


def draw_adaptive(path: Path, results: Sequence[Mapping[str, Any]], headline: str | None) -> None:
    """For each fixed setting a histogram of the steps at each tolerance; below, quality and distance over evaluations.

    `headline`: the measure of quality, None where there is none.
    """
    measures = [*([headline] if headline else []), "pixels_from_all_steps"]
    rows = len(results) + len(measures)
    figure = plots.figure(6.5, 2.3 * rows)
    for place, one in enumerate(results, start=1):
        axes = plots.axes(figure, rows, 1, place, xlabel="evaluations of a clip", ylabel="clips")
        histogram(axes, one)
    for place, measure in enumerate(measures, start=len(results) + 1):
        label = NAMES.get(measure, measure)
        axes = plots.axes(figure, rows, 1, place, xlabel="mean evaluations of a clip", ylabel=label)
        over_evaluations(axes, results, measure)
    plots.save(figure, path)


def histogram(axes: Any, one: Mapping[str, Any]) -> None:
    """How many clips took how many evaluations, for each tolerance of one fixed setting."""
    limit = one["steps"]
    width = max(1, limit // 50)
    edges = np.arange(0, limit + 2 * width, width) + 0.5
    for index, row in enumerate(one["adaptive"]):
        colour = plots.PALETTE[index % len(plots.PALETTE)]
        label = f"tolerance {row['tolerance']:g}\n({row['nfe_ratio']:.0%} of all steps)"
        axes.hist(row["nfe_of_clips"], edges, color=colour, alpha=0.75, label=label)
    axes.axvline(limit, color=plots.GREY, linestyle=":", label=f"all {limit} steps")
    axes.set_xlim(0, limit * 1.02)
    axes.set_title(f"{one['sampler']}, step size {one['step_size']:g}", fontsize=10)
    plots.legend(axes, beside=True)


def over_evaluations(axes: Any, results: Sequence[Mapping[str, Any]], measure: str) -> None:
    """Adaptive descents (filled), and fixed ones of as many steps for every clip (open), for each fixed setting."""
    for index, one in enumerate(results):
        look = plots.style(index)
        name = f"step size {one['step_size']:g}:"
        stops = [(row["nfe"], row[measure]) for row in one["adaptive"]]
        fixed = [(row["fixed with as many"]["steps"], row["fixed with as many"][measure]) for row in one["adaptive"]]
        if measure in one["all steps"]:
            stops.append((one["all steps"]["nfe"], one["all steps"][measure]))
        axes.plot(*zip(*sorted(stops), strict=True), markersize=6, label=f"{name}\nstops at rest", **look)
        axes.plot(
            *zip(*sorted(fixed), strict=True),
            linestyle="--",
            markersize=6,
            markerfacecolor="white",
            label=f"{name}\nas many for all clips",
            **look,
        )
    axes.set_xlim(0, 1.02 * max(one["steps"] for one in results))
    if measure == "both_accuracy":
        axes.set_ylim(0, 1.05)
    plots.legend(axes, beside=True)
