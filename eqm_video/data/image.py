"""Photographs: what a header says, and the pixels, 8 bits RGB.

Training reads orientation marks (EXIF) only where it is asked to (`upright`), as DiT and SiT do not; a picture that
somebody starts from is always set upright. Transparency is put on GROUND, white. Grey of 16 bits keeps its range.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from eqm_video.data.colour import over_ground
from eqm_video.data.containers import VideoDecodeError

# What Pillow raises on bad files.
ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
# By content, whatever the file is called: no format that starts another program (EPS) or holds no pixels (WMF).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
MOST_PIXELS = 2**27  # 11585 x 11585; the largest sensors of phones have 108 million in one picture
LARGE = 2**24  # pixels from which on only one picture is decoded at a time: threads would add up their memory
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # what sets a picture upright, by the tag's value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large = threading.Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS is the limit here


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says, in pixels, as the picture is stored; 0 where it was not opened."""

    height: int = 0
    width: int = 0
    notes: tuple[str, ...] = ()  # what is unusual about its pixels, in a word or two each, such as "transparency"

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # JSON, where infos are remembered, makes a list of it


def probe_image(path: Path) -> ImageInfo:
    """Open an image's header. VideoDecodeError where it is not an image, or too large."""
    probe_size(path)
    with _errors(path, "cannot be read as an image"), _open(path) as image:
        return ImageInfo(image.height, image.width, _notes(image))


def decode_image(path: Path) -> ImageInfo:
    """`probe_image`, and VideoDecodeError where the pixels do not decode, as in a file that was cut short."""
    info = probe_image(path)
    with _errors(path, "cannot be decoded"), _open(path) as image, _turn(image):
        image.load()
        if image.mode in ("F", "I"):  # their values decide
            rgb(image)
        return ImageInfo(info.height, info.width, _notes(image, decoded=True))


def probe_size(path: Path) -> ImageInfo:
    """VideoDecodeError where a file is empty; it is not opened."""
    if path.stat().st_size == 0:
        raise VideoDecodeError(f"{path}: the file is empty (0 bytes)")
    return ImageInfo()


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """The pixels, uint8 RGB (H,W,3); `upright` turns them as the file's EXIF data ask for.

    VideoDecodeError where they cannot be decoded, are too many, or stand for no brightness that is known (floats).
    """
    with _errors(path, "cannot be decoded"), _open(path) as image, _turn(image):
        image.load()
        turn = UPRIGHT.get(_orientation(image, decoded=True)) if upright else None
        return rgb(image if turn is None else _turned(image, turn))


@contextmanager
def _errors(path: Path, what: str) -> Iterator[None]:
    """Errors of Pillow within become VideoDecodeError, which names the file."""
    try:
        yield
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: {error}") from error
    except ERRORS as error:
        raise VideoDecodeError(f"{path}: {what} ({error})") from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(path: Path) -> Image.Image:
    """The header of a file. VideoDecodeError where the picture has more than MOST_PIXELS."""
    too_large = f"more than the {MOST_PIXELS // 10**6} million pixels that are read; make it smaller"
    try:
        image = Image.open(path, formats=_formats())
    except Image.DecompressionBombError as error:
        raise VideoDecodeError(f"has far {too_large}") from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise VideoDecodeError(f"has {image.height}x{image.width} pixels, {too_large}")
    return image


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """Waits until no other large picture is being decoded, where this is one."""
    return _one_large if image.width * image.height >= LARGE else nullcontext()


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    turned = image.transpose(turn)
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _orientation(image: Image.Image, decoded: bool) -> int:
    """The value of the EXIF tag, 1 where there is none; of a PNG it may stand behind the pixels."""
    if image.format == "TIFF":  # Pillow itself sets these upright as it decodes them
        return 1
    if not decoded and image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except ERRORS:  # damaged EXIF data say nothing
        return 1
    return value if isinstance(value, int) else 1


def _notes(image: Image.Image, decoded: bool = False) -> tuple[str, ...]:
    """What is unusual; of a header alone, transparency where the format has room for it."""
    transparent = image.has_transparency_data
    if transparent and decoded:
        transparent = bool(_alpha_of(image) < 255)
    notes = {
        "transparency": transparent,
        "exif rotation": _orientation(image, decoded) in UPRIGHT,
        "16-bit grey": image.mode.startswith("I"),
    }
    return tuple(note for note, holds in notes.items() if holds)


def _alpha_of(image: Image.Image) -> float:
    """The least alpha of a decoded picture, 0 to 255."""
    if image.mode.startswith("I"):
        return 0 if bool((np.asarray(image) == image.info.get("transparency")).any()) else 255
    return _rgba(image).getchannel("A").getextrema()[0]


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def rgb(image: Image.Image) -> np.ndarray:
    """A decoded picture of any mode as uint8 RGB (H,W,3).

    VideoDecodeError for floats and for grey values beyond 16 bits, whose range is not known.
    """
    if image.mode == "F":
        raise VideoDecodeError("holds floating-point values, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise VideoDecodeError("holds grey values beyond 16 bits, whose range is not known; save it with 16 bits")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        grey = np.where(values == image.info.get("transparency", -1), np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_ground(np.asarray(_rgba(image)))
    return np.asarray(image.convert("RGB"))
