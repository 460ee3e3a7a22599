"""The settings of a model and the numbers of a call, checked one by one. Every failed check raises a UserError."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from eqm_video.analysis.curvature import curvature_at
from eqm_video.core.decay import make_decay
from eqm_video.core.objective import OBJECTIVES
from eqm_video.errors import UserError, cut, short
from eqm_video.limits import HIGHEST_RATE, LARGEST_SIDE, MOST_FRAMES, MOST_LABELS, MOST_UPDATES
from eqm_video.samplers import SAMPLERS

MOST = 10**6  # the largest number of samples, frames or steps of a call
# For models without settings of their own
SAMPLER = {"kind": "nag", "step_size": 0.003, "mu": 0.35, "steps": 250, "guidance_scale": 1.0}


def whole(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """`value` as an int from `least` to `most`; UserError, which calls it `name`, for anything else, bools too."""
    if not is_whole(value) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {least} and at most {most}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number (Python's or numpy's) and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def number(name: str, value: Any) -> float:
    """`value` as a finite float; UserError, which calls it `name`, for anything else, bools too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def rate(name: str, value: Any) -> float:
    """`value` as a finite float above 0, in frames per second; UserError, which calls it `name`, for anything else."""
    if not (fps := number(name, value)) > 0:
        raise UserError(f"{name} is {value!r}; it must be above 0, in frames per second")
    return fps


def label_names(labels: Any) -> dict[str, str]:
    """Names of labels by number, with text keys as in JSON, from a mapping, a list in the order of numbers, or None."""
    if labels is not None and not isinstance(labels, Mapping):
        labels = dict(enumerate(labels))
    names = {}
    for label, name in (labels or {}).items():
        if not str(label).isdecimal():
            raise UserError(f"id2label names the label {label!r}; its keys must be whole numbers from 0 on")
        names[str(int(label))] = str(name)
    return names


def decay_settings(decay: Any) -> dict[str, Any] | None:
    """A decay's settings as a dict; UserError where no decay can be made of them."""
    if decay is None:
        return None
    try:
        settings = dict(decay)
        make_decay(settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"decay is {decay!r}; it must be a kind of decay with its numbers ({error})") from error
    return settings


def curvature_settings(curvature: Any) -> dict[str, Any] | None:
    """A measured curvature as a dict; UserError where it lacks a number that automatic step sizes need."""
    if curvature is None:
        return None
    pairs = curvature.get("by_guidance", ()) if isinstance(curvature, Mapping) else None
    listed = isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )
    if not listed:
        raise UserError(f"curvature is {curvature!r}; it must be a measurement: type eqm-video curvature MODEL --write")
    own = (curvature.get("largest"), curvature.get("guidance_scale"))
    for value in (*own, *(value for pair in pairs for value in pair)):
        number("a number of curvature", value)
    return dict(curvature)


def objective_settings(objective: Any) -> dict[str, Any] | None:
    """The training objective of a model as a dict: name (of `core.objective.OBJECTIVES`) and gamma, the draw.

    UserError for an unknown name.
    """
    if objective is None:
        return None
    if not isinstance(objective, Mapping) or objective.get("name") not in OBJECTIVES:
        raise UserError(f"objective is {objective!r}; it must be a mapping with a name, one of {', '.join(OBJECTIVES)}")
    return dict(objective)


def sampler_settings(sampler: Mapping[str, Any] | None) -> dict[str, Any]:
    """A model's recommended sampler with defaults filled in: kind, that sampler's numbers, steps, guidance_scale.

    UserError for an unknown kind, unknown settings, and values that no sampler can have.
    """
    if sampler is not None and not isinstance(sampler, Mapping):
        raise UserError(
            f"sampler is {sampler!r}; it must be a mapping of settings, such as {{'kind': 'nag', 'steps': 250}}"
        )
    settings = dict(sampler or {})
    kind = settings.get("kind", SAMPLER["kind"])
    if not isinstance(kind, str) or kind not in SAMPLERS:
        raise UserError(f"sampler {kind!r} is not one of {', '.join(SAMPLERS)}")
    shared = {"kind", "steps", "guidance_scale"}
    own = {entry.name for entry in fields(SAMPLERS[kind])}
    everywhere = {entry.name for rule in SAMPLERS.values() for entry in fields(rule)}
    if unknown := set(settings) - shared - everywhere:
        names = ", ".join(sorted(shared | own))
        raise UserError(f"unknown settings {sorted(unknown)} of the sampler {kind!r}; known are {names}")
    used = {name: value for name, value in settings.items() if name in shared | own}  # older exports carry mu with gd
    start = {entry.name: entry.default for entry in fields(SAMPLERS[kind])} | {"kind": kind}
    filled = {**start, "steps": SAMPLER["steps"], "guidance_scale": SAMPLER["guidance_scale"], **used}
    whole("the sampler's steps", filled["steps"], 0)
    number("the sampler's guidance_scale", filled["guidance_scale"])
    return filled


# Files: `model_index.json` of exports, `pipeline.json` of checkpoints -------------------------------------------------


def check_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Raise UserError, with file and key, for a value that no pipeline can work with. Unknown keys are not checked."""
    for key, (fits, needed) in _KEYS.items():
        value = settings.get(key)
        if value is None:
            continue
        try:
            right, reason = fits(value), ""
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # from nested values
            right, reason = False, f" ({cut(str(error), 200)})"
        if not right:
            raise UserError(f"{file}: {key} is {short(value)}; it must be {needed}{reason}")


def _is_whole_from(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_real_from(value: Any, least: float, most: float) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and least <= value <= most


def _is_rate(value: Any) -> bool:
    return _is_real_from(value, 0, HIGHEST_RATE) and value > 0


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(_is_whole_from(side, 1, LARGEST_SIDE) for side in sides)


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
    return _is_whole_from(whole["steps"], 1, MOST_UPDATES) and _is_real_from(whole["guidance_scale"], -1e9, 1e9)


def _is_curvature(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_real_from(curvature_at(value), -1e30, 1e30)


# key: (test of a value, the allowed values in words)
_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "frames": (lambda value: _is_whole_from(value, 1, MOST_FRAMES), f"a whole number from 1 to {MOST_FRAMES:,}"),
    "fps": (_is_rate, f"a number above 0 and at most {HIGHEST_RATE:,}"),
    "reference_fps": (_is_rate, f"a number above 0 and at most {HIGHEST_RATE:,}"),
    "size": (_is_size, f"pixels or [height, width], each a whole number from 1 to {LARGEST_SIDE:,}"),
    "id2label": (_is_names, "the names of the labels by number, such as {'0': 'cat'}"),
    "decay": (_is_decay, "a kind of decay with its numbers"),
    "sampler": (_is_sampler, "a kind of sampler with its numbers, steps and guidance_scale"),
    "objective": (lambda value: bool(objective_settings(value)), f"a mapping with a name of {', '.join(OBJECTIVES)}"),
    "curvature": (_is_curvature, "what `eqm-video curvature MODEL --write` measures"),
    "codec": (lambda value: isinstance(value, str) and value != "", "a name, a folder or a hub id"),
}
