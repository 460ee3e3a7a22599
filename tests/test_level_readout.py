"""The learned readout: trained on a frozen network, kept in the export, used by the closed loop."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import save_checkpoint, tiny_pipeline, tiny_vae
from tiny_run import write_videos

from eqm_video import cli
from eqm_video.commands.push import shared_files
from eqm_video.errors import UserError
from eqm_video.models.readout import FILE, LevelReadout, save_readout
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


def test_a_readout_goes_where_its_model_goes(tmp_path) -> None:
    """Saved, loaded, copied to another folder, in a checkpoint and among the files of an upload."""
    pipe = tiny_pipeline()
    torch.manual_seed(3)
    pipe.readout = LevelReadout(32)
    pipe.save_pretrained(tmp_path / "first")
    EqMPipeline.from_pretrained(tmp_path / "first").save_pretrained(str(tmp_path / "second"))
    tiny_vae().save_pretrained(tmp_path / "codec")
    save_checkpoint(tmp_path / "step_00000100", pipe, str(tmp_path / "codec"))
    assert EqMPipeline.from_checkpoint(tmp_path / "step_00000100").readout is None
    save_readout(pipe.readout, tmp_path / "step_00000100")
    how = {"seeds": [1], "steps": 3, "sampler": "multistep", "closed_loop": "readout", "output_type": "latent"}
    wanted = pipe(["up"], **how).frames
    for other in (
        EqMPipeline.from_pretrained(tmp_path / "second"),
        EqMPipeline.from_checkpoint(tmp_path / "step_00000100"),
    ):
        other.set_progress_bar_config(disable=True)
        assert torch.equal(other(["up"], **how).frames, wanted)
    assert tmp_path / "second" / FILE in shared_files(tmp_path / "second")
    tiny_pipeline().save_pretrained(tmp_path / "second")  # of another model: the head would be wrong for it
    assert not (tmp_path / "second" / FILE).exists()


def test_a_readout_of_another_network_or_a_damaged_one_is_refused(tmp_path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    save_readout(LevelReadout(48), tmp_path)
    with pytest.raises(UserError, match="is a readout of a network of width 48, and this one has 32: delete it, or"):
        EqMPipeline.from_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot be read as a readout .*delete it, or train another"):
        EqMPipeline.from_pretrained(tmp_path)
