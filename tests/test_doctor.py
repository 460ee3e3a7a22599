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
    assert [name for name in names if name != "load"][:5] == ["versions", "devices", "float32", "bfloat16", "attention"]
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
    memory, time = doctor.fits(config, device(1e9))
    assert memory.state == doctor.FINE and time.state == doctor.SLOW and "a day is train.steps=" in time.advice
    assert 1000 <= int(re.search(r"train.steps=(\d+)", time.advice)[1]) < 4000
    *_, hopeless = doctor.fits(config, device(1e6))  # less than a step a day
    assert hopeless.advice == "take fewer pixels (data.size) or a smaller model.preset"
    *_, large = doctor.fits(load_config("ucf101_s2"), device(1e9))
    assert large.advice == "take the recipe own_videos_cpu"
    *_, images = doctor.fits(load_config("imagenet_s2"), device(1e9))
    assert images.advice == hopeless.advice, "a recipe for videos is none for images"
    assert [one.state for one in doctor.fits(config, device(1e15))] == [doctor.FINE, doctor.FINE]
    full = next(iter(doctor.fits(config, device(1e15, memory=2**20))))
    assert full.state == doctor.BAD and "model.preset" in full.advice
    tight = next(iter(doctor.fits(config, device(1e15, memory=2**28))))
    advice = re.search(r"train.accumulation=(\d+)", tight.advice)
    assert tight.state == doctor.SLOW and advice is not None
    taken = load_config("actions", [advice[0]])
    assert next(iter(doctor.fits(taken, device(1e15, memory=2**28)))).state == doctor.FINE, "the advice is enough"
    assert doctor.memory_finding("", 5, 1000, 10, 4).state == doctor.BAD, "a single clip is too much"


def test_a_full_folder_of_temporary_files_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "write_mp4", full)
    finding = next(doctor.decoders())
    assert finding.state == doctor.BAD and "No space left on device" in finding.found and "TMPDIR=" in finding.advice


def test_a_disk_that_cannot_be_written_and_wrong_words_are_sentences(monkeypatch, tmp_path, capsys) -> None:
    def full(dir: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    finding = doctor.disk(tmp_path / "a" / "b")
    assert finding.state == doctor.BAD and "No space left on device" in finding.found
    assert main(["doctor", "train.steps=3"]) == 2
    assert "name it first, as in eqm-video doctor own_videos train.steps=3" in capsys.readouterr().err


def test_a_codec_that_was_fetched_before_needs_no_hub(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(doctor.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(doctor.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--me--codec"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "snapshots" / "abc" / "config.json").write_text("{}")
    assert doctor.hub("me/codec").state == doctor.BAD  # the weights are missing
    (kept / "snapshots" / "abc" / "diffusion_pytorch_model.safetensors").write_text("")
    finding = doctor.hub("me/codec")
    assert finding.state == doctor.FINE and "me/codec was fetched before" in finding.found


def test_other_work_on_the_machine_is_told(monkeypatch) -> None:
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (9.5, 9, 9))
    monkeypatch.setattr(doctor.machine, "cores", lambda: 2)
    (finding,) = doctor.load()
    assert finding.state == doctor.SLOW and "9.5 processes want 2 cores" in finding.found
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (1.0, 9, 9))
    assert list(doctor.load()) == []
