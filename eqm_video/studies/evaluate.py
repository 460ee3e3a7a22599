"""The command `evaluate`: samples against real clips under a stated protocol."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from eqm_video.errors import UserError, short
from eqm_video.evaluation.clips import ClipSource, open_real, open_samples
from eqm_video.evaluation.export import LAYOUTS, export_for
from eqm_video.evaluation.model import sample_source
from eqm_video.evaluation.protocol import PRESETS, Protocol
from eqm_video.evaluation.run import Evaluation, changed
from eqm_video.features.feature import LAYOUTS as AXES
from eqm_video.features.feature import RANGES, Feature, Input
from eqm_video.features.registry import FEATURES, is_known, open_feature
from eqm_video.metrics.metric import Metric, Statistics
from eqm_video.metrics.registry import ALIASES, find_metric, metrics
from eqm_video.options import narrower, option
from eqm_video.output.tables import aligned, metric_rows, number
from eqm_video.sampling import option_groups as groups
from eqm_video.sampling.folders import SHIPPED, find_model, holds_model
from eqm_video.sampling.processes import choose_device, start_processes
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.request import split_of
from eqm_video.studies.study import Opening, Report

if TYPE_CHECKING:
    from eqm_video.codec import Codec
    from eqm_video.sampling.pipeline import EqMPipeline

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqm-video" / "evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluate(
    Opening,
    groups.Judged,
    groups.Kind,
    groups.Cut,
    groups.Many,
    groups.Shaped,
    groups.Labelled,
    groups.Descending,
    groups.Seeded,
    groups.Batched,
    group="compare",
):
    """Numbers for samples under a stated protocol: MMD, FVD, FID and others, with error bars and floors.

    SAMPLES is a folder of videos or of pictures, a folder by `eqm-video sample`, an .npz of uint8 clips, or a model,
    which is sampled, on all processes. A protocol states all that a number depends on: --list shows them with their
    sources, and the metrics and features. Options that change one of its choices make it another protocol, with another
    hash, and compare-results compares numbers of one hash only.

    Beside every value stand the numbers of clips, a 95 % interval (clips drawn anew), and its floor: what the metric
    says of real clips against other real clips. With --codec also what the codec alone costs. docs/evaluate.md says
    what each metric sees, and when a number may be compared with a paper's.

    Examples:
      eqm-video evaluate samples/actions --data FOLDER --out results/actions
      eqm-video evaluate FOLDER --data UCF-101 --protocol stylegan-v --weights i3d_torchscript.pt --out DIR
    """

    elsewhere: ClassVar[tuple[str, ...]] = ("--list",)  # nothing else must be given beside it
    samples: str = option(
        positional=True, metavar="SAMPLES", help="a folder of videos or pictures, an .npz, or a model to sample"
    )
    protocol: str = option("default", choices=tuple(PRESETS), help="the protocol to follow")
    metrics: tuple[str, ...] | None = narrower(None, unset="the protocol's")
    features: str | None = narrower(None, unset="the protocol's")
    weights: Path | None = narrower(None, rare=False)
    input_layout: str = option(
        "bcthw", choices=AXES, help="axes that a file takes; without a t: frame by frame", rare=True
    )
    input_size: int = option(
        224, least=1, most=4096, metavar="PIXELS", help="height and width that a file takes", rare=True
    )
    input_range: str = option("-1:1", choices=RANGES, help="of the pixels that a file takes", rare=True)
    num_samples: int | None = narrower(None, unset="the protocol's, or all that there are; 64 of a model")
    real: int | None = option(None, least=1, metavar="M", help="real clips", unset="the protocol's, or all", rare=True)
    split: str | None = narrower(None, unset="the protocol's, all as a rule")
    frame_interval: int | None = narrower(None, unset="the protocol's, or by the fps of data and samples")
    seed: int = 0
    order: Literal["sorted", "shuffled"] | None = option(
        None, help="of the real files", unset="the protocol's", rare=True
    )
    window: Literal["first", "central", "random", "every"] | None = option(
        None, help="of each real video", unset="the protocol's", rare=True
    )
    paired: bool = option(False, help="compare each clip with the one of its name or place in --data: psnr, ssim")
    redraws: int = option(200, least=0, most=100_000, metavar="B", help="redraws of an interval, 0: none", rare=True)
    permutations: int = option(
        1000, least=0, most=1_000_000, metavar="P", help="of the p-value of mmd, 0: none", rare=True
    )
    no_floor: bool = option(False, help="no floors: real clips against real clips are not compared", rare=True)
    cache: Path = option(CACHE, metavar="DIR", help="where measures of real sets are kept", rare=True)
    export_for: str | None = option(
        None,
        choices=tuple(LAYOUTS),
        help="write both sets as that tool's scripts read them, and compute nothing",
        rare=True,
    )
    steps: int | None = narrower(None, least=1)
    tolerance: float | None = narrower(None, rare=True)
    per_frame: bool = narrower(False, rare=True)
    frame_schedule: int | str = narrower("joint", rare=True)
    batch_size: int = 16
    list: bool = option(False, help="show all protocols, metrics and features, and stop")

    @classmethod
    def main(cls, words: Sequence[str]) -> int:
        """The command; --list needs nothing else."""
        if "--list" in words and not {"-h", "--help", "--help-all"} & set(words):
            print(listing())
            return 0
        return super().main(words)

    def check(self) -> None:
        """UserError for options that do not go together, before anything is opened."""
        if self.features is not None and not is_known(self.features):
            open_feature(self.features, Input())
        chosen = self.metrics or PRESETS[self.protocol].metrics
        every = [find_metric(name, self.feature_name) for name in chosen]
        paired = [metric.name for metric in every if "pairs" in metric.needs]
        if paired and not self.paired:
            raise UserError(
                f"--metrics {' '.join(paired)} compare each clip with its true one: add --paired where clip k of "
                "--data is the truth of clip k"
            )

    @property
    def feature_name(self) -> str:
        """The feature that is used."""
        return self.features or PRESETS[self.protocol].protocol.feature

    def paths(self) -> Sequence[str | Path]:
        """SAMPLES, where it is a model."""
        return (self.samples,) if is_model(self.samples) else ()

    def run(self, *models: EqMPipeline) -> Report:
        """Open both sets, measure them, and judge."""
        chosen = tuple(find_metric(name, self.feature_name) for name in self.metrics or PRESETS[self.protocol].metrics)
        needs_data = [metric.name for metric in chosen if metric.reference or metric.needs & {"pairs"}]
        if self.data is None and needs_data:
            raise UserError(f"--metrics {' '.join(needs_data)}: real clips are needed, type --data FOLDER")
        state = start_processes(self.device, "evaluate")
        device = choose_device(self.device, state)
        protocol = self.settled()
        samples = self.open_samples(protocol, models)
        real = None
        if self.data is not None:
            wanted = replace(protocol, window="first", order="sorted") if self.paired else protocol
            real = open_real(self.data, wanted, samples.shape, samples.fps, self.kind)
            protocol = wanted
        if self.export_for is not None:
            said = export_for(self.export_for, self.out, samples, real, protocol.jpeg)
            return Report({"exported": said, "layout": self.export_for}, said)
        truth = real if self.paired else None
        if truth is not None:
            check_pairs(samples, truth)
        feature = self.open_feature(chosen, protocol, device)
        same = {name: getattr(self, name) for name in ("batch_size", "cache", "redraws", "permutations", "seed")}
        evaluation = Evaluation(protocol, chosen, feature, device, floors=not self.no_floor, **same)
        record = evaluation.run(samples, real, self.open_codec(models, device), truth)
        record |= {
            "preset": self.protocol,
            "changed": changed(self.protocol, replace(protocol, feature=self.feature_name)),
        }
        return Report(record, table(record))

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table of the metrics, for documents."""
        return {"table": aligned(metric_rows(numbers))}

    def settled(self) -> Protocol:
        """The preset with the options that replace its choices."""
        values: dict[str, Any] = {
            "feature": self.features,
            "count": self.num_samples,
            "real_count": self.real,
            "frames": self.frames,
            "size": self.size,
            "stride": self.frame_interval,
            "fold": self.fold,
            "order": self.order,
            "window": self.window,
        }
        preset = PRESETS[self.protocol].protocol
        wanted = self.split or preset.split
        if self.data is not None and wanted != "all" and self.split is None:
            wanted = split_of(None, self.data, wanted)
        chosen = {name: value for name, value in values.items() if value is not None}
        return replace(preset, split=wanted, **chosen)

    def open_samples(self, protocol: Protocol, models: Sequence[EqMPipeline]) -> ClipSource:
        """The clips to judge; a model is sampled when they are read."""
        if not models:
            return open_samples(Path(self.samples), protocol, self.kind)
        return sample_source(
            models[0],
            Sampling.of(self),
            protocol.count or 64,
            labels=self.labels,
            seed=self.seed,
            frames=protocol.frames,
            size=protocol.size,
            model=find_model(self.samples),
        )

    def open_feature(self, chosen: Sequence[Metric], protocol: Protocol, device: Any) -> Feature | None:
        """The feature network, where some metric needs it."""
        if not any(metric.needs - {"labels", "pairs"} for metric in chosen):
            return None
        own = self.input_layout, self.input_size, self.input_range
        taken = protocol.input() if self.feature_name == "i3d" else protocol.input(*own)
        return open_feature(self.feature_name, taken, self.weights, device)

    def open_codec(self, models: Sequence[EqMPipeline], device: Any) -> Codec | None:
        """The codec whose floor is measured: --codec, or that of the model."""
        from eqm_video.codec import Codec  # the networks of diffusers take a second

        if self.codec is not None:
            return Codec.load(self.codec).to(device)
        return Codec(models[0].vae) if models else None


