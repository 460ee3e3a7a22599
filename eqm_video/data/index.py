"""Which files of a data set can be read: a first look at every one, and others for those that fail after it.

What the first look finds is remembered for the next start. It does not decode everything: a file that is broken further
in shows that when its frames are asked for, and then `Substitutes` gives another one.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from eqm_video.data.layout import quote
from eqm_video.data.video import VideoDecodeError
from eqm_video.files import write_json
from eqm_video.randomness import generator

VERSION = 1  # of the index file; one of another version is made anew
THREADS = 8
CHUNK = 4096  # files in flight: a million of them at once would fill the memory
MANY = 200  # files from which on progress is shown
TRIES = 8  # files for one request: where one in ten is broken, one request in 10^8 finds no other

Info = TypeVar("Info")
Taken = TypeVar("Taken")


@dataclass
class Report:
    """What became of the files that were found or listed. Names are relative to the data folder."""

    root: str
    found: int = 0
    used: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # name: reason
    missing: list[str] = field(default_factory=list)  # in a list, not in the folder
    short: dict[str, int] = field(default_factory=dict)  # shorter than a clip; name: frames
    policy: str = ""  # what happens to the short ones
    ignored: list[str] = field(default_factory=list)  # folders that hold files only deeper down

    def summary(self) -> str:
        """One line for the screen: how many are used, and what is wrong with the others."""
        parts = [f"{self.used} of {self.found + len(self.missing)} files in {self.root} are used"]
        if self.unreadable:
            named = [f"{name} ({reason})" for name, reason in self.unreadable.items()]
            parts.append(f"{len(named)} cannot be read: {quote(named)}")
        if self.missing:
            parts.append(f"{len(self.missing)} are listed but not there: {quote(self.missing)}")
        if self.short:
            fate = "skipped" if self.policy == "skip" else "their last frame is held"
            parts.append(f"{len(self.short)} are shorter than a clip ({fate}): {quote(list(self.short))}")
        if self.ignored:
            parts.append(f"folders passed over, their files lie too deep: {quote(self.ignored)}")
        return "; ".join(parts)

    def write(self, path: str | Path) -> None:
        """Save as JSON. UserError where that is not possible."""
        write_json(path, asdict(self))


def examine(
    root: Path,
    names: Sequence[str],
    look: Callable[[Path], Info],
    kind: type[Info],
    index_path: str | Path | None = None,
) -> tuple[dict[str, Info], dict[str, str]]:
    """Call `look` on every file, in threads. Returns what it said by name, and the reasons of those it refused.

    With `index_path`, what `look` said is kept in that file and believed while a file's size and time of change stay
    the same; refused files are looked at again. `kind` is the dataclass that `look` returns.
    """
    known = _load(index_path, kind)
    stamps: dict[str, list[int]] = {}
    infos: dict[str, Info] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            status = os.stat(root / name)
        except OSError as error:
            reasons[name] = str(error.strerror)
            continue
        stamps[name] = [status.st_size, status.st_mtime_ns]
        stamp, info = known.get(name, (None, None))
        if stamp == stamps[name]:
            infos[name] = info
    pending = [name for name in stamps if name not in infos]

    def one(name: str) -> tuple[Info | None, str]:
        try:
            return look(root / name), ""
        except VideoDecodeError as error:
            return None, str(error).removeprefix(f"{root / name}: ")

    quiet = None if len(pending) >= MANY else True  # None: only where a person watches
    try:
        with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(pending), desc="files", disable=quiet) as bar:
            for first in range(0, len(pending), CHUNK):
                chunk = pending[first : first + CHUNK]
                for name, (info, reason) in zip(chunk, pool.map(one, chunk), strict=True):
                    bar.update()
                    if info is None:
                        reasons[name] = reason
                    else:
                        infos[name] = info
    finally:  # an interrupted first look goes on where it stopped
        if index_path is not None and pending:
            known.update((name, (stamps[name], info)) for name, info in infos.items())
            files = {name: [stamp, astuple(info)] for name, (stamp, info) in known.items()}
            write_json(index_path, {"version": VERSION, "kind": kind.__name__, "files": files})
    return infos, {name: reasons[name] for name in names if name in reasons}


def _load(index_path: str | Path | None, kind: type[Info]) -> dict[str, tuple[list[int], Info]]:
    """The index file's content; empty where it is missing, damaged, or of another version or kind."""
    if index_path is None or not Path(index_path).is_file():
        return {}
    try:
        index = json.loads(Path(index_path).read_text(encoding="utf-8"))
        if index["version"] != VERSION or index["kind"] != kind.__name__:
            return {}
        return {name: (stamp, kind(*values)) for name, (stamp, values) in index["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class Substitutes:
    """Other files in place of those of a set of `size` that do not decode, with one warning for each of these.

    Which file stands in depends on the request alone: a run repeats itself, resumed and on any number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned: set[int] = set()

    def take(self, index: int, seed: int, read: Callable[[int], Taken]) -> Taken:
        """`read(index)`; where that raises VideoDecodeError, `read` of a file drawn from the seed, 8 different at most.

        Raises VideoDecodeError where none of them decodes.
        """
        reasons = []
        for candidate in self._candidates(index, seed):
            try:
                return read(candidate)
            except VideoDecodeError as error:
                reasons.append(str(error))
                self.warn(candidate, error)
        raise VideoDecodeError(
            f"{len(reasons)} of {self.size} files were tried in a row and none can be decoded: {quote(reasons)}; "
            "repair the files, or start a new run without them"
        )

    def warn(self, index: int, error: VideoDecodeError) -> None:
        """Say once that a file, which the error names, is skipped."""
        if index not in self._warned:
            self._warned.add(index)
            warnings.warn(f"{error}; it is skipped, another file takes its place", stacklevel=3)

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        yield index
        others = torch.randperm(self.size, generator=generator(seed, "substitute"))[:TRIES].tolist()
        yield from [other for other in others if other != index][: TRIES - 1]
