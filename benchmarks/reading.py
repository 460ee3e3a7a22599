"""Reading clips of video files: CPU milliseconds a clip with each reader, at several intervals, and how alike they are.

    python benchmarks/reading.py video.avi video.mp4

The readers take turns, and each clip's time is the least of `--repeats`. `before` is PyAV with a conversion to RGB that
makes its tables anew for each frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import measuring
import numpy as np
import torch

from eqm_video.data import colour, packets, video

FRAMES = 16


def row_of(path: Path, interval: int, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a file at an interval between the frames of a clip."""
    info = video.probe(path)
    forced, table = replace(info, backend="decord"), packets.TABLES.of(path)
    span = FRAMES * interval
    starts = np.linspace(0, info.frames - span, options.clips).astype(int) if info.frames >= span else ()
    ways: dict[str, Callable[[Any], np.ndarray]] = {
        "decord": lambda rows: video.read_frames(path, rows, "decord", info=forced)[0],
        "pyav": lambda rows: video.read_frames(path, rows, "pyav")[0],
    }

    def old(rows: Any) -> np.ndarray:
        with mock.patch.object(packets, "ToRgb", lambda: colour.rgb):
            return ways["pyav"](rows)

    spent: dict[str, list[float]] = {name: [] for name in (*ways, "before")}
    gaps = []
    for start in starts:
        rows = range(start, start + span, interval)
        least = dict.fromkeys(spent, float("inf"))
        for _ in range(options.repeats):
            for name, way in (*ways.items(), ("before", old)):
                began = time.process_time()
                way(rows)
                least[name] = min(least[name], time.process_time() - began)
        for name, seconds in least.items():
            spent[name].append(1000 * seconds)
        gaps.append(np.abs(ways["decord"](rows).astype(np.int16) - ways["pyav"](rows)))
    row = {"file": path.name, "frames": info.frames, "height": info.height, "width": info.width, "group": table.group}
    row |= {"chosen": info.backend, "interval": interval, "clips": len(starts)}
    if gaps:
        row |= {f"ms {name}": float(np.mean(values)) for name, values in spent.items()}
        row |= {"largest difference": int(np.max(gaps)), "share that differs": float(np.mean(np.array(gaps) > 0))}
    return row


def main() -> None:
    """Measure every file at every interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--intervals", default="1,3")
    parser.add_argument("--clips", type=int, default=8, help="clips of a file, spread over it (8)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    rows = [row_of(path, int(step), options) for path in options.files for step in options.intervals.split(",")]
    measuring.record("reading", [row for row in rows if row["clips"]], torch.device("cpu"), options.out)


if __name__ == "__main__":
    main()
