"""Training the codec: a few steps go down, continue from saved weights, and leave a folder that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eqm_video.cli import main
from eqm_video.codec import Codec
from eqm_video.data.dead_leaves import dead_leaves
from eqm_video.training import codec as training


@pytest.fixture(autouse=True)
def few_small_canvases(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"CANVASES": 4, "CANVAS": 48, "CROP_SIZES": (16, 32), "PIXELS_PER_STEP": 4 * 32 * 32, "HELD_OUT": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(training, name, value)


def test_steps_improve_it_and_the_folder_loads(tmp_path: Path) -> None:
    assert main(["train-codec", str(tmp_path / "first"), "--steps", "2"]) == 0
    assert main(["train-codec", str(tmp_path / "second"), "--steps", "30", "--init", str(tmp_path / "first")]) == 0
    before, after = (json.loads((tmp_path / name / "numbers.json").read_text()) for name in ("first", "second"))
    assert after["psnr"] > before["psnr"] + 0.5
    codec = Codec.load(str(tmp_path / "second"))
    picture = training.to_pixels(dead_leaves(np.random.default_rng(0), 32, 32)[None])[None]
    latents = codec.encode(picture)
    assert latents.shape == (1, 1, 4, 8, 8) and torch.isfinite(latents).all()


def test_a_folder_that_cannot_be_written_is_said_before_training(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["train-codec", str(tmp_path / "file" / "out"), "--steps", "2"]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_the_perceptual_term_is_linear_in_its_weight_and_moves_the_weights() -> None:
    pixels = training.to_pixels(np.stack([dead_leaves(np.random.default_rng(k), 32, 32) for k in range(2)]))
    model, losses, gradients = training.new_autoencoder(), [], []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)  # of the latents
        model.zero_grad()
        settings = {"steps": 1, "seed": 0, "lr": 1e-3, "kl_weight": 0.0, "perceptual": weight}
        loss = training.CodecTraining(**settings).loss(model, pixels)
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.decoder.conv_out.weight.grad.clone())
    assert losses[0] < losses[1] and losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    assert not torch.allclose(gradients[0], gradients[1])
