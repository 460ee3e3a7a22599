"""The model that ships with the package: how it is made, and what anybody can do with it right after installing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eqm_video import EqMPipeline
from eqm_video.cli import main
from eqm_video.studies import train_shipped


@pytest.mark.usefixtures("fresh_accelerator")
def test_it_is_trained_again_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for name, value in {"VIDEOS": 2, "HELD_OUT": 1, "VIDEO_FRAMES": 8, "WINDOWS": 2}.items():
        monkeypatch.setattr(train_shipped, name, value)
    words = ["train-shipped", "--data", tmp_path / "data", "--run", tmp_path / "run", "--out", tmp_path / "out"]
    words += ["--num-samples", 8, "train.steps=2", "train.batch_size=2", "sampler.steps=2", "held_out.clips=2"]
    assert main([str(word) for word in words]) == 0
    out, numbers = tmp_path / "out", json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["generation"]["samples"] == 8 and numbers["long_video"]["samples"] == 16 and numbers["steps"] == 2
    card = (out / "README.md").read_text()
    assert "| 8 clips | " in card and "2 steps of 2 clips" in card and "eqm-video train-shipped" in card
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    trained = EqMPipeline.from_pretrained(tmp_path / "run" / "export")
    again = EqMPipeline.from_pretrained(out, vae=trained.vae)
    assert again.config.sampler == trained.config.sampler and again.labels == trained.labels
    for name, weight in again.transformer.state_dict().items():
        assert torch.equal(weight, trained.transformer.state_dict()[name].half().float()), name
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, "a second call finds the run finished"
    assert "writing moving shapes" not in capsys.readouterr().out
