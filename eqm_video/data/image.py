"""Photographs: what a header says, and the pixels. Orientation marks (EXIF) are not applied, as in DiT and SiT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eqm_video.data.video import VideoDecodeError

ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says, in pixels; 0 where it was not opened."""

    height: int = 0
    width: int = 0
    notes: tuple[str, ...] = ()  # what is unusual about its pixels, in a word or two each, such as "transparency"

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # JSON, where infos are remembered, makes a list of it


def probe_image(path: Path) -> ImageInfo:
    """Open an image's header. VideoDecodeError where it is not an image."""
    probe_size(path)
    try:
        with Image.open(path) as image:
            return ImageInfo(image.height, image.width)
    except ERRORS as error:
        raise VideoDecodeError(f"{path}: cannot be read as an image ({error})") from error


def decode_image(path: Path) -> ImageInfo:
    """`probe_image`, and VideoDecodeError where the pixels do not decode, as in a file that was cut short."""
    info = probe_image(path)
    read_image(path)
    return info


def probe_size(path: Path) -> ImageInfo:
    """VideoDecodeError where a file is empty; it is not opened."""
    if path.stat().st_size == 0:
        raise VideoDecodeError(f"{path}: the file is empty (0 bytes)")
    return ImageInfo()


def read_image(path: Path) -> np.ndarray:
    """The pixels, uint8 RGB (H,W,3). VideoDecodeError where they cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except ERRORS as error:
        raise VideoDecodeError(f"{path}: cannot be decoded ({error})") from error
