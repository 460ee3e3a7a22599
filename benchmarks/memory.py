"""The memory of a training step, by mode of activation checkpointing: the peak above that of the process before.

    python benchmarks/memory.py --presets S/2 --frames 1,16 --depth 2
    python benchmarks/memory.py --presets S/2,B/2,L/2,XL/2 --frames 16,64 --device cuda --dtype bf16

Each case is a process of its own. On a GPU it is the peak of allocated memory, on a CPU that of resident memory, in
which every tensor above 64 KiB has a mapping of its own, and goes when it is freed. glibc's heap keeps holes instead:
`gib_heap` is the peak of a second process, with glibc's own settings.
`counted` is what is counted for tensors, `gap` how far it is from the measured: `gib / counted - 1`. `counted_heap` is
what `eqm-video train --dry-run` says on a CPU, holes included.
`seconds` is the time of the second step, CPU time on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import measuring
import torch
import train_step

from eqm_video.core.energy import Field
from eqm_video.models.recompute import keep_products
from eqm_video.training.config import load_config
from eqm_video.training.estimate import Memory, count_memory

MODES = ("none", "selective", "block")


def used(device: torch.device) -> int:
    """The peak of memory in bytes so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def counted(options: argparse.Namespace, network: torch.nn.Module) -> Memory:
    """The memory of the case, as a dry run counts it."""
    words = [f"model.preset=EqM-{options.presets}", f"train.batch_size={options.batch}", "codec.name=bundled"]
    words += [f"train.mixed_precision={'bf16' if options.dtype == 'bf16' else 'no'}", "train.accumulation=1"]
    if options.recompute != "none":
        words += ["train.gradient_checkpointing=true", f"train.recompute={options.recompute}"]
    shape = (int(options.frames), measuring.CHANNELS, options.size, options.size)
    return count_memory(load_config(None, words), network, shape, kind=torch.device(options.device).type)


def one(options: argparse.Namespace) -> None:
    """Measure a single case, in this process, and print it."""
    device, frames = torch.device(options.device), int(options.frames)
    torch.set_num_threads(options.threads)
    small = measuring.build("Nano/4", depth=1, device=options.device)  # a first step loads what torch imports late
    field = Field(small)
    train_step.step_of(
        small, lambda *given: field(*given).sample, (1, 2, measuring.CHANNELS, 4, 4), device, options.dtype
    )()
    del small, field
    before = used(device)
    network = measuring.build(options.presets, depth=options.depth, device=options.device)
    if options.recompute != "none":
        network.enable_gradient_checkpointing(keep_products if options.recompute == "selective" else None)
    field, shape = Field(network), (options.batch, frames, measuring.CHANNELS, *[options.size] * 2)
    step = train_step.step_of(network, lambda *given: field(*given).sample, shape, device, options.dtype)
    (found,) = measuring.timed([step], 1, device)
    row = {"preset": options.presets, "frames": frames, "batch": options.batch, "depth": options.depth}
    gib, memory = (used(device) - before) / 2**30, counted(options, network)
    if device.type == "cuda" and gib == 0:
        sys.exit("the memory of this device is not counted by torch.cuda.max_memory_allocated")
    row |= {"dtype": options.dtype, "recompute": options.recompute, "gib": gib, "counted": memory.tensors / 2**30}
    row |= {"gap": gib / row["counted"] - 1, "counted_heap": memory.peak / 2**30, "seconds": found["seconds"]}
    print(json.dumps(row))


def run(words: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """The row of a case, measured in a process with these settings in its environment; out of memory is a result."""
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    return {"error": done.stderr[-300:].strip()} if done.returncode else json.loads(done.stdout)


def main() -> None:
    """Start a process for each case."""
    parser = train_step.parser(__doc__)
    parser.add_argument("--modes", default=",".join(MODES), help="of activation checkpointing; all by default")
    parser.add_argument("--one", action="store_true", help="measure in this process the case that the options name")
    options = parser.parse_args()
    if options.one:
        return one(options)
    words = [
        f"--size={options.size}",
        f"--batch={options.batch}",
        f"--device={options.device}",
        f"--dtype={options.dtype}",
    ]
    words += [f"--threads={options.threads}", *([f"--depth={options.depth}"] if options.depth else [])]
    rows = []
    for preset in options.presets.split(","):
        for frames in options.frames.split(","):
            for mode in options.modes.split(","):
                case = [f"--presets={preset}", f"--frames={frames}", f"--recompute={mode}"]
                row = run([*words, *case], {"MALLOC_MMAP_THRESHOLD_": str(2**16)})
                if options.device == "cpu" and "gib" in row:
                    row["gib_heap"] = run([*words, *case], {}).get("gib")
                    row["gap_heap"] = row["gib_heap"] / row["counted_heap"] - 1 if row["gib_heap"] else None
                rows.append({"preset": preset, "frames": int(frames), "recompute": mode, **row})
    measuring.record("memory", rows, torch.device(options.device), options.out)


if __name__ == "__main__":
    main()
