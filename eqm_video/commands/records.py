"""The command `records`: results of studies kept as records, and the tables of documents written from them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqm_video import options
from eqm_video.commands import COMMANDS
from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import records
from eqm_video.sampling.option_groups import Overwriting
from eqm_video.system import files, machine
from eqm_video.system.reading import read_json

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
KEPT = (".png", ".gif", ".md", ".log")  # files beside the numbers that go into a record


@dataclass(frozen=True, kw_only=True)
class RecordsOptions(Overwriting):
    """Keep a study's result as a record, and write the documents' numbers from the records.

    `eqm-video records` brings every marked place of README.md and docs/*.md up to date. With --add FOLDER, which a
    study has written, and --name NAME, the result first becomes the record benchmarks/records/STUDY/NAME.
    """

    add: Path | None = option(None, metavar="FOLDER", help="the folder that a study has written")
    name: str | None = option(None, flag="--name", metavar="NAME", help="the record's name, beside others of the study")
    overwrite: bool = narrower(False, help="replace the record of that name")


def main(words: Sequence[str]) -> int:
    """Add a record, and write the documents; returns the exit status. UserError for a user's mistake."""
    chosen = options.parse(RecordsOptions, words, prog="eqm-video records")
    if not RECORDS.parent.is_dir():
        raise UserError(f"there is no {RECORDS.parent}: run this from a clone of the repository")
    if chosen.add is not None:
        if not chosen.name or "/" in chosen.name:
            raise UserError(f"--name is {chosen.name!r}: give the record a name without /, such as --name mixture")
        print(f"record: {add(chosen.add, chosen.name, RECORDS, overwrite=chosen.overwrite)}")
    same = True
    for page in pages(ROOT):
        text = page.read_text(encoding="utf-8")
        filled = records.fill(text, RECORDS, views)
        if filled != text:
            files.write_text(page, filled)
            print(f"written: {page.relative_to(ROOT)}")
            same = False
    if same:
        print("all documents say what the records say: nothing was written")
    return 0


def pages(root: Path) -> list[Path]:
    """The documents that may have marked places."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md")), root / "video_samples" / "README.md"]


def add(folder: Path, name: str, root: Path, *, overwrite: bool = False) -> Path:
    """Keep the result of a study as STUDY/NAME below `root`: its numbers with the commit, its tables and pictures.

    UserError where the folder holds no single study's result, and where the record is there and may not be replaced.
    """
    every = studies()
    candidates = [(study, folder / study.record) for study in every.values() if (folder / study.record).is_file()]
    if len(candidates) > 1:  # several studies call their numbers alike: the command tells
        words = str(read_json(candidates[0][1]).get("command")).split()
        named = next((word for word in words if word in every), None)
        candidates = [(study, file) for study, file in candidates if study.name == named]
    if len(candidates) != 1:
        raise UserError(
            f"{folder} holds the numbers of {len(candidates)} studies: give a folder that one study has written"
        )
    (study, file), numbers = candidates[0], read_json(candidates[0][1])
    target = root / study.name / name
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: give another --name, or --overwrite")
    target.mkdir(parents=True, exist_ok=True)
    commit = numbers.get("commit") or machine.commit()
    files.write_record(target / "record.json", {"study": study.name, **numbers, "commit": commit})
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in KEPT and path != file:
            shutil.copyfile(path, target / path.name)
    return target


def studies() -> dict[str, Any]:
    """The classes of all studies, by name."""
    return {name: command.options() for name, command in COMMANDS.items() if command.study}


def views(study: str, numbers: Mapping[str, Any]) -> Mapping[str, str]:
    """The texts that a study makes of its numbers for documents; UserError for a study that does not exist."""
    command = COMMANDS.get(study)
    if command is None or not command.study:
        raise UserError(f"a record of {study!r}: there is no such study (eqm-video --help lists all)")
    return command.options().views(numbers)
