"""The few-step curve: measurements that are kept, exact ends, tables, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video import cli, samplers
from eqm_video.core.decay import ConstantDecay
from eqm_video.data.moving_shapes import label_names
from eqm_video.output import tables
from eqm_video.studies.few_steps import exact
from eqm_video.studies.few_steps.study import OWN, FewSteps
from eqm_video.studies.forcing.ways import ways
from eqm_video.studies.measured import Measured


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run on a tiny model, and its words."""
    folder = tmp_path_factory.mktemp("few")
    names = label_names(("Disc", "Square"))
    tiny_pipeline(tiny_transformer(num_labels=8), id2label=names, frames=4).save_pretrained(folder / "export")
    words = ["few-steps", str(folder / "export"), "--out", str(folder / "out"), "--evaluations", "1", "2"]
    words += ["--reference", "3", "--repeats", "2", "--num-samples", "2", "--exact-starts", "2", "--exact-most", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "FINE", 4)
        assert cli.main(words) == 0
    return folder / "out", words


def test_every_sampler_is_measured_from_the_same_noise(run):
    out, _ = run
    numbers = json.loads((out / "few_steps.json").read_text())
    model = numbers["models"]["eqm"]
    assert set(model) == {"right", "distance", "mmd", "right against the reference"} and set(model["distance"]) == {
        "multistep",
        "euler",
        "nag 2",
        "nag 6",
        OWN,
    }
    assert list(model["right"]["multistep"]) == ["1", "2", "3"] and list(model["right"]["euler"]) == ["1", "2"]
    assert model["distance"][OWN]["3"]["mean"] == 0 < model["distance"]["multistep"]["3"]["mean"]
    assert model["distance"]["euler"]["1"] == model["distance"]["multistep"]["1"]  # the first step is Euler's
    assert model["mmd"]["euler"]["2"]["runs"] == 2 and model["right"]["euler"]["2"]["clips"] == 2
    assert model["right against the reference"][OWN]["3"]["mean"] == 0
    assert numbers["settings"]["reference"] == f"{OWN}, 3 evaluations"
    views = FewSteps.views(numbers)
    assert (
        set(views) == {"right", "distance", "mmd", "exact", "settings"} and "| NAG, the model's walk |" in views["mmd"]
    )
    assert (out / "few_steps.png").stat().st_size > 1000 and "As many real clips" in (out / "few_steps.md").read_text()


def test_finished_measurements_are_not_made_again(run, capsys):
    _, words = run
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "measuring" not in capsys.readouterr().out


def test_more_evaluations_end_nearer_on_the_exact_field(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "POINTS", 12)
    monkeypatch.setattr(exact, "NUMBERS", 128)
    decay = ConstantDecay()
    rows = exact.measure({"velocity": decay}, {"velocity": ways(decay)}, [2, 12], (2, 3, 0), Measured(tmp_path))[
        "velocity"
    ]
    for name in ("multistep", "euler"):
        assert rows["distance"][name]["12"]["mean"] < rows["distance"][name]["2"]["mean"]
        assert rows["reached"][name]["12"]["mean"] >= rows["reached"][name]["2"]["mean"] > 0
    assert rows["reached"]["multistep"]["12"]["mean"] == 1.0


def test_models_of_one_objective_are_its_runs_and_labels_can_be_composed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "POINTS", 4)
    monkeypatch.setattr(exact, "NUMBERS", 8)
    monkeypatch.setattr(exact, "FINE", 2)
    names, folder = label_names(("Disc", "Square")), run[0].parent
    flow = {"decay": {"kind": "constant", "gain": 1.0}, "objective": {"name": "flow"}, "id2label": names, "frames": 4}
    network = tiny_transformer(num_labels=8, conditioned_on_gamma=True)
    tiny_pipeline(network, **flow).save_pretrained(tmp_path / "flow")
    words = ["few-steps", str(folder / "export"), str(tmp_path / "flow"), "--out", str(tmp_path / "out"), "--composed"]
    words += ["--evaluations", "2", "--reference", "3", "--repeats", "1", "--num-samples", "2", "--exact-starts", "2"]
    assert cli.main(words) == 0
    numbers = json.loads((tmp_path / "out" / "few_steps.json").read_text())
    assert list(numbers["models"]) == ["eqm", "flow"] and "mmd" not in numbers["models"]["eqm"]
    assert set(numbers["models"]["flow"]["distance"]) == {"multistep", "euler", "heun", "nag"}
    assert numbers["models"]["flow"]["distance"]["multistep"]["3"]["mean"] == 0  # its reference
    assert "| EqM, multistep" in (tmp_path / "out" / "few_steps.md").read_text()
    assert cli.main([*words[:3], f"{folder / 'export'}/.", *words[3:]]) == 2  # two of one, one of the other


def test_the_composition_of_exact_fields_ends_at_the_point_with_both_attributes(monkeypatch):
    monkeypatch.setattr(exact, "POINTS", 16)
    decay = ConstantDecay()
    field, data = exact.composed(decay, 0)
    noise = torch.randn(6, exact.NUMBERS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = samplers.run(lambda x: field(x), noise, samplers.Multistep(), steps=24, decay=decay).latents
    assert exact._nearest(end, data)[1].tolist() == [0] * 6


def test_a_share_is_shown_with_its_interval():
    value = {"mean": 0.5, "low": 0.25, "high": 0.755}
    assert tables.with_interval(value, None) == "50 % (25–76)" and tables.with_interval(value, 1) == "0.5 (0.2–0.8)"


def test_models_of_other_videos_are_measured_against_real_clips(tmp_path, capsys, made):
    """No label in closed form: distance and MMD alone, and the floor is that of halves of the real clips."""
    tiny_pipeline(tiny_transformer(num_labels=2), id2label=["walk", "wave"], frames=4).save_pretrained(
        tmp_path / "export"
    )
    words = ["few-steps", str(tmp_path / "export"), "--out", str(tmp_path / "out"), "--evaluations", "1", "2"]
    words += ["--reference", "3", "--repeats", "2", "--num-samples", "8", "--exact-starts", "1", "--exact-most", "1"]
    assert cli.main(words) == 2 and "with other labels" in capsys.readouterr().err
    tiny_pipeline(tiny_transformer(num_labels=0), id2label=None, frames=4).save_pretrained(tmp_path / "unlabelled")
    assert cli.main([words[0], str(tmp_path / "unlabelled"), *words[2:]]) == 2
    assert "no labels" in (said := capsys.readouterr().err) and "as --data FOLDER" in said
    assert cli.main([*words, "--data", str(made / "videos"), "--composed"]) == 2
    assert "leave one out" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "FINE", 4)
        patch.setattr(exact, "POINTS", 4)
        assert cli.main([*words, "--data", str(made / "videos")]) == 0
    numbers = json.loads((tmp_path / "out" / "few_steps.json").read_text())
    model = numbers["models"]["eqm"]
    assert set(model) == {"distance", "mmd"} and model["distance"][OWN]["3"]["mean"] == 0
    assert model["mmd"]["multistep"]["2"]["mean"] > numbers["real"]["mmd"]["mean"]  # untrained
    assert numbers["settings"]["real clips"] >= 4
    text = (tmp_path / "out" / "few_steps.md").read_text()
    assert "Random halves of the real clips" in text and "of videos" in text
