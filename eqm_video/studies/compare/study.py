"""Samples against data: nearest clips, and metrics.

Legend: N samples, W windows, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.data.identity import identity
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Arrays, Files
from eqm_video.evaluation.protocol import Protocol
from eqm_video.metrics.nearest import NearestClips
from eqm_video.options import narrower, option, required
from eqm_video.output.outputs import PARTS
from eqm_video.output.tables import aligned, metric_rows
from eqm_video.sampling.clips import read_captions, read_npz
from eqm_video.sampling.option_groups import Columns, Cut, Judged, Kind, Seeded
from eqm_video.studies.compare import memorisation, report
from eqm_video.studies.compare.report import Samples
from eqm_video.studies.compare.windows import Search, Windows, look, real_searches, some_windows
from eqm_video.studies.evaluate import table as metrics_table
from eqm_video.studies.quality import open_evaluation
from eqm_video.studies.request import lists_of, split_of
from eqm_video.studies.study import Report, Study


@dataclass(frozen=True, kw_only=True)
class Compare(Study, Judged, Kind, Cut, Seeded, Columns, group="look"):
    """Samples against data: nearest clips, and metrics.

    There are two measures, for small sets, each beside the same measure between real clips:

    * The training clip nearest to each sample, by root mean squared pixel difference (RMS, of 0 to 255). A copy of a
      training clip has an RMS near 0. The scale is the RMS of a real clip to the nearest clip of another file. A small
      RMS alone proves no copy (a still, dark or blurred sample is near to everything): look at the pairs in
      nearest.gif. Fast motion makes windows two source frames apart as different as two people, so --stride above 1
      misses copies. Windows are not mirrored. A sample counts as memorised if that RMS is below a third of the RMS to
      the nearest clip of any other file. Held-out clips, which no model made, show how often this criterion is wrong.
      See memorisation.png.
    * The --metrics of `evaluate` (MMD by default), of all samples against the data's windows without overlap, with 95 %
      intervals. Their floor is the same metric between two halves of the data, split by group (UCF names,
      v_Class_gXX_cYY), or else by file. For a number under a stated protocol type `eqm-video evaluate`.

    `data.split=null` means --split all, and `data.frame_interval=3` means --frame-interval 3.
    """

    sections: ClassVar[tuple[str, ...]] = ("data",)

    samples: Path = option(positional=True, metavar="SAMPLES", help="a folder that `eqm-video sample` wrote")
    data: Path = required()
    split: str | None = narrower(None, unset="train, or all if there are no lists")
    frame_interval: int | None = narrower(None, unset="from the fps of data and samples")
    stride: int = option(1, least=1, metavar="S", help="take a window every S source frames")
    columns: int | None = narrower(None, unset="about as wide as high")
    out: Path | None = narrower(None, unset="SAMPLES/compare")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables by name: nearest, memorised, metrics."""
        return {**report.tables(numbers), "metrics": aligned(metric_rows(numbers))}

    @property
    def folder(self) -> Path:
        """--out, or SAMPLES/compare."""
        return self.out or self.samples / "compare"

    def run(self) -> Report:
        """Find the nearest windows of every sample, and measure all of them."""
        samples = read_samples(self.samples)
        split = split_of(self.split, self.data, "train")
        windows = Windows(self.open_set(samples, split), self.stride)
        print(windows.data.report.summary())
        evaluated = self.evaluate(samples, windows)
        searches = self.searches(samples, windows, split)
        look(windows, searches.values())
        nearest = {name: search.nearest for name, search in searches.items()}
        numbers = {
            "samples": {"folder": str(self.samples), "count": len(samples.pixels), "fps": samples.fps},
            "clips": dict(zip(("frames", "height", "width"), samples.shape, strict=True)),
            "data": self.describe(windows, split),
            "nearest": report.summarise_nearest(nearest),
            "memorisation": memorisation.summarise(nearest),
            "halved by": "group" if windows.grouped else "file",
            **evaluated,
        }
        rows = report.nearest_rows(samples, windows, nearest["samples"])
        scale = {name: value for name, value in numbers["nearest"].items() if name != "samples"}
        pictures = {
            "memorisation.png": partial(memorisation.draw, nearest, numbers["memorisation"]),
            "nearest.png" if samples.shape[0] == 1 else "nearest.gif": partial(
                report.draw_pairs, samples, nearest["samples"], rows, self.columns
            ),
        }
        return Report(
            numbers,
            f"{report.table(numbers)}{metrics_table(numbers)}",
            pictures,
            {"nearest.json": {**scale, "samples": rows}},
        )

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

    def evaluate(self, samples: Samples, windows: Windows) -> dict[str, Any]:
        """The record of the metrics, of the samples against windows without overlap; see `Evaluation.run`."""
        data = windows.data
        protocol = Protocol(window="every", order="sorted", frames=data.frames, size=tuple(data.size))
        about = {"folder": str(self.data), "identity": identity(data)["total"]}
        real = Files(data, data.windows(), about)
        numbers = windows.of_files.tolist()
        real.sources = [numbers[index] for index, _ in real.windows]
        evaluation = open_evaluation(self, protocol, torch.device("cpu"), seed=self.seed)
        record = evaluation.run(Arrays(samples.pixels.numpy(), samples.labels, samples.fps), real)
        return {key: record[key] for key in ("protocol", "protocol_hash", "feature", "metrics")}

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
    pixels, _ = read_npz(npz, "sample again with --overwrite")
    return Samples(torch.from_numpy(pixels), *read_captions(record, len(pixels)))
