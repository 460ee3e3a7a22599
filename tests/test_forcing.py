"""The comparison of EqM, EqF and flow matching: recipes, measures, differences, tables, runs that are found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import write_codec

from eqm_video import options
from eqm_video.analysis.exact_field import OracleField
from eqm_video.analysis.gamma_estimate import calibrate
from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.gamma import SharedGamma
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import label_names
from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.samplers import SAMPLERS, run
from eqm_video.samplers.warp import Identity
from eqm_video.studies import recipes
from eqm_video.studies.forcing import measure, report, results
from eqm_video.studies.forcing import study as forcing
from eqm_video.studies.forcing.ways import ways
from eqm_video.studies.tasks.clips import Truth
from eqm_video.studies.tasks.short import Filled, tasks
from eqm_video.training.config import load_config, to_tree
from eqm_video.training.strict_yaml import flatten

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

NAMES = label_names(("Disc", "Square"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_recipes_differ_in_the_target_alone() -> None:
    def settings(name: str) -> dict:
        return dict(flatten(to_tree(load_config(forcing.RECIPES.folder / f"{name}.yaml"))))

    base, free = settings("eqm"), ("objective.", "sampler.", "run.dir", "model.conditioned_on_gamma", "gamma.density")
    for name in forcing.RECIPES.names():
        one = settings(name)
        assert all(key.startswith(free) for key in base.keys() | one.keys() if base.get(key) != one.get(key)), name
        assert one["run.dir"] == f"runs/forcing/{name}"
    assert set(forcing.RECIPES.names()) <= set(report.TITLES)


# Measures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(), ConstantDecay()])
def test_every_way_takes_the_evaluations_that_it_says_and_ends_near_data(decay) -> None:
    data, start = normal(3, 2, 4, 8, 8), normal(4, 2, 4, 8, 8, seed=1)
    for way in ways(decay).values():
        how = dict(way.sampling(24))
        steps, kind = how.pop("steps"), how.pop("sampler")
        sampler = SAMPLERS[kind]() if isinstance(kind, str) else kind
        more = {"decay": decay, "warp": Identity()} if how.pop("warp", None) else {}
        found = run(OracleField(data, decay), start, sampler, steps=steps, **more)
        assert (found.nfe == 24).all(), way.name
        apart = (found.latents[:, None] - data).square().flatten(2).mean(dim=2).sqrt().amin(dim=1)
        assert (apart < 0.35).all(), (way.name, apart)  # two clips are 1.4 apart
    assert {name for name, way in ways(decay).items() if way.sampling(1) is None} <= {"heun"}


def test_motion_and_places_of_each_clip() -> None:
    truth = Truth.render(NAMES, 8, 32)
    assert all(min(values) == 1 for values in measure.motion(truth.clips, truth).values())
    wrong = measure.motion(np.roll(truth.clips, 1, axis=0), truth)  # clip k shows label k - 1
    assert sum(wrong["both"]) == 0 and sum(wrong["shape"]) == 6
    task = next(one for one in tasks(8, 3) if one.name == "continuation")
    found = measure.placed(Filled(truth.clips, np.ones(8), np.ones((8, 8)), 0.0), task, truth)
    assert found == {"error": [0.0] * 8, "near": [1.0] * 8}


@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(), ConstantDecay(2.0)])
def test_gamma_is_estimated_from_the_exact_field_of_every_decay(decay) -> None:
    data, noise = normal(4, 2, 4, 16, 16), normal(4, 2, 4, 16, 16, seed=1)
    for gamma in (0.1, 0.5, 0.9):
        noisy = interpolate(data, noise, torch.full((4, 2), gamma, dtype=data.dtype))
        found = measure.estimated(noisy, OracleField(data, decay)(noisy), decay, calibrate(data))
        assert (found - gamma).abs().mean() < 0.05, gamma


# Differences and tables ---------------------------------------------------------------------------------------------


def run_of(right: float, error: float, clips: int = 6) -> dict:
    """A run's measurements: so many clips are right, and so far from their place."""
    rights = [1.0] * round(right * clips) + [0.0] * (clips - round(right * clips))
    shares = {"direction": rights, "shape": rights, "both": rights}
    far = {"error": [error] * clips, "near": rights}
    found = {name: {**shares, **far} for name in dict.fromkeys(task for task, _ in report.COLUMNS)}
    long = {"values": {"windows": rights, "last window": rights}, "ends": [8, 12]}
    long |= {"right": [right, right], "error": [error, error], "drift": [0.1, 0.2]}
    row = {"0.1": [error] * clips, "0.9": [error] * clips}
    curve = {task: {"multistep": {"1": long["right"], "2": long["right"]}} for task in results.CURVES}
    return {"tasks": found, "curve": curve, "field": {"velocity": row, "level": row}, "long": long}


