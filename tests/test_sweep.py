"""The sweep: its grid, its rows, going on where it stopped, and clips that run away."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_pipeline, tiny_transformer
from tiny_run import write_videos
from toy_fields import Bowl, in_a_bowl

from eqm_video.core.decay import gamma_path
from eqm_video.data.moving_shapes import label_names, render_clip
from eqm_video.data.source import Source
from eqm_video.errors import UserError
from eqm_video.options import LARGEST, parse
from eqm_video.samplers import GradientDescent
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies import sweep
from eqm_video.studies.quality import Judge
from eqm_video.studies.request import Request
from eqm_video.studies.walk import walk


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> SimpleNamespace:
    """A model, and a flow model that is told gamma."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(folder / "eqm")
    network = tiny_transformer(conditioned_on_gamma=True)
    flow = {"decay": {"kind": "constant", "gain": 1.0}, "sampler": {"kind": "euler", "steps": 4}}
    tiny_pipeline(network, **flow).save_pretrained(folder / "flow")
    return SimpleNamespace(eqm=str(folder / "eqm"), flow=str(folder / "flow"))


def request_of(pipe: EqMPipeline, count: int) -> Request:
    return Request([0] * count, ["up"] * count, list(range(count)), 3, (16, 16), 1.0, batch_size=2)


def rows_of(folder) -> list[dict]:
    return json.loads((folder / "sweep.json").read_text())["rows"]


# Settings -------------------------------------------------------------------------------------------------------------


def test_automatic_step_sizes_keep_the_length_of_the_walk():
    words = "MODEL --out DIR --steps 2 10 --sampler gd heun --step-size auto 0.1 --step-schedule constant even"
    study = parse(sweep.Sweep, words.split(), prog="")
    wanted = study.settings({"model": tiny_pipeline(), "against": None})
    constant = [one for one in wanted if one.sampler == "gd" and one.schedule == "constant"]
    assert [one.step_size for one in constant if one.steps == 2] == [0.025, 0.05, 0.1, 0.2]  # of 4 steps of 0.05
    assert [one.step_size for one in constant if one.steps == 10] == [0.005, 0.01, 0.02, 0.04, 0.1]
    assert [one.steps for one in wanted if one.schedule == "even"] == [2, 10]
    assert [one.steps for one in wanted if one.model == "model" and one.sampler == "heun"] == [1, 5]
    against = [(one.sampler, one.steps) for one in wanted if one.model == "against"]
    assert against == [("euler", 2), ("heun", 1), ("euler", 10), ("heun", 5)]


@pytest.mark.parametrize("decay", [{"kind": "truncated", "a": 0.8}, {"kind": "linear"}, {"kind": "piecewise"}])
def test_even_steps_end_at_the_data_in_closed_form(decay):
    pipe = tiny_pipeline(decay=decay)
    size, schedule = sweep.even_schedule(pipe, 7)
    path = gamma_path(pipe.decay, [size * schedule(k, 7) for k in range(7)] + [0.0], 8)
    torch.testing.assert_close(path, torch.arange(8, dtype=torch.float64) / 7)


def test_limits_of_stability_are_those_of_the_closed_form():
    found = sweep.limits(tiny_pipeline(sampler={"mu": 0.35}))
    assert found["gd"] == pytest.approx(0.1) and found["nag"] == pytest.approx(0.1 / 1.7)
    assert sweep.limits(tiny_pipeline(decay={"kind": "constant", "gain": 1.0})) == {}

    from_flow = sweep.limits(tiny_pipeline(sampler={"kind": "gd"}))  # nag comes with its own mu then
    assert from_flow["nag"] == pytest.approx(0.1 / 1.7)
    assert sweep.limits(tiny_pipeline(), 0.5)["nag"] == pytest.approx(0.1 / 2)


# Walks ----------------------------------------------------------------------------------------------------------------


def test_a_clip_that_runs_away_neither_ends_nor_changes_the_others(monkeypatch):
    pipe, rule = tiny_pipeline(), GradientDescent(0.5)
    monkeypatch.setattr(EqMPipeline, "field", in_a_bowl)
    alone = walk(pipe, request_of(pipe, 2), rule, steps=20)
    assert not alone.diverged.any() and alone.nfe.tolist() == [20, 20]
    torch.testing.assert_close(alone.latents, pipe.start_noise([0, 1]) * 0.5**20)
    torch.testing.assert_close(alone.rms, alone.latents.square().mean(dim=(2, 3, 4)).sqrt())
    monkeypatch.setattr(EqMPipeline, "field", lambda *_, **__: Bowl(torch.arange(2), runaway=(1,)))
    both = walk(pipe, request_of(pipe, 2), rule, steps=20)
    assert both.diverged.tolist() == [False, True]
    assert torch.equal(both.latents[0], alone.latents[0])


