"""Records of the descent command: gradients, energies and gammas against their definitions and closed forms."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video.analysis.gamma_estimate import frame_dot, frame_rms
from eqm_video.errors import UserError
from eqm_video.samplers import Euler, GradientDescent
from eqm_video.studies.descent import trace as descent
from eqm_video.studies.descent.study import Descent, lowered
from eqm_video.studies.request import Request


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> SimpleNamespace:
    """An implicit model, one with an energy, and a flow model that is told gamma."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(folder / "eqm" / "export")
    tiny_pipeline(tiny_transformer(energy="dot")).save_pretrained(folder / "dot")
    flow = {"decay": {"kind": "constant", "gain": 1.0}, "sampler": {"kind": "euler", "steps": 4}}
    tiny_pipeline(tiny_transformer(conditioned_on_gamma=True), **flow).save_pretrained(folder / "flow")
    return SimpleNamespace(eqm=str(folder / "eqm" / "export"), dot=str(folder / "dot"), flow=str(folder / "flow"))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch) -> None:
    """They are what takes time here."""
    monkeypatch.setattr("eqm_video.studies.descent.study.WIDTH", 150)
    monkeypatch.setattr("eqm_video.output.plots.DPI", 50)


def run(out, *words: object) -> list[dict]:
    assert Descent.main([*map(str, words), "--out", str(out)]) == 0
    return json.loads((out / "descent.json").read_text())["models"]


