"""History guidance in long videos: the command, and its meters on videos whose motion is known."""

from __future__ import annotations

import json

import torch
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video import cli
from eqm_video.data.moving_shapes import label_names
from eqm_video.sampling.settings import Sampling
from eqm_video.studies import history
from eqm_video.studies.tasks.clips import Truth
from eqm_video.studies.tasks.long import Video, Way
from eqm_video.studies.tasks.short import Setting


def test_true_videos_move_at_full_speed_and_frozen_ones_stand_still(monkeypatch):
    truth = Truth.render(["DiscRight", "SquareUp"], 24, 32)
    frozen = truth.clips[:, :1].repeat(24, axis=1)
    pipeline = tiny_pipeline(frames=8, size=32)
    meters = torch.tensor([[0.4, 0.2], [0.4, 0.2]]).numpy()
    setting = Setting(truth, how=Sampling())
    for clips, speed, still, right in ((truth.clips, 1.0, 0.0, 1.0), (frozen, 0.0, 1.0, 0.0)):
        video = Video(clips, [4, 14], meters, torch.zeros(2).numpy(), 1.0, meters)
        monkeypatch.setattr(history, "continue_clips", lambda *_, video=video: video)
        found = history.measure(pipeline, Way(4), setting, torch.tensor([0.4, 0.2]))
        torch.testing.assert_close(found["speed"].mean(), torch.tensor(speed).double(), rtol=0, atol=0.05)
        assert float(found["still"].mean()) == still and float(found["right"].mean()) == right
        torch.testing.assert_close(found["motion"], torch.ones(2, 2).double())


def test_the_command_measures_every_strength(tmp_path, capsys):
    names = label_names(("Disc", "Square"))
    tiny_pipeline(tiny_transformer(num_labels=8), id2label=names, frames=4).save_pretrained(tmp_path / "export")
    words = ["history", str(tmp_path / "export"), "--out", str(tmp_path / "out"), "--num-samples", "2", "--steps", "2"]
    words += ["--length", "8", "--overlap", "2"]
    assert cli.main([*words, "--scales", "0", "0.5", "2"]) == 0
    numbers = json.loads((tmp_path / "out" / "history.json").read_text())
    assert list(numbers["found"]) == ["0", "0.5", "2"] and numbers["settings"]["windows"] == 3
    assert all(row["motion"]["clips"] == 2 and len(row["drift"]["by window"]) == 3 for row in numbers["found"].values())
    assert "| motion meter, real clips are 1 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "history.png").stat().st_size > 1000
    assert cli.main([*words[:-1], "4"]) == 2 and "so give an --overlap below" in capsys.readouterr().err
