"""Samples against data: nearest clips, and a Fréchet distance.

Legend: N samples, W windows, T frames, H W pixels, D dimensions of the projection; pixels uint8, channels last.
"""

from __future__ import annotations

import json
import statistics
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.errors import UserError
from eqm_video.metrics.frechet import frechet_distance, gaussian_of, random_projection
from eqm_video.metrics.nearest import NearestClips
from eqm_video.options import narrower, option, required
from eqm_video.output.outputs import PARTS
from eqm_video.randomness import generator
from eqm_video.sampling.option_groups import Columns, Cut, Data, Kind, Seeded
from eqm_video.studies.compare import memorisation, report
from eqm_video.studies.compare.report import Samples, spread
from eqm_video.studies.compare.windows import Search, Windows, halves, look, project, real_searches, some_windows, thin
from eqm_video.studies.request import lists_of, split_of
from eqm_video.studies.study import Report, Study

MOST_DIMENSIONS = 32


@dataclass(frozen=True, kw_only=True)
class Compare(Study, Data, Kind, Cut, Seeded, Columns, group="look"):
    """Samples against data: nearest clips, and a Fréchet distance.

    There are two measures on pixels, for small sets, each beside the same measure between real clips:

    * The training clip nearest to each sample, by root mean squared pixel difference (RMS, of 0 to 255). A copy of a
      training clip has an RMS near 0. The scale is the RMS of a real clip to the nearest clip of another file. A small
      RMS alone proves no copy (a still, dark or blurred sample is near to everything): look at the pairs in
      nearest.gif. Fast motion makes windows two source frames apart as different as two people, so --stride above 1
      misses copies. Windows are not mirrored. A sample counts as memorised if that RMS is below a third of the RMS to
      the nearest clip of any other file. Held-out clips, which no model made, show how often this criterion is wrong.
      See memorisation.png.
    * The Fréchet distance in a few random projections of the pixels, between Gaussians. It uses no learned features: it
      compares means and covariances of pixels, and says little about quality beyond such low-order statistics. It grows
      as points get fewer, so every row of the table compares equal numbers of them. Its scale is the distance between
      two halves of the data, split by group (UCF names, v_Class_gXX_cYY), or else by file.

    `data.split=null` means --split all, and `data.frame_interval=3` means --frame-interval 3.
    """

    sections: ClassVar[tuple[str, ...]] = ("data",)

    samples: Path = option(positional=True, metavar="SAMPLES", help="a folder that `eqm-video sample` wrote")
    data: Path = required()
    split: str | None = narrower(None, unset="train, or all if there are no lists")
    frame_interval: int | None = narrower(None, unset="from the fps of data and samples")
    stride: int = option(1, least=1, metavar="S", help="take a window every S source frames")
    dimensions: int = option(32, least=1, most=MOST_DIMENSIONS, metavar="D", help="dimensions of the projection")
    columns: int | None = narrower(None, unset="about as wide as high")
    out: Path | None = narrower(None, unset="SAMPLES/compare")

    @property
    def folder(self) -> Path:
        """--out, or SAMPLES/compare."""
        return self.out or self.samples / "compare"

    def run(self) -> Report:
        """Find the nearest windows of every sample, and compare means and covariances."""
        samples = read_samples(self.samples)
        split = split_of(self.split, self.data, "train")
        windows = Windows(self.open_set(samples, split), self.stride)
        print(windows.data.report.summary())
        splits = halves(windows.groups, generator("compare halves", self.seed))
        counts = choose_counts(len(samples.pixels), splits, self.dimensions)
        values = samples.pixels[0].numel()
        projection = random_projection(values, self.dimensions, generator("compare projection", self.seed))
        searches = self.searches(samples, windows, split)
        features = look(windows, searches.values(), projection)
        nearest = {name: search.nearest for name, search in searches.items()}
        projected = project(samples.pixels, projection)[by_label(samples.labels)]
        numbers = {
            "samples": {"folder": str(self.samples), "count": len(samples.pixels), "fps": samples.fps},
            "clips": dict(zip(("frames", "height", "width"), samples.shape, strict=True)),
            "data": self.describe(windows, split),
            "nearest": report.summarise_nearest(nearest),
            "memorisation": memorisation.summarise(nearest),
            "frechet": {
                "unit": "squared distance of flattened clips, pixels in [-1, 1]",
                "dimensions": self.dimensions,
                "seed": self.seed,
                "clips": list(counts),
                "halved by": "group" if windows.grouped else "file",
                **distances(projected, features, splits, counts),
            },
        }
        rows = report.nearest_rows(samples, windows, nearest["samples"])
        scale = {name: value for name, value in numbers["nearest"].items() if name != "samples"}
        pictures = {
            "memorisation.png": partial(memorisation.draw, nearest, numbers["memorisation"]),
            "nearest.png" if samples.shape[0] == 1 else "nearest.gif": partial(
                report.draw_pairs, samples, nearest["samples"], rows, self.columns
            ),
        }
        return Report(numbers, report.table(numbers), pictures, {"nearest.json": {**scale, "samples": rows}})

    def open_set(self, samples: Samples, split: str) -> ClipSet:
        """The data as clips of the samples' frames and size. Frame rates set the frame interval if no option does."""
        frames, height, width = samples.shape
        kind = self.kind or ("images" if frames == 1 else "videos")
        if kind == "images" and frames > 1:
            raise UserError(
                f"the samples are clips of {frames} frames, and compare with videos only: type --kind videos"
            )

        def opened(interval: int) -> ClipSet:
            settings = {"frames": frames, "frame_interval": interval, "size": (height, width)}
            return open_data(kind, self.data, **lists_of(split, self.fold), **settings)

        data = opened(self.frame_interval or 1)
        if len(data) < 2:
            raise UserError(
                f"{data.root} has a single usable file, and real clips are compared with those of another: add files"
            )
        if self.frame_interval is None and kind == "videos" and frames > 1:
            rate = statistics.median(info.fps for _, _, info in data.files)
            data = opened(max(1, round(rate / samples.fps)))
        return data

    def searches(self, samples: Samples, windows: Windows, split: str) -> dict[str, Search]:
        """Searches for the nearest windows: of the samples, of held-out clips if there are any, and of real clips."""
        values = samples.pixels[0].numel()
        searches = {"samples": Search(NearestClips(samples.pixels), windows.files)}
        held_out = memorisation.open_held_out(windows.data, self.data, self.fold) if split == "train" else None
        if held_out is not None:
            _, queries = some_windows(Windows(held_out, self.stride), values)
            searches["held-out clips"] = Search(NearestClips(queries), windows.files)
        return searches | real_searches(windows, values)

    def describe(self, windows: Windows, split: str) -> dict[str, Any]:
        """The entries of the record that describe the data."""
        return {
            "root": str(self.data),
            "split": split,
            "fold": self.fold or 1,
            "files": len(windows.data),
            "unreadable": len(windows.data.report.unreadable),
            "windows": len(windows),
            "stride": self.stride,
            "frame_interval": windows.data.frame_interval,
        }


