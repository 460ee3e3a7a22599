"""Options that several commands share, each declared once, as small classes to inherit from.

`Sampling` declares the options of a descent; classes here that need some of them take them over by `same`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import ClassVar, get_type_hints

from eqm_video.options import narrower, option, required, same
from eqm_video.samplers import SAMPLERS
from eqm_video.sampling.known import KnownFrames, parse_known
from eqm_video.sampling.option_words import read_size, read_split, split_recipe
from eqm_video.sampling.settings import Sampling

SPLIT = "test"  # studies measure clips that a model was not trained on, if there are lists


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """The option --seed."""

    seed: int = option(0, least=0, most=2**63, metavar="K", help="seed of everything random: sample k has seed K + k")


@dataclass(frozen=True, kw_only=True)
class Batched:
    """The option --batch-size."""

    title: ClassVar[str] = "device"
    batch_size: int = option(32, least=1, metavar="B", help="samples or clips in a pass through the network")


@dataclass(frozen=True, kw_only=True)
class Many:
    """The option --num-samples."""

    num_samples: int = option(16, least=1, metavar="N", help="number of samples")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """True clips of moving shapes, rendered for the model."""

    centred: bool = option(
        False, help="true clips pass near the middle, as those of the recipe shipped do (demo: always)"
    )


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """The options --frames and --size."""

    frames: int | None = option(None, least=1, metavar="T", help="frames of a clip, 1 = images", unset="as trained")
    size: tuple[int, int] | None = option(
        None,
        read=read_size,
        kind="a size in pixels, such as 256 or 256x384 (height x width)",
        metavar="PIXELS",
        help="height and width, or HEIGHTxWIDTH",
        unset="as trained",
    )


@dataclass(frozen=True, kw_only=True)
class Guided:
    """The option --guidance-scale."""

    title: ClassVar[str] = "how to descend"
    guidance_scale: float | None = same(Sampling, "guidance_scale")


# Every option of `Sampling` for studies that sample real clips by their labels: --steps, --sampler, --tolerance ...
# Composition is left out, because it takes the place of labels, and so is a start that shows the hidden frames.
Descending = make_dataclass(
    "Descending",
    [
        (entry.name, get_type_hints(Sampling)[entry.name], same(Sampling, entry.name))
        for entry in fields(Sampling)
        if entry.name not in ("composition", "plain_sum", "start_gamma")
    ],
    namespace={"title": Sampling.title},
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """The options --sampler and --mu."""

    title: ClassVar[str] = "how to descend"
    sampler: str | None = same(Sampling, "sampler")
    mu: float | None = same(Sampling, "mu")


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """The option --steps, at least 1."""

    title: ClassVar[str] = "how to descend"
    steps: int | None = same(Sampling, "steps", least=1)


@dataclass(frozen=True, kw_only=True)
class Stepping(Stepped):
    """The options --steps and --step-size."""

    title: ClassVar[str] = "how to descend"
    step_size: float | str | None = same(Sampling, "step_size")


@dataclass(frozen=True, kw_only=True)
class Against:
    """The options --against and --against-sampler of studies with a second model."""

    against: str | None = option(None, metavar="MODEL2", help="a second model, such as a flow model, to compare with")
    against_sampler: str | None = option(
        None, choices=tuple(SAMPLERS), metavar="KIND", help="the sampler of MODEL2", unset="the model's"
    )


@dataclass(frozen=True, kw_only=True)
class Overwriting:
    """The option --overwrite."""

    title: ClassVar[str] = "files"
    overwrite: bool = option(False, help="delete results of other settings in DIR")


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """The option --tolerance."""

    title: ClassVar[str] = "how to descend"
    tolerance: float | None = same(Sampling, "tolerance")


@dataclass(frozen=True, kw_only=True)
class PerFrame:
    """The option --per-frame."""

    title: ClassVar[str] = "how to descend"
    per_frame: bool = same(Sampling, "per_frame")


@dataclass(frozen=True, kw_only=True)
class Filmed:
    """The option --no-film."""

    title: ClassVar[str] = "files"
    no_film: bool = option(False, help="leave the GIF out")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The option --columns."""

    title: ClassVar[str] = "files"
    columns: int | None = option(None, least=1, metavar="K", help="pictures in a row")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The option --data."""

    data: Path | None = option(None, metavar="FOLDER", help="real clips: a folder of videos or of images")


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The options --metrics, --features and --weights: what samples are measured by, against real clips."""

    metrics: tuple[str, ...] | None = option(
        ("mmd",), metavar="NAME", help="what is computed (`evaluate --list` shows all)"
    )
    features: str | None = option(
        None,
        metavar="NAME",
        help="transnet, random or pixels (untrained), i3d, inception or mobilenet (with --weights), hub:OWNER/NAME, a "
        "TorchScript or ONNX file",
        unset="transnet; pixels for single frames, or without its package",
    )
    weights: Path | None = option(
        None,
        metavar="FILE",
        help="the file of i3d, inception or mobilenet (docs/evaluate.md)",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class Judged(Data, Measuring):
    """--data, with the metrics of samples against it."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The options --split, --fold and --frame-interval: the files and frames of data to use."""

    title: ClassVar[str] = "start from"
    split: str | None = option(
        None,
        choices=("train", "test", "all"),
        read=read_split,
        help="the part of official lists (UCF-101's, CIFAR-10's), or all files",
        unset="all",
    )
    fold: int | None = option(None, least=1, metavar="F", help="number of the split's fold", unset="1", rare=True)
    frame_interval: int | None = option(
        None, least=1, metavar="K", help="take every K-th frame", unset="from the fps of data and model"
    )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The option --kind."""

    kind: str | None = option(
        None, choices=("videos", "images"), help="kind of the data", unset="videos, or images for samples of one frame"
    )


@dataclass(frozen=True, kw_only=True)
class Overridden:
    """The words section.key=value of commands that train."""

    overrides: tuple[str, ...] = option(
        (), positional=True, metavar="section.key=value", help="replace values of the recipe"
    )


@dataclass(frozen=True, kw_only=True)
class Recipe(Overridden):
    """--config, or the recipe as the first word, and section.key=value."""

    config: str | None = option(
        None, metavar="RECIPE", help="a YAML file, or a name that `eqm-video recipes` lists; also as the first word"
    )

    @property
    def recipe(self) -> str | None:
        """The recipe: that of --config, or the first word if it is no section.key=value."""
        return split_recipe(self.config, self.overrides)[0]

    @property
    def changes(self) -> tuple[str, ...]:
        """The words section.key=value."""
        return split_recipe(self.config, self.overrides)[1]


@dataclass(frozen=True, kw_only=True)
class WritesBack:
    """--write, of commands that measure a model for its own use."""

    write: bool = option(False, help="keep the result in the export, where sampling finds it")


@dataclass(frozen=True, kw_only=True)
class Dry:
    """--dry-run."""

    dry_run: bool = option(False, help="print what is to be done and what it costs, and stop")


@dataclass(frozen=True, kw_only=True)
class HeldOut(Data, Cut):
    """The options for held-out clips: --data (required), --split, --fold, --frame-interval, --clips."""

    data: Path = required()
    split: str | None = narrower(None, unset=f"{SPLIT}, or all if there are no lists")
    fold: int = 1
    clips: int = option(64, least=1, metavar="N", help="measure at most N clips of the data")


@dataclass(frozen=True, kw_only=True)
class Known:
    """The option --known."""

    title: ClassVar[str] = "start from"
    known: KnownFrames | None = option(
        None,
        read=parse_known,
        metavar="FRAMES",
        help="frames of the clip to keep: first, first:4, last:4, ends, 0-3, 0,-1 ...",
    )


@dataclass(frozen=True, kw_only=True)
class ClipLabels:
    """The option --labels of studies whose clips have labels of their own."""

    labels: str | None = option(
        None,
        choices=("none", "given", "own", "both"),
        help="condition on the clips' labels",
    )


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The option --labels: names or numbers, in turn, or all, random, none."""

    labels: tuple[str, ...] | None = option(
        None, free=True, metavar="LABEL", help="names or numbers of labels, in turn; or all, random, none", unset="all"
    )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The options --codec and --device."""

    title: ClassVar[str] = "device"
    codec: str | None = option(None, metavar="NAME", help="bundled, a folder or a hub id", unset="the model's")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """The word MODEL: an export, a run, a checkpoint or a hub id."""

    model: str = option(
        positional=True,
        metavar="MODEL",
        help="an export, run or checkpoint (folders), a hub id OWNER/NAME, or demo (shipped)",
    )


@dataclass(frozen=True, kw_only=True)
class Written:
    """The option --out."""

    title: ClassVar[str] = "files"
    out: Path = option(metavar="DIR", help="folder for pictures and numbers")