def numbers() -> dict:
    runs = {("mixture", "eqm", seed): run_of(1.0, 0.5) for seed in range(3)}
    runs |= {("mixture", "eqf", seed): run_of(0.5, 1.5 + seed) for seed in range(2)}
    settings = {"clips": 6, "long clips": 6, "length": 12, "budget": 24, "guidance scale": 2.0}
    rates = {"eqm": {"tried": {"0.003": 2.5}, "chosen": 0.003}, "eqf": {"tried": {}, "chosen": None}}
    way = {"tried": {"multistep": 1.0}, "chosen": "multistep"}
    samplers = {"mixture": {"eqm": way, "eqf": way}}
    found = results.gather(runs)
    return {"settings": settings, "learning rates": rates, "samplers": samplers, "loss": {}, **found}


def test_differences_are_of_the_runs_that_both_targets_have() -> None:
    found = numbers()["differences"]["mixture"]
    (row,) = found["continuation: error"]
    assert (row["one"], row["other"], row["runs"], row["mean"], row["signs"]) == ("eqm", "eqf", 2, -1.5, 2)
    assert row["low"] == pytest.approx(-2) and row["high"] == pytest.approx(-1) and row["p adjusted"] == row["p"]
    assert found["generation: both"][0]["mean"] == 0.5


def test_tables_and_pictures_show_every_target(tmp_path: Path) -> None:
    found = numbers()
    text = report.tables(found)
    assert "| EqM, truncated, gain 4 | 100 % (100–100) |" in text and "0.50 (0.50–0.50)" in text
    assert "EqM, truncated, gain 4 - EqF" in text and "**0.003**: 2.500" in text and "**multistep**: 100 %" in text
    for name, draw in report.pictures(found).items():
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG"), name
    single = results.gather({("mixture", "eqm", 0): run_of(1.0, 0.5)})["results"]["mixture"]["eqm"]
    assert report.runs_of(single["generation"]["both"]) == "1 (n = 1)"


