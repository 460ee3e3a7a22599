"""A study: a class whose docstring is the help, whose fields are the options, and whose `run` returns a `Report`.

`class Adaptive(Sampled, group="look")` in studies/adaptive.py is the command `adaptive`: nothing else has to name it.
Options that several studies share are declared here, once, in small classes to inherit from.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from eqm_video import media, options
from eqm_video.build import versions
from eqm_video.cli.options import Request, machine, open_model, processor
from eqm_video.options import option, required
from eqm_video.pipeline import EqMPipeline
from eqm_video.samplers import SAMPLERS


@dataclass(frozen=True)
class Report:
    """The outcome of a study.

    numbers: what NAME.json says; None where the study keeps its own records. table: text for the screen. pictures and
    files: by file name, a function that draws one at a path, and text.
    """

    numbers: Mapping[str, Any] | None
    table: str
    pictures: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """The base of all studies: `run`, given the opened models of `paths`, measures; `main` does all the rest."""

    name: ClassVar[str]
    group: ClassVar[str]
    record: ClassVar[str]  # the file of the numbers
    out: Path = option(metavar="DIR", help="folder for pictures and numbers")

    def __init_subclass__(cls, group: str = "", record: str = "", **rest: Any) -> None:
        """`group`: of `eqm_video.cli.GROUPS`, for a class that is a command. `record`: default NAME.json."""
        super().__init_subclass__(**rest)
        if group:
            name = cls.__module__.removeprefix("eqm_video.studies.").partition(".")[0]
            cls.name, cls.group, cls.record = name.replace("_", "-"), group, record or f"{name}.json"

    def __post_init__(self) -> None:
        options.check(self)
        self.check()

    def check(self) -> None:  # noqa: B027 (most studies have nothing to add)
        """Raise UserError for options that do not go together; called before anything is opened or written."""

    def paths(self) -> Sequence[str | Path]:
        """The models that `run` is given, opened, in this order."""
        return ()

    @abstractmethod
    def run(self, *models: EqMPipeline) -> Report:
        """Measure. UserError for what the models or the data cannot do."""

    @classmethod
    def main(cls, arguments: Sequence[str] | None = None) -> int:
        """The command: parse, open the models, run, write the record, draw, and say where to look."""
        words = list(sys.argv[1:] if arguments is None else arguments)
        study = options.parse(cls, words, prog=f"python -m eqm_video {cls.name}")
        media.make_folder(study.out)
        models = [open_model(study, path) for path in study.paths()]
        report = study.run(*models)
        if report.numbers is not None:
            about = study.about(words, models)
            record = {**report.numbers, **{key: value for key, value in about.items() if key not in report.numbers}}
            media.write_text(study.out / cls.record, json.dumps(record, indent=1, default=str) + "\n")
        for name, text in report.files.items():
            media.write_text(study.out / name, text)
        for name, draw in report.pictures.items():
            draw(study.out / name)
        print(report.table)
        shown = f"look at {', '.join(report.pictures)} in {study.out}; " if report.pictures else ""
        print(f"{shown}numbers: {', '.join(str(study.out / name) for name in (cls.record, *report.files))}")
        return 0

    def about(self, words: Sequence[str], models: Sequence[EqMPipeline]) -> dict[str, Any]:
        """What every record ends with: the command, its options in full, and the machine."""
        here = {"processor": processor(), "threads": torch.get_num_threads(), **versions()}
        return {
            "command": shlex.join(["python", "-m", "eqm_video", self.name, *map(str, words)]),
            "options": {name: getattr(self, name) for name in options.declared(type(self))},
            "machine": machine(models[0]) if models else here,
        }


# Options that studies share -----------------------------------------------------------------------------------------


def read_size(text: str) -> tuple[int, int]:
    """Pixels, or HEIGHTxWIDTH, as (height, width); ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """--seed."""

    seed: int = option(0, least=0, most=2**63, metavar="K", help="of all that is random: sample k has seed K + k")


@dataclass(frozen=True, kw_only=True)
class Batched:
    """--batch-size."""

    batch_size: int = option(32, least=1, metavar="B", help="samples or clips that go through the network at once")


