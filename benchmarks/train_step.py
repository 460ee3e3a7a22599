"""The training step: clips/s, TFLOP/s and the share of the matrix product's peak, beside another checkout's module.

    python benchmarks/train_step.py --presets S/2 --frames 1,16 --depth 2 --threads 1
    python benchmarks/train_step.py --presets S/2,B/2,L/2,XL/2 --frames 1,16,32,64,128 --device cuda --dtype bf16
    python benchmarks/train_step.py ... --peer ../Latte --adapter benchmarks/peers/latte.py

A step is forward, backward, clipping, fused AdamW and the average, on random latents. All modules take turns in one
process. On a CPU the seconds are CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.energy import Field
from eqm_video.core.objective import EqMObjective, interpolate
from eqm_video.models.presets import PRESETS
from eqm_video.models.recompute import keep_products
from eqm_video.training.ema import Ema
from eqm_video.training.optim import adamw


def parser(description: str) -> argparse.ArgumentParser:
    """The options, most of which the other benchmarks have too."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--presets", default="S/2", help="sizes, such as S/2,B/2 (S/2)")
    made.add_argument("--frames", default="16", help="frames of a clip, such as 1,16 (16)")
    made.add_argument("--size", type=int, default=32, help="height and width of the latents (32)")
    made.add_argument("--batch", type=int, default=1, help="clips of a step (1)")
    made.add_argument("--depth", type=int, help="blocks, in place of the preset's")
    made.add_argument("--device", default="cpu")
    made.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (1)")
    made.add_argument("--dtype", choices=tuple(measuring.DTYPES), default="fp32")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--product", type=int, help="rows of the matrices of the peak (8192 on a GPU, 1024 on a CPU)")
    made.add_argument("--recompute", choices=("none", "block", "selective"), default="none")
    made.add_argument("--compile", action="store_true", help="time the compiled network as well")
    made.add_argument("--peer", type=Path, help="another checkout")
    made.add_argument("--adapter", type=Path, help="the file that makes its module")
    made.add_argument("--out", type=Path, help="the record, a JSON file")
    return made


def step_of(
    module: nn.Module, call: Callable[..., Any], shape: tuple[int, ...], device: torch.device, dtype: str
) -> Any:
    """A function that makes one training step of a module."""
    objective, optimizer, average = EqMObjective(TruncatedDecay()), adamw(module, lr=1e-4), Ema(module, 0.999)
    clean, noise = torch.randn(2, *shape, device=device)
    gamma = torch.rand(shape[:2], device=device)
    labels = torch.zeros(shape[0], dtype=torch.long, device=device)

    def step() -> None:
        with measuring.autocast(device, dtype):
            sample = call(interpolate(clean, noise, gamma), labels)
        objective.loss(sample.float(), clean, noise, gamma).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(module)

    return step


def measure(options: argparse.Namespace, preset: str, frames: int) -> list[dict[str, Any]]:
    """The rows of one shape: ours, ours compiled, and the peer."""
    device, shape = torch.device(options.device), (options.batch, frames, measuring.CHANNELS, *[options.size] * 2)
    names, works, costs = [], [], []

    def add(name: str, module: nn.Module, call: Callable[..., Any], cost: dict[str, Any] | None = None) -> None:
        step = step_of(module, call, shape, device, options.dtype)
        if cost is None:
            with FlopCounterMode(display=False) as counter:
                step()
            cost = {"flops": counter.get_total_flops(), "bytes": None}
        names.append(name), works.append(step), costs.append(cost)

    ours = measuring.costs(preset, shape, options.depth, training=True)
    for name in ("eqm-video", *(["eqm-video compiled"] if options.compile else [])):
        network = measuring.build(preset, depth=options.depth, device=options.device)
        if options.recompute != "none":
            network.enable_gradient_checkpointing(keep_products if options.recompute == "selective" else None)
        for block in network.blocks if name.endswith("compiled") else ():
            block.compile(fullgraph=True)
        field = Field(network)
        add(name, network, lambda latents, labels, field=field: field(latents, labels).sample, ours)
    if options.peer is not None:
        peer = measuring.load_peer(options.adapter, options.peer, preset, shape, options.depth).to(device)
        add(options.adapter.stem, peer, peer)
    patch = PRESETS[f"EqM-{preset}"].patch_size
    products, flops = measuring.products(device, measuring.DTYPES[options.dtype], options.product)
    alone, *found = measuring.timed([products, *works], options.repeats, device)
    top, rows = flops / alone["seconds"], []
    for name, cost, seconds in zip(names, costs, found, strict=True):
        row = {"module": name, "preset": preset, "frames": frames, "batch": options.batch, "depth": options.depth}
        row |= {"dtype": options.dtype, "recompute": options.recompute, **seconds}
        rows.append(measuring.rates(row, shape, patch, cost, top))
    return rows


def main() -> None:
    """Measure every preset at every number of frames."""
    options = parser(__doc__).parse_args()
    measuring.every_shape("train_step", options, measure)


if __name__ == "__main__":
    main()