def test_losses_over_training_are_means_of_the_runs_that_both_have(tmp_path: Path) -> None:
    def log(name: str, *losses: float) -> Path:
        lines = [{"step": 5 * k, **({"held_out": {"mean": loss}} if loss else {})} for k, loss in enumerate(losses, 1)]
        (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return tmp_path / name

    logs = {("mixture", "eqf", 0): log("a", 0.5, 0, 0.3), ("mixture", "eqf", 1): log("b", 0.7, 0.2, 0.5)}
    logs |= {("mixture", "flow", 1): log("c", 0.4, 0.1, 0.1), ("mixture", "eqm", 0): log("d", 9.0)}
    found = results.loss_gaps(logs)["mixture"]
    assert found["steps"] == [5, 10, 15] and found["runs"] == [1] and found["eqf"] == [0.7, 0.2, 0.5]
    assert found["gap"] == pytest.approx([0.3, 0.1, 0.4]) == found["gap low"]
    logs |= {("mixture", "flow", 0): log("e", 0.5, 0, 0.1)}
    both = results.loss_gaps(logs)
    assert both["mixture"]["gap low"] == pytest.approx([0, 0.2]) and both["mixture"]["runs"] == [2]
    assert both["mixture"]["gap high"] == pytest.approx([0.3, 0.4])
    text = report.loss_gaps({"loss": both}, "mixture")
    assert "gap (least and largest of 2 runs) | 0.1500 (0.0000–0.3000) | 0.3000 (0.2000–0.4000) |" in text
    assert results.loss_gaps({("mixture", "eqm", 0): tmp_path / "d"}) == {}


# The command --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_is_that_of_the_lowest_held_out_loss(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--data", "d", "--rates", "0.001", "0.002", "--trial-steps", "7", "train.steps=9"]
    given = options.parse(forcing.Forcing, words, prog="")
    for rate, loss in ((0.001, 0.4), (0.002, 0.3)):
        assert given.rate("eqf")["chosen"] is None  # until all have been tried
        folder = tmp_path / f"mixture_eqf_lr_{rate:g}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "held_out": {"mean": loss}}) + "\n")
    assert given.rate("eqf") == {"tried": {"0.001": 0.4, "0.002": 0.3}, "chosen": 0.002}
    trial = forcing.RECIPES.config("eqf", given, given.trial("eqf", 0.001))
    assert (trial.train.steps, trial.train.lr, trial.train.seed) == (7, 0.001, forcing.TRIAL)
    final = forcing.RECIPES.config("eqf", given, given.variant("shared", "eqf", 2))
    assert (final.train.steps, final.train.lr, final.train.seed) == (9, 0.002, 2)
    assert final.run.folder == tmp_path / "shared_eqf_seed_2" and final.gamma == SharedGamma()
    for draw in ("per_frame", "shared"):  # a draw changes which frames are alike, never the density
        drawn = forcing.RECIPES.config("eqf_decay", given, given.variant(draw, "eqf_decay", 0)).gamma
        assert drawn.density == load_config(forcing.RECIPES.folder / "eqf_decay.yaml").gamma.density
    assert options.parse(forcing.Forcing, [*words[:4], "--rates", "0.5"], prog="").rate("eqf")["chosen"] == 0.5


def test_trains_measures_and_finds_all_of_it_again(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.studies.demo.VIDEOS", 2)
    monkeypatch.setattr("eqm_video.studies.demo.HELD_OUT", 1)
    monkeypatch.setattr(measure, "GAMMAS", (0.5,))
    monkeypatch.setattr(measure, "KNOWN", 2)
    words = ["--out", tmp_path / "out", "--data", tmp_path / "data", "--clips", 2, "--long-clips", 2, "--length", 12]
    words += ["--budget", 2, "--evaluations", 1, 2, "--runs-each", 1, "--rates", 0.003]
    words += ["--metrics", "mmd", "motion", "--features", "pixels"]
    words = [str(word) for word in [*words, "--only", "eqf", "flow", "train.batch_size=4", "held_out.clips=2"]]
    words += [f"codec.name={write_codec(tmp_path / 'codec', scaling_factor=4.0)}", "run.report=false"]
    with pytest.raises(UserError, match=r"train.lr=1 .*: leave it out"):
        forcing.Forcing.main([*words, "train.lr=1"])
    with pytest.raises(UserError, match=r"--metrics psnr compare a clip with its true one"):
        forcing.Forcing.main([*words, "--metrics", "psnr"])
    with pytest.raises(UserError, match=r"none\.onnx"):
        forcing.Forcing.main([*words, "--features", str(tmp_path / "none.onnx")])
    assert not (tmp_path / "data").exists()  # refused before videos are written and models trained
    with pytest.raises(UserError, match=r"no run of eqf, flow is finished in .*: leave --existing out"):
        forcing.Forcing.main([*words, "train.steps=1", "--existing"])
    assert forcing.Forcing.main([*words, "train.steps=2", "held_out.every=1"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "forcing.json").read_text())
    assert found["finished"] == ["mixture/eqf/0", "mixture/flow/0"]
    assert found["learning rates"]["eqf"]["chosen"] == 0.003
    assert set(found["samplers"]["mixture"]["flow"]["tried"]) == {"multistep", "euler", "heun", "nag"}
    assert found["curve"]["mixture"]["flow"]["generation"]["heun"].keys() == {"2"}
    errors = found["field"]["mixture"]
    assert errors["flow"]["level"] == {} and errors["eqf"]["level"]["0.5"]["mean"] < 1
    assert errors["eqf"]["velocity"]["0.5"]["clips"] == 2
    own, others = (errors[f"exact, {clips}"]["velocity"]["0.5"]["mean"] for clips in ("own", "others"))
    assert own < 0.01 < others  # two clips of a label are told apart at once, and say nothing of a third
    metrics = found["metrics"]
    assert set(metrics["values"]["mixture"]["eqf"]) == {"mmd", "motion"} and metrics["data"]["count"] > 2
    noise, real = metrics["values"]["mixture"]["eqf"]["motion"]["mean"], metrics["metrics"]["motion"]["real"]
    assert noise > 0 and "| real clips" in said and metrics["protocol_hash"] and real is not noise
    assert found["loss"]["mixture"]["steps"] == [1.0, 2.0]
    assert (tmp_path / "out" / "forcing.md").read_text() in said and "1 (n = 1)" in said
    monkeypatch.setattr(recipes.training, "main", None)
    monkeypatch.setattr(measure, "carry_out", None)
    assert forcing.Forcing.main([*words, "train.steps=2", "held_out.every=1", "--existing"]) == 0  # all of it is found
    assert json.loads((tmp_path / "out" / "forcing.json").read_text())["results"] == found["results"]
    for path in (tmp_path / "out").iterdir():
        if path.name.startswith(("forcing", "measured")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    claim_output(tmp_path / "out", "forcing")  # as it was when the study was interrupted while it trained
