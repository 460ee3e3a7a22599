"""The model that ships with the package: how it is made, and what anybody can do with it right after installing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eqm_video import EqMPipeline
from eqm_video.cli import main
from eqm_video.data.moving_shapes import score_motion
from eqm_video.sampling import folders, pipeline
from eqm_video.studies import train_shipped
from eqm_video.studies.demo import SHAPES

LARGEST = 4 * 2**20  # bytes of all its files


@pytest.mark.usefixtures("fresh_accelerator")
def test_it_is_trained_again_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for name, value in {"VIDEOS": 2, "HELD_OUT": 1, "VIDEO_FRAMES": 8, "WINDOWS": 2}.items():
        monkeypatch.setattr(train_shipped, name, value)
    words = ["train-shipped", "--data", tmp_path / "data", "--run", tmp_path / "run", "--out", tmp_path / "out"]
    words += ["--num-samples", 8, "train.steps=2", "train.batch_size=2", "sampler.steps=2", "held_out.clips=2"]
    words += ["run.report=false"]
    assert main([str(word) for word in words]) == 0
    out, numbers = tmp_path / "out", json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["generation"]["samples"] == 8 and numbers["long_video"]["samples"] == 16 and numbers["steps"] == 2
    card = (out / "README.md").read_text()
    assert "| 8 clips of a label | " in card and "2 steps of 2 clips" in card and "eqm-video train-shipped" in card
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    monkeypatch.setattr(folders, "SHIPPED_FOLDER", out)
    monkeypatch.setattr(pipeline, "SHIPPED_FOLDER", out)
    trained, again = EqMPipeline.from_pretrained(tmp_path / "run" / "export"), EqMPipeline.from_pretrained("demo")
    assert again.config.sampler == trained.config.sampler and again.labels == trained.labels
    for name, weight in again.transformer.state_dict().items():
        assert torch.equal(weight, trained.transformer.state_dict()[name].half().float()), name
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, "a second call finds the run finished"
    assert "writing moving shapes" not in capsys.readouterr().out


def test_it_is_small_and_its_card_says_how_it_was_made(root: Path) -> None:
    files = [path for path in folders.SHIPPED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    card = (folders.SHIPPED_FOLDER / "README.md").read_text()
    numbers = json.loads((folders.SHIPPED_FOLDER / "numbers.json").read_text())
    assert "eqm-video train-shipped --out" in card and all(row in card for row in train_shipped.rows(numbers))


def test_it_makes_what_its_labels_say() -> None:
    """A few clips: all but one at most move and look as their label says."""
    model = EqMPipeline.from_pretrained("demo")
    model.set_progress_bar_config(disable=True)
    labels = list(model.labels.values())
    clips = model(labels=labels, seeds=range(8), output_type="uint8").frames
    score = score_motion(clips, labels, SHAPES, endless=True)
    assert min(score["direction_accuracy"], score["shape_accuracy"]) >= 7 / 8


def test_a_folder_of_its_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.local_folder("demo", {}) == folders.SHIPPED_FOLDER
    (tmp_path / "demo").mkdir()
    assert folders.local_folder("demo", {}) == Path("demo")