@dataclass(frozen=True, kw_only=True)
class Many:
    """--num-samples."""

    num_samples: int = option(16, least=1, metavar="N", help="how many are sampled")


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """--frames and --size."""

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
    """--guidance-scale."""

    guidance_scale: float | None = option(None, metavar="S", help="1 = no guidance", unset="the model's")


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """--sampler and --mu."""

    sampler: str | None = option(
        None, choices=tuple(SAMPLERS), metavar="KIND", help="descent, ODE or SDE: nag, gd, ...", unset="the model's"
    )
    mu: float | None = option(
        None, least=0, below=1, metavar="M", help="look-ahead of nag, in [0, 1)", unset="the model's"
    )


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """--steps and --step-size."""

    steps: int | None = option(None, least=1, metavar="N", help="updates of a descent", unset="the model's")
    step_size: float | str | None = option(
        None, above=0, words=("auto",), metavar="E", help="eta, or auto", unset="the model's"
    )


@dataclass(frozen=True, kw_only=True)
class Against:
    """--against-sampler and --against, of studies with a second model."""

    against: str | None = option(None, metavar="MODEL2", help="another model, such as a flow, beside MODEL")
    against_sampler: str | None = option(
        None, choices=tuple(SAMPLERS), metavar="KIND", help="the sampler of MODEL2", unset="the model's"
    )


@dataclass(frozen=True, kw_only=True)
class Overwriting:
    """--overwrite."""

    overwrite: bool = option(False, help="delete what other settings left in DIR")


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """--tolerance."""

    tolerance: float | None = option(None, above=0, metavar="R", help="the gradient's RMS below which a clip stops")


@dataclass(frozen=True, kw_only=True)
class PerFrame:
    """--per-frame."""

    per_frame: bool = option(False, help="every frame comes to rest by itself")


@dataclass(frozen=True, kw_only=True)
class Filmed:
    """--no-film."""

    no_film: bool = option(False, help="leave the GIF out")


@dataclass(frozen=True, kw_only=True)
class Data:
    """--data."""

    data: Path | None = option(None, metavar="FOLDER", help="real clips: a folder of videos or of images")


@dataclass(frozen=True, kw_only=True)
class HeldOut(Data):
    """--data, which must be given, and which of its clips: --split, --fold, --frame-interval, --clips."""

    data: Path = required()
    split: str = option("test", choices=("train", "test", "all"), help="of the data's lists; all: every file")
    fold: int = option(1, least=1, metavar="F", help="of the data's lists")
    frame_interval: int | None = option(
        None, least=1, metavar="K", help="take every K-th frame", unset="by the fps of data and model"
    )
    clips: int = option(64, least=1, metavar="N", help="clips of the data that are measured, at most")


@dataclass(frozen=True, kw_only=True)
class ToldLabels:
    """--labels, of studies whose clips have labels of their own."""

    labels: str | None = option(
        None,
        choices=("none", "given", "own", "both"),
        help="the clips' labels: none is told, given (all of them must be known), own (those that are known), or both: "
        "once none, once given",
    )


@dataclass(frozen=True, kw_only=True)
class Opening(Study):
    """--codec and --device, of studies that open models."""

    codec: str | None = option(None, metavar="NAME", help="bundled, a folder or a hub id", unset="the model's")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")


@dataclass(frozen=True, kw_only=True)
class OneModel(Opening):
    """MODEL."""

    model: str = option(
        positional=True,
        metavar="MODEL",
        help="an export, a training run or checkpoint (folders), or a hub id OWNER/NAME",
    )

    def paths(self) -> Sequence[str | Path]:
        """The one model."""
        return (self.model,)


@dataclass(frozen=True, kw_only=True)
class Sampled(OneModel, Many, Shaped, Guided, Seeded, Batched):
    """The options of studies that sample clips from noise: how many, of which labels, frames and size."""

    labels: tuple[str, ...] | None = option(
        None, metavar="LABEL", help="names or numbers, in turn; or all, random, none", unset="all"
    )

    def request(self, pipeline: EqMPipeline) -> Request:
        """The samples that the options ask for; UserError for what this model cannot make."""
        return Request.of(pipeline, self)
