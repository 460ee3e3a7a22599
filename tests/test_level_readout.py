"""The learned readout: trained on a frozen network, kept in the export, used by the closed loop."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_pipeline
from tiny_run import write_videos

from eqm_video import cli
from eqm_video.errors import UserError
from eqm_video.models.readout import LevelReadout
from eqm_video.samplers.closed_loop import LearnedLoop
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.readout import fit


def test_a_head_learns_a_level_that_the_features_say() -> None:
    levels = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    features = torch.stack([levels, levels.square(), -levels, torch.ones_like(levels)], dim=1)
    head = fit(features, levels, 300, seed=0)
    with torch.no_grad():
        level, spread = head.read(features)
    assert float((level - levels).abs().mean()) < 0.05 and float(spread.mean()) < 0.1


def test_a_certain_reading_is_believed_and_an_unsure_one_is_not() -> None:
    gamma, variance = torch.tensor([[0.3, 0.3]]), torch.tensor([[0.04, 0.04]])
    level, left = LearnedLoop().told(gamma, variance, torch.tensor([[0.6, 0.6]]), torch.tensor([[0.001, 10.0]]))
    assert level[0, 0] > 0.59 and level[0, 1] < 0.31 and left[0, 0] < 0.001 < 0.03 < left[0, 1]


def test_the_command_writes_a_head_that_sampling_reads(tmp_path, capsys) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "export")
    write_videos(tmp_path / "videos", size=16)
    pipe = EqMPipeline.from_pretrained(tmp_path / "export")
    how = {"seeds": [1], "steps": 3, "sampler": "multistep", "guidance_scale": 2.0, "output_type": "latent"}
    with pytest.raises(UserError, match="this model has no readout"):
        pipe(["up"], closed_loop="readout", **how)
    words = ["readout", str(tmp_path / "export"), "--data", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--clips", "4", "--copies", "2", "--fit-steps", "20", "--write"]) == 0
    numbers = json.loads((tmp_path / "out" / "readout.json").read_text())
    assert set(numbers["errors"]) == {"learned", "training-free"} and numbers["settings"]["clips"] == [2, 2]
    assert 0 < numbers["errors"]["learned"]["0.5"]["mean"] < 1 and "training-free" in capsys.readouterr().out
    pipe = EqMPipeline.from_pretrained(tmp_path / "export")
    assert isinstance(pipe.readout, LevelReadout)
    result = pipe(["up"], closed_loop="readout", **how)
    assert result.levels[1].abs().max() > 0 and not torch.equal(result.frames, pipe(["up"], **how).frames)
    with pytest.raises(UserError, match="a composition has no readout"):
        pipe(composition=[("up", 1.0)], closed_loop="readout", **{**how, "guidance_scale": None})
