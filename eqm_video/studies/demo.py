"""`python -m eqm_video demo`: the main job from end to end, on clips that the package draws itself.

Writes moving shapes as real videos, trains on them from the recipe `configs/demo.yaml`, samples a GIF grid, and
measures in closed form how many sampled clips move the way their label says.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqm_video.data.moving_shapes import measure_motion, score_motion, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.output import plots
from eqm_video.output.outputs import claim_output
from eqm_video.sampling import launch as sampling
from eqm_video.system import files, machine
from eqm_video.system.claims import check_place
from eqm_video.system.parser import Parser
from eqm_video.training import launch as training

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
SHAPES = ("Disc", "Square")
SAMPLES = 64
VIDEOS, HELD_OUT = 88, 8  # of each label
VISIBLE = 64  # distance of a pixel's colour from the ground's, of 442; shapes have 150 and more after the codec
SMALLEST = 0.03  # of the picture; the smallest disc covers twice as much
INTACT = 0.8  # overlap with the best shape; that of videos after the codec is 0.9 and more
ENDLESS_FRAMES = 24  # of an endless video: windows of it begin at many places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = Parser(prog="python -m eqm_video demo", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/demo_shapes"), help="where the videos are written")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="the training run; an old one is continued")
    parser.add_argument("--out", type=Path, default=Path("video_samples/demo"), help="where the samples go")
    parser.add_argument("--num-samples", type=int, default=SAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the recipe")
    options = parser.parse_args(arguments)
    if not RECIPE.is_file():
        raise UserError(f"the demo's recipe {RECIPE} is missing: run the demo from a clone of the repository")
    claim_output(options.out, "demo")
    claim_output(options.run, "train", option="--run")
    write_videos(options.data, centred=True)
    seconds = train(options)
    seconds["sampling"] = sample(options)
    numbers = measure(options.out / "samples.npz", options.out / "samples.json")
    numbers["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    numbers["machine"] = machine.describe()
    draw_curve(options.run / "metrics.jsonl", options.out / "curve.png")
    files.write_record(options.out / "numbers.json", numbers)
    report(numbers, options)
    return 0


def write_videos(root: Path, *, endless: bool = False, centred: bool = False) -> None:
    """Write moving shapes, unless they are there: those of the demo are `centred`, see `render_clip`."""
    check_place(root, f"--data {root}")
    if not root.exists():
        print(f"writing moving shapes as videos to {root}")
        longer = {"frames": ENDLESS_FRAMES, "endless": True} if endless else {}
        write_moving_shapes(root, shapes=SHAPES, videos=VIDEOS, held_out=HELD_OUT, centred=centred, **longer)


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train, or continue, or find the run finished; returns the seconds of all its steps, over all calls."""
    words = ["--config", str(RECIPE), "--resume", f"data.root={options.data}", f"run.dir={options.run}"]
    if training.main([*words, *options.overrides]) != 0 or not (options.run / "export").is_dir():
        raise UserError(f"training did not finish; type the same command again to continue {options.run}")
    last = (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {"training": json.loads(last)["seconds"]}


def sample(options: argparse.Namespace) -> float:
    """Sample all labels in turn; returns the seconds it took."""
    start = time.monotonic()
    words = [str(options.run / "export"), "--out", str(options.out), "--labels", "all", "--overwrite"]
    words += ["--num-samples", str(options.num_samples), "--batch-size", "32", "--columns", "8"]
    if sampling.main(words) != 0:
        raise UserError(f"sampling from {options.run / 'export'} did not finish")
    return time.monotonic() - start


def measure(samples: Path, record: Path) -> dict[str, Any]:
    """Shares of the samples that move the way, and show the shape, of their labels, beside what chance gives."""
    with np.load(samples) as arrays:
        clips = arrays["arr_0"]
    labels = json.loads(record.read_text(encoding="utf-8"))["labels"]
    return {**score_motion(clips, labels, SHAPES), **count_flaws(clips)}


def count_flaws(clips: NDArray[np.uint8]) -> dict[str, int]:
    """Clips (N, T, H, W, 3) that anyone sees to be wrong, whatever their label.

    empty: some frame has hardly anything on its ground; broken: what is there is like no shape of the set.
    """
    found = {"empty": 0, "broken": 0}
    for clip in clips:
        pixels = clip.astype(np.float32)
        ground = np.median(pixels, axis=(0, 1, 2))
        visible = (np.linalg.norm(pixels - ground, axis=-1) > VISIBLE).mean(axis=(1, 2))  # share of each frame
        if visible.min() < SMALLEST:
            found["empty"] += 1
        elif measure_motion(clip, SHAPES).fit < INTACT:
            found["broken"] += 1
    return found


def draw_curve(metrics: Path, out: Path) -> None:
    """Draw the loss of training and of held-out clips over the steps; needs matplotlib (the `demo` extra)."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    held_out = [(line["step"], line["held_out"]["mean"]) for line in lines if "held_out" in line]
    figure = plots.figure(6, 3.5)
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log", title="Training on moving shapes")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training (running mean)")
    axes.plot(*zip(*held_out, strict=True), "o-", label="held-out clips, averaged weights")
    axes.legend()
    plots.save(figure, out)


def report(numbers: dict[str, Any], options: argparse.Namespace) -> None:
    """Say what was measured and where to look."""
    seconds = numbers["seconds"]
    print(
        f"\n{numbers['samples']} sampled clips, judged in closed form:\n"
        f"  move in the direction of their label  {numbers['direction_accuracy']:.0%}  "
        f"(chance {numbers['direction_chance']:.0%})\n"
        f"  show the shape of their label         {numbers['shape_accuracy']:.0%}  "
        f"(chance {numbers['shape_chance']:.0%})\n"
        f"  are empty in some frame, or show a broken shape  {numbers['empty']}, {numbers['broken']}\n"
        f"training {seconds['training']:.0f} s, sampling {seconds['sampling']:.0f} s on {os.cpu_count()} CPU cores\n"
        f"look at {options.out / 'grid.gif'}; clips, samples.npz, curve.png and numbers.json lie beside it"
    )
