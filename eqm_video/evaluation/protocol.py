"""Protocols: everything that a number depends on besides the two sets of clips, with a hash; and the published ones.

FVD of one checkpoint was reported between 168 and 320 by people who all wrote "FVD": frames, stride, split, order,
resize and covariance differed. A protocol names each of them, and numbers of different protocols are never compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import yaml

from eqm_video.errors import UserError, short
from eqm_video.features.feature import Input
from eqm_video.metrics.metric import Statistics
from eqm_video.system.reading import asset

DIGITS = 16  # of a hash that are shown


@dataclass(frozen=True)
class Protocol:
    """The way in which clips are chosen, prepared and compared.

    count, real_count: clips of the samples and of the real set; None is all there are. frames: of a clip, None: as the
    samples have. stride: every K-th frame of the real videos; None: what comes nearest to the samples' frame rate.
    split, fold: of official lists, or "all". order: how the real videos are taken where there are more than real_count:
    sorted by name, or shuffled with `seed`. window: which frames of a real video: the first ones, the central ones, at
    a random place drawn from `seed` and the file's name, or every window without overlap. size: (height, width), None:
    as the samples have. crop: how real videos, and samples of another size, come to that size; adm is this package's
    reader: box, then bicubic, then the centre. jpeg: quality of a JPEG round trip of both sets before the network, 0 is
    none. fit, antialias: the resize to the network's input. window_frames: of metrics over time.
    """

    feature: str = "transnet"
    count: int | None = None
    real_count: int | None = None
    frames: int | None = None
    stride: int | None = None
    split: Literal["train", "test", "all"] = "all"
    fold: int = 1
    order: Literal["sorted", "shuffled"] = "shuffled"
    seed: int = 0
    window: Literal["first", "central", "random", "every"] = "random"
    size: tuple[int, int] | None = None
    crop: str = "adm"
    colour: str = "rgb, full range, 8 bits"
    jpeg: int = 0
    fit: Literal["stretch", "crop"] = "stretch"
    antialias: bool = True
    window_frames: int = 16
    statistics: Statistics = field(default_factory=Statistics)

    def input(self, layout: str = "bcthw", size: int | None = 224, values: str = "-1:1") -> Input:
        """The input of i3d and of networks of files under this protocol."""
        return Input(layout, None if size is None else (size, size), values, self.fit, self.antialias)

    def resolved(self, feature: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        """Every choice as plain JSON, with `values` for those that the data decided, and the feature's record."""
        settled = replace(self, **values)
        content = json.loads(json.dumps(asdict(settled)))
        return {**content, "feature": json.loads(json.dumps(dict(feature)))}


@dataclass(frozen=True)
class Preset:
    """A protocol with a name: what it is for, its metrics, and the source of each choice."""

    says: str
    protocol: Protocol
    metrics: tuple[str, ...]
    sources: Mapping[str, str]


def _read_presets() -> dict[str, Preset]:
    """The presets of assets/protocols.yaml, by name."""
    presets: dict[str, Preset] = {}
    for name, entry in yaml.safe_load(asset("protocols.yaml")).items():
        begun, choices = presets[entry["base"]].protocol if "base" in entry else Protocol(), entry["protocol"]
        if "statistics" in choices:
            choices["statistics"] = replace(begun.statistics, **choices["statistics"])
        protocol = replace(begun, **choices)
        presets[name] = Preset(entry["says"], protocol, tuple(entry["metrics"]), entry["sources"])
    return presets


PRESETS = _read_presets()


def digest_of(resolved: Mapping[str, Any]) -> str:
    """The hash of a resolved protocol: SHA-256 of its JSON with sorted keys, shortened."""
    text = json.dumps(resolved, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value, value) for every choice that differs between two resolved protocols; keys as section.key."""
    rows = []
    for key in sorted({*first, *second}):
        left, right = first.get(key), second.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            rows += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            rows.append((f"{prefix}{key}", left, right))
    return rows


def check_same(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """UserError, naming the keys, where two resolved protocols differ."""
    rows = differences(first, second)
    if rows:
        said = "; ".join(
            f"{key} is {short(left)} in {names[0]} and {short(right)} in {names[1]}" for key, left, right in rows
        )
        raise UserError(f"numbers of different protocols do not compare: {said}; evaluate both under one protocol")
