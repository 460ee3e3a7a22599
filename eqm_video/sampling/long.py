"""Videos longer than a model's clips: windows that slide, of which each knows the last frames of the one before.

The RMS of the gradient on a window's known frames tells how far they are from data, where it is 0: the meter of drift.
N samples, T frames of a window, W windows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.sampling.rollout import Window, window_starts

OVERLAP = 4  # frames that a window knows by default, unless windows are short


@dataclass(frozen=True)
class Long:
    """A video of `length` frames in windows of `frames`, `overlap` of which are known from the window before."""

    length: int
    overlap: int
    frames: int

    @classmethod
    def of(cls, options: argparse.Namespace, frames: int) -> Long | None:
        """What --length and --overlap say; None without them."""
        if options.length is None:
            if options.overlap is not None:
                raise UserError("--overlap is of the windows of a long video: add --length FRAMES")
            return None
        if frames < 2:
            raise UserError("--length makes videos, but frames=1 are images: give --frames, or leave --length out")
        if options.length <= frames:
            raise UserError(
                f"--length {options.length} is no longer than one window of {frames} frames: leave --length out and "
                f"give --frames {options.length}, or give a larger --length"
            )
        overlap = options.overlap or min(OVERLAP, frames // 2)
        window_starts(options.length, frames, overlap)
        return cls(options.length, overlap, frames)

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(window_starts(self.length, self.frames, self.overlap))

    def settings(self) -> dict[str, Any]:
        """For samples.json."""
        return {"length": self.length, "overlap": self.overlap}


def measure(window: Window) -> np.ndarray:
    """RMS of the gradient on the known and on the new frames of a window: (B, 2), NaN where there are none."""
    known = window.known.cpu().numpy()
    rms = window.rms.double().numpy()
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(rms * known).sum(axis=1) / count, (rms * ~known).sum(axis=1) / (~known).sum(axis=1)], axis=1)


def report_window(window: Window, meter: np.ndarray) -> str:
    """One line: which frames are new, and the batch's mean of `measure` (B, 2)."""
    last = window.start + window.frames.shape[1] - 1
    context, new = (f"{value:.3f}" if math.isfinite(value) else "-" for value in meter.mean(axis=0))
    return f"window {window.index}, frames {window.start}-{last}: gradient RMS of context {context}, of new {new}"


def summarise(meters: np.ndarray, long: Long) -> list[dict[str, Any]]:
    """For samples.json: of every window the means over the samples of (N, W, 2), None where no frame is known."""
    return list(_rows(meters.mean(axis=0), long))


def _rows(means: np.ndarray, long: Long) -> Iterator[dict[str, Any]]:
    for index, (start, pair) in enumerate(
        zip(window_starts(long.length, long.frames, long.overlap), means, strict=True)
    ):
        context, new = (float(value) if math.isfinite(value) else None for value in pair)
        yield {
            "window": index,
            "first_frame": start,
            "first_new_frame": start + (long.overlap if index else 0),
            "context_rms": context,
            "new_rms": new,
        }
