"""The model, the samples and the lists of data that a study's options ask for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqm_video.data.cifar import find_cifar
from eqm_video.data.layout import find_lists
from eqm_video.data.source import Source
from eqm_video.sampling.labels import captions, choose_labels
from eqm_video.studies.batches import batches
from eqm_video.system.devices import open_device

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline

SPLITS = ("train", "test", "all")


def split_of(split: str | None, root: Path, default: str = "all") -> str:
    """`split`, or by default `default`; "all", with a printed note, if `root` has no official lists."""
    if split is None and default != "all" and root.is_dir() and find_lists(root) is None and find_cifar(root) is None:
        print(f"note: {root} has no official list of {default} files, so all files are used (--split all)")
        return "all"
    return split or default


def lists_of(split: str, fold: int | None) -> dict[str, Any]:
    """Settings of `open_data` that choose a folder's official list."""
    return {"split": None if split == "all" else split, "fold": fold or 1, "split_option": "--split"}


def open_source(options: Any, pipeline: EqMPipeline, default: str = "all", frames: int | None = None) -> Source:
    """The clips of --data at a model's frames (or `frames`), size and rate; `default`: the split without --split."""
    return Source(
        options.data,
        frames=pipeline.check_frames(frames),
        size=pipeline.check_size(),
        fps=float(pipeline.config.fps),
        count=options.clips,
        frame_interval=options.frame_interval,
        **lists_of(split_of(options.split, options.data, default), options.fold),
    )


def own_scale(options: Any, pipeline: EqMPipeline) -> float:
    """--guidance-scale, or that of the model."""
    scale = options.guidance_scale
    return pipeline.config.sampler["guidance_scale"] if scale is None else scale


def open_model(options: Any, path: str | Path | None = None) -> EqMPipeline:
    """The model `path` (default: `options.model`) on `options.device`."""
    from diffusers.utils import logging as diffusers_logging  # here: studies without a model need no diffusers

    from eqm_video.sampling.loading import load_pipeline

    diffusers_logging.disable_progress_bar()
    pipeline, _ = load_pipeline(options.model if path is None else path, codec=options.codec)
    pipeline.to(open_device(options.device))
    return pipeline


@dataclass(frozen=True)
class Request:
    """N samples that a model shall make, in batches.

    ids: the number of each sample's label (None: no label); names: its caption; seeds: its seed. frames, size (height,
    width): of a clip. batch_size: samples in a pass through the network.
    """

    ids: list[int | None]
    names: list[str]
    seeds: list[int]
    frames: int
    size: tuple[int, int]
    guidance_scale: float
    batch_size: int

    @classmethod
    def of(cls, pipeline: EqMPipeline, options: Any) -> Request:
        """The samples that a study's options ask for; the model's settings fill gaps.

        UserError for impossible samples.
        """
        ids = choose_labels(pipeline, options.labels, options.num_samples, options.seed)
        return cls(
            ids=ids,
            names=captions(pipeline.labels, ids),
            seeds=[options.seed + index for index in range(options.num_samples)],
            frames=pipeline.check_frames(options.frames),
            size=pipeline.check_size(options.size),
            guidance_scale=float(own_scale(options, pipeline)),
            batch_size=options.batch_size,
        )

    def batches(self) -> list[slice]:
        """Slices of consecutive samples, of at most `batch_size`."""
        return batches(len(self.ids), self.batch_size)

    def settings(self) -> dict[str, Any]:
        """The entries of a record that describe the samples."""
        labels = list(dict.fromkeys(self.names))
        shared = {"num_samples": len(self.ids), "labels": labels, "seeds": [self.seeds[0], self.seeds[-1]]}
        return {**shared, "frames": self.frames, "size": list(self.size), "guidance_scale": self.guidance_scale}


def describe_rule(rule: Any) -> dict[str, Any]:
    """The entries of a record that describe a rule or solver: its class and its numbers."""
    return {"kind": type(rule).__name__, **asdict(rule)}
