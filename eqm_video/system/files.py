"""Files that this package writes: whole or absent, never half a file under its name.

A file is written aside, under a hidden name that nobody else uses (`.NAME.HOST.PID.aside`), flushed to the disk, and
renamed. A write that fails deletes its aside; `remove_asides` deletes the asides of killed processes.
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

MARK = b"written by eqm-video"  # near the beginning or the end of every picture and record, see `claims`
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota on this disk is used up"}
DAY = 86_400  # seconds after which the process of an aside on another machine counts as dead
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.aside", re.DOTALL)
_OLD_ASIDE = re.compile(r"\.(?P<name>.+?)(\.(?P<pid>\d+)\.tmp|\.aside)", re.DOTALL)  # as earlier versions named them
_MASK = os.umask(0)  # what the user withholds from new files; it can only be read by setting it
os.umask(_MASK)
_USUAL = 0o666 & ~_MASK  # permissions of a new file
_NO_PERMISSIONS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}  # errors of disks without permissions
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # errors of network disks that have nothing to flush


# Writing ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary name for the file `path`: write it inside the block; the end of the block renames it to `path`.

    Missing parent folders are made. If the block fails, the temporary file is deleted and an older file at `path` stays
    as it was. Raises UserError if the system refuses.
    """
    path = Path(path)
    aside = aside_of(path)
    with refusing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            finish(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:  # already renamed, unless the block failed
            with contextlib.suppress(OSError):
                aside.unlink()


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """A new folder under a temporary name: fill it inside the block; the end of the block renames it to `path`.

    If `path` exists, its files of the same names are replaced one after the other, and its other files stay. If the
    block fails, the new folder is deleted. Raises UserError if the system refuses.
    """
    path = Path(path)
    aside = aside_of(path)
    with refusing(path):
        try:
            shutil.rmtree(aside, ignore_errors=True)  # left by an earlier process with the same number
            aside.mkdir(parents=True)
            yield aside
            for inner in (*aside.rglob("*"), aside):
                finish(inner)
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
    """Call `write` with a temporary name, then rename the file to `path`; see `writing`."""
    with writing(path) as aside:
        write(aside)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, line ends unchanged. Lone surrogates (names that are not UTF-8) keep their bytes."""
    write_file(path, lambda aside: aside.write_bytes(text.encode("utf-8", "surrogateescape")))


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write a JSON file. `json.loads` restores names that are not UTF-8, which Python keeps as lone surrogates."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    if not is_utf8(text):
        text = json.dumps(value, indent=indent) + "\n"  # writes each such byte as \udcXX
    write_text(path, text)


def write_record(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write the JSON record of a command, with the mark of this package under "origin"."""
    write_json(path, {"origin": MARK.decode(), **value}, indent=1)


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded: names of files may hold bytes that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """Turn errors of the system while `path` is written into a UserError that says the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """The reason why a file cannot be written, and the remedy, as the end of a sentence."""
    if error.errno in FULL:
        return f"{FULL[error.errno]} ({error.strerror}); make room, or choose a folder on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; choose a folder that you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{error.strerror}: a part of its path is a file; choose another folder"
    if error.errno == errno.EISDIR:
        return f"{error.strerror}: a folder has this name; rename it, or choose another folder"
    return f"{error.strerror or error}; choose another folder"


def finish(path: Path) -> None:
    """Give a file, new and whole, the permissions of any new file, and flush it; a folder is flushed.

    safetensors makes files that only their owner can read: nobody else of a group could sample a model. On a disk that
    keeps no permissions the file stays as it is.
    """
    if path.is_file() and not path.is_symlink():
        mode = path.stat().st_mode
        if mode | _USUAL != mode:
            try:
                path.chmod(mode | _USUAL)
            except OSError as error:
                if error.errno not in _NO_PERMISSIONS:
                    raise
    flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Does nothing for a folder on Windows."""
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
    """The temporary name under which this process writes the file `path`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.aside")


def remove_asides(folder: Path, ours: Callable[[str], bool]) -> None:
    """Delete half-written files of killed processes in a folder, for file names that `ours` accepts."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (name := name_of_aside(path)) is not None and ours(name) and _is_dead(path):
                path.unlink(missing_ok=True)


def remove_aside_folders(path: Path) -> None:
    """Delete half-filled folders of killed processes that `writing_folder` would have renamed to `path`."""
    with contextlib.suppress(OSError):
        for aside in path.parent.iterdir():
            match = _ASIDE.fullmatch(aside.name)
            if match and match["name"] == path.name and aside.is_dir() and not aside.is_symlink() and _is_dead(aside):
                shutil.rmtree(aside)


def name_of_aside(path: Path) -> str | None:
    """The final name of the half-written file `path`; None if it is not a half-written file."""
    match = _ASIDE.fullmatch(path.name) or _OLD_ASIDE.fullmatch(path.name)
    return None if match is None or path.is_symlink() or not path.is_file() else match["name"]


def _is_dead(aside: Path) -> bool:
    """Whether nobody writes an aside any more: its process has ended, is this one, or is silent elsewhere for a day."""
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
