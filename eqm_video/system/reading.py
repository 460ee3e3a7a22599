"""Small files of the user. Their kind and size are checked first, so that no file can block or fill the program."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError, cut, short

MOST_JSON = 64 * 2**20  # bytes; an index of a model in parts, or the names of a million labels
MOST_DIGITS = 400  # of a whole number in JSON


def asset(name: str) -> str:
    """The text of a file in the package's folder `assets`, such as "report/report.html"."""
    return (files("eqm_video") / "assets" / name).read_text(encoding="utf-8")


def read_bytes(path: str | Path, most: int, *, what: str = "", advice: str = "") -> bytes:
    """The bytes of a regular file of at most `most` bytes.

    UserError for a larger file, a file that cannot be read, and a folder, a pipe or a device, which are never opened.
    In the message `what` comes before the path and `advice` after the reason.
    """
    named = f"{what} {path}" if what else str(path)
    try:
        check_regular(path, what=what, advice=advice)
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {named}: {error.strerror or error}{advice}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {cut(named)!r}: {error}{advice}") from error  # a NUL in the name
    if len(content) > most:
        raise UserError(f"cannot read {named}: it has more than {_size(most)}{advice}")
    return content


def check_regular(path: str | Path, *, what: str = "", advice: str = "") -> None:
    """Raise UserError for a folder, a pipe or a device; OSError for a missing file."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise UserError(f"cannot read {f'{what} {path}' if what else path}: it is a {kind}, not a file{advice}")


def read_text(path: str | Path, most: int, *, what: str = "", advice: str = "") -> str:
    """The text of a file in UTF-8, with or without a byte order mark. UserError as `read_bytes`, or for non-UTF-8."""
    content = read_bytes(path, most, what=what, advice=advice)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        named = f"{what} {path}" if what else str(path)
        raise UserError(
            f"cannot read {named}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; UserError for anything else.

    Numbers must be finite, and an object may not have a key twice: both would be misread silently.
    """
    text = read_text(path, MOST_JSON)
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_int=_whole, parse_float=_finite, object_pairs_hook=_unique
        )
    except ValueError as error:
        raise UserError(f"cannot read {path} ({cut(str(error), 200)})") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path} (its brackets are nested too deep)") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object, it holds {short(value)}")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{cut(text)} is beyond the largest number")
    return number


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {short(twice)} stands twice")
    return values


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
