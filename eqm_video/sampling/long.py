"""Long videos of `eqm-video sample`: `--length`, `--overlap`, and the measure of drift.

A long video is made in windows; each knows the last frames of the window before. The gradient vanishes at data, so its
RMS on a window's known frames measures how far they have drifted.
The motion meter is the RMS change of latents from frame to frame: strong history guidance can freeze a video.
N samples, T frames of a window, W windows.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.sampling.rollout import Window, window_starts

OVERLAP = 4  # known frames of a window by default; short windows know half of theirs


@dataclass(frozen=True)
class Long:
    """A video of `length` frames in windows of `frames` frames.

    The first `overlap` of a window are the end of the last.
    """

    length: int
    overlap: int
    frames: int

    @classmethod
    def of(cls, options: argparse.Namespace, frames: int) -> Long | None:
        """The long video that --length and --overlap ask for; None without them. UserError for impossible lengths."""
        if options.length is None:
            if options.overlap is not None:
                raise UserError("--overlap belongs to the windows of a long video: add --length FRAMES")
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
        """The number of windows."""
        return len(window_starts(self.length, self.frames, self.overlap))

    def settings(self) -> dict[str, Any]:
        """The entries of samples.json that describe the video."""
        return {"length": self.length, "overlap": self.overlap}


def measure(window: Window) -> np.ndarray:
    """RMS of the gradient on the known and on the new frames of a window, and its motion: (B, 3), NaN without them."""
    known = window.known.cpu().numpy()
    rms = window.rms.double().numpy()
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        context, new = (rms * known).sum(axis=1) / count, (rms * ~known).sum(axis=1) / (~known).sum(axis=1)
    return np.stack([context, new, window.motion.double().numpy()], axis=1)


def report_window(window: Window, meter: np.ndarray) -> str:
    """A line about a window: its new frames, and the batch's mean of `measure` (B, 3)."""
    last = window.start + window.frames.shape[1] - 1
    context, new, motion = (f"{value:.3f}" if math.isfinite(value) else "-" for value in meter.mean(axis=0))
    gradient = f"gradient RMS of context {context}, of new {new}"
    return f"window {window.index}, frames {window.start}-{last}: {gradient}, motion {motion}"


def summarise(meters: np.ndarray, long: Long) -> list[dict[str, Any]]:
    """Means of `meters` (N, W, 3) over the samples, a row for each window, as samples.json keeps them; None for NaN."""
    rows, starts = [], window_starts(long.length, long.frames, long.overlap)
    for index, (start, row) in enumerate(zip(starts, meters.mean(axis=0).tolist(), strict=True)):
        values = (value if math.isfinite(value) else None for value in row)
        measured = dict(zip(("context_rms", "new_rms", "motion"), values, strict=True))
        first_new = start + (long.overlap if index else 0)
        rows.append({"window": index, "first_frame": start, "first_new_frame": first_new, **measured})
    return rows
