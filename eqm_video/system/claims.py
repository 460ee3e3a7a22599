"""The folders that a command may write to: new or empty ones, and those with output of this package.

Files of others are never overwritten or deleted. Every file of this package has a mark (`files.MARK`), which
distinguishes it from another file of the same name. Files of earlier versions have no mark: a JSON record, recognised
by its keys, then proves that the pictures beside it are this package's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from eqm_video.errors import UserError
from eqm_video.system.files import MARK, aside_of, name_of_aside, reason, remove_aside_folders, remove_asides

Test = Callable[[Path], bool]

MARK_RANGE = 4096  # bytes at both ends of a file in which the mark is searched
PROBE = "writable"  # an empty file, written to test whether a folder can be written to
NAMED = 4  # files of others that an error names
# Files of systems and shells. A folder with nothing else counts as empty.
CLUTTER = re.compile(
    r"\.DS_Store|\._.*|\.directory|Thumbs\.db|desktop\.ini|\.(git)?keep|\.gitignore|lost\+found|\.nfs.*|\.snapshot"
    r"|\.fuse_hidden.*|\.Trash.*|System Volume Information|\.ipynb_checkpoints"
    r"|nohup\.out|.*\.(log|out|err)|log\w*\.txt",
    re.IGNORECASE,
)


# Owners of files ----------------------------------------------------------------------------------------------------


def is_marked(path: Path) -> bool:
    """Whether a file has the mark of this package."""
    return not path.is_symlink() and path.is_file() and MARK in _ends(path)


def is_empty(path: Path) -> bool:
    """Whether a file has no content to lose: a device, no bytes, only NULs (from a power failure), or empty JSON."""
    if is_device(path):
        return True
    return not path.is_symlink() and path.is_file() and _ends(path).strip(b"\0\n {}[]") in (b"", b"null")


def is_device(path: Path) -> bool:
    """Whether a path leads to a device, a pipe or the like, which have no content of their own."""
    return path.exists() and not path.is_file() and not path.is_dir()


def record(*keys: str) -> Test:
    """A test for a JSON record: it has the mark, or it is an object with these keys (of earlier versions)."""
    return partial(_is_record, keys)


def begins(text: str) -> Test:
    """A test for a file that begins with `text`, for formats without room for a mark."""
    return partial(_begins, text.encode())


def folder_with(*names: str) -> Test:
    """A test for a folder that is empty, or contains an entry with any of these names."""
    return partial(_holds_one, names)


def anything(path: Path) -> bool:
    """A test that accepts any regular file, for names that nobody else uses."""
    return not path.is_symlink() and path.is_file()


def _is_record(keys: tuple[str, ...], path: Path) -> bool:
    if is_marked(path):
        return True
    if not keys or path.is_symlink() or not path.is_file():
        return False
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        return isinstance(value, dict) and value.keys() >= set(keys)
    return False


def _begins(text: bytes, path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and _ends(path).startswith(text)


def _holds_one(names: tuple[str, ...], path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return any((path / name).exists() for name in names) or not any(path.iterdir())


def _ends(path: Path) -> bytes:
    """The first and last bytes of a file; b"?" for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(MARK_RANGE)
            file.seek(-min(MARK_RANGE, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return head + file.read()
    except OSError:
        return b"?"


# Output of a command ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """The files of a command: their names in its folder, each with a test whether such a file is this package's.

    A name is a regular expression, with `FOLDER/` in front for a file in a folder of the folder. A single one of
    `records`, JSON or other recognisable files, makes a folder this package's. `pictures` must have the mark. `weak`
    tests prove nothing about the folder. `older` are records that only earlier versions wrote.
    """

    records: Mapping[str, Test]
    pictures: tuple[str, ...] = ()
    weak: Mapping[str, Test] = field(default_factory=dict)
    older: Mapping[str, Test] = field(default_factory=dict)

    def written(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """Every entry of `folder` with a name that the command writes, and whether it is this package's."""
        records = [(path, test(path)) for path, test in _matching(folder, {**self.records, **self.older})]
        # A record without a mark proves that pictures without one are this package's.
        unmarked_record = any(ours and not is_marked(path) for path, ours in records)
        older = {path for path, _ in _matching(folder, self.older)}
        yield from ((path, ours) for path, ours in records if path not in older)
        yield from ((path, test(path)) for path, test in _matching(folder, self.weak))
        for path, test in _matching(folder, dict.fromkeys(self.pictures, is_marked)):
            yield path, test(path) or (unmarked_record and anything(path))

    def holds(self, folder: Path) -> bool:
        """Whether the command, or an earlier version of it, has certainly written something in a folder."""
        certain = {**self.records, **self.older, **dict.fromkeys(self.pictures, is_marked)}
        return any(test(path) for path, test in _matching(folder, certain))

    def older_records(self, folder: Path) -> list[Path]:
        """The records of earlier versions in a folder."""
        return [path for path, test in _matching(folder, self.older) if test(path)]

    def writes(self, name: str) -> bool:
        """Whether the command writes a file of this name, a path relative to its folder."""
        return any(re.fullmatch(pattern, name) for pattern in (*self.records, *self.pictures, *self.weak))

    @property
    def folders(self) -> set[str]:
        """Names of the folders that the command makes in its folder."""
        return {name.partition("/")[0] for name in (*self.records, *self.pictures, *self.weak) if "/" in name}


def _matching(folder: Path, tests: Mapping[str, Test]) -> Iterator[tuple[Path, Test]]:
    """The entries of a folder whose names match, each with the test of its name."""
    by_place: dict[str, dict[str, Test]] = {}
    for name, test in tests.items():
        place, _, pattern = name.rpartition("/")
        by_place.setdefault(place, {})[pattern] = test
    for place, inner in by_place.items():
        for path in _entries(folder / place):
            test = next((test for pattern, test in inner.items() if re.fullmatch(pattern, path.name)), None)
            if test is not None:
                yield path, test


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


# Claiming -----------------------------------------------------------------------------------------------------------


def claim(
    folder: str | Path, output: Output, known: Iterable[Output], *, option: str = "--out", probe: bool = True
) -> Path:
    """Check, before anything is computed, that a command may write `output` into `folder`; return the folder.

    A missing or empty folder is free. Any other must contain output of one of the `known` commands. Its other entries
    are not touched, and may not have a name that the command writes. Half-written files of killed processes are
    deleted. With `probe` a test file is written. `option` names the folder in messages. Raises UserError for a folder
    of others, for a file of others that would be overwritten, and for a folder that cannot be written to.
    """
    folder = Path(folder)
    label = f"{option}={folder}" if "." in option else f"{option} {folder}".strip()
    try:
        check_place(folder, label)
        foreign = foreign_files(folder, output)
        if foreign:
            raise UserError(
                f"{label} holds {_listed(foreign)}, which eqm-video did not write and would overwrite, and nothing was "
                f"changed: move it away, or choose another folder"
            )
        known = list(known)
        others = foreign_entries(folder, [output, *known])
        if others:
            whose = ", which eqm-video did not write, and" if known else ":"
            raise UserError(f"{label} holds {_listed(others)}{whose} nothing was changed; choose a new or empty folder")
        for place in ("", *sorted(output.folders)):
            prefix = f"{place}/" if place else ""
            remove_asides(folder / place, lambda name, prefix=prefix: name == PROBE or output.writes(prefix + name))
        remove_aside_folders(folder)
        if probe:
            try_writing(folder)
    except OSError as error:
        # Of several processes only one probes. It removes its probe while the others look at the folder.
        if probe or not isinstance(error, FileNotFoundError):
            raise UserError(f"cannot write to {label}: {reason(error)}") from error
    return folder


def check_place(folder: Path, label: str) -> None:
    """UserError if no folder can be made at this path: a file, a link to nothing, or a name with NUL.

    `label` names the path in the message, such as "--out samples".
    """
    if "\0" in str(folder):
        raise UserError(f"{label!r} has a NUL in its name: choose another folder")
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{label} is a link to {os.readlink(folder)}, which is missing: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{label} is a file, not a folder: choose another folder")


def foreign_files(folder: Path, output: Output) -> list[str]:
    """Files of others with names that the command would write; paths relative to `folder`."""
    files = [name for name in sorted(output.folders) if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    written = ((path, ours) for path, ours in output.written(folder) if not ours and not is_empty(path))
    return files + [str(path.relative_to(folder)) for path, _ in written]


def foreign_entries(folder: Path, known: list[Output]) -> list[str]:
    """The entries of a folder that belong to others; [] if anything in the folder is output of the `known` commands."""
    entries = [
        path
        for path in _entries(folder)
        if not _counts_as_empty(path) and not (any(output.writes(path.name) for output in known) and is_empty(path))
    ]
    if not entries or any(output.holds(folder) for output in known):
        return []
    # A parent of this package's folders has no foreign entries.
    foreign = [path for path in entries if not path.is_dir() or not any(output.holds(path) for output in known)]
    return [path.name + ("/" if path.is_dir() else "") for path in foreign]


def _counts_as_empty(path: Path) -> bool:
    """Whether a folder with only such entries counts as empty: clutter, an empty folder, a half-written file."""
    if CLUTTER.fullmatch(path.name) or name_of_aside(path) is not None or is_device(path):
        return True
    return path.is_dir() and not path.is_symlink() and os.access(path, os.R_OK) and not any(path.iterdir())


def try_writing(folder: Path) -> None:
    """Raise OSError if a folder cannot be made or written to. The folders and file of the trial are deleted again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = aside_of(folder / PROBE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        remove_empty(missing)


def remove_empty(folders: Iterable[Path]) -> None:
    """Delete those of `folders` that are empty, in order: give the innermost first."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def removed_if_empty(folder: Path, *files: str) -> Iterator[None]:
    """Delete `folder` at the end of the block, if the block made it and it has nothing but `files`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        if missing and folder.is_dir() and {path.name for path in folder.iterdir()} <= set(files):
            for name in files:
                (folder / name).unlink(missing_ok=True)
            remove_empty(missing)


def carry_over(old: Path, new: Path, ours: str) -> None:
    """Link or copy the files of the folder `old` into `new`, which replaces it, except paths that match `ours`.

    `ours` is a regular expression of paths relative to the folder, such as "model/.*".
    """
    for path in sorted(old.rglob("*")) if old.is_dir() else ():
        name = path.relative_to(old)
        if (path.is_symlink() or not path.is_dir()) and re.fullmatch(ours, name.as_posix()) is None:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, new / name, follow_symlinks=False)
            except OSError:  # a disk without links
                shutil.copy2(path, new / name, follow_symlinks=False)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name.replace("\n", "?") for name in names[:NAMED]) + more
