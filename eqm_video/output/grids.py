"""Labelled clips side by side: a grid, one picture for each time.

Arrays are uint8 and channels last, as files want them: clips are (N, T, H, W, 3).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eqm_video.errors import UserError

PAPER, INK, GAP = 255, 0, 2  # background and text of a grid (grey levels), and the space between clips in pixels


class Grid(Sequence[np.ndarray]):
    """The pictures (H', W', 3) of a `grid`.

    Each is drawn on access, so that the grid of long clips need not fit in memory. `draw`, if any, changes the frames
    (N, H, W, 3) of time k before they are enlarged: draw(frames, k).
    """

    def __init__(
        self,
        clips: np.ndarray,
        labels: Sequence[str] | None = None,
        columns: int | None = None,
        scale: int = 1,
        draw: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ) -> None:
        self.clips = checked(clips, 5, "clips (N, T, H, W, 3)")
        if labels is not None and len(labels) != len(clips):
            raise ValueError(f"{len(clips)} clips but {len(labels)} labels; give one label for each clip")
        if scale < 1 or (columns is not None and columns < 1):
            raise UserError(f"grid scale is {scale} and columns {columns}; both must be at least 1")
        self.scale, self.draw = scale, draw or (lambda frames, _: frames)
        self.names = [str(label) for label in labels] if labels is not None else [""] * len(clips)
        self.rows = _rows(self.names, columns)
        self.labelled = labels is not None

    def __len__(self) -> int:
        return self.clips.shape[1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[time] for time in range(len(self))[index]]
        tiles = self.draw(self.clips[:, index], range(len(self))[index])
        height, width = tiles.shape[1] * self.scale, tiles.shape[2] * self.scale
        size = min(24, max(11, height // 9))  # of the text, in pixels
        band = size + 5 if self.labelled else 0
        cell_h, cell_w = band + height + GAP, width + GAP
        shape = (GAP + len(self.rows) * cell_h, GAP + max(map(len, self.rows)) * cell_w, 3)
        canvas = np.full(shape, PAPER, np.uint8)
        for top, row in zip(range(GAP, shape[0], cell_h), self.rows, strict=False):
            if band:
                strip = _captions(tuple(self.names[index] for index in row), cell_w, band, size)
                canvas[top : top + band, GAP : GAP + strip.shape[1]] = strip
            for left, index in zip(range(GAP, shape[1], cell_w), row, strict=False):
                tile = tiles[index].repeat(self.scale, axis=0).repeat(self.scale, axis=1)
                canvas[top + band : top + band + height, left : left + width] = tile
        return canvas


def _rows(names: Sequence[str], columns: int | None) -> list[list[int]]:
    """The numbers of the clips in each row of the grid."""
    groups = [[index for index, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]
    counts = [len(group) for group in groups]
    if columns is None and len(groups) > 1 and 2 <= max(counts) <= 16 and max(counts) - min(counts) <= 1:
        return groups
    columns = min(columns or math.ceil(math.sqrt(len(names))), len(names))
    order = [index for group in groups for index in group]
    return [order[start : start + columns] for start in range(0, len(order), columns)]


@functools.lru_cache(maxsize=64)  # every frame has the same captions
def _captions(names: tuple[str, ...], cell_w: int, band: int, size: int) -> np.ndarray:
    """The strip of text above a row of clips: (band, len(names) * cell_w, 3)."""
    strip = Image.new("RGB", (len(names) * cell_w, band), (PAPER,) * 3)
    pen, font = ImageDraw.Draw(strip), _font(size, "".join(names).isascii())
    start = 0
    while start < len(names):
        end = start + 1
        while end < len(names) and names[end] == names[start]:
            end += 1
        text, room = " ".join(names[start].split()), (end - start) * cell_w - 4  # a label may have line breaks
        if pen.textlength(text, font) > room:
            while text and pen.textlength(text + "…", font) > room:
                text = text[:-1]
            text += "…"
        pen.text((start * cell_w + 1, band - 3), text, (INK,) * 3, font, anchor="ls")
        start = end
    return np.asarray(strip)


def _font(size: int, ascii_only: bool) -> Any:
    """Pillow's font, which has ASCII letters alone; for others DejaVu Sans, which comes with matplotlib."""
    package = None if ascii_only else importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def checked(array: np.ndarray, dimensions: int, what: str) -> np.ndarray:
    """`array` itself; ValueError unless it is uint8 RGB of so many dimensions."""
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"expected {what} of uint8, got {array.dtype} {array.shape}")
    return array
