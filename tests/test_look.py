"""The study `look` shows the clips of the first step: those that the trainer then takes, with its gammas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_run import write_codec, write_images, write_videos

from eqm_video import cli
from eqm_video.core.gamma import draw_gamma
from eqm_video.studies.look import Seen
from eqm_video.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("made")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    write_videos(folder / "videos", size=16, frames=20, each=1)
    write_images(folder / "images", labels=("left", "still"), size=16)
    return [
        *(f"data.root={folder / 'videos'}", f"codec.name={folder / 'codec'}", "data.size=16", "frames=3"),
        *("data.buckets=3x2,20x1:0.001", f"data.images={folder / 'images'}", "data.image_fraction=0.5"),
        *("train.batch_size=8", "train.accumulation=2", "gamma=mixture", "data.latents=online", "data.workers=0"),
        *("model.preset=EqM-Nano/4", "train.steps=1", "preview.every=0"),
    ]


def test_what_is_shown_is_what_the_first_step_takes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["look", *words, "--out", str(tmp_path / "look")]) == 0
    record, said = json.loads((tmp_path / "look" / "look.json").read_text()), capsys.readouterr().out
    assert record["shapes"] == [
        {"shape": "3x2", "span": 5, "kept": 6, "passed_over": 0},
        {"shape": "20x1:0.001", "span": 20, "kept": 2, "passed_over": 4},
    ]
    assert "note: clips of 20x1:0.001 leave out 4 of 6 videos (66.7%), which have fewer than 20 frames" in said
    assert "clips of 3x2 leave out" not in said

    gammas, batches, loss = [], [], Trainer._loss
    drawn = lambda *given: gammas.append(draw_gamma(*given)) or gammas[-1]  # noqa: E731
    monkeypatch.setattr("eqm_video.training.trainer.draw_gamma", drawn)
    monkeypatch.setattr(Trainer, "_loss", lambda self, batch, *rest: batches.append(batch) or loss(self, batch, *rest))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert cli.main(["train", *words, f"run.dir={tmp_path / 'run'}"]) == 0
    by_length = sorted(zip(batches, gammas, strict=True), key=lambda pair: -pair[1].shape[1])  # images come last
    names = [name for batch, _ in by_length for name in batch["names"]]
    assert [seen["name"] for seen in record["clips"]] == names and len(names) == 8
    for (batch, gamma), place in zip(by_length, range(0, 8, 2), strict=True):
        seen = record["clips"][place : place + 2]
        np.testing.assert_array_equal([one["gammas"] for one in seen], gamma)
        torch.testing.assert_close(torch.tensor([one["times"] for one in seen]), batch["times"])


def test_the_pictures_have_a_row_for_each_clip(words: list[str], tmp_path: Path) -> None:
    assert cli.main(["look", *words, "--rows", "3", "--out", str(tmp_path / "look")]) == 0
    clips, images = (np.asarray(Image.open(tmp_path / "look" / name)) for name in ("look.png", "look_images.png"))
    assert clips.shape[1] == 2 + 3 * 64 + 2 and clips.shape[0] > 3 * 64
    assert images.shape[0] < 120
    record = json.loads((tmp_path / "look" / "look.json").read_text())
    assert [len(seen["times"]) for seen in record["clips"]] == [3, 3, 3, 1, 1, 1]


def test_the_name_of_a_file_stays_a_line() -> None:
    seen = Seen("wave", "wave/new\nline.avi", [0.0, 0.1], [0.5, 0.5], np.zeros((2, 4, 4, 3), np.uint8))
    assert seen.caption(1) == "1 · wave · wave/new\\nline.avi · 2 frames, 0.10 s"
