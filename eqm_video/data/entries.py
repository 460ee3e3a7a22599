"""The content of a folder: files of the requested kinds, folders, and all other entries by the reason to skip them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DANGLING = "dangling link"
CIRCLE = "link in a circle"
FOLDER = "folder"
UNREADABLE = "unreadable folder"
HIDDEN = "hidden"
LITTER = ("thumbs.db", "desktop.ini")  # files of systems, ignored like hidden files


@dataclass
class Entries:
    """The names in a folder, sorted. `passed_over` has skipped names by reason, such as the extension ".txt"."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, reason: str, name: str) -> None:
        """Note that a name is skipped, and the reason."""
        self.passed_over.setdefault(reason, []).append(name)


def read_entries(folder: Path, extensions: Sequence[str]) -> Entries:
    """The content of a folder; links are followed. Raises OSError if the folder itself cannot be read.

    Names that begin with a dot are ignored. With one of `extensions` they are listed in `passed_over`, unless they are
    "._" files of a Mac.
    """
    content, endings = Entries(), tuple(extensions)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            matches = name.lower().endswith(endings)
            if name.startswith(".") or name.lower() in LITTER:
                if matches and not name.startswith("._"):
                    content.pass_over(HIDDEN, name)
                continue
            kind = _kind(entry)
            if kind == "file" and matches:
                content.files.append(name)
            elif kind == "file":
                content.pass_over(Path(name).suffix.lower() or "no extension", name)
            elif kind == FOLDER:
                content.folders.append(name)
            else:
                content.pass_over(kind, name)
    return content


def _kind(entry: os.DirEntry) -> str:
    """The kind of an entry: "file", "folder", or the reason to skip it."""
    try:
        if entry.is_file(follow_symlinks=False):  # known without another access to the disk
            return "file"
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return CIRCLE
        if error.errno == errno.ENOENT:
            return DANGLING
        return f"cannot be looked up ({error.strerror})"
    tests = {
        "file": stat.S_ISREG,
        FOLDER: stat.S_ISDIR,
        "FIFO": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
        "device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }
    return next((kind for kind, test in tests.items() if test(mode)), "no file")


def leads_back(folder: Path) -> bool:
    """Whether a folder is a link to a folder that contains it."""
    if not folder.is_symlink():
        return False
    target = Path(os.path.realpath(folder))
    return target in (place := Path(os.path.realpath(folder.parent)), *place.parents)


def below(prefix: str, passed_over: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The reasons and names of folder `prefix`, with names relative to the parent folder."""
    return {reason: [f"{prefix}/{name}" for name in names] for reason, names in passed_over.items()}


def merge(parts: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The skipped names of several folders, by reason."""
    whole: dict[str, list[str]] = {}
    for part in parts:
        for reason, names in part.items():
            whole.setdefault(reason, []).extend(names)
    return {reason: whole[reason] for reason in sorted(whole)}
