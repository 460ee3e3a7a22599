"""Decoded video frames as 8-bit RGB: high dynamic range brought down to a screen's, transparency put on a ground.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67) are turned into light, scaled so that diffuse white (203 cd/m², ITU-R BT.2408)
is 1, brought from the primaries of BT.2020 to those of BT.709, and encoded as sRGB. Light up to KNEE stays as it is;
what is brighter bends towards 1, so that highlights keep their gradations.

Legend: H W height and width in pixels, before the rotation that a file asks for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from eqm_video.data.containers import MOST_PIXELS, VideoDecodeError

if TYPE_CHECKING:
    import av

GROUND = 255  # what shows through where a picture is transparent: white
PQ, HLG = 16, 18  # transfer characteristics, as ITU-T H.273 numbers them
BT709 = 1  # primaries
WHITE = 203.0  # cd/m² of diffuse white in both
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # cd/m² of the nominal display, and the gamma of its optical transfer
KNEE = 0.75  # of white: light above it is compressed, so that white itself becomes 244 of 255
BRIGHTEST = 10_000.0 / WHITE
TO_BT709 = np.array(  # linear BT.2020 to linear BT.709, ITU-R BT.2087
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """The pixels of a frame, uint8 RGB (H,W,3). VideoDecodeError where there are more than MOST_PIXELS."""
    if frame.width * frame.height > MOST_PIXELS:
        raise VideoDecodeError(f"has a frame of {frame.height}x{frame.width} pixels, which is too large")
    if is_hdr(frame):
        return _tone_mapped(frame.to_ndarray(format="rgb48le"), int(frame.color_trc), int(frame.color_primaries))
    if has_alpha(frame):
        return over_ground(frame.to_ndarray(format="rgba"))
    return frame.to_ndarray(format="rgb24")


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether a frame's values stand for light as PQ or HLG say."""
    return int(frame.color_trc) in (PQ, HLG)


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether a frame's format has room for transparency."""
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether a part of a frame is transparent."""
    return has_alpha(frame) and bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def over_ground(pixels: np.ndarray) -> np.ndarray:
    """Straight alpha over GROUND: uint8 (H,W,4) → (H,W,3); what is opaque stays as it is."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + GROUND * (255 - alpha)
    return ((mixed + np.uint16(127)) // 255).astype(np.uint8)


def _tone_mapped(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """16-bit PQ or HLG (H,W,3) as 8-bit sRGB."""
    light = _light(transfer)[signal]
    if transfer == HLG:  # the display's gamma acts on brightness, not on each colour
        light *= (HLG_PEAK / WHITE) * (light @ LUMA)[..., None] ** (HLG_GAMMA - 1)
    if primaries != BT709:
        light = light @ TO_BT709.T
    return _screen()[np.sqrt(np.clip(light / BRIGHTEST, 0, 1) * 65535.0**2).astype(np.uint16)]


@cache
def _light(transfer: int) -> np.ndarray:
    """Linear light (65536,) of every 16-bit value: of PQ in units of WHITE, of HLG the scene's, 0 to 1."""
    value = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = value ** (1 / m2)
        return (BRIGHTEST * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12).astype(np.float32)


@cache
def _screen() -> np.ndarray:
    """8-bit sRGB (65536,) of light, by the root of its share of BRIGHTEST: dark steps are then fine enough."""
    light = (np.arange(65536) / 65535) ** 2 * BRIGHTEST
    light = np.where(light <= KNEE, light, 1 - (1 - KNEE) * np.exp(-(light - KNEE) / (1 - KNEE)))
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * coded).astype(np.uint8)
