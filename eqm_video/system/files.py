"""Files that this package writes: whole or absent, and never half of one under its name.

A file is written aside, under a hidden name that no one else uses (`.NAME.HOST.PID.aside`), flushed to the disk, and
renamed. A write that fails takes its aside along; one that a killed process left is removed by `remove_asides`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError

MARK = b"written by eqm-video"  # is near the begin or the end of every picture and record, see `claims`
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota on this disk is used up"}
DAY = 86_400  # seconds after which an aside of another machine is taken for a dead process's
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.aside", re.DOTALL)
_OLD_ASIDE = re.compile(r"\.(?P<name>.+?)(\.(?P<pid>\d+)\.tmp|\.aside)", re.DOTALL)  # as earlier versions named them
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # by some network disks, where there is nothing to wait for


# Writing ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """The name to write the file `path` under, inside the block; it is renamed to `path` when the block ends.

    Missing parent folders are made. Whatever ends the block otherwise, nothing stays behind and an older file of the
    name stays as it was. Raises UserError where the system refuses.
    """
    path = Path(path)
    aside = aside_of(path)
    with refusing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:  # renamed already, unless something failed
            with contextlib.suppress(OSError):
                aside.unlink()


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """The name of a new folder to fill inside the block. When the block ends the folder is renamed to `path`.

    Where `path` is there already, its files of the same names are replaced, one by one, and the others stay. Whatever
    ends the block otherwise, nothing stays behind. Raises UserError where the system refuses.
    """
    path = Path(path)
    aside = aside_of(path)
    with refusing(path):
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier process of the same number
            aside.mkdir(parents=True)
            yield aside
            for inner in (*aside.rglob("*"), aside):
                flush(inner)
            if not path.exists():
                os.rename(aside, path)
            else:
                _move_files(aside, path)
            flush(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(file for file in source.rglob("*") if not file.is_dir()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def write_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with the name to write under, then rename that to `path`: see `writing`."""
    with writing(path) as aside:
        write(aside)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8 with the line ends as they are. Names that are not UTF-8 keep their bytes."""
    write_file(path, lambda aside: aside.write_bytes(text.encode("utf-8", "surrogateescape")))


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write a JSON file. Names of files that are not UTF-8 come back from `json.loads` as they were."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    if not _is_utf8(text):
        text = json.dumps(value, indent=indent) + "\n"  # each odd byte of a name as \udcXX
    write_text(path, text)


def write_record(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write the JSON record of a command, marked as ours."""
    write_json(path, {"origin": MARK.decode(), **value}, indent=1)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """UserError in place of the system's errors while `path` is written: what failed, and what helps."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Why something cannot be written, and what helps, in one clause."""
    if error.errno in FULL:
        return f"{FULL[error.errno]} ({error.strerror}); make room, or choose a folder on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; choose a folder that you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{error.strerror}: a part of its path is a file; choose another folder"
    if error.errno == errno.EISDIR:
        return f"{error.strerror}: a folder has this name; rename it, or choose another folder"
    return f"{error.strerror or error}; choose another folder"


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (folders cannot be flushed on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise
    finally:
        os.close(descriptor)


# Asides -------------------------------------------------------------------------------------------------------------


def aside_of(path: Path) -> Path:
    """The name that this process writes the file `path` under."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.aside")


def remove_asides(folder: Path, ours: Callable[[str], bool]) -> None:
    """Delete what killed processes left half-written in a folder, of files whose names are `ours`."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (name := name_of_aside(path)) is not None and ours(name) and _is_dead(path):
                path.unlink(missing_ok=True)


def remove_aside_folders(path: Path) -> None:
    """Delete what killed processes left of a folder that `writing_folder` was to make."""
    with contextlib.suppress(OSError):
        for aside in path.parent.iterdir():
            match = _ASIDE.fullmatch(aside.name)
            if match and match["name"] == path.name and aside.is_dir() and not aside.is_symlink() and _is_dead(aside):
                shutil.rmtree(aside)


def name_of_aside(path: Path) -> str | None:
    """The name that a half-written file was to have; None where `path` is nothing of that kind."""
    match = _ASIDE.fullmatch(path.name) or _OLD_ASIDE.fullmatch(path.name)
    return None if match is None or path.is_symlink() or not path.is_file() else match["name"]


def _is_dead(aside: Path) -> bool:
    """Whether nobody writes an aside any more: its process has ended, or is this one, or was elsewhere a day ago."""
    match = _ASIDE.fullmatch(aside.name)
    if match is None:
        return True
    if match["host"] != _host():
        return time.time() - aside.stat().st_mtime > DAY
    try:
        os.kill(int(match["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return int(match["pid"]) == os.getpid()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40]
