"""The tasks: draws of gamma compared, task by task, on endless moving shapes.

Legend: N clips, T frames, L frames of a long video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.options import narrower, option, same
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Guided, HeldOut, Seeded, Stepped
from eqm_video.sampling.options import Longer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import rebuild
from eqm_video.studies.demo import write_videos
from eqm_video.studies.measured import Clips, Measured
from eqm_video.studies.recipes import Recipes, Trained
from eqm_video.studies.request import open_model
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.tasks import long as tasks_long
from eqm_video.studies.tasks import pictures as tasks_pictures
from eqm_video.studies.tasks import report as tasks_report
from eqm_video.studies.tasks import short as tasks_short
from eqm_video.studies.tasks.clips import Truth, names_of
from eqm_video.studies.tasks.short import Setting
from eqm_video.system import machine

RECIPES = Recipes("gamma", "shared")
SHOWN = 8  # clips of each task that are kept for the pictures
PARTS = ("short", "long", "ways", "stopping")


@dataclass(frozen=True, kw_only=True)
class Tasks(Opening, Trained, Longer, Stepped, Guided, Seeded, Batched, group="compare"):
    """Train and compare draws of gamma: every video task on endless moving shapes.

    The recipes of gamma/ differ only in the draw of gamma in training. Each of them is trained once and measured in
    every task: generation, image-to-video, continuation, in-betweening, inpainting in time, and videos of many times
    the training length. All get the same clips and the same noise. The clips are rendered in closed form, so that the
    error of every predicted frame is known in pixels. The model with the best long videos is also measured with other
    choices in its windows, and with adaptive compute.

    Finished runs and measurements are reused. The videos are written if --data does not exist. With --models other
    models of moving shapes are measured instead.
    """

    models: tuple[str, ...] | None = option(
        None, metavar="MODEL", help="measure these models of moving shapes instead of the recipes"
    )
    runs: Path = option(Path("runs/gamma"), metavar="DIR", help="folder of the training runs")
    data: Path = Path("data/endless_shapes")
    parts: tuple[str, ...] = option(
        PARTS, choices=PARTS, metavar="PART", help=f"measure only these parts: {', '.join(PARTS)}"
    )
    clips: int = same(HeldOut, "clips", least=2)
    long_clips: int = option(32, least=2, metavar="N", help="number of long videos")
    way_clips: int = option(16, least=2, metavar="N", help="number of long videos for each choice in their windows")
    length: int | None = narrower(None, least=8, unset="ten times T")
    overlap: int | None = narrower(None, unset="half of T")
    context_gamma: float = same(Sampling, "context_gamma")
    context: int = option(3, least=2, metavar="K", help="known frames in continuation")
    best: str | None = option(
        None, metavar="NAME", help="vary the choices of this model", unset="the model with the best long videos"
    )

    def check(self) -> None:
        """UserError for --models beside options of the recipes."""
        if self.models and (self.only is not None or self.overrides):
            raise UserError("--models measures what is trained already: leave --only and section.key=value out")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables of the parts that were measured, by name: tasks, long, ways, stopping."""
        return tasks_report.parts(numbers)

    def run(self) -> Report:
        """Train missing runs, and make missing measurements."""
        measurer = Measurer(self, self.exports())
        results: dict[str, Any] = {"settings": measurer.settings(), "models": {name: {} for name in measurer.paths}}
        for name in measurer.paths:
            for part in ("short", "long"):
                if part in self.parts:
                    results["models"][name] |= measurer.measure(name, part)
        results["best"] = tasks_report.best(results["models"]) if self.best is None else self.best
        for part in ("ways", "stopping"):
            if part in self.parts:
                results |= measurer.measure(results["best"], part)
        numbers = {"training runs of each recipe": 1, "machine": machine.describe(), **results}
        tables = tasks_report.tables(numbers)
        pictures = {**tasks_report.plots_of(numbers), **measurer.pictures(results["best"])}
        return Report(numbers, tables, pictures, {"tasks.md": tables})

    def exports(self) -> dict[str, Path]:
        """The folders of the models, by name: those of --models, or those of the recipes, which are trained if missing.

        UserError, before any training, for options that do not fit the models.
        """
        if self.models:
            paths = [Path(model) for model in self.models]
            short = [path.parent.name if path.name == "export" else path.name for path in paths]
            names = short if len(set(short)) == len(short) else [str(path) for path in paths]
            exports = dict(zip(names, paths, strict=True))
        else:
            names = RECIPES.chosen(self.chosen)
            exports = {name: self.runs / name / "export" for name in names}
            self.check_windows(RECIPES.config(names[0], self).data.frames)
        if self.best not in (None, *exports):
            raise UserError(f"--best {self.best}: the models are {', '.join(exports)}")
        if self.best is None and len(exports) > 1 and not {"short", "long"} & set(self.parts):
            raise UserError(
                f"--parts {' '.join(self.parts)} is for a single model: add long, or --best and {' or '.join(exports)}"
            )
        if not self.models:
            RECIPES.claim(names, self)
            write_videos(self.data, endless=True)
            for name in exports:
                RECIPES.train(name, self)
        return exports

    def check_windows(self, frames: int) -> None:
        """UserError if --overlap or --context is not smaller than T = `frames`."""
        for flag, value in (("--context", self.context), ("--overlap", self.overlap)):
            if value is not None and value >= frames:
                raise UserError(f"{flag} {value}: clips of {frames} frames leave 1 to {frames - 1}")


