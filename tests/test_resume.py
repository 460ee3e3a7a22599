"""Real processes, killed at any moment: what is resumed ends with the weights of the run that was left alone.

Runs that nobody kills are made in the tests' own process.

The run is one with everything in it: a mixture of gammas, clips of several shapes, and images beside them.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import ROOT, read_metrics, run_here, write_codec, write_images, write_videos
from warm import Process

STEPS = 40


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recipe")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    write_images(folder / "images")
    return [
        f"data.root={folder / 'videos'}",
        f"codec.name={folder / 'codec'}",
        "data.latents=online",
        *("model.preset=EqM-Nano/4", "data.size=16", "frames=3", "data.frame_interval=2", "data.workers=1"),
        *("data.buckets=3x2,5x1,2x3:0.5", f"data.images={folder / 'images'}", "data.image_fraction=0.5"),
        *("gamma=mixture", f"train.steps={STEPS}", "train.batch_size=2", "train.save_every=2", "train.log_every=1"),
        *("train.schedule=cosine", "train.warmup=5", "train.ema=0.95", "preview.every=0", "train.label_dropout=0.3"),
        *("held_out.fraction=0.3", "held_out.every=1000", "train.evaluate.every=4", "train.evaluate.n=3"),
        *("train.evaluate.features=random", "train.evaluate.best=mmd", "sampler.steps=2", "train.keep=1"),
        "run.report=false",
    ]


def exported(folder: Path) -> list[str]:
    """Hashes of the last model's weights, and of the best one's."""
    name = "transformer/diffusion_pytorch_model.safetensors"
    exports = (folder / export / name for export in ("export", "export_best"))
    return [hashlib.sha256(weights.read_bytes()).hexdigest() for weights in exports]


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = run_here(*recipe, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*")), default=0)


def kill_when(reached: Callable[[], bool], arguments: list[str], number: int = signal.SIGKILL) -> Process:
    """Start the command and send it a signal as soon as something is reached."""
    process = Process(ROOT / "train_video.py", *arguments)
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.0005)
    os.kill(process.pid, number)
    return process


def test_killed_twice_while_training_and_while_writing_then_resumed(recipe, straight, tmp_path) -> None:
    folder = tmp_path / "run"
    arguments = [*recipe, f"run.dir={folder}", "--resume"]
    # In the middle of writing: the folder of a checkpoint is there, but not yet under its name.
    writing = lambda: newest_step(folder) >= 8 and any((folder / "checkpoints").glob(".incomplete-step*"))  # noqa: E731
    assert kill_when(writing, arguments).wait() == -signal.SIGKILL
    assert newest_step(folder) < STEPS
    # At a random moment of a random step.
    moment = random.Random(time.time()).uniform(0, 0.3)
    start, since = newest_step(folder), []

    def some_time_later() -> bool:
        if newest_step(folder) > start:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > moment

    assert kill_when(some_time_later, arguments).wait() == -signal.SIGKILL
    assert start < newest_step(folder) < STEPS, f"killed {moment} s after the first checkpoint"
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming {folder}/checkpoints/step_" in done.stdout
    assert exported(folder) == exported(straight), f"killed {moment} s after a checkpoint"
    assert not list((folder / "checkpoints").glob(".incomplete*"))
    lines, expected = read_metrics(folder), read_metrics(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for key in ("loss", "loss_by_gamma", "loss_by_mode", "evaluate", "best_step"):
        assert [line.get(key) for line in lines] == [line.get(key) for line in expected]
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (folder, straight)]
    assert kept[0] == kept[1] and f"step_{lines[-1]['best_step']:08d}" in kept[0]
    assert {"image"} < {mode for line in lines for mode in line["loss_by_mode"]}


def test_sigterm_ends_cleanly_with_a_checkpoint_and_resumes(recipe, straight, tmp_path) -> None:
    folder = tmp_path / "run"
    arguments = [*recipe, f"run.dir={folder}", "train.save_every=1000"]
    process = kill_when(lambda: (folder / "metrics.jsonl").is_file(), arguments, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--resume" in output and "Traceback" not in errors
    assert 0 < newest_step(folder) < STEPS
    assert not (folder / "export").exists()
    again = run_here(*arguments)
    assert again.returncode == 2 and "already holds a run" in again.stderr and "--resume" in again.stderr
    done = run_here("--resume", f"run.dir={folder}")  # its own recipe
    assert done.returncode == 0, done.stderr
    assert exported(folder) == exported(straight)
