"""Summands of a composition, read from words of the command line. This module does without torch, to be quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

WRITE_DATA = "--write-data"  # as the first word: nothing is composed, the data for it are written


@dataclass(frozen=True)
class Term:
    """A summand: a label (None: unlabelled) of model number `model` (0 is MODEL), and its weight."""

    label: str | None
    weight: float
    model: int = 0

    @property
    def name(self) -> str:
        """The label as shown, with the number of its model unless that is MODEL."""
        label = "unlabelled" if self.label is None else self.label
        return f"{self.model + 1}/{label}" if self.model else label

    def __str__(self) -> str:
        return f"{self.model + 1}/{'none' if self.label is None else self.label}:{self.weight!r}"


def read_term(text: str) -> Term:
    """The term of a text such as `Disc:2`, `2/DiscLeft:1` or `none:-1`; ValueError for any other form."""
    place, slash, rest = text.partition("/")
    if not slash or not place.isdecimal():  # a label may contain a slash
        place, rest = "1", text
    label, colon, weight = rest.rpartition(":")
    if not colon or not math.isfinite(float(weight)):
        raise ValueError(text)
    return Term(None if label == "none" else label, float(weight), int(place) - 1)