def is_model(path: str) -> bool:
    """Whether SAMPLES is a model: an export, a run, a checkpoint, or, without a file of that name, a hub id or demo."""
    folder = Path(path).expanduser()
    if not folder.exists():
        return path == SHIPPED or (path.count("/") == 1 and not path.endswith(".npz"))
    inside = ("model_index.json", "checkpoints", "export")
    return holds_model(folder) or any((folder / name).exists() for name in inside)


def check_pairs(samples: ClipSource, truth: ClipSource) -> None:
    """UserError where clips do not pair: another number, or files of other names where both sets have names."""
    if len(samples) != len(truth):
        raise UserError(
            f"--paired: there are {len(samples)} samples and {len(truth)} real clips, and each needs its own"
        )
    pairs = zip(samples.names, truth.names, strict=False)
    others = [f"{name} and {other}" for name, other in pairs if Path(name).name != Path(other).name]
    if samples.names and truth.names and others:
        raise UserError(f"--paired: clips are paired by their files' names, and these differ: {', '.join(others[:3])}")


# Tables -------------------------------------------------------------------------------------------------------------


def table(record: Mapping[str, Any]) -> str:
    """Every metric with its interval, n and floors, and the warnings below."""
    notes = []
    for result in record["metrics"].values():
        if "warning" in result:
            notes.append(f"note: {result['warning']}")
        if "floor" in result:
            notes.append(_floor_note(result))
        if "interval_and_p_value_of" in result:
            kept = " and ".join(map(str, result["interval_and_p_value_of"].values()))
            notes.append(f"note: {result['title']}: the value is of all clips, interval and p of {kept} of them")
        if "p_value_of" in result:
            kept = " and ".join(map(str, result["p_value_of"].values()))
            notes.append(f"note: {result['title']}: p is of {kept} clips, a single one of each file")
    notes += _same_clips(record["samples"])
    if skipped := (record["data"] or {}).get("unreadable"):
        notes.append(f"note: {skipped} files of --data cannot be read, and are no part of the real clips")
    feature = record["feature"]
    if feature is not None:
        drawn = feature["name"] in ("random", "pixels")  # by this package, the same for everybody
        doubt = "drawn at random, not trained" if drawn else "unverified: no source states their hash"
        known = f"verified: {feature['verified']}" if feature["verified"] else doubt
        notes.append(f"feature {feature['name']}, weights {feature['sha256'][:16]}, {known}")
        if feature["name"] == "random":
            notes.append("note: random is an untrained network, and its numbers are no measure of quality")
    changes = record.get("changed") or []
    also = f" with other {', '.join(changes)}" if changes else ""
    protocol = f"protocol {record['protocol_hash']}: {record.get('preset', 'default')}{also}"
    return "\n".join([aligned(metric_rows(record)), "", *notes, protocol])


