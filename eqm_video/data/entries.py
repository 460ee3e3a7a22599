"""The content of one folder: files of the wanted kinds, folders, and the rest by the reason why it is passed over."""

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
LITTER = ("thumbs.db", "desktop.ini")  # what systems leave behind: no more than hidden files


@dataclass
class Entries:
    """The names in a folder, sorted. `passed_over` has the others by reason; an extension is a reason, such as .txt."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, reason: str, name: str) -> None:
        """Note why a name is not used."""
        self.passed_over.setdefault(reason, []).append(name)


def read_entries(folder: Path, extensions: Sequence[str]) -> Entries:
    """The content of a folder; links are followed. Raises OSError where the folder itself cannot be read.

    Names that begin with a dot are none of the data; only where such a name has a wanted extension is it passed over
    with a reason, unless it is a Mac's "._" file.
    """
    found, endings = Entries(), tuple(extensions)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            wanted = name.lower().endswith(endings)
            if name.startswith(".") or name.lower() in LITTER:
                if wanted and not name.startswith("._"):
                    found.pass_over(HIDDEN, name)
                continue
            kind = _kind(entry)
            if kind == "file" and wanted:
                found.files.append(name)
            elif kind == "file":
                found.pass_over(Path(name).suffix.lower() or "no extension", name)
            elif kind == FOLDER:
                found.folders.append(name)
            else:
                found.pass_over(kind, name)
    return found


def _kind(entry: os.DirEntry) -> str:
    """ "file", "folder", or why a name is neither."""
    try:
        if entry.is_file(follow_symlinks=False):  # known without asking the disk again
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
    """Whether a folder is a link to one that it lies in."""
    if not folder.is_symlink():
        return False
    target = Path(os.path.realpath(folder))
    return target in (place := Path(os.path.realpath(folder.parent)), *place.parents)


def below(prefix: str, passed_over: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same, with names relative to the folder that holds the folder `prefix`."""
    return {reason: [f"{prefix}/{name}" for name in names] for reason, names in passed_over.items()}


def merge(parts: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """All that several folders pass over, by reason."""
    whole: dict[str, list[str]] = {}
    for part in parts:
        for reason, names in part.items():
            whole.setdefault(reason, []).extend(names)
    return {reason: whole[reason] for reason in sorted(whole)}
