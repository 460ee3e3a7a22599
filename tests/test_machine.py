"""The machine: processor and instructions on each system, bfloat16, and records of measurements."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eqm_video.commands import COMMANDS
from eqm_video.studies.study import Study
from eqm_video.system import machine
from eqm_video.training.build import note_precision
from eqm_video.training.config import parse_config

LINUX_X86 = """processor\t: 0
model name\t: An Old Processor 2 @ 3 GHz
flags\t\t: fpu sse2 avx fma f16c avx2 rdseed

processor\t: 1
model name\t: Another
flags\t\t: avx512f
"""
LINUX_ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp i8mm bf16\nCPU part\t: 0xd4f\n"


def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")


def test_processor_and_flags_of_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(tmp_path, monkeypatch, LINUX_X86)
    assert machine.processor() == "An Old Processor 2 @ 3 GHz"
    assert machine.processor_flags() == ["f16c", "fma", "avx", "avx2"]
    cpuinfo(tmp_path, monkeypatch, LINUX_ARM)  # names no model
    assert machine.processor() == (platform.processor() or platform.machine()) != ""
    assert machine.processor_flags() == ["asimd", "asimdhp", "bf16", "i8mm"]


def test_processor_and_flags_of_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "machdep.cpu.brand_string": "Apple M2",
        "hw.optional.arm": "hw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.arm.FEAT_I8MM: 1\n",
    }
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(
        subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, said.get(words[-1], ""), "")
    )
    assert machine.processor() == "Apple M2"
    assert machine.processor_flags() == ["bf16", "i8mm"]
    said.clear()
    said |= {"machdep.cpu.features": "FPU SSE AVX1.0 F16C FMA", "machdep.cpu.leaf7_features": "AVX2 AVX512F"}
    assert machine.processor_flags() == ["f16c", "fma", "avx", "avx2", "avx512f"]


def test_bf16_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, has in (((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, one=capability: one)
        assert machine.has_bf16("cuda:0") is has
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert machine.has_bf16("cuda")
    for newer in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version, one=newer: one)
        assert machine.has_bf16("mps") is newer


def test_bf16_of_a_cpu_follows_the_limit_of_its_instructions() -> None:
    code = "from eqm_video.system.machine import describe, has_bf16; print(has_bf16('cpu'), describe()['limits'])"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=limited)
    if platform.machine() in ("x86_64", "AMD64"):
        assert result.stdout.split(maxsplit=1)[0] == "False"
    assert "'ONEDNN_MAX_CPU_ISA': 'AVX2'" in result.stdout
    if "avx512_bf16" in machine.processor_flags() and not any(name in os.environ for name in machine.LIMITS):
        assert machine.has_bf16("cpu")


def test_only_an_emulated_bf16_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda device: True)
    assert machine.note_bf16("cpu", "train.mixed_precision=bf16", "train.mixed_precision=no") == []
    monkeypatch.setattr(machine, "has_bf16", lambda device: False)
    (note,) = machine.note_bf16("cpu", "train.mixed_precision=bf16", "train.mixed_precision=no")
    assert note.startswith("note: train.mixed_precision=bf16") and note.endswith("type train.mixed_precision=no")
    assert machine.processor() in note


def test_a_measurement_records_its_machine() -> None:
    found = machine.describe()
    assert found["processor"] == machine.processor() and found["cpu_flags"] == machine.processor_flags()
    assert found["threads"] == torch.get_num_threads() and 1 <= found["cpu_cores"] <= os.cpu_count()
    assert found["torch"] == torch.__version__
    assert {"python", "diffusers", "accelerate", "device"} <= found.keys()
    import diffusers

    assert found["diffusers"] == diffusers.__version__


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_in_an_emulated_precision_says_so(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({"train": {"mixed_precision": precision}, "run": {"dir": "runs/x"}}, [])
    monkeypatch.setattr(machine, "has_bf16", lambda device: False)
    notes = note_precision(config, torch.device("cpu"))
    assert len(notes) == (precision == "bf16")
    assert all("type train.mixed_precision=no" in note for note in notes)
    monkeypatch.setattr(machine, "has_bf16", lambda device: True)
    assert note_precision(config, torch.device("cpu")) == []


def test_every_command_that_measures_names_the_processor_and_its_flags() -> None:
    studies = {name: one.options() for name, one in COMMANDS.items() if one.study}
    assert len(studies) >= 16
    for name, study in studies.items():
        assert study.about is Study.about, name  # the one place where records get their machine
    assert "machine.describe(" in inspect.getsource(Study.about)