# Samples ------------------------------------------------------------------------------------------------------------


def read_samples(folder: Path) -> Samples:
    """The samples of a folder by `eqm-video sample`; images are clips of a single frame. UserError if it has none."""
    npz, record = folder / "samples.npz", folder / "samples.json"
    for file in (npz, record):
        if not file.is_file():
            hint = f"(an unfinished run? {folder / PARTS} is there)" if (folder / PARTS).is_dir() else ""
            raise UserError(f"there is no {file}; give a folder that `eqm-video sample` finished {hint}".rstrip())
    try:
        with np.load(npz, allow_pickle=False) as file:
            pixels = file["arr_0"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{npz} is damaged ({error}); sample again with --overwrite") from error
    pixels = pixels[:, None] if pixels.ndim == 4 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"{npz} holds {pixels.dtype} {pixels.shape}; samples are uint8 (N, T, H, W, 3), or (N, H, W, 3)"
        )
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        labels, fps = content["labels"], float(content["settings"]["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error!r}); sample again with --overwrite") from error
    labels = [None] * len(pixels) if labels is None else list(labels)
    if len(labels) != len(pixels) or not fps > 0:
        raise UserError(f"{record} ({len(labels)} labels, {fps:g} fps) does not fit the {len(pixels)} samples of {npz}")
    return Samples(torch.from_numpy(pixels), labels, fps)


def choose_counts(samples: int, splits: Sequence[tuple[Tensor, Tensor]], dimensions: int) -> tuple[int, int]:
    """Numbers of clips on both sides of each comparison. UserError where covariances would be singular."""
    half = min(len(part) for split in splits for part in split)
    fewest = min(samples, half)
    if dimensions < fewest:
        return fewest, half
    counted = f"{samples} samples and {half} windows in the smaller half of the data"
    if fewest < 2:
        raise UserError(f"there are {counted}, and a covariance needs 2: sample more, or give more data or --stride 1")
    raise UserError(
        f"--dimensions {dimensions} needs more clips than that on each side, and there are {counted}: covariances "
        f"would be singular; type --dimensions {max(1, fewest // 2)} or less, or compare more samples"
    )


# Measures -----------------------------------------------------------------------------------------------------------


def by_label(labels: Sequence[str | None]) -> list[int]:
    """The numbers of the samples in the order of their labels, so that `thin` keeps each label's share."""
    return sorted(range(len(labels)), key=lambda index: labels[index] or "")


def distances(
    samples: Tensor, features: Tensor, splits: Sequence[tuple[Tensor, Tensor]], counts: tuple[int, int]
) -> dict[str, Any]:
    """Fréchet distances of samples (N, D) from windows (W, D), and between halves of the windows."""
    fewest, half = counts
    pairs = [(thin(features[left], fewest), thin(features[right], half)) for left, right in splits]
    real = spread([frechet(left, right) for left, right in pairs])
    return {"samples": frechet(thin(samples, fewest), thin(features, half)), "real clips": real}


def frechet(left: Tensor, right: Tensor) -> float:
    """Fréchet distance between Gaussians of features (N, D) and (M, D)."""
    return frechet_distance(*gaussian_of(left), *gaussian_of(right))
