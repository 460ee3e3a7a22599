"""The command line of `eqm-video sample`: its options as a class, and its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from eqm_video import options
from eqm_video.options import narrower, option
from eqm_video.samplers import SAMPLER_PRESETS
from eqm_video.sampling import option_groups as groups
from eqm_video.sampling.clips import END
from eqm_video.sampling.known import KnownFrames, parse_keyframe
from eqm_video.sampling.known_mask import FORMS as FORMS_OF_MASKS
from eqm_video.sampling.known_mask import KnownMask, parse_known_mask
from eqm_video.sampling.settings import Sampling

FORMATS = ("gif", "mp4", "png")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EXAMPLES = """examples:
  eqm-video sample demo --out samples/first                                 (the model that ships with the package)
  eqm-video sample runs/mine --out moving --start-from photo.jpg            (image to video)
  eqm-video sample runs/mine --out future --start-from clip.mp4 --known 0-3 (continuation; ends: in-betweening)"""


@dataclass(frozen=True, kw_only=True)
class Starting(groups.Known, groups.Cut):
    """Options to start from clips or pictures: --start-from, --known, --keyframes, --at and others."""

    title: ClassVar[str] = "start from"
    start_from: Path | None = option(
        None, metavar="PATH", help="a video, an image, a folder of one kind, or a samples.npz"
    )
    known: KnownFrames | None = narrower(None, unset="first, of an image")
    known_mask: KnownMask | None = option(
        None,
        read=parse_known_mask,
        kind=FORMS_OF_MASKS,
        metavar="REGION",
        help="keep a part of frames: a PICTURE (white), x0,y0,x1,y1, outside:BOX, with @FRAMES for some of them",
        rare=True,
    )
    keyframes: tuple[tuple[int, Path], ...] | None = option(
        None,
        read=parse_keyframe,
        metavar="FRAME=IMAGE",
        help="take known frames from pictures: 0=a.png -1=b.png, instead of --start-from",
    )
    at: float | str | None = option(
        None,
        least=0,
        words=(END,),
        metavar="SECONDS",
        help="time in a video at which its clip begins, or end",
        unset="0",
    )
    frame_interval: int | None = narrower(None, unset="nearest to --fps", rare=True)


@dataclass(frozen=True, kw_only=True)
class Longer:
    """Options of long videos: --length and --overlap."""

    title: ClassVar[str] = "long videos"
    length: int | None = option(
        None,
        least=1,
        metavar="N",
        help="frames of the video, in windows of T; known frames are those of the first",
    )
    overlap: int | None = option(
        None,
        least=1,
        metavar="K",
        help="known frames of each next window",
        unset="4, at most half a window",
    )


@dataclass(frozen=True, kw_only=True)
class Showing(groups.Written, groups.Overwriting, groups.Columns):
    """Options of the files that show samples: --out, --format, --clips, --scale and others."""

    title: ClassVar[str] = "files"
    format: str | None = option(
        None, metavar="LIST", help="some of gif,mp4,png (a png shows a clip's frames in a row)", unset="gif, or png"
    )
    clips: int | None = option(None, least=0, metavar="M", help="write files for the first M clips", unset="64")
    scale: int | None = option(
        None, least=1, help="pixels of the grid for each pixel", unset="clips about 128 wide", rare=True
    )
    columns: int | None = narrower(None, unset="a row for each label", rare=True)
    no_marks: bool = option(False, help="no borders around known frames in the grid", rare=True)


@dataclass(frozen=True, kw_only=True)
class SampleOptions(
    groups.Modelled,
    groups.Labelled,
    groups.Many,
    groups.Shaped,
    groups.Seeded,
    Starting,
    Longer,
    Sampling,
    Showing,
    groups.Batched,
    groups.Opened,
):
    """Sample labelled clips, or images, from a trained model."""

    epilog: ClassVar[str] = EXAMPLES
    sections: ClassVar[tuple[str, ...]] = ("data", "sampler")  # of sections of a recipe whose keys are options here
    num_samples: int | None = narrower(None, unset="16, or the number of clips to start from")
    fps: float | None = option(
        None,
        least=0.01,
        metavar="F",
        help="frames per second, of motion and file",
        unset="as trained, or as the start has",
    )
    preset: str | None = option(
        None, choices=tuple(SAMPLER_PRESETS), help="sampler settings of the paper's public runs", rare=True
    )
    steps: int | None = narrower(None, least=1)
    start_gamma: float | None = narrower(None, unset="0")
    batch_size: int = 16
    mixed_precision: str = option("no", choices=tuple(PRECISIONS), help="precision of the network", rare=True)

    def __post_init__(self) -> None:
        options.check(self)


def parse(words: Sequence[str]) -> SampleOptions:
    """The options of a command line. `frames=1` and `sampler.steps=50` mean `--frames 1` and `--steps 50`.

    UserError for words that make no sense.
    """
    return options.parse(SampleOptions, words, prog="eqm-video sample")
