"""Numbers with their error bars and floors, from two measured sets.

Legend: N clips of the samples, M of the real set, B redraws.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Paired, PerClip, Statistics
from eqm_video.metrics.registry import title_of
from eqm_video.randomness import generator

CONFIDENCE = 0.95
SPLITS = 8  # ways to halve the real set for its floor


@dataclass(frozen=True)
class Judgement:
    """The error bars around each value: redraws of the interval, permutations of the p-value, and floors."""

    settings: Statistics
    feature: str
    frames: int
    redraws: int = 200
    permutations: int = 1000
    floors: bool = True
    seed: int = 0

    def judge(
        self, metric: Metric, samples: Measured, real: Measured | None, codec: Measured | None = None
    ) -> dict[str, Any]:
        """The record of one metric.

        value and interval of the samples; n; the floor: the same metric of one half of the real clips against the other
        half, with the samples' value at that n; the codec's floor: of reconstructions of one half against the other;
        for metrics without a reference the real clips' own value. A warning where the value says little.
        """
        check_counts(metric, len(samples), None if real is None else len(real))
        other = samples if real is None else real
        count = {"samples": len(samples)} | ({} if real is None else {"real": len(real)})
        value = metric.value(samples, other, self.settings)
        result: dict[str, Any] = {
            "title": title_of(metric, self.feature, self.frames),
            "value": value,
            "interval": self._interval(metric, samples, other, value),
            "n": count,
            "better": metric.better,
        }
        result |= metric.extras(samples, other, self.settings, self.permutations, generator("permutations", self.seed))
        if (warning := metric.warning(samples, other)) is not None:
            result["warning"] = warning
        if real is None or isinstance(metric, Paired) or not self.floors:
            return result
        if not metric.reference:
            few = len(real) if isinstance(metric, PerClip) else len(samples)  # a mean does not depend on their number
            real, codec = real.thinned(few), None if codec is None else codec.thinned(few)
            own = metric.value(real, real, self.settings)
            interval = self._interval(metric, real, real, own)
            result["real"] = {"value": own, "interval": interval, "n": {"real": len(real)}}
            if codec is not None:
                result["codec"] = {"value": metric.value(codec, codec, self.settings)}
            return result
        halves = split_by_source(real, SPLITS, self.seed)
        if halves:
            result["floor"] = self._floor(metric, samples, real, halves)
            if codec is not None:
                result["codec"] = self.of_codec(metric, real, codec)["codec"]
        return result

    def floor(self, metric: Metric, real: Measured, count: int) -> dict[str, Any] | None:
        """The metric of `count` real clips against those of other files, or the real clips' own value.

        None for fewer than 4 files, or than `metric.least` clips in a half.
        """
        if not metric.reference:
            own = metric.value(real, real, self.settings)
            return {"value": own, "interval": self._interval(metric, real, real, own)}
        pairs = self._halves(real, split_by_source(real, SPLITS, self.seed), count)
        if not pairs or min(len(side) for pair in pairs for side in pair) < max(2, metric.least):
            return None
        sizes = {"samples": len(pairs[0][0]), "real": min(len(right) for _, right in pairs)}
        return {**spread([metric.value(left, right, self.settings) for left, right in pairs]), "n": sizes}

    def of_codec(self, metric: Metric, real: Measured, codec: Measured) -> dict[str, Any] | None:
        """A codec's cost: reconstructions of one half of the real clips against the other half, beside the half itself.

        None for fewer than 4 files.
        """
        halves = split_by_source(real, SPLITS, self.seed)
        if not halves:
            return None
        values = {
            name: spread(
                [metric.value(of_sources(each, left), of_sources(real, right), self.settings) for left, right in halves]
            )
            for name, each in (("codec", codec), ("floor", real))
        }
        sizes = [min(len(of_sources(real, side[k])) for side in halves) for k in range(2)]
        return {"title": title_of(metric, self.feature, self.frames), **values, "n": sizes}

    def _halves(
        self, real: Measured, halves: Sequence[tuple[Tensor, Tensor]], count: int
    ) -> list[tuple[Measured, Measured]]:
        """Both halves of the real clips for each way to halve them, the first one of at most `count` clips."""
        pairs = [(of_sources(real, left), of_sources(real, right)) for left, right in halves]
        count = min([count, *(len(left) for left, _ in pairs)])
        return [(left.thinned(count), right) for left, right in pairs]

    def _interval(self, metric: Metric, samples: Measured, real: Measured, value: float) -> list[float] | None:
        """The central 95 % of redraws, moved to have the value as their mean: redrawn clips repeat, a bias for some.

        The mean of redrawn means is the value itself, and nothing is moved. None for a single clip, which does not
        scatter.
        """
        if not self.redraws or len(samples) < 2:
            return None
        values = metric.redraws(samples, real, self.settings, self.redraws, generator("redraws", self.seed))
        values = values[values.isfinite()]  # of very few clips a redraw may have a single one, and then no value
        if not len(values):
            return None
        tail = (1 - CONFIDENCE) / 2
        low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
        bias = 0.0 if isinstance(metric, PerClip) else float(values.mean()) - value
        floor = 0.0 if bool((values >= 0).all()) else float("-inf")
        return [max(floor, low - bias), max(floor, high - bias)]

    def _floor(
        self, metric: Metric, samples: Measured, real: Measured, halves: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[str, Any]:
        """The metric between two parts of the real clips, and between as many samples and the second part."""
        pairs = self._halves(real, halves, len(samples))
        count = len(pairs[0][0])
        values = [metric.value(left, right, self.settings) for left, right in pairs]
        few = samples.thinned(count)
        return {
            **spread(values),
            "n": {"samples": count, "real": min(len(right) for _, right in pairs)},
            "samples_at_this_n": statistics.fmean(metric.value(few, right, self.settings) for _, right in pairs),
        }


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Mean and extremes."""
    return {"value": statistics.fmean(values), "min": min(values), "max": max(values), "splits": len(values)}


