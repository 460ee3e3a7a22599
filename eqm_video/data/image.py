"""Photographs: their headers, and their pixels as 8-bit RGB.

Training applies the EXIF orientation only with `upright`, since DiT and SiT ignore it; a picture to start sampling from
is always set upright. Transparency is put on GROUND, white. Grey of 16 bits keeps its range.
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

# Errors of Pillow on bad files.
ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
# Formats by content, whatever the name: none that starts another program (EPS) or has no pixels (WMF).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
MOST_PIXELS = 2**27  # 11585 x 11585; the largest sensors of phones have 108 million
LARGE = 2**24  # pixels; larger pictures are decoded one at a time, so that the memory of threads does not add up
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose further pictures are frames; those of others are previews
ANIMATION = "animation, of which the first picture is read"
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # the turn that sets a picture upright, by the tag's value
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
    """The size of an image in pixels, as stored, from its header; 0 for a file that was not opened."""

    height: int = 0
    width: int = 0
    notes: tuple[str, ...] = ()  # unusual properties of its pixels, such as "transparency"

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # a list, if it comes from JSON


def probe_image(path: Path) -> ImageInfo:
    """The info of an image from its header. VideoDecodeError if it is not an image, or too large."""
    probe_size(path)
    with _errors(path, "cannot be read as an image"), _open(path) as image:
        return ImageInfo(image.height, image.width, _notes(image))


def decode_image(path: Path) -> ImageInfo:
    """The info of an image whose pixels decode; VideoDecodeError if they do not, as in a file that was cut short."""
    info = probe_image(path)
    with _errors(path, "cannot be decoded"), _open(path) as image, _turn(image):
        image.load()
        if image.mode in ("F", "I"):  # their values decide
            rgb(image)
        return ImageInfo(info.height, info.width, _notes(image, decoded=True))


def probe_size(path: Path) -> ImageInfo:
    """An empty info, without opening the file; VideoDecodeError if the file has 0 bytes."""
    if path.stat().st_size == 0:
        raise VideoDecodeError(f"{path}: the file is empty (0 bytes)")
    return ImageInfo()


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """The pixels of an image, uint8 RGB (H,W,3); `upright` applies the EXIF rotation.

    VideoDecodeError if they cannot be decoded, are too many, or have an unknown range (floats).
    """
    with _errors(path, "cannot be decoded"), _open(path) as image, _turn(image):
        image.load()
        turn = UPRIGHT.get(_orientation(image, decoded=True)) if upright else None
        return rgb(image if turn is None else _turned(image, turn))


@contextmanager
def _errors(path: Path, problem: str) -> Iterator[None]:
    """Turn errors of Pillow inside the block into a VideoDecodeError that names the file."""
    try:
        yield
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: {error}") from error
    except ERRORS as error:
        raise VideoDecodeError(f"{path}: {problem} ({error})") from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats in FORMATS that the installed Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(path: Path) -> Image.Image:
    """An opened image, its header read. VideoDecodeError if it has more than MOST_PIXELS pixels."""
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
    """A lock that lets large pictures be decoded one at a time; an empty context for others."""
    return _one_large if image.width * image.height >= LARGE else nullcontext()


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    turned = image.transpose(turn)
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _orientation(image: Image.Image, decoded: bool) -> int:
    """The value of the EXIF tag, 1 if there is none; in a PNG it may come after the pixels."""
    if image.format == "TIFF":  # Pillow itself sets TIFFs upright while it decodes them
        return 1
    if not decoded and image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except ERRORS:  # damaged EXIF data count as absent
        return 1
    return value if isinstance(value, int) else 1


def _notes(image: Image.Image, decoded: bool = False) -> tuple[str, ...]:
    """Unusual properties. Before decoding, a format with an alpha channel counts as transparent."""
    transparent = image.has_transparency_data
    if transparent and decoded:
        transparent = bool(_alpha_of(image) < 255)
    notes = {
        "transparency": transparent,
        "exif rotation": _orientation(image, decoded) in UPRIGHT,
        "16-bit grey": image.mode.startswith("I"),
        ANIMATION: image.format in ANIMATED and getattr(image, "is_animated", False),
    }
    return tuple(note for note, holds in notes.items() if holds)


def _alpha_of(image: Image.Image) -> float:
    """The smallest alpha of a decoded picture, 0 to 255."""
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
