"""The sampling step: what a descent costs beside the bare calls of its network, with and without guidance.

    python benchmarks/sample.py --presets S/2 --frames 1,16 --depth 2 --threads 1
    python benchmarks/sample.py --presets S/2,B/2,L/2,XL/2 --frames 1,16,32,64,128 --device cuda --dtype bf16

Nesterov descent of `--steps` steps on random latents. clips_per_second is that of whole descents. `of_bare` is the time
over that of a loop of as many bare calls, which for guidance have the doubled batch. `of_anew` is the time over that
of the same descent in which every step computes modulations and rotations again. On a CPU the seconds are CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import measuring
import torch
import train_step

from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField
from eqm_video.models.presets import PRESETS
from eqm_video.samplers import NAG, descend, run

GUIDANCE = (1.0, 2.0)


@torch.no_grad()
def measure(options: argparse.Namespace, preset: str, frames: int) -> list[dict[str, Any]]:
    """The rows of one shape: without guidance and with it."""
    device, shape = torch.device(options.device), (options.batch, frames, measuring.CHANNELS, *[options.size] * 2)
    network = measuring.build(preset, depth=options.depth, device=options.device).eval()
    if options.compile:
        for block in network.blocks:
            block.compile(fullgraph=True)
    start = torch.randn(shape, device=device)
    labels = torch.zeros(shape[0], dtype=torch.long, device=device)
    products, flops = measuring.products(device, measuring.DTYPES[options.dtype], options.product)
    rows = []
    for scale in GUIDANCE:
        copies = 1 if scale == 1 else 2
        doubled, theirs = start.repeat(copies, 1, 1, 1, 1), labels.repeat(copies)
        field = GuidedField(Field(network), labels, guidance_scale=scale, null_label=network.null_label)

        def bare(latents: torch.Tensor = doubled, labels: torch.Tensor = theirs) -> None:
            with measuring.autocast(device, options.dtype):
                for _ in range(options.steps):
                    network(latents, labels)

        def whole_descent(way: Callable[..., Any] = run, field: GuidedField = field) -> None:
            with measuring.autocast(device, options.dtype):
                way(field, start, NAG(step_size=0.003, mu=0.35), steps=options.steps)

        anew = partial(whole_descent, descend)  # the loop alone: nothing tells the field that a descent begins
        alone, whole, again, peak = measuring.timed([bare, whole_descent, anew, products], options.repeats, device)
        cost = measuring.costs(preset, (copies * shape[0], *shape[1:]), options.depth, training=False)
        cost = {key: options.steps * value for key, value in cost.items()}
        row = {"preset": preset, "frames": frames, "batch": options.batch, "depth": options.depth}
        row |= {"dtype": options.dtype, "guidance": scale, "steps": options.steps, **whole}
        row["of_bare"] = whole["seconds"] / alone["seconds"]
        row["of_anew"] = whole["seconds"] / again["seconds"]
        rows.append(measuring.rates(row, shape, PRESETS[f"EqM-{preset}"].patch_size, cost, flops / peak["seconds"]))
    return rows


def main() -> None:
    """Measure every preset at every number of frames."""
    parser = train_step.parser(__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps of a descent (5)")
    measuring.every_shape("sample", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
