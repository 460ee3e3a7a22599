"""`python -m eqm_video tasks`: what each way of drawing gamma gives, task by task, on endless moving shapes.

Trains the recipes of configs/gamma, which differ in nothing but how gamma is drawn in training, and measures what each
network can do: generation, image-to-video, continuation, in-betweening, inpainting in time, and videos of many times
the training length. The clips are rendered in closed form, so that every predicted frame is wrong by so many pixels.
For the model that does best over a long video, also what windows can be told to do differently, and adaptive compute.

Finished runs and measurements are found and kept. Every recipe is trained once, and all meet the same clips and noise.
With --models other models of moving shapes are measured instead.

Legend: N clips, T frames, L frames of a long video.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.output.outputs import claim_output
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies import request as options
from eqm_video.studies.demo import write_videos
from eqm_video.studies.recipes import CONFIGS, Recipes, split_overrides
from eqm_video.studies.tasks import long as tasks_long
from eqm_video.studies.tasks import pictures as tasks_pictures
from eqm_video.studies.tasks import report as tasks_report
from eqm_video.studies.tasks import short as tasks_short
from eqm_video.studies.tasks.clips import Truth, names_of
from eqm_video.studies.tasks.short import Setting
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser

RECIPES = Recipes(CONFIGS / "gamma", "shared")
SHOWN = 8  # clips of each task that are kept for pictures
PARTS = ("short", "long", "ways", "stopping")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure what is missing, write tables and pictures; returns the exit status."""
    given = parse(arguments)
    claim_output(given.out, "tasks")
    measurer = Measurer(given, models(given))
    found: dict[str, Any] = {"settings": measurer.settings(), "models": {name: {} for name in measurer.paths}}
    for name in measurer.paths:
        for part in ("short", "long"):
            if part in given.parts:
                found["models"][name] |= measurer.measure(name, part)
    found["best"] = tasks_report.best(found["models"]) if given.best is None else given.best
    for part in ("ways", "stopping"):
        if part in given.parts:
            found |= measurer.measure(found["best"], part)
    found = {
        "command": shlex.join(["python", "-m", "eqm_video", "tasks", *map(str, arguments or [])]),
        "training runs of each recipe": 1,
        "machine": machine.describe(),
        **found,
    }
    tasks_report.write(given.out, found)
    measurer.draw(found)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m eqm_video tasks",
        description="Train the recipes of configs/gamma on endless moving shapes and measure every video task.",
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"these recipes alone: {', '.join(RECIPES.names())}; default: all")
    add("--models", nargs="+", metavar="MODEL", help="measure these models of moving shapes instead")
    add("--runs", type=Path, default=Path("runs/gamma"), metavar="DIR", help="training runs; default: runs/gamma")
    add("--data", type=Path, default=Path("data/endless_shapes"), help="the videos, written where they are missing")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: all")
    add("--clips", type=options.whole(2), default=64, metavar="N", help="of every task; default: 64")
    add("--long-clips", type=options.whole(2), default=32, metavar="N", help="of the long videos; default: 32")
    add("--way-clips", type=options.whole(2), default=16, metavar="N", help="where ways are varied; default: 16")
    add("--length", type=options.whole(8), metavar="L", help="frames of a long video; default: ten times T")
    add("--overlap", type=options.whole(1), metavar="K", help="frames that windows share; default: half of T")
    add("--context-gamma", type=options.number(), default=1.0, metavar="G", help="of shared frames; default: 1")
    add("--context", type=options.whole(2), default=3, metavar="K", help="known frames in continuation; default: 3")
    add("--best", metavar="NAME", help="vary the ways of this model; default: the one that does best over long videos")
    add("--steps", type=options.whole(1), metavar="N", help="updates; default: each model's own")
    add("--guidance-scale", type=options.number(), metavar="S", help="where labels are told; default: the model's")
    add("--seed", type=options.whole(0), default=0, metavar="K", help="clip k has seed K + k; default: 0")
    add("--batch-size", type=options.whole(1), default=32, metavar="B", help="clips at once; default: 32")
    add("--again", action="store_true", help="measure again what was measured before")
    add("overrides", nargs="*", metavar="section.key=value", help="replace values in all recipes")
    options.add_model(parser, positional=False)
    given = split_overrides(parser.parse_intermixed_args(arguments))
    if given.models and (given.only is not None or given.overrides):
        raise UserError("--models measures what is trained already: leave --only and section.key=value out")
    return given