def test_an_equilibrium_beside_a_flow_from_the_same_noise(folders, tmp_path, capsys):
    eqm, flow = run(tmp_path, folders.eqm, folders.flow, "--num-samples", 3, "--clips", 2, "--columns", 3)
    assert (eqm["name"], flow["name"]) == ("eqm", "flow")
    assert eqm["sampler"]["kind"] == "NAG" and flow["sampler"]["kind"] == "Euler"
    assert eqm["states"] == flow["states"] == [0, 1, 2, 3, 4] and eqm["nfe"] == flow["nfe"] == 4
    assert flow["gamma"]["mean"] == [0, 0.25, 0.5, 0.75, 1.0]
    pipe = tiny_pipeline()
    start = pipe.start_noise([0, 1, 2])
    with torch.no_grad():
        gradient = pipe.field([0, 1, 2])(start)
    assert eqm["gradient_rms"]["mean"][0] == pytest.approx(float(frame_rms(gradient).mean()), rel=1e-5)
    assert eqm["energy"]["mean"][0] == pytest.approx(float(frame_dot(start, gradient).mean()), rel=1e-4)
    assert eqm["energy_is"].startswith("score x.f") and len(eqm["energy"]["p10"]) == 4
    for name in ("descent.png", "strip.png", "descent.gif"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    said = capsys.readouterr().out
    assert "eqm: 4 evaluations" in said and "descent.gif" in said


def test_an_energy_is_the_models_own_and_falls(folders, tmp_path):
    (model,) = run(tmp_path, folders.dot, "--num-samples", 2, "--steps", 12, "--step-size", 0.01, "--sampler", "gd")
    pipe = tiny_pipeline(tiny_transformer(energy="dot"))
    start = pipe.start_noise([0, 1])
    energies = pipe.field([0, 1]).energies(start) / start[0, 0].numel()
    assert model["energy_is"].startswith("energy g (dot)")
    assert model["energy"]["mean"][0] == pytest.approx(float(energies.mean()), rel=1e-4)
    assert model["share_of_steps_that_lower_the_energy"] == 1.0
    assert "energy" not in model["expected_for_one_data_point"]


def on_the_way(gammas: list[float], shrink: float) -> tuple[dict[int, torch.Tensor], SimpleNamespace]:
    """States of the straight path to random data, and a pipeline whose field is `shrink` times their target."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.6 * torch.randn(2, 3, 4, 16, 16, generator=generator)
    noise = torch.randn(2, 3, 4, 16, 16, generator=generator)
    pipe = tiny_pipeline()
    kept = {step: gamma * clean + (1 - gamma) * noise for step, gamma in enumerate(gammas)}
    fields = {id(kept[step]): (noise - clean) * pipe.decay(torch.tensor(gamma)) for step, gamma in enumerate(gammas)}
    pipe.field = lambda *_, **__: lambda latents: shrink * fields[id(latents)]
    return kept, pipe


@pytest.mark.parametrize("shrink", [1.0, 0.95])
def test_gamma_is_read_where_the_size_of_a_learned_field_says_too_little(shrink):
    gammas = [0.0, 0.3, 0.6, 0.9, 1.0]
    kept, pipe = on_the_way(gammas, shrink)
    request = Request([0, 0], ["up"] * 2, [0, 1], 3, (32, 32), 1.0, 2)
    read = descent.read_gammas(pipe, request, kept, GradientDescent(0.05), steps=4)
    assert read.shape == (5, 2, 3)
    assert (read - torch.tensor(gammas, dtype=torch.float64)[:, None, None]).abs().max() < 0.08


def test_gamma_that_is_given_or_unknown():
    kept, _ = on_the_way([0.0, 0.5, 1.0], 1.0)
    request = Request([0, 0], ["up"] * 2, [0, 1], 3, (32, 32), 1.0, 2)
    told = tiny_pipeline(tiny_transformer(conditioned_on_gamma=True))
    read = descent.read_gammas(told, request, kept, GradientDescent(0.1), steps=2)
    torch.testing.assert_close(read[:, 1, 2], torch.tensor([0.0, 0.4, 0.8], dtype=torch.float64))
    read = descent.read_gammas(told, request, kept, Euler(), steps=2)
    torch.testing.assert_close(read[:, 1, 2], torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert descent.read_gammas(tiny_pipeline(decay=None), request, kept, GradientDescent(0.1), steps=2) is None


def test_the_closed_form_is_that_of_one_data_point():
    gammas = [0.0, 0.2, 0.4, 0.6, 0.8]  # a step of 0.05 times 4
    kept, pipe = on_the_way([*gammas, 1.0], shrink=1.0)
    scale = float((1 + kept[5].square().mean()).sqrt())
    expected = descent.expectation(pipe, GradientDescent(0.05), 5, scale, explicit=False)
    torch.testing.assert_close(expected["gamma"], torch.tensor(gammas, dtype=torch.float64))
    for step in range(5):
        gradient = pipe.field()(kept[step])
        assert frame_rms(gradient).mean().item() == pytest.approx(expected["rms"][step].item(), rel=0.02)
        assert frame_dot(kept[step], gradient).mean().item() == pytest.approx(expected["energy"][step].item(), abs=0.1)


def test_share_of_steps_that_lower_the_energy():
    clips = torch.tensor([[3.0, 3.0], [2.0, 4.0], [1.0, 5.0]])  # one falls twice, one rises twice
    assert lowered(clips[:, :, None]) == 0.5


def test_an_image_model_and_wrong_names(folders, tmp_path):
    (model,) = run(tmp_path, folders.eqm, "--frames", 1, "--num-samples", 2, "--names", "images", "--seed", 5)
    assert model["name"] == "images" and np.shape(model["gamma"]["mean"]) == (5,)
    with pytest.raises(UserError, match="2 names for 1 model;"):
        Descent.main([folders.eqm, "--out", str(tmp_path), "--names", "a", "b"])


def test_what_cannot_be_recorded_is_explained(folders, tmp_path):
    words = [folders.eqm, folders.flow, "--out", str(tmp_path), "--num-samples", "2"]
    for option in ("--sampler", "--against-sampler"):
        with pytest.raises(UserError, match=f"share no evaluations.*{option} euler or heun"):
            Descent.main([*words, option, "dopri5"])
    far = {"kind": "gd", "step_size": 1e38, "steps": 4, "guidance_scale": 1.0}
    tiny_pipeline(sampler=far).save_pretrained(tmp_path / "far")
    with pytest.raises(UserError, match=r"far: .*diverged"):
        Descent.main([str(tmp_path / "far"), *words[2:]])