def split_by_source(real: Measured, ways: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random halves of the files of the real clips, as source numbers; none for fewer than 4 files."""
    names = real.sources.unique()
    if len(names) < 4:
        return []
    draw = generator("halves", seed)
    orders = [names[torch.randperm(len(names), generator=draw)] for _ in range(ways)]
    return [(order[: len(order) // 2], order[len(order) // 2 :]) for order in orders]


def of_sources(clips: Measured, sources: Tensor) -> Measured:
    """The clips of some files."""
    return clips.take(torch.isin(clips.sources, sources).nonzero()[:, 0])


def check_counts(metric: Metric, samples: int, real: int | None) -> None:
    """UserError where there are too few clips for a metric, or no real ones."""
    if (metric.reference or metric.needs & {"pairs"}) and real is None:
        raise UserError(f"--metrics {metric.name} compares with real clips: type --data FOLDER")
    if samples < metric.least or (metric.reference and real is not None and real < metric.least):
        have = f"{samples} samples" if real is None else f"{samples} samples and {real} real clips"
        raise UserError(
            f"--metrics {metric.name} needs {metric.least} clips of each set, and there are {have}: give more, or "
            "leave it out"
        )


def check_labels(metric: Metric, samples: Sequence[str | None], real: Sequence[str | None] | None) -> None:
    """UserError where a metric needs labels and a set has none, or, to compare them, both have none in common."""
    if "labels" not in metric.needs:
        return
    sides = {"samples": {*samples} - {None}} | ({} if real is None else {"real clips": {*real} - {None}})
    for name, labels in sides.items():
        if not labels:
            raise UserError(
                f"--metrics {metric.name} needs labels, and the {name} have none: give a folder with a folder for each "
                "label, or leave it out"
            )
    if metric.reference and not set.intersection(*sides.values()):
        shown = [", ".join(sorted(labels)[:3]) for labels in sides.values()]
        raise UserError(
            f"--metrics {metric.name} compares labels, and no label of the samples ({shown[0]}) is one of the real "
            f"clips ({shown[1]}): name them alike, or leave it out"
        )