def test_walks_of_batches_are_those_of_the_pipeline():
    pipe = tiny_pipeline()
    result = walk(pipe, request_of(pipe, 3), pipe.rule(), steps=4)
    expected = pipe([0, 0, 0], seeds=range(3), output_type="latent").frames
    torch.testing.assert_close(result.latents, expected)
    assert result.forwards == 8 and result.frame_nfe.shape == (3, 3)


# Quality --------------------------------------------------------------------------------------------------------------


def test_shapes_are_judged_in_closed_form_and_other_labels_are_not():
    names = label_names(("Disc", "Square"))
    pipe = tiny_pipeline(tiny_transformer(num_labels=8), id2label=names)
    judge = Judge.of(pipe, Request([0], names[:1], [0], 8, (32, 32), 1.0, 1), SimpleNamespace(data=None))
    assert judge.shapes == ("Disc", "Square") and judge.headline == "both_accuracy"
    rng = np.random.default_rng(0)
    clips = np.stack([render_clip("Disc", "Right", frames=8, size=32, rng=rng) for _ in range(4)])
    assert judge(clips, ["DiscRight"] * 4)["both_accuracy"] == 1.0
    assert judge(clips, ["DiscRight", "DiscLeft", "DiscRight", "SquareRight"])["both_accuracy"] == 0.5
    other = tiny_pipeline()
    silent = Judge.of(other, request_of(other, 2), SimpleNamespace(data=None))
    assert silent.headline is None and silent(clips, ["up"] * 4) == {}


# The command ----------------------------------------------------------------------------------------------------------


