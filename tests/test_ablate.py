"""The ablations: recipes that differ in one choice, runs that are found again, measures, tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_run import write_codec

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.studies import ablate, recipes
from eqm_video.training.config import load_config, to_tree
from eqm_video.training.strict_yaml import flatten

DECAY, SAMPLER = "objective.decay.", "sampler."
# what each recipe changes in the base; the folder of its run besides
CHANGES = {
    "base": {},
    "linear": {f"{DECAY}kind": "linear", f"{DECAY}a": None},
    "piecewise": {f"{DECAY}kind": "piecewise", f"{DECAY}b": 1.4},
    "flow_untold": {f"{DECAY}kind": "constant", f"{DECAY}a": None, f"{DECAY}gain": 1.0},
    "flow": {
        **{f"{DECAY}kind": "constant", f"{DECAY}a": None, f"{DECAY}gain": 1.0},
        "model.conditioned_on_gamma": True,
    },
    "flow_4": {
        **{f"{DECAY}kind": "constant", f"{DECAY}a": None, "model.conditioned_on_gamma": True},
        **{f"{SAMPLER}kind": "gd", f"{SAMPLER}step_size": 0.005, f"{SAMPLER}mu": None},
    },
    "told": {"model.conditioned_on_gamma": True},
    "a_0.5": {f"{DECAY}a": 0.5},
    "a_0.9": {f"{DECAY}a": 0.9},
    "lambda_1": {f"{DECAY}gain": 1.0, f"{SAMPLER}step_size": 0.08},
    "lambda_2": {f"{DECAY}gain": 2.0, f"{SAMPLER}step_size": 0.04},
    "lambda_8": {f"{DECAY}gain": 8.0, f"{SAMPLER}step_size": 0.01},
    "energy_dot": {"model.energy": "dot"},
    "energy_l2": {"model.energy": "l2", "train.init_from": "runs/ablations/base/export"},
}
FLOWS = ("flow", "flow_untold")
FLOW_SAMPLER = {f"{SAMPLER}kind": "euler", f"{SAMPLER}step_size": None, f"{SAMPLER}mu": None}


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def settings(name: str) -> dict:
    return dict(flatten(to_tree(load_config(ablate.RECIPES.folder / f"{name}.yaml"))))


def test_every_recipe_is_the_base_with_one_change() -> None:
    assert set(ablate.RECIPES.names()) == set(CHANGES) and ablate.RECIPES.names()[0] == "base"
    base = settings("base")
    for name, change in CHANGES.items():
        change = {**change, **(FLOW_SAMPLER if name in FLOWS else {}), "run.dir": f"runs/ablations/{name}"}
        expected = {
            key: value for key, value in {**base, **change}.items() if value is not None or base.get(key) is None
        }
        assert settings(name) == expected, name


def test_recipes_are_in_the_tables_and_their_steps_go_equally_far() -> None:
    assert {recipe for table in ablate.TABLES.values() for recipe in table.values()} == set(CHANGES)
    for name in CHANGES:
        config = load_config(ablate.RECIPES.folder / f"{name}.yaml")
        if name == "flow_4":
            assert [way.numbers for way in ablate.ways(name, config)] == [{"step_size": 1 / 200}]
            continue
        if name not in FLOWS:
            assert config.sampler.rule.step_size * config.objective.decay.gain == pytest.approx(ablate.STRIDE)
        for way in ablate.ways(name, config):
            if way.sampler in ("nag", "gd"):
                assert way.numbers["step_size"] * config.objective.decay.gain == pytest.approx(ablate.STRIDE)
    flow, untold = (load_config(ablate.RECIPES.folder / f"{name}.yaml") for name in ("flow", "flow_untold"))
    assert [way.sampler for way in ablate.ways("flow", flow)] == ["euler", "heun", "sde"]
    assert [way.sampler for way in ablate.ways("flow_untold", untold)] == ["euler", "heun", "sde", "gd"]
    assert {way.sampler: way.steps for way in ablate.ways("flow", flow)} == {"euler": 50, "heun": 25, "sde": 25}


def test_interval_is_wilsons() -> None:
    low, high = ablate.interval(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    squared = ablate.QUANTILE**2
    assert ablate.interval(0.0, 20) == pytest.approx((0.0, squared / (20 + squared)), abs=1e-12)
    assert ablate.interval(1.0, 20) == pytest.approx((20 / (20 + squared), 1.0), abs=1e-12)


def test_held_out_error_is_free_of_the_decay_and_its_gain(tmp_path: Path) -> None:
    for name in ("base", "linear", "lambda_8", "flow"):
        config = load_config(ablate.RECIPES.folder / f"{name}.yaml", [f"run.dir={tmp_path}"])
        gammas = config.held_out.gammas
        strengths = config.objective.decay(torch.tensor(gammas, dtype=torch.float64)).tolist()
        losses = {f"{gamma:g}": 0.3 * c**2 for gamma, c in zip(gammas, strengths, strict=True)}
        lines = [{"step": 1, "seconds": 1.0, "held_out": losses}, {"step": 2, "seconds": 2.0}]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = ablate.training_log(config)
        assert found["held_out_error"] == pytest.approx(dict.fromkeys(("0.1", "0.3", "0.5", "0.7", "0.9"), 0.3))
        assert (found["training_steps"], found["training_seconds"]) == (2, 2.0)


def test_trains_measures_and_finds_all_of_it_again(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.studies.demo.VIDEOS", 2)
    monkeypatch.setattr("eqm_video.studies.demo.HELD_OUT", 1)
    words = ["--metrics", "frechet", "mmd", "--features", "pixels"]
    words += ["--out", tmp_path / "runs", "--data", tmp_path / "data", "--num-samples", 8, "--only", "base", "flow"]
    write_codec(tmp_path / "codec")
    words += [f"codec.name={tmp_path / 'codec'}", "run.report=false"]
    words += ["train.steps=2", "train.batch_size=4", "held_out.clips=2", "sampler.steps=4"]
    words = [str(word) for word in words]
    with pytest.raises(UserError, match=r"none\.onnx"):
        ablate.Ablate.main([*words, "--features", str(tmp_path / "none.onnx")])
    assert not (tmp_path / "data").exists()  # refused before videos are written and models trained
    assert ablate.Ablate.main(words) == 0
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "runs" / "ablations.json").read_text())
    ways = [(line["recipe"], line["sampler"], line["nfe"]) for line in summary["lines"]]
    expected = [("base", "nag", 4), ("base", "gd", 4), ("base", "adam", 4)]
    assert ways == [*expected, ("flow", "euler", 4), ("flow", "heun", 4), ("flow", "sde", 3)]
    for line in summary["lines"]:
        assert 0 <= line["both_accuracy"] <= line["direction_accuracy"] <= 1 and line["frechet"] > 0
        assert line["mmd_low"] < line["mmd"] < line["mmd_high"]
        assert line["rest"] > 0 and line["diverged"] == 0 and line["training_steps"] == 2
    assert (tmp_path / "runs" / "ablations.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / "ablations.md").read_text() in said
    measures = summary["measures"]
    assert measures["metrics"]["frechet"]["title"] == "Fréchet distance (pixels)" and measures["protocol_hash"]
    assert measures["metrics"]["frechet"]["real"]["n"]["samples"] == 8
    assert re.search(r"^\| flow, told gamma +\| heun +\|", said, re.MULTILINE)

    monkeypatch.setattr(ablate, "sample", None)
    monkeypatch.setattr(recipes.training, "main", None)
    assert ablate.Ablate.main(words) == 0  # neither trained nor sampled again
    assert json.loads((tmp_path / "runs" / "ablations.json").read_text())["lines"] == summary["lines"]
    with pytest.raises(UserError, match=r"base was not trained from base.yaml as it is now: train.steps \(2 there\)"):
        ablate.Ablate.main([*words[:-4], "train.steps=3", *words[-3:]])


def test_every_line_is_in_a_table_and_a_table_compares() -> None:
    def titles(*recipes: str) -> list[str]:
        lines = [{"recipe": recipe, "sampler": sampler} for recipe in recipes for sampler in ("nag", "adam")]
        found = ablate.rows(lines)
        assert {row.line["recipe"] for row in found} == set(recipes)
        return list(dict.fromkeys(row.title for row in found))

    assert titles("base", "linear") == ["decay c(gamma)"]
    assert titles("base", "lambda_1", "own") == ["objective and sampler", "gain, equal gain x step size", "others"]
    assert titles("told") == titles("base") == ["others"]


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only lineal: the recipes are base, "):
        ablate.RECIPES.chosen(["lineal"])


def test_a_run_that_starts_from_another_finds_it_in_the_same_folder(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--data", "videos", "--only", "energy_l2", "train.steps=7"]
    given = options.parse(ablate.Ablate, words, prog="")
    assert given.chosen == ("energy_l2",)
    assert ablate.RECIPES.replaced("energy_l2", given) == [
        *("train.steps=7", "data.root=videos", f"run.dir={tmp_path}/energy_l2"),
        f"train.init_from={tmp_path}/base/export",
    ]
