"""Long videos far beyond the training length: how they hold, with and without a closed loop, by schedule and target.

Legend: S models of one target, N clips, T frames of a window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from eqm_video.errors import UserError
from eqm_video.metrics.intervals import compare, estimate, holm
from eqm_video.options import narrower, option, same
from eqm_video.samplers import ClosedLoop
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Guided, Many, Rendered, Seeded, Stepped
from eqm_video.sampling.options import Longer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.measured import Measured
from eqm_video.studies.partial import Partial
from eqm_video.studies.recipes import Trained
from eqm_video.studies.request import open_model
from eqm_video.studies.rollouts import measure, report
from eqm_video.studies.rollouts.measure import MEASURES, SCHEDULES
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.tasks.clips import Truth, is_centred, names_of

OPEN = "open"  # the loop without corrections


@dataclass(frozen=True, kw_only=True)
class Rollouts(Opening, Rendered, Many, Longer, Stepped, Guided, Seeded, group="compare"):
    """Roll out long videos of moving shapes, and measure how they hold, frame after frame.

    Every model continues the same rendered clips with the multistep sampler, window by window: each knows the last
    frames of the one before. Models of one training target (EqM, EqF, flow matching) count as its runs. Measured are
    the share of windows that show direction and shape of their label, the speed against the true one, the gradient on
    known frames, and the level that the field sees in a frame against the level that its steps led to, as a curve over
    the frames. Memory does not grow with the length, and is measured as well.

    Schedules: overlap knows half of a window, chunk 2 frames of it, rolling lets earlier frames go ahead of later ones,
    bake-in writes known frames as pixels and encodes them again. With --closed-loop each is made with a closed loop as
    well. Finished videos are not made again, so that more models can be added later.

    Example: eqm-video rollouts runs/forcing/mixture_*_seed_? --out samples/rollouts --length 10000
    """

    models: tuple[str, ...] = same(Partial, "models")
    num_samples: int = narrower(4, least=2)
    schedules: tuple[str, ...] = option(
        ("overlap",), choices=tuple(SCHEDULES), metavar="KIND", help=f"of windows: {', '.join(SCHEDULES)}"
    )
    closed_loop: str | None = same(Sampling, "closed_loop", choices=("field",), unset="open loops alone", rare=False)
    history_guidance: float = same(Sampling, "history_guidance")
    length: int | None = narrower(None, least=16, unset="100 times T")
    overlap: int | None = narrower(None, least=2, unset="half of T; 2 of chunk")
    again: bool = same(Trained, "again")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables, by name."""
        return report.views(numbers)

    def run(self) -> Report:
        """Make the videos that are missing, model by model."""
        runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        kinds, settings = {}, None
        for path in self.models:
            pipeline = open_model(self, path)
            if pipeline.decay is None:
                raise UserError(f"{path} does not say the decay of its training, which multistep needs: leave it out")
            settings = settings or self.settings(pipeline)
            if self.settings(pipeline) != settings:
                raise UserError(f"{path} has other frames, size or labels than {self.models[0]}: roll it out by itself")
            kinds[path] = measure.kind_of(pipeline)
            for schedule in self.schedules:
                for loop in (OPEN, *filter(None, [self.closed_loop])):
                    print(f"{path}: {kinds[path]}, {schedule}, {loop} loop", flush=True)
                    made = self.made(path, pipeline, schedule, loop)
                    runs.setdefault(kinds[path], {}).setdefault(f"{schedule}, {loop}", []).append(made)
        numbers = {"settings": settings, "models": kinds, **gather(runs)}
        tables = "\n\n".join(self.views(numbers).values())
        return Report(numbers, tables, report.pictures(numbers), {"rollouts.md": tables + "\n"})

    def settings(self, pipeline: EqMPipeline) -> dict[str, Any]:
        """The settings that all videos share, with the model's own filled in."""
        frames, how = pipeline.check_frames(), self.how(pipeline)
        return {
            "frames": frames,
            "size": pipeline.check_size()[0],
            "labels": list(pipeline.labels.values()),
            "length": self.length or 100 * frames,
            "overlap": self.overlap or max(2, round(frames / 2)),
            "clips": self.num_samples,
            "seed": self.seed,
            "evaluations": how.steps,
            "guidance scale": how.guidance_scale,
            "history guidance": self.history_guidance,
            **({"centred": True} if is_centred(self, pipeline) else {}),
        }

    def how(self, pipeline: EqMPipeline) -> Sampling:
        """Multistep with the options of the command."""
        keys = {"guidance_scale": self.guidance_scale, "history_guidance": self.history_guidance, "steps": self.steps}
        return Sampling(sampler="multistep", **keys).on(pipeline)

    def made(self, path: str, pipeline: EqMPipeline, schedule: str, loop: str) -> dict[str, Any]:
        """The measurements of one model's videos: kept ones, or new ones."""
        settings = self.settings(pipeline)
        wanted = {**settings, "weights": fingerprint(pipeline), "schedule": asdict(SCHEDULES[schedule]), "loop": loop}
        name = "_".join([re.sub(r"\W+", "_", path).strip("_")[-80:], schedule, loop])

        def work() -> tuple[dict[str, Any], None]:
            names = names_of(pipeline, self.num_samples)
            centred = settings.get("centred", False)
            truth = Truth.render(names, settings["frames"], settings["size"], self.seed, centred=centred)
            how = replace(self.how(pipeline), closed_loop=None if loop == OPEN else ClosedLoop())
            rest = {key: settings[key] for key in ("length", "seed")}
            return {
                "found": measure.roll(pipeline, truth, SCHEDULES[schedule], how, overlap=self.overlap, **rest)
            }, None

        return Measured(self.out, self.again).keep(name, wanted, work)["found"]


