"""Words of the command line read into values: sizes, splits, terms, recipes. The module needs no torch, to be quick."""

from __future__ import annotations

import re
from pathlib import Path

from eqm_video.errors import UserError

SHIPPED = "demo"  # the name of the model that ships with the package; a folder of that name comes first


def read_size(text: str) -> tuple[int, int]:
    """(height, width) of a text: pixels, or HEIGHTxWIDTH. ValueError for any other text."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]), int(match[2] or match[1])


def read_split(text: str) -> str:
    """The name of a split; null and none, which a recipe's data.split may be, become "all"."""
    return "all" if text in ("null", "none") else text


def read_term(text: str) -> tuple[str, float]:
    """(label, weight) of LABEL:WEIGHT; without :WEIGHT the weight is 1. ValueError for a weight that is no number."""
    label, colon, weight = text.rpartition(":")
    return (label, _finite(weight)) if colon else (text, 1.0)


def read_fixed(text: str) -> tuple[int, float]:
    """(steps, step size) of STEPS:STEP_SIZE; ValueError for any other text, and for numbers that are not positive."""
    steps, _, size = text.partition(":")
    if not re.fullmatch(r"0*[1-9]\d{0,8}", steps) or not 0 < float(size) <= 1e9:
        raise ValueError(text)
    return int(steps), float(size)


def split_recipe(config: str | None, words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """(recipe, changes): the recipe is that of --config, or the first word if it is no section.key=value."""
    if config is None and words and "=" not in words[0]:
        return words[0], words[1:]
    return config, words


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= 1e9:
        raise ValueError(text)
    return value


def check_model(path: str | Path) -> None:
    """UserError unless a path is a folder, `SHIPPED`, or may be a hub id OWNER/NAME."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and str(path) != SHIPPED and (folder.exists() or str(path).count("/") != 1):
        raise UserError(
            f"{path} is not a folder; give the folder of an export or a training run, a hub id OWNER/NAME, or "
            f"{SHIPPED}, the model that ships with the package"
        )
