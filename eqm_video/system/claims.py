"""The folders that a command may write to: new or empty ones, and those that hold what this package wrote.

Nothing of somebody else's is overwritten or deleted. Every file that is written here says so (`files.MARK`), so that it
is told from another file of the same name. Files of earlier versions carry no mark: there a JSON record, told by its
keys, answers for the pictures beside it.
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

LOOKED_AT = 4096  # bytes at both ends of a file that may hold the mark
PROBE = "writable"  # a file of no content that shows whether a folder can be written to
NAMED = 4  # files of others that a refusal names
# Left there by systems and shells: a folder that holds nothing else counts as empty.
CLUTTER = re.compile(
    r"\.DS_Store|\._.*|\.directory|Thumbs\.db|desktop\.ini|\.(git)?keep|\.gitignore|lost\+found|\.nfs.*|\.snapshot"
    r"|\.fuse_hidden.*|\.Trash.*|System Volume Information|\.ipynb_checkpoints"
    r"|nohup\.out|.*\.(log|out|err)|log\w*\.txt",
    re.IGNORECASE,
)


# Whose is a file? ---------------------------------------------------------------------------------------------------


def is_marked(path: Path) -> bool:
    """Whether a file says that this package wrote it."""
    return not path.is_symlink() and path.is_file() and MARK in _ends(path)


def is_empty(path: Path) -> bool:
    """Whether nothing could be lost with a file: a device, no bytes, NULs as power failures leave, or empty JSON."""
    if is_device(path):
        return True
    return not path.is_symlink() and path.is_file() and _ends(path).strip(b"\0\n {}[]") in (b"", b"null")


def is_device(path: Path) -> bool:
    """Whether a path leads to a device, a pipe or the like, which have no content of their own."""
    return path.exists() and not path.is_file() and not path.is_dir()


def record(*keys: str) -> Test:
    """The test for a JSON record: it is marked, or an object with these keys (of earlier versions)."""
    return partial(_is_record, keys)


def begins(text: str) -> Test:
    """The test for a file that begins with `text`, for formats that have no room for a mark."""
    return partial(_begins, text.encode())


def folder_with(*names: str) -> Test:
    """The test for a folder that is empty, or holds one of these names."""
    return partial(_holds_one, names)


def anything(path: Path) -> bool:
    """The test for file names that no one else uses."""
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
    """The first and last bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
            file.seek(-min(LOOKED_AT, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return head + file.read()
    except OSError:
        return b"?"


# What a command writes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """The files of one command: names in its folder, with the test that tells whether such a file is this package's.

    A name is a regular expression, with `FOLDER/` in front where it lies deeper. Of `records`, which are JSON or other
    files that can be told, one suffices to make a folder this package's; `pictures` must be marked; `weak` tests prove
    nothing about the folder. `older` are the records that only earlier versions wrote.
    """

    records: Mapping[str, Test]
    pictures: tuple[str, ...] = ()
    weak: Mapping[str, Test] = field(default_factory=dict)
    older: Mapping[str, Test] = field(default_factory=dict)

    def written(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """Every entry of a name that the command writes, and whether it is this package's."""
        records = [(path, test(path)) for path, test in _found(folder, {**self.records, **self.older})]
        vouched = any(ours and not is_marked(path) for path, ours in records)  # for pictures without a mark
        older = {path for path, _ in _found(folder, self.older)}
        yield from ((path, ours) for path, ours in records if path not in older)
        yield from ((path, test(path)) for path, test in _found(folder, self.weak))
        for path, test in _found(folder, dict.fromkeys(self.pictures, is_marked)):
            yield path, test(path) or (vouched and anything(path))

    def holds(self, folder: Path) -> bool:
        """Whether something in a folder was certainly written by the command, or by an earlier version of it."""
        sure = {**self.records, **self.older, **dict.fromkeys(self.pictures, is_marked)}
        return any(test(path) for path, test in _found(folder, sure))

    def older_records(self, folder: Path) -> list[Path]:
        """The records that an earlier version left in a folder."""
        return [path for path, test in _found(folder, self.older) if test(path)]

    def writes(self, name: str) -> bool:
        """Whether the command writes a file of this name, a path in its folder."""
        return any(re.fullmatch(pattern, name) for pattern in (*self.records, *self.pictures, *self.weak))

    @property
    def folders(self) -> set[str]:
        """Names of the folders in its folder."""
        return {one.partition("/")[0] for one in (*self.records, *self.pictures, *self.weak) if "/" in one}


def _found(folder: Path, tests: Mapping[str, Test]) -> Iterator[tuple[Path, Test]]:
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
    """The folder that a command may write `output` into, before anything is computed; nothing is changed in it.

    A folder that is missing or empty is free. Another one must hold something that one of the `known` commands wrote;
    what else is in it stays untouched, and may not have a name that the command writes. Half-written files of killed
    processes go. With `probe` it is tried whether the folder can be made and written to. `option` names the folder in
    messages. Raises UserError where any of that does not hold.
    """
    folder = Path(folder)
    said = f"{option}={folder}" if "." in option else f"{option} {folder}".strip()
    try:
        check_place(folder, said)
        foreign = foreign_files(folder, output)
        if foreign:
            raise UserError(
                f"{said} holds {_listed(foreign)}, which eqm-video did not write and would overwrite, and nothing was "
                f"changed: move it away, or choose another folder"
            )
        known = list(known)
        others = foreign_entries(folder, [output, *known])
        if others:
            whose = ", which eqm-video did not write, and" if known else ":"
            raise UserError(f"{said} holds {_listed(others)}{whose} nothing was changed; choose a new or empty folder")
        for place in ("", *sorted(output.folders)):
            prefix = f"{place}/" if place else ""
            remove_asides(folder / place, lambda name, prefix=prefix: name == PROBE or output.writes(prefix + name))
        remove_aside_folders(folder)
        if probe:
            try_writing(folder)
    except OSError as error:
        raise UserError(f"cannot write to {said}: {reason(error)}") from error
    return folder


def check_place(folder: Path, said: str) -> None:
    """UserError where no folder can have this path: a file is there, a link to nothing, or it is no path at all."""
    if "\0" in str(folder):
        raise UserError(f"{said!r} has a NUL in its name: choose another folder")
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{said} is a link to {os.readlink(folder)}, which is not there: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{said} is a file, not a folder: choose another folder")


def foreign_files(folder: Path, output: Output) -> list[str]:
    """What has a name that the command writes and is not this package's; names relative to the folder."""
    found = [name for name in sorted(output.folders) if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    written = ((path, ours) for path, ours in output.written(folder) if not ours and not is_empty(path))
    return found + [str(path.relative_to(folder)) for path, _ in written]


def foreign_entries(folder: Path, known: list[Output]) -> list[str]:
    """What a folder holds, unless something in it, or all of it, is this package's."""
    entries = [
        path
        for path in _entries(folder)
        if not _is_nothing(path) and not (any(output.writes(path.name) for output in known) and is_empty(path))
    ]
    if not entries or any(output.holds(folder) for output in known):
        return []
    foreign = [path for path in entries if not path.is_dir() or not any(output.holds(path) for output in known)]
    return [path.name + ("/" if path.is_dir() else "") for path in foreign]  # none: a parent of own folders


def _is_nothing(path: Path) -> bool:
    """Whether an entry may be in a folder that counts as empty: clutter, an empty folder, a half-written file."""
    if CLUTTER.fullmatch(path.name) or name_of_aside(path) is not None or is_device(path):
        return True
    return path.is_dir() and not path.is_symlink() and os.access(path, os.R_OK) and not any(path.iterdir())


def try_writing(folder: Path) -> None:
    """Raise OSError where a folder cannot be made or written to; what is made for the trial goes again."""
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
    """Delete the folders that are empty, the innermost first."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def removed_if_empty(folder: Path, *files: str) -> Iterator[None]:
    """Delete a folder that the block made, and these files in it, where nothing else is in it when the block ends."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        if missing and folder.is_dir() and {path.name for path in folder.iterdir()} <= set(files):
            for name in files:
                (folder / name).unlink(missing_ok=True)
            remove_empty(missing)


def carry_over(old: Path, new: Path, ours: str) -> None:
    """Put the files of a folder that is to be replaced into the new one, but for those whose paths are `ours`."""
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