def gather(runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Estimates by target, cell ("SCHEDULE, LOOP"), measure and span, and paired differences.

    Differences are of the last span: closed less open loops of the same models, and open loops of two targets with
    equally many models, paired in the order of the command line.
    """
    ends = next(iter(next(iter(runs.values())).values()))[0]["ends"]
    spans = [slice(k, k + 1) for k in range(len(ends))]
    cells: dict[str, Any] = {}
    for kind, each in runs.items():
        for cell, made in each.items():
            values = {
                name: [asdict(estimate(measure.stacked(made, name, span, ends))) for span in spans] for name in MEASURES
            }
            cost = {"memory": [max(run["memory"][k] for run in made) for k in range(len(ends))]}
            cost |= {"seconds": [run["seconds"] for run in made], "known": made[0]["known"]}
            cells.setdefault(kind, {})[cell] = {**values, **cost}
    return {"ends": ends, "cells": cells, "differences": differences(runs, ends)}


def differences(
    runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], ends: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each difference of `gather`, and each measure; p is adjusted for their number in a measure (Holm)."""
    pairs = []
    for kind, each in runs.items():
        for cell in each:
            schedule, _, loop = cell.rpartition(", ")
            if loop != OPEN:
                pairs.append(((kind, cell), (kind, f"{schedule}, {OPEN}")))
    for first, other in combinations(runs, 2):
        for cell in runs[first]:
            alike = cell in runs[other] and len(runs[first][cell]) == len(runs[other][cell])
            if cell.endswith(f", {OPEN}") and alike:
                pairs.append(((first, cell), (other, cell)))
    rows = []
    for name in MEASURES:
        drawn = []
        for pair in pairs:
            values = [measure.stacked(runs[kind][cell], name, slice(-1, None), ends) for kind, cell in pair]
            drawn.append({"measure": name, "one": pair[0], "other": pair[1], **asdict(compare(*values))})
        for row, adjusted in zip(drawn, holm([row["p"] for row in drawn]), strict=True):
            rows.append({**row, "p adjusted": adjusted})
    return rows