# Measuring ----------------------------------------------------------------------------------------------------------


class Measurer:
    """Measures models on the same clips. It keeps a file for each measurement in OUT/measured."""

    def __init__(self, study: Tasks, paths: Mapping[str, Path]) -> None:
        self.study, self.paths, self.measured = study, paths, Measured(study.out, study.again)
        self.opened: tuple[str, EqMPipeline] | None = None
        first = self.open(next(iter(paths)))
        self.frames, self.size = first.check_frames(), first.check_size()[0]
        self.length = study.length or 10 * self.frames
        study.check_windows(self.frames)
        how = Sampling(context_gamma=study.context_gamma)
        self.way = tasks_long.Way(study.overlap or max(1, self.frames // 2), how)
        self.names = names_of(first, max(study.clips, study.long_clips, study.way_clips))
        self._truth: Truth | None = None

    def open(self, name: str) -> EqMPipeline:
        """The model of this name; the last opened model stays open.

        UserError if its clips differ from the first model's.
        """
        if self.opened is None or self.opened[0] != name:
            self.opened = (name, open_model(self.study, self.paths[name]))
        pipeline = self.opened[1]
        if hasattr(self, "names"):
            same = (pipeline.check_frames(), pipeline.check_size()[0]) == (self.frames, self.size)
            if not same or names_of(pipeline, len(self.names)) != self.names:
                raise UserError(f"{name} has other frames, size or labels than the first model: leave it out")
        return pipeline

    def truth(self, count: int) -> Truth:
        """The first `count` clips of the truth, as long as the long videos."""
        if self._truth is None:
            self._truth = Truth.render(self.names, self.length, self.size, self.study.seed)
        return self._truth.first(count)

    def setting(self, count: int) -> Setting:
        """The setting of `count` clips: the same clips and seeds for every model."""
        how = Sampling.of(self.study, context_gamma=1.0)  # only roll-outs have a context_gamma
        return Setting(self.truth(count), self.study.seed, self.study.batch_size, how)

    def settings(self) -> dict[str, Any]:
        """The settings for the record."""
        keys = ("clips", "long_clips", "way_clips", "context", "steps", "guidance_scale", "seed")
        own = {key.replace("_", " "): getattr(self.study, key) for key in keys}
        return {"frames": self.frames, "size": self.size, "length": self.length, **self.way.settings(), **own}

    def wanted(self, name: str, count: int) -> dict[str, Any]:
        """The settings that every measurement of `count` clips depends on, its own aside."""
        settings = {key: getattr(self.study, key) for key in ("steps", "guidance_scale", "seed")}
        return {"weights": fingerprint(self.open(name)), "clips": count, **settings}

    def measure(self, name: str, part: str) -> dict[str, Any]:
        """The part `part`, of `PARTS`, of a model's measurements."""
        return getattr(self, part)(name)

    def short(self, name: str) -> dict[str, Any]:
        """Every task within one clip, and the baselines, which need no network."""
        pipeline, results, floors = self.open(name), {}, {}
        truth = self.truth(self.study.clips)
        rebuilt = None
        for task in tasks_short.tasks(self.frames, self.study.context):

            def work(task: tasks_short.Task = task) -> tuple[dict[str, Any], np.ndarray]:
                nonlocal rebuilt
                rebuilt = rebuild(pipeline, truth.clips[:, : self.frames], 32) if rebuilt is None else rebuilt
                filled = tasks_short.fill(pipeline, task, self.setting(self.study.clips))
                numbers = tasks_short.measure(filled, task, truth, rebuilt)
                without = tasks_short.baselines(task, truth, rebuilt) if task.placed else {}
                return {"known": list(task.known), **numbers, "baselines": without}, filled.clips[:SHOWN]

            wanted = {**self.wanted(name, self.study.clips), "known": list(task.known), "told": task.told}
            results[task.name] = self.kept(name, task.name, wanted, work)
            floors[task.name] = results[task.name].pop("baselines")
        return {"tasks": results, "baselines": {key: value for key, value in floors.items() if value}}

    def long(self, name: str) -> dict[str, Any]:
        """The usual roll-out of a model."""
        return {"long": self.roll(name, self.way, self.study.long_clips)}

    def ways(self, name: str) -> dict[str, Any]:
        """Roll-outs of a model that differ from the usual in a single choice."""
        return {
            "ways": {
                title: {
                    way.name(self.way): {**way.settings(), **self.roll(name, way, self.study.way_clips)}
                    for way in listed
                }
                for title, listed in tasks_long.ways(self.way, self.frames).items()
            }
        }

    def roll(self, name: str, way: tasks_long.Way, count: int) -> dict[str, Any]:
        """A roll-out of a model, of `count` clips."""
        pipeline, truth = self.open(name), self.truth(count)

        def work() -> tuple[dict[str, Any], np.ndarray]:
            video = tasks_long.continue_clips(pipeline, way, self.setting(count))
            numbers = tasks_long.measure(video, truth, self.frames)
            rebuilt = rebuild(pipeline, truth.clips[:, : way.overlap], 32)
            numbers["straight line"] = tasks_long.extrapolated(truth, rebuilt, video.starts, self.length)
            return numbers, video.clips[:SHOWN]

        wanted = {**self.wanted(name, count), "length": self.length, **way.settings()}
        return self.kept(name, _long(way, count), wanted, work)

    def stopping(self, name: str) -> dict[str, Any]:
        """Adaptive compute of a model in the task continuation."""
        pipeline = self.open(name)
        listed = tasks_short.tasks(self.frames, self.study.context)
        task = next(task for task in listed if task.name == tasks_short.TOLD)

        def work() -> tuple[dict[str, Any], None]:
            return {"rows": tasks_short.stopping(pipeline, task, self.setting(self.study.clips))}, None

        wanted = {
            **self.wanted(name, self.study.clips),
            "known": list(task.known),
            "tolerances": tasks_short.TOLERANCES,
        }
        return {"stopping": self.kept(name, "stopping", wanted, work)["rows"]}

    def pictures(self, best: str) -> dict[str, Callable[[Path], Any]]:
        """Clips to look at, by file name: every task of the best model, and the long video of all models."""
        fps = float(self.open(best).config.fps)
        truth, drawn = self.truth(SHOWN).clips, {}
        if "short" in self.study.parts:
            tasks = [task for task in tasks_short.tasks(self.frames, self.study.context) if task.known]
            rows = {task.name: (self.shown(best, task.name), task.known) for task in tasks}
            look = {"truth": truth[:, : self.frames], "rows": rows}
            drawn["tasks.gif"] = partial(tasks_pictures.draw_clips, **look, fps=fps)
            drawn["tasks_strips.png"] = partial(tasks_pictures.draw_strips, **look)
        if "long" in self.study.parts:
            known, what = range(self.way.overlap), _long(self.way, self.study.long_clips)
            rows = {name: (self.shown(name, what), known) for name in self.paths}
            drawn["tasks_long.gif"] = partial(tasks_pictures.draw_clips, truth=truth, rows=rows, fps=fps)
        return drawn

    def shown(self, name: str, what: str) -> np.ndarray:
        """The clips (n, T, H, W, 3) of a kept measurement."""
        return self.measured.clips(_file(name, what))

    def kept(
        self,
        name: str,
        what: str,
        wanted: Mapping[str, Any],
        work: Callable[[], tuple[dict[str, Any], np.ndarray | None]],
    ) -> dict[str, Any]:
        """An earlier measurement with the same weights and settings, or that of `work`, which is then kept."""

        def measure() -> tuple[dict[str, Any], Clips | None]:
            print(f"measuring {name}: {what}", flush=True)
            numbers, clips = work()
            return {"found": numbers}, None if clips is None else (clips, np.full(len(clips), -1))

        return self.measured.keep(_file(name, what), wanted, measure)["found"]


def _file(name: str, what: str) -> str:
    """The name of a measurement's file, without its ending."""
    return f"{name.strip('/').replace('/', '_')}_{what.replace(', ', '_')}"


def _long(way: tasks_long.Way, count: int) -> str:
    """The name of a roll-out's measurement."""
    return f"long_{count}_" + "_".join(str(value) for value in way.settings().values())
