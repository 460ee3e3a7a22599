"""Options of a study turned into what it works on: the opened model, the requested samples, the lists of its data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging

from eqm_video.data.cifar import find_cifar
from eqm_video.data.layout import find_lists
from eqm_video.sampling.labels import captions, choose_labels
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.batches import batches
from eqm_video.system.devices import open_device

SPLITS = ("train", "test", "all")


def split_of(given: str | None, root: Path, default: str = "all") -> str:
    """The split: what is `given`, else `default`, or all files, with a note, where there are no lists."""
    if given is None and default != "all" and root.is_dir() and find_lists(root) is None and find_cifar(root) is None:
        print(f"note: {root} has no official list of {default} files, so all files are used (--split all)")
        return "all"
    return given or default


def lists_of(split: str, fold: int | None) -> dict[str, Any]:
    """Settings for `open_data`: which of a folder's official lists."""
    return {"split": None if split == "all" else split, "fold": fold or 1, "split_option": "--split"}


def open_model(options: Any, path: str | Path | None = None) -> EqMPipeline:
    """The model `path` (default: `options.model`) on `options.device`, silent while it loads and samples."""
    diffusers_logging.disable_progress_bar()
    pipeline, _ = load_pipeline(options.model if path is None else path, codec=options.codec)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(open_device(options.device))
    return pipeline


@dataclass(frozen=True)
class Request:
    """What is asked of a model: N samples in batches.

    ids: numbers of the labels (None: no label), names: their captions, seeds: one for each sample; frames and pixels
    of a clip, guidance, and how many samples go at once.
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
        """The samples that a study's options ask for, completed by the model; UserError for what cannot be."""
        ids = choose_labels(pipeline, options.labels, options.num_samples, options.seed)
        scale = options.guidance_scale
        return cls(
            ids=ids,
            names=captions(pipeline.labels, ids),
            seeds=[options.seed + index for index in range(options.num_samples)],
            frames=pipeline.check_frames(options.frames),
            size=pipeline.check_size(options.size),
            guidance_scale=float(pipeline.config.sampler["guidance_scale"] if scale is None else scale),
            batch_size=options.batch_size,
        )

    def batches(self) -> list[slice]:
        """Consecutive samples that go through the network together."""
        return batches(len(self.ids), self.batch_size)

    def settings(self) -> dict[str, Any]:
        """For the record beside the pictures."""
        labels = list(dict.fromkeys(self.names))
        shared = {"num_samples": len(self.ids), "labels": labels, "seeds": [self.seeds[0], self.seeds[-1]]}
        return {**shared, "frames": self.frames, "size": list(self.size), "guidance_scale": self.guidance_scale}


def describe_rule(rule: Any) -> dict[str, Any]:
    """A rule or solver with its numbers, for the record."""
    return {"kind": type(rule).__name__, **asdict(rule)}
