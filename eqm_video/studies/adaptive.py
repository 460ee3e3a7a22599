"""Adaptive compute: descents that stop once clips are at rest, and their savings (the paper's Figure 8)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.output.tables import aligned
from eqm_video.samplers import SAMPLERS, SIZED
from eqm_video.sampling.arguments import own_walk
from eqm_video.sampling.option_groups import Judged, PerFrame, Ruled
from eqm_video.sampling.option_words import read_fixed
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.quality import Judge, titles
from eqm_video.studies.request import Request, describe_rule
from eqm_video.studies.study import Report, Sampled
from eqm_video.studies.walk import Walk, decode, walk
from eqm_video.system import machine, waits


@dataclass(frozen=True, kw_only=True)
class Adaptive(Sampled, Ruled, PerFrame, Judged, group="look"):
    """Stop clips when they rest: evaluations, time and quality.

    A clip stops, and leaves the batch, once the gradient of every frame has a root mean square below the tolerance;
    with --per-frame each frame stops by itself. For each fixed setting STEPS:STEP_SIZE, the descent with all steps is
    compared with descents that may stop at each of the tolerances: evaluations, time, quality, and the distance from
    the clips of all steps (root mean squared difference of pixels, of 0 to 255, from the same noise). For comparison
    another descent takes the same number of steps for every clip: the mean number of the adaptive descent. With --data
    quality is also that of --metrics, against real clips, with 95 % intervals.

    Times are of the descents alone. All runs of a fixed setting alternate, --repeats times, in a single process; the
    medians are reported. CPU seconds are this process's own: other work on the machine lengthens them less.
    """

    num_samples: int = 64
    sampler: str | None = narrower(None, choices=SIZED)
    tolerances: tuple[float, ...] = option(
        (0.1, 0.2, 0.4, 0.8), above=0, metavar="R", help="tolerances of the gradient's RMS"
    )
    fixed: tuple[tuple[int, float], ...] | None = option(
        None,
        read=read_fixed,
        kind="STEPS:STEP_SIZE, such as 50:0.02",
        metavar="STEPS:STEP_SIZE",
        help="descents to compare",
        unset="the model's own setting, and four times its steps at a quarter of its step size",
    )
    repeats: int = option(3, least=1, metavar="K", help="repetitions of everything that is timed")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables by name: results."""
        return {"results": as_table(numbers["results"])}

    def run(self, pipeline: EqMPipeline) -> Report:
        """Compare every fixed setting with its adaptive descents."""
        request = self.request(pipeline)
        self.check_sampler(pipeline)
        fixed = self.fixed or own_settings(pipeline)
        judge = Judge.of(pipeline, request, self)
        runs = len(fixed) * (1 + len(self.tolerances)) * self.repeats
        with waits.bar(what="descending", total=runs, unit="run") as bar:
            results = [self.compare(pipeline, request, judge, setting, bar) for setting in fixed]
        scale = judge.scale(len(request.ids))
        numbers = {
            "settings": {**request.settings(), "repeats": self.repeats, "per_frame": self.per_frame},
            "machine": machine.describe(pipeline.device),
            **scale,
            "results": results,
        }
        draw = {
            "adaptive.png": lambda path: draw_adaptive(path, results, judge.headline, titles(scale.get("measures", {})))
        }
        return Report(numbers, as_table(results, judge.headline), draw)

    def kind(self, pipeline: EqMPipeline) -> str:
        """The sampler: the model's own, or nag where that takes too few steps to stop at rest."""
        own = pipeline.config.sampler["kind"]
        return self.sampler or ("nag" if hasattr(SAMPLERS[own], "few") else own)

    def check_sampler(self, pipeline: EqMPipeline) -> None:
        """UserError if the model's own sampler is a solver: a solver has no point of rest to stop at."""
        kind = self.kind(pipeline)
        if kind not in SIZED:
            raise UserError(
                f"the model's own sampler {kind!r} cannot stop at rest: type --sampler {' or '.join(SIZED)}"
            )

    def compare(
        self,
        pipeline: EqMPipeline,
        request: Request,
        judge: Judge,
        fixed: tuple[int, float],
        bar: Any,
    ) -> dict[str, Any]:
        """The record of a fixed setting: all steps, then each tolerance beside a fixed descent of equal cost."""
        steps, step_size = fixed
        rule = pipeline.rule(self.kind(pipeline), step_size, self.mu)
        walk(pipeline, request, rule, steps=1)  # the first evaluation of a process is slower than all others
        tolerances: list[float | None] = [None, *sorted(self.tolerances)]
        walks: dict[float | None, list[Walk]] = {tolerance: [] for tolerance in tolerances}
        for repeat in range(self.repeats):
            # Every second time backwards, so that all runs share what slows the machine down for a while.
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
        setting = {"sampler": self.kind(pipeline), "steps": steps, "step_size": step_size, "rule": describe_rule(rule)}
        return {**setting, "all steps": whole_, "adaptive": rows}


def own_settings(pipeline: EqMPipeline) -> list[tuple[int, float]]:
    """The model's own steps and step size, and a finer descent of the same length; UserError if it has no step size."""
    own = own_walk(pipeline.config.sampler)
    return [(own["steps"], own["step_size"]), (4 * own["steps"], own["step_size"] / 4)]


