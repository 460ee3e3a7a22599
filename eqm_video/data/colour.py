"""Decoded video frames as 8-bit RGB: high dynamic range is tone-mapped, transparency is put on a white ground.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67) are converted to light, scaled so that diffuse white (203 cd/m², ITU-R
BT.2408) is 1, converted from the primaries of BT.2020 to those of BT.709, and encoded as sRGB. Light up to KNEE stays
as it is; brighter light is compressed towards 1, so that highlights keep their gradations.

Legend: H W height and width in pixels, before the rotation in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from eqm_video.data.containers import MOST_PIXELS, VideoDecodeError

if TYPE_CHECKING:
    import av

GROUND = 255  # the ground of transparent pictures: white
PQ, HLG = 16, 18  # transfer characteristics, numbered as in ITU-T H.273
BT709 = 1  # primaries
WHITE = 203.0  # cd/m² of diffuse white in both
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # cd/m² of the nominal display, and the gamma of its optical transfer
KNEE = 0.75  # share of white: brighter light is compressed, so that white becomes 244 of 255
BRIGHTEST = 10_000.0 / WHITE
TO_BT709 = np.array(  # linear BT.2020 to linear BT.709, ITU-R BT.2087
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """The pixels of a frame, uint8 RGB (H,W,3). VideoDecodeError for a frame of more than MOST_PIXELS pixels."""
    if frame.width * frame.height > MOST_PIXELS:
        raise VideoDecodeError(f"has a frame of {frame.height}x{frame.width} pixels, which is too large")
    if is_hdr(frame):
        return _tone_mapped(frame.to_ndarray(format="rgb48le"), int(frame.color_trc), int(frame.color_primaries))
    if has_alpha(frame):
        return over_ground(frame.to_ndarray(format="rgba"))
    return frame.to_ndarray(format="rgb24")


class ToRgb:
    """Frames of one file as 8-bit RGB, as `rgb` gives them. The tables of the conversion are made once, not each time.

    That takes 0.07 instead of 0.16 ms a frame of 320 x 240.
    """

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()
        self._convert: Callable[..., av.VideoFrame] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The pixels of a frame, uint8 RGB (H,W,3). VideoDecodeError for one of more than MOST_PIXELS pixels."""
        from av.video.reformatter import VideoReformatter

        if frame.width * frame.height > MOST_PIXELS or is_hdr(frame) or has_alpha(frame):
            return rgb(frame)
        # Tables of another colour space must not be used again: swscale looks at sizes and formats alone.
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if kind != self._kind:
            self._kind, self._convert = kind, VideoReformatter().reformat
        return self._convert(frame, format="rgb24").to_ndarray()


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether a frame's transfer characteristic is PQ or HLG."""
    return int(frame.color_trc) in (PQ, HLG)


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether a frame's format has an alpha channel or a palette, which may have transparency."""
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether any pixel of a frame is transparent."""
    return has_alpha(frame) and bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def over_ground(pixels: np.ndarray) -> np.ndarray:
    """Straight alpha over GROUND: uint8 (H,W,4) → (H,W,3); opaque pixels stay as they are."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + GROUND * (255 - alpha)
    return ((mixed + np.uint16(127)) // 255).astype(np.uint8)


def _tone_mapped(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """A 16-bit PQ or HLG frame (H,W,3) as 8-bit sRGB."""
    light = _light(transfer)[signal]
    if transfer == HLG:  # the display's gamma acts on brightness, not on each colour
        light *= (HLG_PEAK / WHITE) * (light @ LUMA)[..., None] ** (HLG_GAMMA - 1)
    if primaries != BT709:
        light = light @ TO_BT709.T
    return _screen()[np.sqrt(np.clip(light / BRIGHTEST, 0, 1) * 65535.0**2).astype(np.uint16)]


@cache
def _light(transfer: int) -> np.ndarray:
    """Linear light (65536,) of every 16-bit value: for PQ in units of WHITE, for HLG the scene's, 0 to 1."""
    value = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = value ** (1 / m2)
        return (BRIGHTEST * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12).astype(np.float32)


@cache
def _screen() -> np.ndarray:
    """8-bit sRGB (65536,) of light, indexed by the root of its share of BRIGHTEST, for fine enough dark steps."""
    light = (np.arange(65536) / 65535) ** 2 * BRIGHTEST
    light = np.where(light <= KNEE, light, 1 - (1 - KNEE) * np.exp(-(light - KNEE) / (1 - KNEE)))
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * coded).astype(np.uint8)