def models(given: argparse.Namespace) -> dict[str, Path]:
    """Where the models are, by name: those that are given, or the recipes', trained where missing, after all checks."""
    if given.models:
        paths = [Path(one) for one in given.models]
        short = [path.parent.name if path.name == "export" else path.name for path in paths]
        names = short if len(set(short)) == len(short) else [str(path) for path in paths]
        found = dict(zip(names, paths, strict=True))
    else:
        names = RECIPES.chosen(given.only)
        found = {name: given.runs / name / "export" for name in names}
        check_windows(given, RECIPES.config(names[0], given).data.frames)
    if given.best not in (None, *found):
        raise UserError(f"--best {given.best}: the models are {', '.join(found)}")
    if given.best is None and len(found) > 1 and not {"short", "long"} & set(given.parts):
        raise UserError(
            f"--parts {' '.join(given.parts)} is of one model: add long, or --best and one of {', '.join(found)}"
        )
    if not given.models:
        RECIPES.claim(names, given)
        write_videos(given.data, endless=True)
        for name in found:
            RECIPES.train(name, given)
    return found


def check_windows(given: argparse.Namespace, frames: int) -> None:
    """Raise UserError where windows of T frames cannot share, or clips continue from, as many as the options say."""
    for option, value in (("--context", given.context), ("--overlap", given.overlap)):
        if value is not None and value >= frames:
            raise UserError(f"{option} {value}: clips of {frames} frames leave 1 to {frames - 1}")
    if not 0 < given.context_gamma <= 1:
        raise UserError(f"--context-gamma {given.context_gamma:g}: it must be above 0 and at most 1")


# Measuring ----------------------------------------------------------------------------------------------------------


