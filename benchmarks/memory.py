"""The memory of a training step, by mode of activation checkpointing: the peak above that of the process before.

    python benchmarks/memory.py --presets S/2 --frames 1,16 --depth 2
    python benchmarks/memory.py --presets S/2,B/2,L/2,XL/2 --frames 16,64 --device cuda --dtype bf16

Each case is a process of its own. On a CPU it is the peak of the resident memory, on a GPU that of allocated memory.
`seconds` is the time of the second step, CPU time on a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import measuring
import torch
import train_step

from eqm_video.core.energy import Field
from eqm_video.models.recompute import keep_products

MODES = ("none", "selective", "block")


def used(device: torch.device) -> int:
    """The peak of memory in bytes so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one(options: argparse.Namespace) -> None:
    """Measure a single case, in this process, and print it."""
    device, frames = torch.device(options.device), int(options.frames)
    torch.set_num_threads(options.threads)
    before = used(device)
    network = measuring.build(options.presets, depth=options.depth, device=options.device)
    if options.recompute != "none":
        network.enable_gradient_checkpointing(keep_products if options.recompute == "selective" else None)
    field, shape = Field(network), (options.batch, frames, measuring.CHANNELS, *[options.size] * 2)
    step = train_step.step_of(network, lambda *given: field(*given).sample, shape, device, options.dtype)
    (found,) = measuring.timed([step], 1, device)
    row = {"preset": options.presets, "frames": frames, "batch": options.batch, "depth": options.depth}
    row |= {"dtype": options.dtype, "recompute": options.recompute, "gib": (used(device) - before) / 2**30}
    print(json.dumps({**row, "seconds": found["seconds"]}))


def main() -> None:
    """Start a process for each case."""
    parser = train_step.parser(__doc__)
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
            for mode in MODES:
                case = [f"--presets={preset}", f"--frames={frames}", f"--recompute={mode}"]
                done = subprocess.run(
                    [sys.executable, __file__, "--one", *words, *case], capture_output=True, text=True, check=False
                )
                if done.returncode:  # out of memory is a result
                    rows.append(
                        {"preset": preset, "frames": int(frames), "recompute": mode, "error": done.stderr[-300:]}
                    )
                else:
                    rows.append(json.loads(done.stdout))
    measuring.record("memory", rows, torch.device(options.device), options.out)


if __name__ == "__main__":
    main()
