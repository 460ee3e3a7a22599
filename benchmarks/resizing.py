"""Distances between sets under `data.resize=torch` beside those under ADM's exact resize.

    python benchmarks/resizing.py --images FOLDER --videos FOLDER --sizes 256,128,64

The pictures and clips are divided into halves A and B, `--splits` times. `exact` is the distance of A and B, both
resized as ADM does; `moved` has A resized by torch, as if a model had learned from that and were judged by the exact
one. Where torch changes nothing that the feature sees, both are equal. `direct` is the distance of all clips resized in
both ways. Means over the splits, and the range of moved - exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqm_video.data.transforms import crop_clip
from eqm_video.data.video import probe, read_frames
from eqm_video.features.feature import Input
from eqm_video.features.registry import open_feature
from eqm_video.metrics.frechet import frechet_of_sets
from eqm_video.metrics.mmd import mmd
from eqm_video.randomness import generator

WAYS = ("adm", "torch")
DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {"frechet": frechet_of_sets, "mmd": mmd}
FRAMES = 16


def pictures(folder: Path) -> list[np.ndarray]:
    """All pictures below a folder, uint8 (1, H, W, 3)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [np.asarray(Image.open(path).convert("RGB"))[None] for path in files]


def clips(folder: Path) -> list[np.ndarray]:
    """All videos below a folder, cut into clips uint8 (FRAMES, H, W, 3)."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".avi", ".mp4", ".mkv")):
        info = probe(path)
        whole = read_frames(path, range(info.frames), info=info)[0]
        found += [whole[first : first + FRAMES] for first in range(0, info.frames - FRAMES + 1, FRAMES)]
    return found


@torch.no_grad()
def features_of(samples: list[np.ndarray], size: int, way: str, feature: Any) -> Tensor:
    """The features (N, D) of the samples, resized in one of the ways."""
    small = (torch.from_numpy(crop_clip(frames, size, resize=way))[None] for frames in samples)
    return torch.cat([feature(clip)["features"] for clip in small])


def rows_of(name: str, samples: list[np.ndarray], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each size, feature and distance."""
    sides = [min(frames.shape[1:3]) for frames in samples]
    rows = []
    for size in map(int, options.sizes.split(",")):
        for kind in ("random", "transnet") if samples[0].shape[0] > 1 else ("random",):
            feature = open_feature(kind, Input())
            exact, fast = (features_of(samples, size, way, feature) for way in WAYS)
            halves = []
            for split in range(options.splits):
                order = torch.randperm(len(samples), generator=generator("resizing", split))
                halves.append(order.tensor_split(2))
            for distance, measure in DISTANCES.items():
                floor = [measure(exact[a], exact[b]) for a, b in halves]
                moved = [measure(fast[a], exact[b]) for a, b in halves]
                gaps = np.array(moved) - np.array(floor)
                row = {"set": name, "samples": len(samples), "size": size, "scale": size / float(np.median(sides))}
                row |= {"feature": kind, "distance": distance, "splits": options.splits}
                row |= {"exact": float(np.mean(floor)), "moved": float(np.mean(moved)), "gap": float(gaps.mean())}
                row |= {"least gap": float(gaps.min()), "largest gap": float(gaps.max())}
                rows.append({**row, "direct": measure(fast, exact)})
    return rows


def main() -> None:
    """Measure both sets at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--sizes", default="256,128,64")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = rows_of("photographs", pictures(options.images), options) if options.images else []
    rows += rows_of("videos", clips(options.videos), options) if options.videos else []
    measuring.record("resizing", rows, torch.device("cpu"), options.out)


if __name__ == "__main__":
    main()
