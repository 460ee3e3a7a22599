"""What the commands that sample share: options of one name and one meaning, the model on its device, its labels.

`add_model` and `add_sampling` add the options of `sample_video.py` to a parser; `open_model` loads what they name, and
`Request` says what they ask of a model, its own settings filled in.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging

from eqm_video.data.cifar import find_cifar
from eqm_video.data.layout import find_lists
from eqm_video.sampling.labels import captions, choose_labels
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.system.devices import open_device

SPLITS = ("train", "test", "all")

# Kinds of values ----------------------------------------------------------------------------------------------------


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Argparse type: a whole number from `least` to `most`."""

    def parse_whole(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) and (most is None or int(text) <= most):
                return int(text)
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limit}")

    return parse_whole


def number(least: float = -math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Argparse type: a finite number of at least (or, with `above`, above) `least`."""

    def parse_number(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if math.isfinite(value) and (value > least or (value == least and not above)):
                return value
        limit = "" if least == -math.inf else f" {'above' if above else 'of at least'} {least:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number{limit}")

    return parse_number


def size(text: str) -> tuple[int, int]:
    """Argparse type: pixels, or HEIGHTxWIDTH, as (height, width)."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels, such as 256 or 256x384 (height x width)")
    return int(match[1]), int(match[2] or match[1])


# Options ------------------------------------------------------------------------------------------------------------


def add_model(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """MODEL (unless the command names its models itself), --codec, --device and --out."""
    add = parser.add_argument
    if positional:
        add("model", metavar="MODEL", help="an export, a training run or checkpoint (folders), or a hub id OWNER/NAME")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and numbers")
    add("--codec", metavar="NAME", help="use this codec: bundled, a folder or a hub id; default: the model's")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: auto")


def add_split(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """--split and --fold, of folders with official lists; `choose_split` says what they come to."""
    where = "default: all" if default == "all" else f"default: {default}, and all where there are none"
    add = parser.add_argument
    add("--split", choices=SPLITS, help=f"of official lists (UCF-101's, CIFAR-10's), or all files; {where}")
    add("--fold", type=whole(1), default=1, metavar="F", help="of UCF-101's lists; default: 1")


def split_of(given: str | None, root: Path, default: str = "all") -> str:
    """The split: what is `given`, else `default`, or all files, with a note, where there are no lists."""
    if given is None and default != "all" and root.is_dir() and find_lists(root) is None and find_cifar(root) is None:
        print(f"note: {root} has no official list of {default} files, so all files are used (--split all)")
        return "all"
    return given or default


def lists_of(split: str, fold: int | None) -> dict[str, Any]:
    """Settings for `open_data`: which of a folder's official lists."""
    return {"split": None if split == "all" else split, "fold": fold or 1, "split_option": "--split"}


def choose_split(options: argparse.Namespace, root: Path, default: str = "all") -> dict[str, Any]:
    """Settings for `open_data`; `options.split` becomes what `split_of` says."""
    options.split = split_of(options.split, root, default)
    return lists_of(options.split, options.fold)


def add_sampling(parser: argparse.ArgumentParser, *, num_samples: int = 16, descent: bool = True) -> None:
    """What is sampled: --labels, --num-samples, --frames, --size, --guidance-scale, --seed, --batch-size.

    With `descent` also how: --steps, --sampler, --step-size, --mu (commands that vary these name their own).
    """
    add = parser.add_argument
    add("--labels", nargs="+", metavar="LABEL", help="names or numbers, in turn; or all (default), random, none")
    add("--num-samples", type=whole(1), default=num_samples, metavar="N", help=f"default: {num_samples}")
    add("--frames", type=whole(1), metavar="T", help="frames of a clip, 1 = images; default: as trained")
    add("--size", type=size, metavar="PIXELS", help="height and width, or HEIGHTxWIDTH; default: as trained")
    add("--guidance-scale", type=number(), metavar="S", help="1 = no guidance; default: the model's")
    add("--seed", type=whole(0), default=0, metavar="K", help="sample k has seed K + k; default: 0")
    add("--batch-size", type=whole(1), default=32, metavar="B", help="samples at once; default: 32")
    if descent:
        add("--steps", type=whole(1), metavar="N", help="updates; default: the model's")
        add("--sampler", metavar="KIND", help="nag, gd, ...; default: the model's")
        add("--step-size", type=number(0, above=True), metavar="E", help="eta; default: the model's")
        add("--mu", type=number(0), metavar="M", help="look-ahead of nag, in [0, 1); default: the model's")


# Models -------------------------------------------------------------------------------------------------------------


def open_model(options: argparse.Namespace, path: str | Path | None = None) -> EqMPipeline:
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
    def of(cls, pipeline: EqMPipeline, options: argparse.Namespace) -> Request:
        """From the options of `add_sampling`, the model's own settings filled in; UserError for what cannot be."""
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
        return [slice(first, first + self.batch_size) for first in range(0, len(self.ids), self.batch_size)]

    def settings(self) -> dict[str, Any]:
        """For the record beside the pictures."""
        labels = list(dict.fromkeys(self.names))
        shared = {"num_samples": len(self.ids), "labels": labels, "seeds": [self.seeds[0], self.seeds[-1]]}
        return {**shared, "frames": self.frames, "size": list(self.size), "guidance_scale": self.guidance_scale}


def describe_rule(rule: Any) -> dict[str, Any]:
    """A rule or solver with its numbers, for the record."""
    return {"kind": type(rule).__name__, **asdict(rule)}
