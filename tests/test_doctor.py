"""`eqm-video doctor`: what it finds here, and what it says of recipes that do not fit."""

from __future__ import annotations

import re

import pytest
import torch

from eqm_video.cli import main
from eqm_video.commands import doctor
from eqm_video.training.config import load_config
from eqm_video.training.estimate import Device


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setattr(doctor, "BYTES", 2**16)
    monkeypatch.setattr(doctor, "SIDE", 128)


def test_this_machine_is_looked_at_and_a_small_recipe_fits(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "demo", "train.steps=2"]) == 0
    said = capsys.readouterr().out
    names = re.findall(r"^(?:ok|slow) +([\w/]+) ", said, re.MULTILINE)
    assert names[:5] == ["versions", "devices", "float32", "bfloat16", "attention"]
    assert {"decoder", "/dev/shm", "disk", "memory", "time"} <= set(names) and "hub" not in names
    assert f"torch {torch.__version__}" in said and " M parameters" in said and " for 2 steps" in said
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_does_not_answer_matters_to_recipes_that_need_it(monkeypatch) -> None:
    monkeypatch.setattr(doctor.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert doctor.hub(None).state == doctor.SLOW
    finding = doctor.hub("stabilityai/sd-vae-ft-ema")
    assert finding.state == doctor.BAD and "codec.name=bundled" in finding.advice
    assert str(finding).startswith("BAD   hub         does not answer (")


def device(speed: float, memory: int = 2**35) -> Device:
    return Device("a CPU", "cpu", memory, speed, speed)


def test_a_long_run_and_a_large_network_are_told() -> None:
    config = load_config("actions")
    memory, time = doctor.fits(config, device(1e6))
    assert memory.state == doctor.FINE and time.state == doctor.SLOW and "a day is train.steps=" in time.advice
    assert [one.state for one in doctor.fits(config, device(1e15))] == [doctor.FINE, doctor.FINE]
    full = next(iter(doctor.fits(config, device(1e15, memory=2**20))))
    assert full.state == doctor.BAD and "model.preset" in full.advice
    tight = next(iter(doctor.fits(config, device(1e15, memory=2**28))))
    assert tight.state == doctor.SLOW and "train.accumulation=4" in tight.advice


def test_a_disk_that_cannot_be_written_and_wrong_words_are_sentences(monkeypatch, tmp_path, capsys) -> None:
    def full(dir: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    finding = doctor.disk(tmp_path / "a" / "b")
    assert finding.state == doctor.BAD and "No space left on device" in finding.found
    assert main(["doctor", "train.steps=3"]) == 2
    assert "name it first, as in eqm-video doctor own_videos train.steps=3" in capsys.readouterr().err