def _floor_note(result: Mapping[str, Any]) -> str:
    floor = result["floor"]
    sizes = " and ".join(str(count) for count in floor["n"].values())
    low, high = number(floor["min"]), number(floor["max"])
    return (
        f"{result['title']}: real clips reach {number(floor['value'])} ({low} to {high}) at {sizes} clips, where the "
        f"samples have {number(floor['samples_at_this_n'])}"
    )


def _same_clips(samples: Mapping[str, Any]) -> list[str]:
    """Notes on samples that are copies to the last bit; none as a rule."""
    count, notes = samples["count"], []
    if again := samples.get("copies_among_them"):
        notes.append(f"note: {again} of the {count} samples equal another sample bit for bit")
    if known := samples.get("real_clips_among_them"):
        notes.append(f"note: {known} of the {count} samples equal a real clip bit for bit")
    return notes


def listing() -> str:
    """All protocols with the source of each choice, all metrics, and all features."""
    lines = ["protocols:"]
    for name, preset in PRESETS.items():
        lines.append(f"  {name}: {preset.says}; {', '.join(preset.metrics)}")
        lines += [f"      {key}: {_choice(preset.protocol, key)}; {source}" for key, source in preset.sources.items()]
    lines += ["  a choice that is not named is that of default", "", "metrics:"]
    for name, metric in metrics().items():
        needs = [*sorted(metric.needs), *(["real clips"] if metric.reference else [])]
        frames = f", {metric.least_frames} frames" if metric.least_frames > 1 else ""
        lines.append(f"  {name}: {metric.says()} (needs {', '.join(needs) or 'pixels'}, {metric.least} clips{frames})")
    lines.append(f"  other names: {', '.join(f'{alias} is {name}' for alias, name in ALIASES.items())}")
    lines += ["", "features:"]
    lines += [f"  {name}: {feature.says()}" for name, feature in FEATURES.items()]
    return "\n".join(lines)


def _choice(protocol: Protocol, key: str) -> str:
    """A choice of a protocol in words; of statistics those that are not the default's, or all."""
    if key != "statistics":
        return short(getattr(protocol, key))
    plain, chosen = vars(Statistics()), vars(protocol.statistics)
    other = {name: value for name, value in chosen.items() if value != plain[name]} or chosen
    return ", ".join(f"{name} {value:g}" for name, value in other.items())
