"""docs/extending.md keeps its word: each of its nine examples runs as it stands, and does what the page says."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import eqm_video.metrics
import eqm_video.studies
from eqm_video import EqMPipeline, commands
from eqm_video.codec import Codec
from eqm_video.core import decay
from eqm_video.core import gamma as gammas
from eqm_video.metrics import registry
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Statistics
from eqm_video.models import build_model, loading
from eqm_video.output import outputs
from eqm_video.output.outputs import Output, record
from eqm_video.randomness import generator
from eqm_video.samplers import Euler, run
from eqm_video.system.reading import read_json
from eqm_video.training import config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf8"), re.M | re.S))


def example(title: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that an example is, executed."""
    module = ModuleType("extending_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses and diffusers look classes up there
    exec(EXAMPLES[title], module.__dict__)
    return module


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Restore the tables of decays, draws and networks, to which examples add a line, after every test."""
    kept = [(table, dict(table)) for table in (decay.DECAYS, gammas.GAMMA_DRAWS, loading.NETWORKS)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def test_the_page_has_nine_examples() -> None:
    assert len(EXAMPLES) == 9
    assert PAGE.read_text(encoding="utf8").count("```python") == 9


def test_a_decay_is_a_choice_of_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    cosine = example("A decay", monkeypatch).CosineDecay
    made = config.parse_config({}, ["objective.decay.kind=cosine", "objective.decay.gain=2"])
    assert made.objective.decay == cosine(gain=2.0)
    assert "kind: cosine" in config.to_yaml(made)
    values = config.parse_config({"objective": {"decay": {"kind": "cosine"}}}).objective.decay(torch.tensor([0.0, 1.0]))
    assert values.tolist() == pytest.approx([4, 0], abs=1e-6)


def test_a_launcher_has_the_names_of_another_package(tmp_path: Path) -> None:
    (tmp_path / "mypackage").mkdir()
    for name, title in (("decay", "A decay"), ("rule", "An update rule")):
        (tmp_path / "mypackage" / f"{name}.py").write_text(EXAMPLES[title], encoding="utf8")
    part = PAGE.read_text(encoding="utf8").split("## In a package of your own\n")[1]
    (tmp_path / "run.py").write_text(re.search(r"^```text\n(.*?)^```", part, re.M | re.S)[1], encoding="utf8")
    words = re.search(r"^python run.py (train .*)$", part, re.M)[1].split()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PAGE.parents[1]), str(tmp_path)])}
    made = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), *words, "--dry-run"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "kind: cosine" in made.stdout and "kind: heavyball" in made.stdout and "momentum: 0.5" in made.stdout


def test_a_draw_of_gamma_is_a_choice_of_recipes_and_draws_for_each_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = example("A draw of gamma", monkeypatch).RampGamma
    assert config.parse_config({}, ["gamma.kind=ramp", "gamma.fall=0.25"]).gamma == rule(fall=0.25)
    drawn = gammas.draw_gamma(rule(), 8, [generator("ramp", k) for k in range(3)])
    assert drawn.shape == (3, 8) and drawn.dtype == torch.float32 and bool((drawn.diff(dim=1) <= 0).all())
    assert torch.equal(drawn[1:2], gammas.draw_gamma(rule(), 8, [generator("ramp", 1)]))


def test_a_rule_descends_and_leaves_known_frames_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = example("An update rule", monkeypatch).HeavyBall(step_size=0.1)
    start = torch.randn(2, 3, 4)
    known = torch.tensor([[True, False, False]] * 2)
    result = run(lambda x: x, start, rule, steps=200, known=known)  # the energy |x|^2 / 2
    assert torch.equal(result.latents[:, 0], start[:, 0])
    assert float(result.latents[:, 1:].abs().max()) < 1e-6
    one = run(lambda x: x, start, rule, steps=2).latents
    torch.testing.assert_close(one, start * (1 - 0.1 - (0.5 * 0.1 + 0.1 * 0.9)))


def test_a_solver_is_of_the_order_that_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = example("A solver", monkeypatch).Midpoint()
    start = torch.randn(2, 3, 4, dtype=torch.float64)
    exact = start * np.exp(-1)  # of dx / dgamma = -x
    errors = [float((run(lambda x: x, start, solver, steps=n).latents - exact).abs().max()) for n in (10, 20)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[0] < 0.05 * float((run(lambda x: x, start, Euler(), steps=10).latents - exact).abs().max())
    assert run(lambda x: x, start, solver, steps=10).nfe.tolist() == [20, 20]


def test_a_metric_is_found_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contrast.py").write_text(EXAMPLES["A metric"], encoding="utf8")
    monkeypatch.setattr(eqm_video.metrics, "__path__", [*eqm_video.metrics.__path__, str(tmp_path)])
    registry.metrics.cache_clear()
    try:
        contrast = registry.find_metric("contrast", "pixels")
    finally:
        registry.metrics.cache_clear()
        sys.modules.pop("eqm_video.metrics.contrast", None)
    grey = torch.full((1, 2, 4, 4, 3), 90, dtype=torch.uint8)
    striped = grey.clone()
    striped[:, :, ::2] = 0
    readings = contrast.read(torch.cat([grey, striped]))
    assert (
        readings.tolist() == pytest.approx([0, 45])
        and contrast.better == "real"
        and contrast.says().startswith("Contrast: ")
    )
    measured = Measured(torch.arange(2), torch.arange(2), torch.tensor([-1, -1]), readings={"contrast": readings})
    assert contrast.value(measured, measured, Statistics()) == pytest.approx(22.5)


def test_a_study_is_found_in_its_folder_and_runs_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "rest.py").write_text(EXAMPLES["A study"], encoding="utf8")
    monkeypatch.setattr(commands, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(eqm_video.studies, "__path__", [*eqm_video.studies.__path__, str(tmp_path / "studies")])
    line = re.search(r'^"rest": (Output\(.+\)),$', PAGE.read_text(encoding="utf8"), re.M)[1]
    monkeypatch.setitem(outputs.OUTPUTS, "rest", eval(line, {"Output": Output, "record": record}))

    found = dict(commands._studies())
    assert list(found) == ["rest"] and found["rest"].group == "look"
    assert found["rest"].says == "measure how much gradient is left where descents end"

    torch.manual_seed(0)
    sampler = {"kind": "nag", "step_size": 0.02, "mu": 0.35, "steps": 2, "guidance_scale": 1.0}
    network = build_model("EqM-Nano/4", num_labels=2, temporal=True)
    settings = {"id2label": ["one", "two"], "sampler": sampler, "frames": 2, "size": 16}
    EqMPipeline(network, Codec.load("bundled").vae, **settings).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--num-samples", "3", "--batch-size", "2"]
    try:
        assert found["rest"].run(words) == 0
    finally:
        sys.modules.pop("eqm_video.studies.rest", None)
        importlib.invalidate_caches()
    kept = read_json(tmp_path / "out" / "rest.json")
    assert (kept["rms"], kept["resting"]) == (0, 1)  # an untrained network is zero everywhere
    assert kept["options"]["limit"] == 0.1 and "100 % of the frames rest" in capsys.readouterr().out


def test_a_data_source_gives_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = example("A data source", monkeypatch).FrameFolders
    for label, level in (("dark", 10), ("light", 200)):
        folder = tmp_path / label / "first"
        folder.mkdir(parents=True)
        for frame in range(5):
            pixels = np.full((24, 32, 3), level + frame, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{frame:04d}.png")
    data = source.open(tmp_path, size=16, frames=3)
    assert (len(data), data.labels) == (2, ["dark", "light"])
    clip = data[(1, 7)]
    assert clip.pixels.shape == (3, 3, 16, 16) and clip.label == 1
    assert clip.pixels[:, 0, 8, 8].tolist() == [200 + clip.start + k for k in range(3)]
    assert clip.times.tolist() == [0, 0.125, 0.25]
    assert torch.equal(clip.pixels, data[(1, 7)].pixels) and len(data.windows()) == 2


def test_a_codec_is_a_folder_that_a_recipe_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example("A codec", monkeypatch)
    codec = Codec.load(config.parse_config({}, ["codec.name=my_codec"]).codec.name)
    latents = codec.encode(torch.rand(1, 2, 3, 16, 16) * 2 - 1)
    assert (codec.downsampling, latents.shape) == (2, (1, 2, 4, 8, 8))
    assert codec.decode(latents).shape == (1, 2, 3, 16, 16)


def test_a_network_loads_is_trained_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = example("A network", monkeypatch).ConvNetwork()
    sampler = {"kind": "gd", "step_size": 0.02, "steps": 3, "guidance_scale": 2.0}
    settings = {"id2label": ["one", "two"], "sampler": sampler, "frames": 3, "size": 16}
    pipeline = EqMPipeline(network, Codec.load("bundled").vae, **settings)
    call = {"labels": ["one", "two"], "seeds": [0, 1], "output_type": "latent"}
    result = pipeline(**call)
    assert result.frames.shape == (2, 3, 4, 4, 4) and result.nfe.tolist() == [3, 3]

    pipeline.save_pretrained(tmp_path / "export")
    capsys.readouterr()
    again = EqMPipeline.from_pretrained(tmp_path / "export")
    assert "Expected types" not in capsys.readouterr().err
    assert type(again.transformer) is type(network) and torch.equal(again(**call).frames, result.frames)
    again.transformer.train()(torch.randn(2, 3, 4, 4, 4)).sample.square().mean().backward()
    assert all(weight.grad is not None for weight in again.transformer.parameters())
