"""The parts that the benchmarks share: a peak to compare with, times, costs, peers, and records.

Legend: B clips, T frames, C channels, H W height and width of the latents.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout that this file is in

from eqm_video.models.presets import PRESETS  # noqa: E402
from eqm_video.models.transformer import EqMTransformer  # noqa: E402
from eqm_video.system import machine  # noqa: E402
from eqm_video.system.files import write_json  # noqa: E402

CHANNELS, LABELS = 4, 101
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Parts of names of operations that only rename or reshape, and move no bytes.
VIEWS = ("view", "reshape", "transpose", "permute", "expand", "slice", "select", "split", "unbind", "squeeze", "alias")
VIEWS += ("detach", "chunk", "as_strided", "empty", "t.default", "unsafe")


def build(preset: str, *, depth: int | None = None, device: str = "cpu", **options: Any) -> EqMTransformer:
    """The network of a preset, such as "S/2", in random weights that are zero nowhere; `depth` cuts blocks off."""
    size = PRESETS[f"EqM-{preset}"]
    sizes = {"hidden_size": size.hidden_size, "num_heads": size.num_heads, "patch_size": size.patch_size}
    with torch.device(device):
        network = EqMTransformer(CHANNELS, depth=depth or size.depth, num_labels=LABELS, **sizes, **options)
    if device != "meta":
        torch.manual_seed(0)
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.02)
    return network


def load_peer(adapter: Path, peer: Path, preset: str, shape: Sequence[int], depth: int | None) -> nn.Module:
    """The module of another checkout, by an adapter: a file with `make(peer, **sizes) -> module`.

    The module takes latents (B, T, C, H, W) and labels (B,), and returns a tensor of the latents' shape. The sizes are
    width, depth, heads, patch, frames, size, channels and labels.
    """
    spec = importlib.util.spec_from_file_location("adapter", adapter)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = PRESETS[f"EqM-{preset}"]
    sizes = {"width": size.hidden_size, "depth": depth or size.depth, "heads": size.num_heads, "patch": size.patch_size}
    torch.manual_seed(0)
    made = module.make(peer, **sizes, frames=shape[1], size=shape[-1], channels=CHANNELS, labels=LABELS)
    for weight in made.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.02)
    return made


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU time on a CPU, which other processes do not change, else of the wall clock."""
    machine.synchronise(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def timed(works: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[dict[str, float]]:
    """Seconds of each work, least and median of `repeats`, after one run to warm up; the works take turns."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for number, work in enumerate(works):
            began = clock(device)
            work()
            spent = clock(device) - began
            if turn:
                seconds[number].append(spent)
    return [{"seconds": min(one), "median_seconds": median(one)} for one in seconds]


def products(device: torch.device, dtype: torch.dtype, size: int | None = None) -> tuple[Callable[[], Any], float]:
    """Matrix products that fill the device, as a work for `timed`, and their FLOPs: the peak to compare with.

    It takes turns with what it is compared with, because the clock of a processor that others use changes. size: rows
    of the square matrices, in place of those that fill a GPU (8192) or a CPU (1024).
    """
    rows, count = (8192, 4) if device.type == "cuda" else (1024, 20)
    size = size or rows
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def work() -> None:
        for _ in range(count):
            first @ second

    return work, 2.0 * size**3 * count


def every_shape(name: str, options: argparse.Namespace, measure: Callable[..., list[dict[str, Any]]]) -> None:
    """Record the rows of `measure(options, preset, frames)` for all presets and numbers of frames of the options.

    The record is written after each shape: a process that is stopped leaves those that it has. A shape for which a GPU
    has no memory gets a row that says so.
    """
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for preset in options.presets.split(","):
        for frames in map(int, options.frames.split(",")):
            try:
                new = measure(options, preset, frames)
            except torch.cuda.OutOfMemoryError:
                new = [{"preset": preset, "frames": frames, "batch": options.batch, "error": "out of memory"}]
            rows += new
            show(new)
            write(name, rows, torch.device(options.device), options.out)


class Moved(TorchDispatchMode):
    """Counts `bytes`, those that each operation reads and writes, as if none were fused."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = operation(*arguments, **(keywords or {}))
        if not any(part in str(operation) for part in VIEWS):
            tensors = [leaf for leaf in tree_leaves((arguments, keywords, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def costs(preset: str, shape: Sequence[int], depth: int | None, *, training: bool) -> dict[str, float]:
    """FLOPs, and bytes moved without fusion, of a training step or an evaluation, counted without computing."""
    network = build(preset, depth=depth, device="meta")
    latents = torch.zeros(tuple(shape), device="meta")
    labels = torch.zeros(shape[0], dtype=torch.long, device="meta")

    def work() -> None:
        with torch.set_grad_enabled(training):
            sample = network(latents, labels).sample
            if training:
                (sample - latents).square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        work()
    with Moved() as moved:
        work()
    return {"flops": counter.get_total_flops(), "bytes": moved.bytes}


def rates(row: dict[str, Any], shape: Sequence[int], patch: int, cost: dict[str, Any], top: float) -> dict[str, Any]:
    """The row with what follows from its seconds: clips/s, tokens/s, TFLOP/s, the share of the peak, GiB moved."""
    seconds, tokens = row["seconds"], shape[0] * shape[1] * (shape[-1] // patch) ** 2
    return {
        **row,
        "clips_per_second": shape[0] / seconds,
        "tokens_per_second": tokens / seconds,
        "tflop": cost["flops"] / 1e12,
        "tflops": cost["flops"] / seconds / 1e12,
        "peak_tflops": top / 1e12,
        "of_peak": cost["flops"] / seconds / top,
        "gib_moved_unfused": None if cost["bytes"] is None else cost["bytes"] / 2**30,
    }


@contextmanager
def autocast(device: torch.device, dtype: str) -> Any:
    """Autocast to bf16, or nothing for fp32; TF32 stays off."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        yield


def _plain(word: str) -> str:
    """A word of a command without the folders of this machine."""
    return "/".join(word.split("/")[-2:]) if word.startswith("/") else word


def record(name: str, rows: Sequence[dict[str, Any]], device: torch.device, out: Path | None) -> None:
    """Print the rows, and write them to `out`."""
    show(rows)
    write(name, rows, device, out)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in rows:
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}), flush=True)


def write(name: str, rows: Sequence[dict[str, Any]], device: torch.device, out: Path | None) -> None:
    """Write the rows to `out`, if it is not None, with the command, the machine and the commit."""
    content = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *map(_plain, sys.argv[1:])]),
        "commit": machine.commit(),
        "machine": machine.describe(device),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "rows": list(rows),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, content)
