"""Shapes of clips: how many frames, how far apart, how often; and sets that give clips of several shapes.

A shape is written FRAMESxINTERVAL, with :WEIGHT where it is to come more or less often than others: `16x3`, `32x1:0.5`.
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
    """Clips of `frames` frames, every `frame_interval`-th of the source; `weight`: how often, beside others."""

    frames: int
    frame_interval: int
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The shape that "16x3" or "16x3:0.5" means; ValueError for other text."""
        found = _SHAPE.fullmatch(text.strip())
        try:
            weight = float(found[3] or 1) if found else math.nan
        except ValueError:
            weight = math.nan
        if found is None or not (0 < weight < math.inf) or 0 in (int(found[1]), int(found[2])):
            raise ValueError(
                f"{text!r} is no shape of a clip: write FRAMESxINTERVAL, such as 16x3 for 16 frames, every third of "
                "the video, and behind a colon how often beside others, such as 16x3:0.5"
            )
        return cls(int(found[1]), int(found[2]), weight)

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip, both counted: one more than the intervals."""
        return (self.frames - 1) * self.frame_interval + 1

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.frames}x{self.frame_interval}" + (f":{self.weight:g}" if self.weight != 1 else "")


class Views:
    """Sets as one: `views[(view, index, seed)]` is `sets[view][(index, seed)]`. The sets may share files."""

    def __init__(self, sets: Sequence[Any]) -> None:
        self.sets = list(sets)

    def __getitem__(self, request: tuple[int, int, int]) -> Any:
        """The clip that one of the sets gives."""
        view, index, seed = request
        return self.sets[view][(index, seed)]
