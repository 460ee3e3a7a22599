"""The settings beside a model (`model_index.json` of exports, `pipeline.json` of checkpoints), checked by key."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from eqm_video.curvature import curvature_at
from eqm_video.errors import UserError, cut, short
from eqm_video.gamma import make_decay
from eqm_video.limits import HIGHEST_RATE, LARGEST_SIDE, MOST_FRAMES, MOST_LABELS, MOST_UPDATES
from eqm_video.samplers import SAMPLERS
from eqm_video.settings import sampler_settings


def check_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Raise UserError, naming file and key, for a value that no pipeline could work with; other keys are left alone."""
    for key, (fits, needed) in _KEYS.items():
        value = settings.get(key)
        if value is None:
            continue
        try:
            right, reason = fits(value), ""
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # of nested values
            right, reason = False, f" ({cut(str(error), 200)})"
        if not right:
            raise UserError(f"{file}: {key} is {short(value)}; it must be {needed}{reason}")


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_real(value: Any, least: float, most: float) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and least <= value <= most


def _is_rate(value: Any) -> bool:
    return _is_real(value, 0, HIGHEST_RATE) and value > 0


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(_is_whole(side, 1, LARGEST_SIDE) for side in sides)


def _is_names(value: Any) -> bool:
    names = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [None]
    counted = {int(key) for key in value} if isinstance(value, Mapping) else set(range(len(names)))
    whole = len(counted) == len(names) and all(0 <= number < MOST_LABELS for number in counted)
    return whole and all(isinstance(name, str | int | float) for name in names)


def _is_decay(value: Any) -> bool:
    return isinstance(value, Mapping) and make_decay(value) is not None


def _is_sampler(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("kind", ""), str):
        return False
    whole = sampler_settings(value)
    rule = SAMPLERS[whole["kind"]]
    rule(**{entry.name: whole[entry.name] for entry in fields(rule)})
    return _is_whole(whole["steps"], 1, MOST_UPDATES) and _is_real(whole["guidance_scale"], -1e9, 1e9)


def _is_curvature(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_real(curvature_at(value), -1e30, 1e30)


# key: (whether a value can be used, the values that can)
_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "frames": (lambda value: _is_whole(value, 1, MOST_FRAMES), f"a whole number from 1 to {MOST_FRAMES:,}"),
    "fps": (_is_rate, f"a number above 0 and at most {HIGHEST_RATE:,}"),
    "reference_fps": (_is_rate, f"a number above 0 and at most {HIGHEST_RATE:,}"),
    "size": (_is_size, f"pixels or [height, width], each a whole number from 1 to {LARGEST_SIDE:,}"),
    "id2label": (_is_names, "the names of the labels by number, such as {'0': 'cat'}"),
    "decay": (_is_decay, "a kind of decay with its numbers"),
    "sampler": (_is_sampler, "a kind of sampler with its numbers, steps and guidance_scale"),
    "curvature": (_is_curvature, "what `python -m eqm_video curvature MODEL --write` measures"),
    "codec": (lambda value: isinstance(value, str) and value != "", "a name, a folder or a hub id"),
}