def test_rows_pictures_and_going_on(folders, tmp_path, monkeypatch, capsys):
    words = [folders.eqm, "--out", str(tmp_path), "--num-samples", "3", "--sampler", "nag", "--step-size", "0.05"]
    assert sweep.Sweep.main([*words, "--steps", "2"]) == 0
    (first,) = rows_of(tmp_path)
    both = [*words, "--steps", "2", "4", "--step-schedule", "constant", "even", "--against", folders.flow]
    with pytest.raises(UserError, match="--overwrite"):  # a second model: another sweep
        sweep.Sweep.main(both)
    assert sweep.Sweep.main([*both, "--overwrite"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * (1 + 1 + 2)
    same = next(row for row in rows if row["steps"] == 2 and row["step_size"] == 0.05)
    assert same["gradient_rms"] == pytest.approx(first["gradient_rms"]) and same["nfe"] == 2
    assert {(row["sampler"], row["nfe"]) for row in rows if row["model"] == "against"} == {
        ("euler", 2),
        ("euler", 4),
        ("heun", 2),
        ("heun", 4),
    }
    with open(tmp_path / "sweep.csv", newline="") as file:
        assert [float(row["nfe"]) for row in csv.DictReader(file)] == [row["nfe"] for row in rows]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    monkeypatch.setattr(sweep, "measure", lambda *_: pytest.fail("measured again"))
    assert sweep.Sweep.main(both) == 0
    assert "8 of 8 settings are there already" in capsys.readouterr().out
    assert rows_of(tmp_path) == rows


def test_a_setting_that_diverges_is_a_row(folders, tmp_path, capsys):
    words = f"{folders.eqm} --out {tmp_path} --num-samples 2 --sampler gd --steps 20 --step-size 0.01 1e4"
    assert sweep.Sweep.main(words.split()) == 0
    calm, wild = rows_of(tmp_path)
    assert (calm["diverged"], wild["diverged"]) == (0.0, 1.0) and wild["gradient_rms"] is None
    assert "1e+04" in capsys.readouterr().out


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_step_beyond_all_numbers_is_a_row_too(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(LARGEST, float, float("inf"))  # larger than what an option lets pass
    words = f"{folders.eqm} --out {tmp_path} --num-samples 2 --sampler gd --steps 20 --step-size 1e38 1e39"
    assert sweep.Sweep.main(words.split()) == 0
    held, infinite = rows_of(tmp_path)
    assert held["diverged"] == infinite["diverged"] == 1.0 and infinite["gradient_rms"] is None
    assert (held["nfe"], infinite["nfe"]) == (20, 16)  # looked for every 16 updates


def test_models_whose_sampler_has_no_mu_or_no_step_size(tmp_path):
    gd = {"kind": "gd", "step_size": 0.05, "steps": 4, "guidance_scale": 1.0}
    tiny_pipeline(sampler=gd).save_pretrained(tmp_path / "gd")
    tiny_pipeline(sampler={"kind": "euler", "steps": 4, "guidance_scale": 1.0}).save_pretrained(tmp_path / "euler")
    rest = ["--num-samples", "2", "--steps", "2"]
    assert sweep.Sweep.main([str(tmp_path / "gd"), "--out", str(tmp_path / "a"), *rest]) == 0
    assert [row["step_size"] for row in rows_of(tmp_path / "a")] == [0.025, 0.05, 0.1, 0.2]
    assert json.loads((tmp_path / "a" / "sweep.json").read_text())["settings"]["mu"] == 0.35
    euler = [str(tmp_path / "euler"), "--out", str(tmp_path / "b"), *rest]
    with pytest.raises(UserError, match="'euler' has no step size: give one"):
        sweep.Sweep.main(euler)
    assert sweep.Sweep.main([*euler, "--step-size", "0.1"]) == 0
    assert [(row["sampler"], row["step_size"]) for row in rows_of(tmp_path / "b")] == [("euler", None), ("gd", 0.1)]


def test_a_damaged_record_is_refused(folders, tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="--overwrite"):
        sweep.Sweep.main([folders.eqm, "--out", str(tmp_path), "--num-samples", "2"])


def judged(pipe: EqMPipeline, videos, count: int, *words: str) -> Judge:
    """A judge of `count` samples by the options of a sweep."""
    study = parse(sweep.Sweep, ["MODEL", "--out", "DIR", "--data", str(videos), *words], prog="")
    return Judge.of(pipe, request_of(pipe, count), study)


def test_any_metric_of_any_feature_is_small_for_real_clips_and_large_for_others(tmp_path):
    videos = write_videos(tmp_path, size=16, frames=9, each=4)
    pipe = tiny_pipeline(fps=8.0)
    names = ("mmd", "frechet", "motion")
    real = Source(videos, frames=3, size=(16, 16), fps=8.0, count=24).read().pixels
    for features in ("pixels", "random"):
        judge = judged(pipe, videos, 6, "--metrics", *names, "--features", features)
        assert judge.headline == "mmd" and len(judge.real) == 24  # three windows of every file
        near, far = judge(real[::4], ["up"] * 6), judge(255 - real[::4], ["up"] * 6)
        assert near["mmd"] < far["mmd"] / 3 and near["frechet"] < far["frechet"] and near["motion"] == far["motion"]
        assert all(near[f"{name}_low"] <= near[name] <= near[f"{name}_high"] for name in names)
        measures = judge.scale(6)["measures"]
        assert measures["metrics"]["mmd"]["title"] == f"MMD ({features})"
        floor = measures["metrics"]["frechet"]["real"]
        assert 0 < floor["value"] < far["frechet"] and floor["n"] == {"samples": 6, "real": 12}
        assert measures["metrics"]["motion"]["real"]["value"] > 0
        assert (measures["protocol"]["count"], measures["protocol"]["feature"]["name"]) == (6, features)


def test_metrics_that_samples_cannot_have_are_refused(tmp_path):
    videos = write_videos(tmp_path, size=16, frames=9, each=2)
    pipe = tiny_pipeline(fps=8.0)
    with pytest.raises(UserError, match="psnr compare a clip with its true one"):
        judged(pipe, videos, 6, "--metrics", "psnr")
    with pytest.raises(UserError, match="fvd is a number of the feature i3d, and the feature is random"):
        judged(pipe, videos, 6, "--metrics", "fvd", "--features", "random")
    with pytest.raises(UserError, match="has no logits"):
        judged(pipe, videos, 6, "--metrics", "is", "--features", "random")


def test_rows_of_a_sweep_have_the_metrics_with_their_intervals(folders, tmp_path, capsys):
    videos = write_videos(tmp_path / "videos", size=16, frames=9, each=2)
    words = f"{folders.eqm} --out {tmp_path / 'out'} --num-samples 6 --sampler gd --steps 2 --step-size 0.05"
    words += f" --data {videos} --metrics mmd accuracy --features pixels"
    assert sweep.Sweep.main(words.split()) == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["mmd_low"] < row["mmd"] < row["mmd_high"] and 0 <= row["accuracy"] <= 1
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert record["measures"]["metrics"]["mmd"]["title"] == "MMD (pixels)"
    assert f"{row['mmd']:.4g}" in capsys.readouterr().out and (tmp_path / "out" / "sweep.png").is_file()
    with pytest.raises(UserError, match="--overwrite"):  # other measures are another sweep
        sweep.Sweep.main(words.replace("accuracy", "kid").split())
