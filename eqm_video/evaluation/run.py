"""An evaluation from two sets of clips to its record.

Legend: N clips of the samples, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eqm_video.data.identity import contents
from eqm_video.evaluation.clips import Altered, ClipSource, Files, jpeg, through
from eqm_video.evaluation.measure import PARTS, Meter, cached, processes
from eqm_video.evaluation.protocol import PRESETS, Protocol, differences, digest_of
from eqm_video.evaluation.report import Judgement, check_counts, check_labels
from eqm_video.features.feature import Feature
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Paired, Reading

if TYPE_CHECKING:
    from eqm_video.codec import Codec

CACHED = 2  # version of what is kept of a real set: a new way to measure has a new number


@dataclass(frozen=True)
class Evaluation:
    """A protocol with the metrics, the network and the device that it is computed with.

    redraws, permutations, floors, seed: see `Judgement`; they belong to error bars, and not to the protocol. cache: the
    folder where measures of real sets are kept, None: nowhere.
    """

    protocol: Protocol
    metrics: Sequence[Metric]
    feature: Feature | None
    device: torch.device
    batch_size: int = 16
    cache: Path | None = None
    redraws: int = 200
    permutations: int = 1000
    floors: bool = True
    seed: int = 0

    def run(
        self,
        samples: ClipSource,
        real: Files | None = None,
        codec: Codec | None = None,
        truth: ClipSource | None = None,
        real_set: Measured | None = None,
    ) -> dict[str, Any]:
        """The record: the protocol with its hash, both sets, and every metric; the same on every process.

        `truth` are the true clips of PSNR and SSIM, in the order of the samples; `codec` is the one whose floor is
        measured; `real_set` is the result of `measure_real`, if it was called before. UserError for sets that a metric
        cannot be computed of.
        """
        meter, labels = self.meter, labels_of(samples, real)
        meter.check(samples.shape)
        for metric in self.metrics:
            check_counts(metric, len(samples), None if real is None else len(real))
            check_labels(metric, samples.labels, None if real is None else real.labels)
        resolved = self.resolved(samples, real)
        codec_set, kept, content = None, real_set is not None, {}
        if real is not None:
            if real_set is None:
                content = self._content(real)
                real_set, kept = self.measure_real(samples, real, content)
            if codec is not None:
                rebuilt = self._jpeg(Altered(real, through(codec)))
                codec_set = self._meter_of_real.measure(rebuilt, labels, "clips through the codec")
        measured = meter.measure(self._jpeg(samples), labels, "samples", truth)
        judgement = self._judgement(samples.shape[0])
        about = {**samples.about, "count": len(samples), "copies_among_them": duplicates(measured)}
        if real_set is not None and real_set.pixels is not None:
            about["real_clips_among_them"] = int(torch.isin(measured.pixels, real_set.pixels).sum())
        return {
            "protocol": resolved,
            "protocol_hash": digest_of(resolved),
            "feature": self._about_feature(),
            "samples": about,
            "data": None if real is None else {**real.about, "count": len(real), "from_cache": kept, **content},
            "metrics": {metric.name: judgement.judge(metric, measured, real_set, codec_set) for metric in self.metrics},
        }

    @property
    def meter(self) -> Meter:
        """The measures of each clip that the metrics need."""
        return Meter(self.metrics, self.feature, self.protocol.window_frames, self.device, self.batch_size)

    @property
    def _meter_of_real(self) -> Meter:
        return replace(self.meter, metrics=[metric for metric in self.metrics if not isinstance(metric, Paired)])

    def _content(self, real: Files) -> dict[str, str]:
        """A hash of all bytes of the real files, where the cache is used: by the first process alone."""
        if self.cache is None or processes()[0] != 0:
            return {}
        return {"content": contents(real.data, sorted(set(real.sources)))}

    def measure_real(
        self, samples: ClipSource, real: Files, content: dict[str, str] | None = None
    ) -> tuple[Measured, bool]:
        """The real clips, measured, and whether the cache had them; of `samples` only shape and labels are used.

        content: the result of `_content`, where the caller has it.
        """
        meter, labels = self._meter_of_real, labels_of(samples, real)
        content = self._content(real) if content is None else content
        key = {**self._key(meter, self.resolved(samples, real), real, labels), **content}
        return cached(self.cache, key, lambda: meter.measure(self._jpeg(real), labels, "real clips"))

    def floor(self, metric: Metric, real: Measured, count: int, frames: int) -> dict[str, Any] | None:
        """The metric between real clips of different files, for `count` samples; see `Judgement.floor`."""
        return self._judgement(frames).floor(metric, real, count)

    def of_codec(self, real: ClipSource, rebuilt: ClipSource) -> dict[str, Any]:
        """Each metric of a codec's reconstructions, clip by clip those of `real`; see `Judgement.of_codec`."""
        labels = labels_of(real, None)
        self.meter.check(real.shape)
        sets = [
            self.meter.measure(each, labels, what) for each, what in ((real, "clips"), (rebuilt, "reconstructions"))
        ]
        judgement = self._judgement(real.shape[0])
        costs = {metric.name: judgement.of_codec(metric, *sets) for metric in self.metrics}
        return {name: cost for name, cost in costs.items() if cost is not None}

    def _judgement(self, frames: int) -> Judgement:
        feature = "none" if self.feature is None else self.feature.name
        same = {name: getattr(self, name) for name in ("redraws", "permutations", "floors", "seed")}
        return Judgement(self.protocol.statistics, feature, frames, **same)

    def resolved(self, samples: ClipSource, real: Files | None) -> dict[str, Any]:
        """The protocol with what the data decided: numbers of clips, frames, size and stride."""
        feature = {"name": "none", "weights": ""} if self.feature is None else self.feature.record()
        settled = {"count": len(samples), "frames": samples.shape[0], "size": samples.shape[1:]}
        if real is not None:
            settled |= {"real_count": len(real), "stride": real.data.frame_interval}
        return self.protocol.resolved(feature, **settled)

    def _jpeg(self, source: ClipSource) -> ClipSource:
        return Altered(source, jpeg(self.protocol.jpeg)) if self.protocol.jpeg else source

    def _about_feature(self) -> dict[str, Any] | None:
        """The network, its file, and who states the file's hash."""
        if self.feature is None:
            return None
        return {
            "name": self.feature.name,
            "source": self.feature.source,
            "sha256": self.feature.digest,
            "verified": self.feature.verified or False,
        }

    def _key(self, meter: Meter, resolved: dict[str, Any], real: Files, labels: Sequence[str]) -> dict[str, Any]:
        """Everything that decides the measures of a real set."""
        readings = sorted(metric.name for metric in meter.metrics if isinstance(metric, Reading))
        protocol = {key: value for key, value in resolved.items() if key not in ("count", "statistics")}
        parts = sorted(meter.needed & set(PARTS))
        return {
            "version": CACHED,
            "protocol": protocol,
            "data": real.about["identity"],
            "labels": list(labels),
            "parts": parts,
            "readings": readings,
        }


def labels_of(samples: ClipSource, real: ClipSource | None) -> list[str]:
    """The labels of both sets, sorted: their numbers in `Measured`."""
    return sorted({label for source in (samples, real) if source for label in source.labels if label is not None})


def duplicates(measured: Measured) -> int:
    """The number of clips that equal an earlier one bit for bit."""
    return len(measured) - len(measured.pixels.unique())


def changed(preset: str, protocol: Protocol) -> list[str]:
    """The keys in which a protocol differs from the preset that it began as."""
    feature = {"name": "", "weights": ""}
    first, second = PRESETS[preset].protocol.resolved(feature), protocol.resolved(feature)
    other = [key for key, _, _ in differences(first, second)]
    return [*other, *(["feature"] if PRESETS[preset].protocol.feature != protocol.feature else [])]
