"""The table of a comparison of samples with data, the nearest clips row by row, and the pairs as a picture.

Legend: N samples, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

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
from eqm_video.output.tables import aligned
from eqm_video.studies.compare import memorisation as compare_memorisation
from eqm_video.studies.compare.windows import Windows

SHOWN = 32  # pairs in the picture
SEAM, MARGIN = 1, 6  # white pixels within a pair, and after it


@dataclass(frozen=True)
class Samples:
    """Samples written by `eqm-video sample`: pixels (N,T,H,W,3), captions (None: unlabelled), frames per second."""

    pixels: Tensor
    labels: list[str | None]
    fps: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) of the samples."""
        return tuple(self.pixels.shape[1:4])


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, extremes and count of some values, for a record."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def summarise_nearest(searches: Mapping[str, NearestClips]) -> dict[str, Any]:
    """RMS to the nearest training clip: of samples, of held-out clips, of training clips to another file or group."""
    closest = float(searches["real clips to another file"].rms.min())
    return {
        "unit": "root mean squared difference of pixels 0 to 255",
        **{name: spread(search.rms.tolist()) for name, search in searches.items()},
        "samples nearer than any real clip": int((searches["samples"].rms < closest).sum()),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary as text for the screen."""
    clips, data, nearest = (summary[key] for key in ("clips", "data", "nearest"))
    count = summary["samples"]["count"]
    spreads = {name: value for name, value in nearest.items() if isinstance(value, dict)}
    return "\n".join(
        [
            f"{count} samples and {data['windows']} windows: {clips['frames']} frames, frame interval "
            f"{data['frame_interval']}, {clips['height']}x{clips['width']} pixels",
            "",
            _row("RMS pixel difference (of 255) to the nearest training clip", "median", "min", "max"),
            *(_row(f"  {name} ({values['count']})", *_three(values)) for name, values in spreads.items()),
            f"  {nearest['samples nearer than any real clip']} of {count} samples are nearer to a training clip than "
            "any real clip is to one of another file",
            "",
            *compare_memorisation.table(summary["memorisation"]),
            "",
            *([] if count <= SHOWN else [f"the picture shows the {SHOWN} nearest samples", ""]),
            f"metrics against windows without overlap; floors: halves of the data by {summary['halved by']}",
            "",
        ]
    )


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """The distances to the nearest training clips, and the copies among them, as tables for documents."""
    spreads = {name: value for name, value in summary["nearest"].items() if isinstance(value, dict)}
    copies = {name: value for name, value in summary["memorisation"].items() if isinstance(value, dict)}
    nearest = [["RMS pixel difference (of 255) to the nearest training clip", "n", "median", "min", "max"]]
    nearest += [[name, str(value["count"]), *_three(value)] for name, value in spreads.items()]
    memorised = [["nearer to one training clip than a third of the way to the next file's", "clips", "n"]]
    memorised += [[name, str(value["memorised"]), str(value["count"])] for name, value in copies.items()]
    return {"nearest": aligned(nearest), "memorised": aligned(memorised)}


def nearest_rows(samples: Samples, windows: Windows, nearest: NearestClips) -> list[dict[str, Any]]:
    """A row for each sample: its label, its nearest window with its label, and the distances (RMS)."""
    rms, second, rows = nearest.rms.tolist(), nearest.second_rms.tolist(), []
    for index, (label, number) in enumerate(zip(samples.labels, nearest.indices.tolist(), strict=True)):
        name, start, named = windows.place(number)
        distances = {"rms": rms[index], "second_rms": second[index] if math.isfinite(second[index]) else None}
        rows.append(
            {"sample": index, "label": label, **distances, "name": name, "start": start, "nearest_label": named}
        )
    return rows


def draw_pairs(
    samples: Samples, nearest: NearestClips, rows: Sequence[Mapping[str, Any]], columns: int | None, path: Path
) -> None:
    """Draw a GIF (a PNG of images): the `SHOWN` samples nearest to a training clip, each beside that clip."""
    chosen = sorted(sorted(range(len(rows)), key=lambda k: rows[k]["rms"])[:SHOWN])
    pictures = pairs(samples.pixels[chosen].numpy(), nearest.clips[chosen].numpy())
    captions = [caption(rows[k]["label"], rows[k]["name"]) for k in chosen]
    columns = columns or math.ceil((len(pictures) / 2) ** 0.5)  # a pair is about twice as wide as high
    sheet = media.grid(pictures, captions, columns, scale=max(1, round(128 / samples.shape[2])))
    media.write(path, sheet, samples.fps)


def pairs(samples: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Samples and their nearest clips, both (N,T,H,W,3), side by side on white: (N,T,H,2·W + SEAM + MARGIN,3)."""
    shape, width = samples.shape, samples.shape[3]
    canvas = np.full((*shape[:3], 2 * width + SEAM + MARGIN, 3), PAPER, np.uint8)
    canvas[:, :, :, :width], canvas[:, :, :, width + SEAM : 2 * width + SEAM] = samples, clips
    return canvas


def caption(label: str | None, name: str) -> str:
    """The caption of a pair, label | file, the label once: (Run, Run/v_Run_g01_c01.avi) -> Run | g01_c01."""
    stem = PurePosixPath(name).stem.removeprefix("v_")
    return f"{label or 'sample'} | {stem.removeprefix(f'{label}_')}"


def _three(values: Mapping[str, float]) -> list[str]:
    return [f"{values[key]:.1f}" for key in ("median", "min", "max")]


def _row(text: str, *values: str) -> str:
    return f"{text:60}" + "".join(f"{value:>10}" for value in values)
