"""Small videos and pictures, written and read back by libraries."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write(
    path: Path,
    picture: np.ndarray,
    source: str = "rgb24",
    frames: int = 6,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    set_up: Callable[[av.VideoStream], None] = lambda stream: None,
    **options: str,
) -> Path:
    """A video that shows one picture (H,W,C) all the time, without loss where the codec can."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pixels
        set_up(stream)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def disc(height: int, width: int) -> np.ndarray:
    """A white ellipse that fills the middle of a black picture."""
    y, x = np.mgrid[:height, :width]
    inside = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2 < 0.2**2
    return np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def extent(picture: np.ndarray) -> tuple[int, int]:
    """Height and width of the bright part of a picture (H,W,3)."""
    bright = picture.mean(axis=-1) > 128
    return int(bright.any(axis=1).sum()), int(bright.any(axis=0).sum())
