"""The data path of a recipe alone: batches as training gets them, without a network.

    python benchmarks/loader.py actions data.root=videos data.workers=0
    python benchmarks/loader.py actions data.root=videos data.latents=cache:latents data.workers=0

The seconds are of the wall clock, because workers are other processes; `cpu_seconds` are those of this process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import measuring
import torch
from accelerate import Accelerator

from eqm_video.training import build
from eqm_video.training.config import load_config
from eqm_video.training.data import LatentCaches, cache_folder, open_training_data


def main() -> None:
    """Time the batches after the first two, which start the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--batches", type=int, default=20, help="batches that are timed (20)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, accelerator = load_config(options.recipe, options.overrides), Accelerator(cpu=True)
    began = time.perf_counter()
    on_disk = cache_folder(config) is not None
    codec = build.open_codec(config, weights=not on_disk)
    data = open_training_data(config, accelerator)
    if on_disk:
        data = data.cached(LatentCaches.of(config, codec))
    loader = data.batches(accelerator, codec)
    opened = time.perf_counter() - began
    batches = loader.between(0, (options.batches + 2) // loader.plan.passes + 1)
    next(batches), next(batches)
    began, cpu, clips, moved = time.perf_counter(), time.process_time(), 0, 0
    for _ in range(options.batches):
        batch = next(batches)
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        clips += len(batch["labels"])
        moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    batches.close()
    shape = list(batch["moments" if "moments" in batch else "pixels"].shape)
    row = {"recipe": options.recipe, "latents": config.data.latents.partition(":")[0], "workers": config.data.workers}
    row |= {"batch": shape, "clips": clips, "seconds": spent, "cpu_seconds": cpu, "clips_per_second": clips / spent}
    row |= {"mib_per_second": moved / spent / 2**20, "seconds_to_open": opened}
    measuring.record("loader", [row], accelerator.device, options.out)


if __name__ == "__main__":
    main()
