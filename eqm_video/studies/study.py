"""A study: a class whose docstring is the help, whose fields are the options, and whose `run` returns a `Report`.

`class Adaptive(Sampled, group="look")` in studies/adaptive.py is the command `adaptive`: nothing else has to name it.
Options that several commands share are declared once, in `sampling/option_groups.py`.
"""

from __future__ import annotations

import json
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from eqm_video import options
from eqm_video.output.outputs import claim_output
from eqm_video.sampling import option_groups as groups
from eqm_video.studies.request import Request, open_model
from eqm_video.system import files, machine

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline


@dataclass(frozen=True)
class Report:
    """The outcome of a study.

    numbers: the content of NAME.json; None if the study writes its own records. table: text for the screen. pictures:
    by file name, a function that draws the picture at a path. files: by file name, text, or a mapping for another JSON
    record.
    """

    numbers: Mapping[str, Any] | None
    table: str
    pictures: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)
    files: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study(groups.Written, ABC):
    """The base of all studies: `run` gets the opened models of `paths` and measures; `main` does the rest.

    The files of a study have a line in `output/outputs.py`, by which its folder is claimed.
    """

    name: ClassVar[str]
    group: ClassVar[str]
    record: ClassVar[str]  # name of the file of the numbers
    sections: ClassVar[tuple[str, ...]] = ()  # where `section.key=value` means `--key value`

    def __init_subclass__(cls, group: str = "", record: str = "", **rest: Any) -> None:
        """Make the class a command if it has a `group`, a key of `commands.GROUPS`. `record`: by default NAME.json."""
        super().__init_subclass__(**rest)
        if group:
            name = cls.__module__.removeprefix("eqm_video.studies.").partition(".")[0]
            cls.name, cls.group, cls.record = name.replace("_", "-"), group, record or f"{name}.json"

    def __post_init__(self) -> None:
        options.check(self)
        self.check()

    def check(self) -> None:
        """Raise UserError for options that exclude each other. Called before anything is opened or written."""

    @property
    def folder(self) -> Path | None:
        """The folder of the results: --out, or a default that depends on other options. None: nothing is written."""
        return self.out

    def paths(self) -> Sequence[str | Path]:
        """The models that `run` gets, opened, in this order."""
        return ()

    @abstractmethod
    def run(self, *models: EqMPipeline) -> Report:
        """Measure. UserError where the models or the data do not allow it."""

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """Texts for documents by name, such as tables as Markdown, made from the record of a run; default: none."""
        return {}

    @classmethod
    def main(cls, words: Sequence[str]) -> int:
        """The command: parse, open the models, run, write the record, draw, and print where the files are."""
        study = options.parse(cls, words, prog=f"eqm-video {cls.name}")
        option = "" if options.declared(cls)["out"].option.positional else "--out"
        first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started
        if study.out is None:
            study.paths()  # the folder depends on them: what is wrong with them is not the fault of --out
        if study.folder is not None:
            claim_output(study.folder, cls.name, option=option, probe=first)
        models = [open_model(study, path) for path in study.paths()]
        report = study.run(*models)
        if not first:
            return 0
        if study.folder is None:
            print(report.table)
            return 0
        if report.numbers is not None:
            about = study.about(words, models)
            record = {**report.numbers, **{key: value for key, value in about.items() if key not in report.numbers}}
            files.write_record(study.folder / cls.record, record)
        for name, content in report.files.items():
            write = files.write_text if isinstance(content, str) else files.write_record
            write(study.folder / name, content)
        for name, draw in report.pictures.items():
            draw(study.folder / name)
        print(report.table)
        shown = f"look at {', '.join(report.pictures)} in {study.folder}; " if report.pictures else ""
        print(f"{shown}numbers: {', '.join(str(study.folder / name) for name in (cls.record, *report.files))}")
        return 0

    def about(self, words: Sequence[str], models: Sequence[EqMPipeline]) -> dict[str, Any]:
        """The end of every record: the command, all its options, the commit and the machine."""
        chosen = {name: getattr(self, name) for name in options.declared(type(self))}
        return {
            "command": shlex.join(["eqm-video", self.name, *map(str, words)]),
            "options": json.loads(json.dumps(chosen, default=str)),
            "commit": machine.commit(),
            "machine": machine.describe(models[0].device if models else "cpu"),
        }


@dataclass(frozen=True, kw_only=True)
class Opening(Study, groups.Opened):
    """A study that opens models."""


@dataclass(frozen=True, kw_only=True)
class OneModel(Opening, groups.Modelled):
    """A study of a single model."""

    def paths(self) -> Sequence[str | Path]:
        """The model."""
        return (self.model,)


@dataclass(frozen=True, kw_only=True)
class Sampled(OneModel, groups.Labelled, groups.Many, groups.Shaped, groups.Guided, groups.Seeded, groups.Batched):
    """A study that samples clips from noise."""

    def request(self, pipeline: EqMPipeline) -> Request:
        """The samples that the options ask for; UserError for samples that the model cannot make."""
        return Request.of(pipeline, self)


@dataclass(frozen=True, kw_only=True)
class Compared(Sampled, groups.Against):
    """A study that samples clips of a model and, with --against, of a second one."""

    def paths(self) -> Sequence[str | Path]:
        """The model, and the one that it is compared with."""
        return (self.model,) if self.against is None else (self.model, self.against)