class Measurer:
    """Measures models on the same clips, and keeps what it found in OUT/measured: a file for each measurement."""

    def __init__(self, given: argparse.Namespace, paths: Mapping[str, Path]) -> None:
        self.given, self.paths = given, paths
        self.opened: tuple[str, EqMPipeline] | None = None
        first = self.open(next(iter(paths)))
        self.frames, self.size = first.check_frames(), first.check_size()[0]
        self.length = given.length or 10 * self.frames
        check_windows(given, self.frames)
        self.way = tasks_long.Way(given.overlap or max(1, self.frames // 2), context_gamma=given.context_gamma)
        self.names = names_of(first, max(given.clips, given.long_clips, given.way_clips))
        self._truth: Truth | None = None

    def open(self, name: str) -> EqMPipeline:
        """The model of this name; the last one opened is kept. UserError where it has other clips than the first."""
        if self.opened is None or self.opened[0] != name:
            self.opened = (name, options.open_model(self.given, self.paths[name]))
        pipeline = self.opened[1]
        if hasattr(self, "names"):
            same = (pipeline.check_frames(), pipeline.check_size()[0]) == (self.frames, self.size)
            if not same or names_of(pipeline, len(self.names)) != self.names:
                raise UserError(f"{name} has other frames, size or labels than the first model: leave it out")
        return pipeline

    def truth(self, count: int) -> Truth:
        """The first `count` clips, as long as the longest video."""
        if self._truth is None:
            self._truth = Truth.render(self.names, self.length, self.size, self.given.seed)
        return self._truth.first(count)

    def setting(self, count: int) -> Setting:
        """The same clips and seeds for every model."""
        asked = {"steps": self.given.steps, "guidance_scale": self.given.guidance_scale}
        call = {key: value for key, value in asked.items() if value is not None}
        return Setting(self.truth(count), self.given.seed, self.given.batch_size, call)

    def settings(self) -> dict[str, Any]:
        """For the record."""
        keys = ("clips", "long_clips", "way_clips", "context", "steps", "guidance_scale", "seed")
        own = {key.replace("_", " "): getattr(self.given, key) for key in keys}
        return {"frames": self.frames, "size": self.size, "length": self.length, **self.way.settings(), **own}

    def asked(self, name: str, count: int) -> dict[str, Any]:
        """What every measurement of `count` clips depends on, its own settings aside."""
        settings = {key: getattr(self.given, key) for key in ("steps", "guidance_scale", "seed")}
        return {"weights": fingerprint(self.open(name)), "clips": count, **settings}

    def measure(self, name: str, part: str) -> dict[str, Any]:
        """One part of the measurements of one model."""
        return getattr(self, part)(name)

    def short(self, name: str) -> dict[str, Any]:
        """Every task within one clip, and what needs no network."""
        pipeline, found, floors = self.open(name), {}, {}
        truth = self.truth(self.given.clips)
        rebuilt = None
        for task in tasks_short.tasks(self.frames, self.given.context):

            def work(task: tasks_short.Task = task) -> tuple[dict[str, Any], np.ndarray]:
                nonlocal rebuilt
                rebuilt = tasks_short.rebuild(pipeline, truth.clips[:, : self.frames]) if rebuilt is None else rebuilt
                filled = tasks_short.fill(pipeline, task, self.setting(self.given.clips))
                numbers = tasks_short.measure(filled, task, truth, rebuilt)
                without = tasks_short.baselines(task, truth, rebuilt) if task.placed else {}
                return {"known": list(task.known), **numbers, "baselines": without}, filled.clips[:SHOWN]

            asked = {**self.asked(name, self.given.clips), "known": list(task.known), "told": task.told}
            found[task.name] = self.kept(name, task.name, asked, work)
            floors[task.name] = found[task.name].pop("baselines")
        return {"tasks": found, "baselines": {key: value for key, value in floors.items() if value}}

    def long(self, name: str) -> dict[str, Any]:
        """The usual roll-out of one model."""
        return {"long": self.roll(name, self.way, self.given.long_clips)}

    def ways(self, name: str) -> dict[str, Any]:
        """Roll-outs that differ in one choice each."""
        return {
            "ways": {
                title: {
                    way.name(self.way): {**way.settings(), **self.roll(name, way, self.given.way_clips)}
                    for way in listed
                }
                for title, listed in tasks_long.ways(self.way, self.frames).items()
            }
        }

    def roll(self, name: str, way: tasks_long.Way, count: int) -> dict[str, Any]:
        """One roll-out of one model, of `count` clips."""
        pipeline, truth = self.open(name), self.truth(count)

        def work() -> tuple[dict[str, Any], np.ndarray]:
            video = tasks_long.continue_clips(pipeline, way, self.setting(count))
            numbers = tasks_long.measure(video, truth, self.frames)
            rebuilt = tasks_short.rebuild(pipeline, truth.clips[:, : way.overlap])
            numbers["straight line"] = tasks_long.extrapolated(truth, rebuilt, video.starts, self.length)
            return numbers, video.clips[:SHOWN]

        asked = {**self.asked(name, count), "length": self.length, **way.settings()}
        return self.kept(name, _long(way, count), asked, work)

    def stopping(self, name: str) -> dict[str, Any]:
        """Adaptive compute in the continuation of one model."""
        pipeline = self.open(name)
        listed = tasks_short.tasks(self.frames, self.given.context)
        task = next(one for one in listed if one.name == tasks_short.TOLD)

        def work() -> tuple[dict[str, Any], None]:
            return {"rows": tasks_short.stopping(pipeline, task, self.setting(self.given.clips))}, None

        asked = {**self.asked(name, self.given.clips), "known": list(task.known), "tolerances": tasks_short.TOLERANCES}
        return {"stopping": self.kept(name, "stopping", asked, work)["rows"]}

    def draw(self, found: Mapping[str, Any]) -> None:
        """Pictures of what was measured: every task of the best model, and the long video of all models."""
        fps = float(self.open(found["best"]).config.fps)
        truth, out = self.truth(SHOWN).clips, self.given.out
        tasks = [one for one in tasks_short.tasks(self.frames, self.given.context) if one.known]
        if "short" in self.given.parts:
            rows = {one.name: (self.shown(found["best"], one.name), one.known) for one in tasks}
            tasks_pictures.draw_clips(out / "tasks.gif", truth[:, : self.frames], rows, fps)
            tasks_pictures.draw_strips(out / "tasks_strips.png", truth[:, : self.frames], rows)
        if "long" in self.given.parts:
            way = self.way
            rows = {
                name: (self.shown(name, _long(way, self.given.long_clips)), range(way.overlap)) for name in self.paths
            }
            tasks_pictures.draw_clips(out / "tasks_long.gif", truth, rows, fps)

    def shown(self, name: str, what: str) -> np.ndarray:
        """The clips (n, T, H, W, 3) that a measurement kept."""
        with np.load(self.file(name, what).with_suffix(".npz")) as arrays:
            return arrays["arr_0"]

    def file(self, name: str, what: str) -> Path:
        """Where a measurement is kept."""
        return self.given.out / "measured" / f"{name.strip('/').replace('/', '_')}_{what.replace(', ', '_')}.json"

    def kept(
        self,
        name: str,
        what: str,
        asked: Mapping[str, Any],
        work: Callable[[], tuple[dict[str, Any], np.ndarray | None]],
    ) -> dict[str, Any]:
        """What was measured before with the same weights and settings, or what `work` measures now, which is kept."""
        file = self.file(name, what)
        asked = json.loads(json.dumps(asked))  # as it is read
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not self.given.again else {}
        if known.get("asked") != asked:
            print(f"measuring {name}: {what}", flush=True)
            found, clips = work()
            if clips is not None:
                media.write_npz(file.with_suffix(".npz"), clips, np.full(len(clips), -1))
            known = {"asked": asked, "found": found}
            files.write_record(file, known)
        return known["found"]


def _long(way: tasks_long.Way, count: int) -> str:
    """The name of a roll-out's measurement."""
    return f"long_{count}_" + "_".join(str(value) for value in way.settings().values())
