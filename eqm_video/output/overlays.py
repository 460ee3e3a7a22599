"""Drawing on clips: a bar of gamma below every frame, and a border around the known frames.

Arrays are uint8 and channels last: clips are (B, T, H, W, 3). Colour-blind readers can tell the colours apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PAPER = (255, 255, 255)
TRACK = (222, 222, 222)  # the rest of a bar, from gamma to 1
MOVING = (0, 114, 178)  # blue: still descending
RESTING = (230, 159, 0)  # orange: at rest; known frames are at rest from the start
REST = 0.99  # a frame with at least this gamma counts as at rest


def draw_gamma_bars(clips: NDArray[np.uint8], gammas: ArrayLike, rest: float = REST) -> NDArray[np.uint8]:
    """Clips (B, T, H, W, 3) with a bar below each frame, as long as its gamma (B, T): (B, T, H + bar, W, 3).

    A bar is blue while its frame moves and orange from gamma `rest` on. Gammas are clamped to [0, 1].
    Raises ValueError for other shapes, and for gammas that are NaN.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8:
        raise ValueError(f"clips must be (B, T, H, W, 3) uint8, got {clips.shape} {clips.dtype}")
    count, frames, height, width, _ = clips.shape
    values = np.asarray(gammas, dtype=np.float64)
    if values.shape != (count, frames):
        raise ValueError(f"gammas must be (B, T) = {(count, frames)}, got {values.shape}")
    if np.isnan(values).any():
        raise ValueError("gammas hold NaN")
    gap, thick = bar_height(height)
    strip = np.full((count, frames, gap + thick, width, 3), PAPER, np.uint8)
    inset = max(1, width // 64)  # so that the bars of neighbouring frames do not touch
    strip[..., gap:, inset : width - inset, :] = _bars(values, rest, thick, width - 2 * inset)
    return np.concatenate([clips, strip], axis=2)


def draw_known_borders(clips: NDArray[np.uint8], known: ArrayLike) -> NDArray[np.uint8]:
    """Clips (B, T, H, W, 3) in a border, orange where `known` (T,) or (B, T) is true: (B, T, H + 2b, W + 2b, 3).

    The border lies outside the picture and covers nothing. Other frames get a white border. Raises ValueError for other
    shapes.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8:
        raise ValueError(f"clips must be (B, T, H, W, 3) uint8, got {clips.shape} {clips.dtype}")
    count, frames, height, width, _ = clips.shape
    mask = np.asarray(known, dtype=bool)
    if mask.shape not in ((frames,), (count, frames)):
        raise ValueError(f"known must be (T,) = {(frames,)} or (B, T) = {(count, frames)}, got {mask.shape}")
    edge = border_width(height)
    framed = np.full((count, frames, height + 2 * edge, width + 2 * edge, 3), PAPER, np.uint8)
    framed[np.broadcast_to(mask, (count, frames))] = RESTING
    framed[:, :, edge : edge + height, edge : edge + width] = clips
    return framed


def border_width(height: int) -> int:
    """Thickness of a border in pixels, for frames of this height."""
    return max(1, round(height / 32))


def bar_height(height: int) -> tuple[int, int]:
    """(gap above the bar, thickness of the bar) in pixels, for frames of this height."""
    return max(1, round(height / 40)), max(3, round(height / 16))


def _bars(gammas: NDArray, rest: float, thick: int, length: int) -> NDArray[np.uint8]:
    """The bars (B, T, thick, length, 3).

    The end of a bar is blended into the track: it can grow by parts of a pixel.
    """
    column = np.arange(length)
    filled = np.clip(gammas.clip(0, 1)[..., None] * length - column, 0, 1)  # (B, T, length), share of each column
    colour = np.where((gammas >= rest)[..., None], np.array(RESTING, float), np.array(MOVING, float))  # (B, T, 3)
    colour = np.broadcast_to(colour[:, :, None, None], (*gammas.shape, thick, length, 3))
    share = filled[:, :, None, :, None]
    return np.rint(share * colour + (1 - share) * np.array(TRACK, float)).astype(np.uint8)
