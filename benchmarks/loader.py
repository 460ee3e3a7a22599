"""The data path of a recipe alone: batches as training gets them, without a network.

    python benchmarks/loader.py actions data.root=videos data.workers=0
    python benchmarks/loader.py actions data.root=videos data.latents=cache:latents data.workers=0

The seconds are of the wall clock, because workers are other processes; `cpu_seconds` are those of this process.
`clips_per_second_fastest` is that of the fastest batch, which the processor's other users disturbed least.
--pages says whether the shards of a cache are read once before (read), or put out of the system's memory (dropped).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import measuring
import torch
from accelerate import Accelerator

from eqm_video.data.latent_cache import SHARDS
from eqm_video.training import build
from eqm_video.training.config import load_config
from eqm_video.training.data import LatentCaches, cache_folder, open_training_data


def prepare(folder: Path, pages: str) -> None:
    """Read all shards below a folder once, or put their pages out of the system's memory (Linux)."""
    for path in sorted(folder.rglob(SHARDS)):
        with path.open("rb") as file:
            if pages == "dropped":
                os.fsync(file.fileno())  # pages that are not written yet would stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while pages == "read" and file.read(2**24):
                pass


def main() -> None:
    """Time the batches after the first two, which start the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--batches", type=int, default=20, help="batches that are timed (20)")
    parser.add_argument("--pages", choices=("read", "dropped"), help="the state of a cache before; as it is by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, accelerator = load_config(options.recipe, options.overrides), Accelerator(cpu=True)
    on_disk = cache_folder(config) is not None
    if options.pages and not on_disk:
        parser.error("--pages is for data.latents=cache:FOLDER")
    if options.pages:
        prepare(cache_folder(config), options.pages)
    began = time.perf_counter()
    codec = build.open_codec(config, weights=not on_disk)
    data = open_training_data(config, accelerator)
    if on_disk:
        data = data.cached(LatentCaches.of(config, codec))
    loader = data.batches(accelerator, codec)
    opened = time.perf_counter() - began
    batches = loader.between(0, (options.batches + 2) // loader.plan.passes + 1)
    next(batches), next(batches)
    began, cpu, clips, moved = time.perf_counter(), time.process_time(), 0, 0
    least = float("inf")
    for _ in range(options.batches):
        start = time.perf_counter()
        batch = next(batches)
        least = min(least, (time.perf_counter() - start) / len(batch["labels"]))
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        clips += len(batch["labels"])
        moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    batches.close()
    shape = list(batch["moments" if "moments" in batch else "pixels"].shape)
    row = {"recipe": options.recipe, "latents": config.data.latents.partition(":")[0], "workers": config.data.workers}
    row |= {
        "pages": options.pages,
        "batch": shape,
        "clips": clips,
        "seconds": spent,
        "cpu_seconds": cpu,
        "clips_per_second": clips / spent,
    }
    row |= {"clips_per_second_fastest": 1 / least, "clips_per_second_of_cpu": clips / cpu}
    row |= {"mib_per_second": moved / spent / 2**20, "seconds_to_open": opened}
    measuring.record("loader", [row], accelerator.device, options.out)


if __name__ == "__main__":
    main()