def summary(
    pipeline: EqMPipeline, request: Request, judge: Judge, walks: Sequence[Walk], reference: np.ndarray | None = None
) -> dict[str, Any]:
    """The cost and the quality of repeated walks, which are equal except for their times."""
    first = walks[0]
    clips, kept = decode(pipeline, first.latents), first.rms.amax(1)[~first.diverged]
    numbers = {
        "nfe": float(first.nfe.double().mean()),
        "nfe_of_clips": first.nfe.tolist(),
        "nfe_of_frames": float(first.frame_nfe.double().mean()),
        "seconds": statistics.median(each.seconds for each in walks),
        "cpu_seconds": statistics.median(each.cpu_seconds for each in walks),
        "all_seconds": [each.seconds for each in walks],
        "gradient_rms": float(kept.mean()) if len(kept) else None,
        "diverged": float(first.diverged.double().mean()),
        **judge(clips, request.names),
    }
    if reference is not None:
        difference = clips.astype(np.float32) - reference
        numbers["pixels_from_all_steps"] = float(np.sqrt(np.square(difference).mean()))
    return numbers


def as_table(results: Sequence[Mapping[str, Any]], headline: str | None = "both_accuracy") -> str:
    """A Markdown table for each fixed setting; shares are relative to all steps. headline: the measure of quality."""
    parts = []
    for result in results:
        heads = ["tolerance", "evaluations", "CPU s", "of evaluations", "of CPU time", "of time"]
        cells = [[*heads, *([headline] if headline else []), "RMS pixels from all steps"]]
        for row in (result["all steps"], *result["adaptive"]):
            shares = [row.get(f"{name}_ratio", 1.0) for name in ("nfe", "cpu_seconds", "seconds")]
            cells.append(
                [
                    f"{row['tolerance']:g}" if "tolerance" in row else "all steps",
                    *(f"{row['nfe']:.1f}", f"{row['cpu_seconds']:.2f}"),
                    *("-" if share is None else f"{100 * share:.0f} %" for share in shares),
                    *([f"{row[headline]:.3g}"] if headline else []),
                    f"{row['pixels_from_all_steps']:.1f}" if "pixels_from_all_steps" in row else "",
                ]
            )
        title = f"{result['sampler']}, {result['steps']} steps of {result['step_size']:g}:"
        parts.append(f"{title}\n\n{aligned(cells)}")
    return "\n\n".join(parts)


# Picture ------------------------------------------------------------------------------------------------------------


def draw_adaptive(
    path: Path, results: Sequence[Mapping[str, Any]], headline: str | None, names: Mapping[str, str]
) -> None:
    """Draw a histogram of steps for each fixed setting, and below it quality and distance over evaluations.

    `headline`: the measure of quality, or None. names: of the measures.
    """
    measures = [*([headline] if headline else []), "pixels_from_all_steps"]
    rows = len(results) + len(measures)
    figure = plots.figure(6.5, 2.3 * rows)
    for place, result in enumerate(results, start=1):
        axes = plots.axes(figure, rows, 1, place, xlabel="evaluations of a clip", ylabel="clips")
        histogram(axes, result)
    for place, measure in enumerate(measures, start=len(results) + 1):
        label = names.get(measure, measure)
        axes = plots.axes(figure, rows, 1, place, xlabel="mean evaluations of a clip", ylabel=label)
        over_evaluations(axes, results, measure)
    plots.save(figure, path)


def histogram(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw the distribution of evaluations over clips, for each tolerance of a fixed setting."""
    limit = result["steps"]
    width = max(1, limit // 50)
    edges = np.arange(0, limit + 2 * width, width) + 0.5
    for index, row in enumerate(result["adaptive"]):
        colour = plots.PALETTE[index % len(plots.PALETTE)]
        label = f"tolerance {row['tolerance']:g}\n({row['nfe_ratio']:.0%} of all steps)"
        axes.hist(row["nfe_of_clips"], edges, color=colour, alpha=0.75, label=label)
    axes.axvline(limit, color=plots.GREY, linestyle=":", label=f"all {limit} steps")
    axes.set_xlim(0, limit * 1.02)
    axes.set_title(f"{result['sampler']}, step size {result['step_size']:g}", fontsize=10)
    plots.legend(axes, beside=True)


def over_evaluations(axes: Any, results: Sequence[Mapping[str, Any]], measure: str) -> None:
    """Draw adaptive descents (filled), and descents with as many steps for every clip (open), for each setting."""
    for index, result in enumerate(results):
        look = plots.style(index)
        name = f"step size {result['step_size']:g}:"
        rows, whole = result["adaptive"], result["all steps"]
        stops = [(row["nfe"], row[measure]) for row in rows]
        fixed = [(row["fixed with as many"]["steps"], row["fixed with as many"][measure]) for row in rows]
        if measure in whole:
            stops.append((whole["nfe"], whole[measure]))
        axes.plot(*zip(*sorted(stops), strict=True), markersize=6, label=f"{name}\nstops at rest", **look)
        axes.plot(
            *zip(*sorted(fixed), strict=True),
            linestyle="--",
            markersize=6,
            markerfacecolor="white",
            label=f"{name}\nas many for all clips",
            **look,
        )
    axes.set_xlim(0, 1.02 * max(result["steps"] for result in results))
    if measure == "both_accuracy":
        axes.set_ylim(0, 1.05)
    plots.legend(axes, beside=True)
