"""Shapes of clips: frames, interval and weight; and sets with clips of several shapes.

A shape is written FRAMESxINTERVAL, or FRAMESxINTERVAL:WEIGHT to draw it more or less often: `16x3`, `32x1:0.5`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SHAPE = re.compile(r"(\d+)x(\d+)(?::([0-9.eE+-]+))?")


@dataclass(frozen=True)
class Bucket:
    """Clips of `frames` frames, every `frame_interval`-th of the source, drawn in proportion to `weight`."""

    frames: int
    frame_interval: int
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The shape of a text such as "16x3" or "16x3:0.5"; ValueError for other text."""
        match = _SHAPE.fullmatch(text.strip())
        try:
            weight = float(match[3] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if match is None or not (0 < weight < math.inf) or 0 in (int(match[1]), int(match[2])):
            raise ValueError(
                f"{text!r} is not a shape of a clip: write FRAMESxINTERVAL, such as 16x3 for 16 frames, every third of "
                "the video, and after a colon its weight among the shapes, such as 16x3:0.5"
            )
        return cls(int(match[1]), int(match[2]), weight)

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip, both counted."""
        return (self.frames - 1) * self.frame_interval + 1

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.frames}x{self.frame_interval}" + (f":{self.weight:g}" if self.weight != 1 else "")


class Views:
    """Several sets in one: `views[(view, index, seed)]` is `sets[view][(index, seed)]`. The sets may share files."""

    def __init__(self, sets: Sequence[Any]) -> None:
        self.sets = list(sets)

    def __getitem__(self, request: tuple[int, int, int]) -> Any:
        """The clip of request (view, index, seed)."""
        view, index, seed = request
        return self.sets[view][(index, seed)]
