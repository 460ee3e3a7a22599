"""Records of studies, and the places in documents that are written from them.

A record is the folder STUDY/NAME below `benchmarks/records`: record.json with the numbers, the command, the commit and
the machine, and the pictures and tables that the study wrote. In a document

    <!-- record STUDY/NAME VIEW -->...<!-- end -->              a view of the study, such as one of its tables
    <!-- record STUDY/NAME key/key/... as FORMAT -->...<!-- end -->     a single number, in Python's format

hold what the record says, and `fill` writes it there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError
from eqm_video.system.reading import read_json

REQUIRED = ("study", "command", "commit", "machine")
MARK = re.compile(r"(<!-- record (\S+) ([^\n]+?) -->).*?(<!-- end -->)", re.DOTALL)
Views = Callable[[str, Mapping[str, Any]], Mapping[str, str]]  # (study, numbers) -> texts by name


def load(root: Path, name: str) -> dict[str, Any]:
    """The record STUDY/NAME below `root`. UserError where it is missing or says less than a record must."""
    file = root / name / "record.json"
    if not file.is_file():
        known = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/*/record.json"))
        raise UserError(f"there is no record {name} in {root}: the records are {', '.join(known) or 'none'}")
    record = read_json(file)
    if missing := [key for key in REQUIRED if not record.get(key)]:
        raise UserError(f"{file} says nothing of {', '.join(missing)}: add it with eqm-video records --add")
    return record


def fill(text: str, root: Path, views: Views) -> str:
    """A document with every marked place as its record has it. UserError for a mark that means nothing."""
    return MARK.sub(lambda match: f"{match[1]}{_content(match[2], match[3], root, views)}{match[4]}", text)


def unmarked(text: str) -> str:
    """A document without its marked places."""
    return MARK.sub("", text)


def _content(name: str, what: str, root: Path, views: Views) -> str:
    record = load(root, name)
    if " as " in what:
        path, _, form = what.rpartition(" as ")
        return number(record, path, form, f"record {name} {what}")
    known = views(name.partition("/")[0], record)
    if what not in known:
        raise UserError(f"record {name} {what}: the views are {', '.join(known) or 'none'}; a number is KEY/KEY as .1f")
    return f"\n\n{known[what]}\n\n" if "\n" in known[what] else known[what]


def number(record: Mapping[str, Any], path: str, form: str, mark: str) -> str:
    """The number at key/key/... of a record, formatted; one of a single training run is marked (n = 1).

    The key of an item of a list is its place, from 0.
    """
    value: Any = record
    above: Mapping[str, Any] = record
    for key in path.split("/"):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
            continue
        if not isinstance(value, Mapping) or key not in value:
            here = ", ".join(value) if isinstance(value, Mapping) else "no mapping"
            raise UserError(f"{mark}: there is no {key!r}; here are {here}")
        above, value = value, value[key]
    try:
        shown = format(value, form)
    except (ValueError, TypeError) as error:
        raise UserError(f"{mark}: {value!r} has no format {form!r} ({error}); such as .0% or .2f") from error
    shown = shown.replace("%", " %")
    return f"{shown} (n = 1)" if above.get("runs") == 1 else shown
