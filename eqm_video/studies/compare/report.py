"""What a comparison of samples with data writes: a table, compare.json, nearest.json, and the pairs as a picture.

Legend: N samples, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from eqm_video.metrics.nearest import NearestClips
from eqm_video.output import media
from eqm_video.output.grids import PAPER
from eqm_video.studies.compare import memorisation as compare_memorisation
from eqm_video.studies.compare.windows import Windows
from eqm_video.system import files

SHOWN = 32  # pairs in the picture
SEAM, MARGIN = 1, 6  # white pixels within a pair, and after it


@dataclass(frozen=True)
class Samples:
    """What `sample_video.py` wrote: pixels (N,T,H,W,3), captions (None: unlabelled), frames per second."""

    pixels: Tensor
    labels: list[str | None]
    fps: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, H, W."""
        return tuple(self.pixels.shape[1:4])


def describe(windows: Windows, options: argparse.Namespace) -> dict[str, Any]:
    """What the samples were compared with."""
    data = windows.data
    return {
        "root": str(options.data),
        "split": options.split,
        "fold": options.fold,
        "files": len(data),
        "unreadable": len(data.report.unreadable),
        "windows": len(windows),
        "stride": options.stride,
        "frame_interval": data.frame_interval,
    }


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def summarise_nearest(searches: Mapping[str, NearestClips]) -> dict[str, Any]:
    """RMS of the samples, and of clips that no model made: held-out ones, and real ones to another file or group."""
    closest = float(searches["real clips to another file"].rms.min())
    return {
        "unit": "root mean squared difference of pixels 0 to 255",
        **{name: spread(one.rms.tolist()) for name, one in searches.items()},
        "samples nearer than any real clip": int((searches["samples"].rms < closest).sum()),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary for the screen."""
    clips, data, nearest, distance = (summary[key] for key in ("clips", "data", "nearest", "frechet"))
    count, (few, half) = summary["samples"]["count"], distance["clips"]
    spreads = {name: value for name, value in nearest.items() if isinstance(value, dict)}
    return "\n".join(
        [
            f"{count} samples and {data['windows']} windows: {clips['frames']} frames, frame interval "
            f"{data['frame_interval']}, {clips['height']}x{clips['width']} pixels",
            "",
            _row("RMS pixel difference (of 255) to the nearest training clip", "median", "min", "max"),
            *(_row(f"  {name} ({one['count']})", *_three(one)) for name, one in spreads.items()),
            f"  {nearest['samples nearer than any real clip']} of {count} samples are nearer to a training clip than "
            "any real clip is to one of another file",
            "",
            *compare_memorisation.table(summary["memorisation"]),
            "",
            _row(f"Fréchet distance of pixels in {distance['dimensions']} random dimensions", "median", "min", "max"),
            _row("  samples, and training clips", f"{distance['samples']:.1f}"),
            _row(f"  training clips, halved by {distance['halved by']}", *_three(distance["real clips"])),
            f"  each between {few} clips and {half}; {distance['real clips']['count']} ways to halve",
            "",
        ]
    )


def write(
    out: Path,
    samples: Samples,
    windows: Windows,
    nearest: NearestClips,
    summary: Mapping[str, Any],
    columns: int | None = None,
) -> None:
    """compare.json, nearest.json (a row for each sample) and nearest.gif, or nearest.png for images; says where."""
    rms, second, rows = nearest.rms.tolist(), nearest.second_rms.tolist(), []
    for index, (label, number) in enumerate(zip(samples.labels, nearest.indices.tolist(), strict=True)):
        name, start, named = windows.place(number)
        distances = {"rms": rms[index], "second_rms": second[index] if math.isfinite(second[index]) else None}
        rows.append(
            {"sample": index, "label": label, **distances, "name": name, "start": start, "nearest_label": named}
        )
    scale = {name: one for name, one in summary["nearest"].items() if name != "samples"}
    files.write_record(out / "nearest.json", {**scale, "samples": rows})
    files.write_record(out / "compare.json", summary)
    chosen = sorted(sorted(range(len(rows)), key=rms.__getitem__)[:SHOWN])
    pictures = pairs(samples.pixels[chosen].numpy(), nearest.clips[chosen].numpy())
    captions = [caption(rows[k]["label"], rows[k]["name"]) for k in chosen]
    columns = columns or math.ceil((len(pictures) / 2) ** 0.5)  # a pair is about twice as wide as high
    sheet = media.grid(pictures, captions, columns, scale=max(1, round(128 / samples.shape[2])))
    if len(sheet) == 1:
        picture = out / "nearest.png"
        media.write_png(picture, sheet[0])
    else:
        picture = out / "nearest.gif"
        media.write_gif(picture, sheet, samples.fps)
    some = f" (of the {SHOWN} nearest samples)" if len(rows) > SHOWN else ""
    print(f"look at {picture}: sample, and training clip{some}; and at {out}/memorisation.png")
    print(f"numbers: {out}/compare.json, {out}/nearest.json")


def pairs(samples: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Samples and their nearest clips, both (N,T,H,W,3), side by side on white: (N,T,H,2·W + SEAM + MARGIN,3)."""
    shape, width = samples.shape, samples.shape[3]
    canvas = np.full((*shape[:3], 2 * width + SEAM + MARGIN, 3), PAPER, np.uint8)
    canvas[:, :, :, :width], canvas[:, :, :, width + SEAM : 2 * width + SEAM] = samples, clips
    return canvas


def caption(label: str | None, name: str) -> str:
    """Sample's label | file, UCF's names without what is said twice: (Run, Run/v_Run_g01_c01.avi) -> Run | g01_c01."""
    stem = PurePosixPath(name).stem.removeprefix("v_")
    return f"{label or 'sample'} | {stem.removeprefix(f'{label}_')}"


def _three(one: Mapping[str, float]) -> list[str]:
    return [f"{one[key]:.1f}" for key in ("median", "min", "max")]


def _row(text: str, *values: str) -> str:
    return f"{text:60}" + "".join(f"{value:>10}" for value in values)
