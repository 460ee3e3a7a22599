"""The machine that computes: its processor, what that can do, and the versions of the libraries on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
# Instructions that decide how fast a CPU multiplies matrices, by their names in Linux, on x86 and on ARM.
FLAGS = (
    *("f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
)
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")  # of instructions, by the user


def processor() -> str:
    """The processor's name, where the system tells it."""
    name = _cpuinfo("model name") or _sysctl("-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """Instructions of the processor that decide its speed here, of `FLAGS`; [] where nothing tells them."""
    words = _cpuinfo("flags") or _cpuinfo("Features")
    if not words:  # macOS: lists of names on Intel, a line `hw.optional.arm.FEAT_BF16: 1` for each on Apple's own
        intel = f"{_sysctl('-n', 'machdep.cpu.features')} {_sysctl('-n', 'machdep.cpu.leaf7_features')}"
        arm = re.findall(r"FEAT_(\w+): 1", _sysctl("hw.optional.arm"))
        words = " ".join([intel.replace("AVX1.0", "avx").replace("AVX512", "avx512"), *arm]).lower()
    found = set(words.split())
    return [flag for flag in FLAGS if flag in found]


def has_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies matrices in bfloat16 by instructions of its own, and not many times slower.

    On a CPU the environment variable ONEDNN_MAX_CPU_ISA, which limits the instructions that are used, counts.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type == "cuda":  # older ones emulate it; ROCm has it on all that PyTorch supports
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()


def note_bf16(device: torch.device | str, given: str, instead: str) -> list[str]:
    """A note for whoever asks in words `given` for bfloat16 of a device that emulates it, with what to type instead."""
    if has_bf16(device):
        return []
    return [
        f"note: {given}, but this {torch.device(device).type} ({device_name(device)}) has no instructions for bfloat16 "
        f"and may take 15 times as long with it as with float32: type {instead}"
    ]


def device_name(device: torch.device | str) -> str:
    """The name of a GPU, or of the processor."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that compute."""
    installed = {name: metadata.version(name) for name in ("diffusers", "accelerate")}
    return {"python": platform.python_version(), "torch": torch.__version__, **installed}


def describe(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a measured time or number belongs to, for the record beside it.

    device, its processor; cpu: the processor of the host where the device is another; cpu_flags, cpu_cores (those that
    this process may use), threads of torch, limits: environment variables that restrict the instructions; versions.
    """
    device = torch.device(device)
    host = {} if device.type == "cpu" else {"cpu": processor()}
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    return {
        "device": str(device),
        "processor": device_name(device),
        **host,
        "cpu_flags": processor_flags(),
        "cpu_cores": cores(),
        "threads": torch.get_num_threads(),
        **({"limits": limits} if limits else {}),
        **versions(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given: before and after measuring time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; "" where there is none, as on other systems than Linux."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.*?)\s*$", text, re.MULTILINE)
    return match[1] if match else ""


def _sysctl(*words: str) -> str:
    """A value that macOS tells of its processor; "" elsewhere."""
    if platform.system() != "Darwin":
        return ""
    result = subprocess.run(["/usr/sbin/sysctl", *words], capture_output=True, text=True, check=False, timeout=10)
    return result.stdout.strip()
