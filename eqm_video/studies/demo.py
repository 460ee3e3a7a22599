"""The demo: moving shapes are written as videos, a model learns them, samples, and is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqm_video.data.moving_shapes import measure_motion, score_motion, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.output import plots
from eqm_video.output.outputs import claim_output
from eqm_video.sampling import launch as sampling
from eqm_video.sampling.option_groups import Data, Many, Overridden
from eqm_video.studies.study import Report, Study
from eqm_video.system import machine
from eqm_video.system.claims import check_place
from eqm_video.training import launch as training
from eqm_video.training.config import load_config

RECIPE = "demo"
SHAPES = ("Disc", "Square")
SAMPLES = 64
VIDEOS, HELD_OUT = 88, 8  # of each label
VISIBLE = 64  # a visible pixel's distance from the ground's colour, of 442; shapes have 150 and more after the codec
SMALLEST = 0.03  # share of the picture that a shape covers at least; the smallest disc covers twice as much
INTACT = 0.8  # overlap of an intact shape with the best fit; videos have 0.9 and more after the codec
ENDLESS_FRAMES = 24  # frames of an endless video: its windows begin at many places


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """--run."""

    run_dir: Path = option(
        Path("runs/demo"), flag="--run", metavar="DIR", help="the training run; an old one is continued"
    )


@dataclass(frozen=True, kw_only=True)
class Demo(Study, OwnRun, Many, Data, Overridden, group="use", record="numbers.json"):
    """Write moving shapes, train on them, sample, measure.

    Moving shapes are written as real videos. A model is trained on them from the recipe `demo`, and samples a GIF grid.
    The share of sampled clips that move as their label says is measured in closed form.
    """

    data: Path | None = Path("data/demo_shapes")
    out: Path = Path("video_samples/demo")
    num_samples: int = SAMPLES

    def run(self) -> Report:
        """Write the videos, train, sample and measure. Videos and runs that are there already are used."""
        load_config(RECIPE, self.overrides)  # UserError for overrides that it does not take, before videos are written
        claim_output(self.run_dir, "train", option="--run")
        write_videos(self.data, centred=True)
        seconds = {"training": self.train(), "sampling": self.sample()}
        numbers = measure(self.out / "samples.npz", self.out / "samples.json")
        numbers["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        numbers["machine"] = machine.describe()
        curve = {"curve.png": lambda path: draw_curve(self.run_dir / "metrics.jsonl", path)}
        return Report(numbers, self.table(numbers), curve)

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The cells of the table of results: `direction`, `shape`, and `seconds` of training and sampling."""
        count = numbers["samples"]
        cells = {
            name: f"{round(numbers[f'{name}_accuracy'] * count)} of {count} (chance {numbers[f'{name}_chance']:.0%})"
            for name in ("direction", "shape")
        }
        cells["shape"] += f"; {numbers['empty']} are empty, {numbers['broken']} broken"
        cells["seconds"] = f"{numbers['seconds']['training']:.0f} s and {numbers['seconds']['sampling']:.0f} s"
        return {name: cell.replace("%", " %") for name, cell in cells.items()}

    def train(self) -> float:
        """Train, or continue the run, unless it is finished; returns the seconds of all its steps, over all calls."""
        words = ["--config", RECIPE, "--resume", f"data.root={self.data}", f"run.dir={self.run_dir}"]
        if training.main([*words, *self.overrides]) != 0 or not (self.run_dir / "export").is_dir():
            raise UserError(f"training did not finish; type the same command again to continue {self.run_dir}")
        last = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return json.loads(last)["seconds"]

    def sample(self) -> float:
        """Sample all labels in turn; returns the seconds taken."""
        start = time.monotonic()
        words = [str(self.run_dir / "export"), "--out", str(self.out), "--labels", "all", "--overwrite"]
        words += ["--num-samples", str(self.num_samples), "--batch-size", "32", "--columns", "8"]
        if sampling.main(words) != 0:
            raise UserError(f"sampling from {self.run_dir / 'export'} did not finish")
        return time.monotonic() - start

    def table(self, numbers: dict[str, Any]) -> str:
        """The measures in words, and where the files are."""
        seconds = numbers["seconds"]
        return (
            f"\n{numbers['samples']} sampled clips, judged in closed form:\n"
            f"  move in the direction of their label  {numbers['direction_accuracy']:.0%}  "
            f"(chance {numbers['direction_chance']:.0%})\n"
            f"  show the shape of their label         {numbers['shape_accuracy']:.0%}  "
            f"(chance {numbers['shape_chance']:.0%})\n"
            f"  are empty in some frame, or show a broken shape  {numbers['empty']}, {numbers['broken']}\n"
            f"training {seconds['training']:.0f} s, sampling {seconds['sampling']:.0f} s on {os.cpu_count()} CPU "
            "cores\n"
            f"look at {self.out / 'grid.gif'}; clips and samples.npz lie beside it"
        )


def write_videos(root: Path, *, endless: bool = False, centred: bool = False) -> None:
    """Write moving shapes unless the folder exists. `centred`, as in the demo: see `render_clip`."""
    check_place(root, f"--data {root}")
    if not root.exists():
        print(f"writing moving shapes as videos to {root}")
        longer = {"frames": ENDLESS_FRAMES, "endless": True} if endless else {}
        write_moving_shapes(root, shapes=SHAPES, videos=VIDEOS, held_out=HELD_OUT, centred=centred, **longer)


def measure(samples: Path, record: Path) -> dict[str, Any]:
    """Shares of samples with the motion and the shape of their labels, shares by chance, and counts of flaws."""
    with np.load(samples) as arrays:
        clips = arrays["arr_0"]
    labels = json.loads(record.read_text(encoding="utf-8"))["labels"]
    return {**score_motion(clips, labels, SHAPES), **count_flaws(clips)}


def count_flaws(clips: NDArray[np.uint8]) -> dict[str, int]:
    """Counts of clips (N, T, H, W, 3) that are wrong whatever their label.

    empty: a frame shows hardly anything on its ground; broken: the clip resembles no shape of the set.
    """
    flaws = {"empty": 0, "broken": 0}
    for clip in clips:
        pixels = clip.astype(np.float32)
        ground = np.median(pixels, axis=(0, 1, 2))
        visible = (np.linalg.norm(pixels - ground, axis=-1) > VISIBLE).mean(axis=(1, 2))  # share of each frame
        if visible.min() < SMALLEST:
            flaws["empty"] += 1
        elif measure_motion(clip, SHAPES).fit < INTACT:
            flaws["broken"] += 1
    return flaws


def draw_curve(metrics: Path, out: Path) -> None:
    """Draw the loss of training and of held-out clips over the steps."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    held_out = [(line["step"], line["held_out"]["mean"]) for line in lines if "held_out" in line]
    figure = plots.figure(6, 3.5)
    axes = plots.axes(figure, xlabel="step", ylabel="loss", yscale="log", title="Training on moving shapes")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training (running mean)")
    axes.plot(*zip(*held_out, strict=True), "o-", label="held-out clips, averaged weights")
    axes.legend()
    plots.save(figure, out)
