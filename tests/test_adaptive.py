"""Stopping at rest, against a bowl whose every evaluation is known in closed form."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_models import tiny_pipeline
from toy_fields import in_a_bowl

from eqm_video.errors import UserError
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.adaptive import Adaptive


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "export"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def expected_evaluations(pipe: EqMPipeline, seed: int, step_size: float, tolerance: float) -> list[int]:
    """In a bowl the gradient x shrinks by 1 - step_size a step: the evaluations until a frame's RMS is below it."""
    start = pipe.start_noise([seed])[0]
    sizes = start.square().mean(dim=(1, 2, 3)).sqrt().tolist()
    return [1 + max(0, math.floor(math.log(tolerance / size) / math.log(1 - step_size)) + 1) for size in sizes]


def test_evaluations_are_those_of_the_closed_form_and_fewer_save_time(export, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EqMPipeline, "field", in_a_bowl)
    words = f"{export} --out {tmp_path} --num-samples 4 --sampler gd --fixed 40:0.1 --tolerances 0.9 0.2 --repeats 2"
    assert Adaptive.main(words.split()) == 0
    (result,) = json.loads((tmp_path / "adaptive.json").read_text())["results"]
    assert result["all steps"]["nfe_of_clips"] == [40] * 4
    pipe = tiny_pipeline()
    assert [row["tolerance"] for row in result["adaptive"]] == [0.2, 0.9]
    for row in result["adaptive"]:
        frames = [expected_evaluations(pipe, seed, 0.1, row["tolerance"]) for seed in range(4)]
        assert row["nfe_of_clips"] == [max(one) for one in frames]
        assert row["nfe_ratio"] == pytest.approx(sum(map(max, frames)) / 160)
        assert len(row["all_seconds"]) == 2 and row["fixed with as many"]["steps"] == round(row["nfe"])
    strict, loose = result["adaptive"]
    assert 0 < strict["pixels_from_all_steps"] < loose["pixels_from_all_steps"]
    assert (tmp_path / "adaptive.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "gd, 40 steps of 0.1" in said and "adaptive.png" in said


def test_frames_may_come_to_rest_by_themselves(export, tmp_path, monkeypatch):
    monkeypatch.setattr(EqMPipeline, "field", in_a_bowl)
    words = f"{export} --out {tmp_path} --num-samples 3 --sampler gd --fixed 40:0.1 --tolerances 0.5 --repeats 1"
    assert Adaptive.main([*words.split(), "--per-frame"]) == 0
    (result,) = json.loads((tmp_path / "adaptive.json").read_text())["results"]
    pipe = tiny_pipeline()
    frames = torch.tensor([expected_evaluations(pipe, seed, 0.1, 0.5) for seed in range(3)]).double()
    assert result["adaptive"][0]["nfe_of_frames"] == pytest.approx(float(frames.mean()))
    assert float(frames.std(1).max()) > 0  # otherwise this says nothing


def test_a_tolerance_that_is_never_met_changes_nothing(export, tmp_path):
    words = f"{export} --out {tmp_path} --num-samples 2 --tolerances 1e-9 --repeats 1 --seed 3"
    assert Adaptive.main(words.split()) == 0
    results = json.loads((tmp_path / "adaptive.json").read_text())["results"]
    assert [(one["steps"], one["step_size"]) for one in results] == [(4, 0.05), (16, 0.0125)]
    for one in results:
        assert one["adaptive"][0]["nfe_ratio"] == 1.0 and one["adaptive"][0]["pixels_from_all_steps"] == 0.0


def test_refusals(export, tmp_path):
    with pytest.raises(UserError, match=r"--fixed is 50: it must be STEPS:STEP_SIZE, such as 50:0\.02"):
        Adaptive.main([export, "--out", str(tmp_path), "--fixed", "50"])
    with pytest.raises(UserError, match="--sampler is euler: it must be one of gd, nag"):
        Adaptive.main([export, "--out", str(tmp_path), "--sampler", "euler"])
    settings = {"kind": "euler", "steps": 4, "guidance_scale": 1.0}
    solver = tmp_path / "solver"
    tiny_pipeline(sampler=settings).save_pretrained(solver)
    with pytest.raises(UserError, match="--sampler"):
        Adaptive.main([str(solver), "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"'euler' has no step size.*--fixed 4:0.01"):
        Adaptive.main([str(solver), "--out", str(tmp_path), "--sampler", "gd"])
