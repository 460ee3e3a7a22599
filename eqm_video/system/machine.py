"""The machine: its processor, the instructions of the processor, and the versions of libraries."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]
CPUINFO = Path("/proc/cpuinfo")
MEMORY = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")  # with the limits of a container
# Instructions that decide the speed of matrix products on a CPU, by their names in Linux, on x86 and on ARM.
FLAGS = (
    *("f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
)
# Environment variables that restrict instructions
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def processor() -> str:
    """The processor's name, or its architecture if the system does not give a name."""
    name = _cpuinfo("model name") or _sysctl("-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """The instructions in `FLAGS` that the processor has; [] if the system does not list them."""
    words = _cpuinfo("flags") or _cpuinfo("Features")
    if not words:  # macOS: lists of names on Intel, a line `hw.optional.arm.FEAT_BF16: 1` for each on Apple's own
        intel = f"{_sysctl('-n', 'machdep.cpu.features')} {_sysctl('-n', 'machdep.cpu.leaf7_features')}"
        arm = re.findall(r"FEAT_(\w+): 1", _sysctl("hw.optional.arm"))
        words = " ".join([intel.replace("AVX1.0", "avx").replace("AVX512", "avx512"), *arm]).lower()
    listed = set(words.split())
    return [flag for flag in FLAGS if flag in listed]


def has_bf16(device: torch.device | str) -> bool:
    """Whether a device has instructions for matrix products in bfloat16; without them they are many times slower.

    On a CPU, the environment variable ONEDNN_MAX_CPU_ISA, which limits the instructions in use, is respected.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type == "cuda":  # older GPUs emulate it; every GPU that PyTorch supports with ROCm has it
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()


def note_bf16(device: torch.device | str, typed: str, instead: str) -> list[str]:
    """A note that a device emulates bfloat16, in a list; [] for a device with instructions for it.

    `typed` is the user's option that chose bfloat16, `instead` the option to type in its place.
    """
    if has_bf16(device):
        return []
    return [
        f"note: {typed}, but this {torch.device(device).type} ({device_name(device)}) has no instructions for bfloat16 "
        f"and may take 15 times as long with it as with float32: type {instead}"
    ]


def device_name(device: torch.device | str) -> str:
    """The name of a GPU, or of the processor."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def versions() -> dict[str, str]:
    """Versions of Python, torch, diffusers and accelerate, by name."""
    installed = {name: metadata.version(name) for name in ("diffusers", "accelerate")}
    return {"python": platform.python_version(), "torch": torch.__version__, **installed}


def commit() -> str | None:
    """The commit of the checkout that runs, with + where files differ from it; None for an installed package."""
    git = ["git", "-C", str(PACKAGE.parent)]
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        done = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of somebody else's
        return None
    return f"{done[0]}{'+' if done[1] else ''}"


def describe(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine and versions of a measurement, for the record beside it.

    Keys: device and its processor; cpu, the host's processor, if the device is a GPU; cpu_flags; cpu_cores that this
    process may use; threads of torch; limits, the environment variables that restrict instructions, if any are set; and
    the `versions`.
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
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes of memory that processes on this machine may still take, by the system and by the container's limit.

    None where nothing tells it, as on other systems than Linux.
    """
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(MEMORY), re.MULTILINE)
    if match is None:
        return None
    free = 1024 * int(match[1])
    limit, used = (_read(CONTAINER / name).strip() for name in ("memory.max", "memory.current"))
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work; call it before and after measuring a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _read(path: Path) -> str:
    """The text of a file of the system; "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; "" if there is none, as on systems other than Linux."""
    text = _read(CPUINFO)
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.*?)\s*$", text, re.MULTILINE)
    return match[1] if match else ""


def _sysctl(*words: str) -> str:
    """The output of sysctl on macOS; "" on other systems."""
    if platform.system() != "Darwin":
        return ""
    result = subprocess.run(["/usr/sbin/sysctl", *words], capture_output=True, text=True, check=False, timeout=10)
    return result.stdout.strip()
