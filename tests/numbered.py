"""Tiny videos whose frames carry their own number as bars of brightness, so that a test can tell which frame it got."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def picture(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 (H,W,3): bar b, from the left, is bright where bit b of the number is set."""
    bits = (number >> np.arange(BITS)) & 1
    return np.broadcast_to(np.repeat(np.where(bits, 220, 30), width // BITS)[None, :, None], (height, width, 3))


def number(frame: np.ndarray) -> int:
    """The number in a frame (H,W,3), whatever its size and compression."""
    height, width = frame.shape[:2]
    middle = frame[height // 4 : -height // 4].astype(float).mean(axis=(0, 2))
    centres = (np.arange(BITS) + 0.5) * width / BITS
    return int(((middle[centres.astype(int)] > 125) << np.arange(BITS)).sum())


def numbers(frames: np.ndarray) -> list[int]:
    return [number(frame) for frame in frames]


def write_numbered(
    path: Path,
    frames: int = 60,
    *,
    fps: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    rotation: int = 0,
    b_frames: int | None = None,
    size: tuple[int, int] = (64, 96),
    container: str | None = None,
) -> Path:
    """Write frames 0, 1, 2, ...; `ticks` are their times in units of 1/fps, where they are not regular.

    `container` is FFmpeg's name of the format, where the file's ending does not say it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, fps)
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture(k, *size)).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = k if ticks is None else int(ticks[k]), Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path
