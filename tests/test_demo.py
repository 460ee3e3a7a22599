"""The demo from end to end, with fewer steps: real videos, real training, real sampling, a measured result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eqm_video.cli import main
from eqm_video.data.moving_shapes import label_names, render_clip
from eqm_video.studies.demo import SHAPES, count_flaws, measure

OPPOSITE = {"Right": "Left", "Left": "Right", "Up": "Down", "Down": "Up"}


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_demo_runs_and_a_second_call_only_samples(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.studies.demo.VIDEOS", 3)
    monkeypatch.setattr("eqm_video.studies.demo.HELD_OUT", 1)
    words = ["demo", "--data", tmp_path / "data", "--run", tmp_path / "run", "--out", tmp_path / "out"]
    words += ["--num-samples", 8, "train.steps=3", "train.batch_size=4", "sampler.steps=2"]
    words += ["held_out.clips=4", "train.evaluate.n=4"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "move in the direction of their label" in said and str(tmp_path / "out" / "grid.gif") in said
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert main(["demo", "--data", str(tmp_path / "none"), "train.steps=x"]) == 2
    assert "train.steps: expected a whole number" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert numbers["samples"] == 8 and numbers["direction_chance"] == 0.25
    assert (tmp_path / "out" / "grid.gif").stat().st_size > 0
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_measure_counts_what_the_clips_show(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = label_names(SHAPES)
    clips, labels = [], []
    for index in range(16):
        shown, said = names[index % 8], names[index % 8]
        if index >= 12:  # a quarter is labelled with the opposite direction
            shape = next(s for s in SHAPES if shown.startswith(s))
            said = shape + OPPOSITE[shown.removeprefix(shape)]
        shape = next(s for s in SHAPES if shown.startswith(s))
        clips.append(render_clip(shape, shown.removeprefix(shape), frames=8, size=32, rng=rng))
        labels.append(said)
    np.savez(tmp_path / "samples.npz", arr_0=np.stack(clips), labels=np.zeros(16))
    (tmp_path / "samples.json").write_text(json.dumps({"labels": labels}))
    numbers = measure(tmp_path / "samples.npz", tmp_path / "samples.json")
    assert numbers["direction_accuracy"] == 0.75
    assert numbers["shape_accuracy"] >= 0.9


def test_empty_and_broken_clips_are_counted() -> None:
    rng = np.random.default_rng(3)
    good = np.stack([render_clip(name, "Right", frames=8, size=32, rng=rng) for name in ("Disc", "Square") * 4])
    assert count_flaws(good) == {"empty": 0, "broken": 0}
    clips = good.copy()
    clips[0] = np.median(clips[0], axis=(0, 1, 2))  # ground alone
    clips[1, 5] = np.median(clips[1], axis=(0, 1, 2))  # the shape is gone in one frame
    clips[2] = (0.9 * np.median(clips[2], axis=(0, 1, 2)) + 0.1 * clips[2]).astype(np.uint8)  # a shadow
    clips[3, :, ::2] = np.median(clips[3], axis=(0, 1, 2))  # stripes
    clips[4] = np.maximum(clips[4], np.roll(clips[4], 16, axis=1))  # two of it
    assert count_flaws(clips) == {"empty": 3, "broken": 2}
