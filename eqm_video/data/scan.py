"""Scan a data set once, cache which files are readable, and substitute files that later fail to decode.

The scan does not decode everything. A file that is broken further in fails when its frames are requested, and
`Substitutes` then gives another file.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from eqm_video.data.children import Answer, look_at
from eqm_video.data.layout import quote, tally
from eqm_video.data.video import VideoDecodeError
from eqm_video.names import shown
from eqm_video.randomness import generator
from eqm_video.system import waits
from eqm_video.system.files import write_json

VERSION = 2  # of the index file; a file of another version is ignored and replaced
EMPTY = "the file is empty (0 bytes)"
SAVED = 60.0  # seconds between two writings of the index during a scan, or 20 times the duration of a writing
TRIES = 8  # files for a request: if 1 in 10 is broken, 1 request in 10^8 fails

Info = TypeVar("Info")
Taken = TypeVar("Taken")


@dataclass
class Report:
    """The outcome of a scan: the used, unusable and skipped files of a data set, relative to its folder."""

    root: str
    found: int = 0
    used: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # name: reason
    missing: list[str] = field(default_factory=list)  # in a list, but not in the folder
    short: dict[str, int] = field(default_factory=dict)  # shorter than a clip; name: frames
    policy: str = ""  # the policy for short files: repeat, skip or error
    ignored: list[str] = field(default_factory=list)  # folders with files only deeper down
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # not read; reason, such as an extension: names
    unlabelled: list[str] = field(default_factory=list)  # class folders without a usable file, so without a label
    untrained: list[str] = field(default_factory=list)  # labels of an official list without a usable file
    held_out: list[str] = field(default_factory=list)  # held out from training; in a held-out set, its files
    notes: dict[str, list[str]] = field(default_factory=dict)  # unusual property of pixels, such as interlaced: names

    def summary(self) -> str:
        """A line for the screen: the number of used files, and the problems of the others."""
        parts = [f"{self.used} of {self.found + len(self.missing)} files in {shown(self.root)} are used"]
        if self.held_out:
            parts.append(f"{len(self.held_out)} are held out: {quote(self.held_out)}")
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
        if self.passed_over:
            count = sum(map(len, self.passed_over.values()))
            parts.append(f"{count} passed over: {tally(self.passed_over)}")
        if self.unlabelled:
            parts.append(f"class folders without a file that can be used, so no label: {quote(self.unlabelled)}")
        if self.untrained:
            parts.append(f"labels without a file, so never trained: {quote(self.untrained)}")
        if self.notes:
            parts.append(f"unusual pixels: {tally(self.notes)}")
        return "; ".join(parts)

    @property
    def complete(self) -> bool:
        """Whether every file of the folder is used and none is unusual."""
        left_out = (self.missing, self.ignored, self.passed_over, self.unlabelled, self.untrained, self.held_out)
        return self.used == self.found and not any((*left_out, self.notes))

    def write(self, path: str | Path) -> None:
        """Save as JSON. UserError if the file cannot be written."""
        write_json(path, asdict(self))


@dataclass
class Index:
    """The cache of a scan, by file name: infos and refusals, each with the file's stamp (size, time of change)."""

    path: Path | None
    kind: type
    files: dict[str, tuple[list[int], Any]] = field(default_factory=dict)
    refused: dict[str, tuple[list[int], str, bool]] = field(default_factory=dict)  # stamp, reason, costly

    @classmethod
    def load(cls, path: str | Path | None, kind: type) -> Index:
        """The content of an index file; empty if it is missing, damaged, or of another version or kind."""
        made = cls(None if path is None else Path(path), kind)
        if made.path is None or not made.path.is_file():
            return made
        try:
            content = json.loads(made.path.read_text(encoding="utf-8"))
            if content["version"] != VERSION or content["kind"] != kind.__name__:
                return made
            files = {name: (stamp, kind(*values)) for name, (stamp, values) in content["files"].items()}
            refused = {name: (stamp, reason, costly) for name, (stamp, reason, costly) in content["refused"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return made
        return cls(made.path, kind, files, refused)

    def save(self) -> None:
        """Write the index file, if there is a path."""
        if self.path is not None:
            files = {name: [stamp, astuple(info)] for name, (stamp, info) in self.files.items()}
            write_json(
                self.path, {"version": VERSION, "kind": self.kind.__name__, "files": files, "refused": self.refused}
            )

    def add(self, name: str, stamp: list[int], answer: Answer) -> None:
        """Keep the answer for a file."""
        self.files.pop(name, None)
        self.refused.pop(name, None)
        if answer.values is None:
            self.refused[name] = (stamp, answer.reason, answer.costly)
        else:
            self.files[name] = (stamp, self.kind(*answer.values))

    def is_known(self, name: str, stamp: list[int], again: bool) -> bool:
        """Whether the answer for a file is known. `again`: refused files are scanned again, unless that is costly."""
        if name in self.files:
            return self.files[name][0] == stamp
        known, _, costly = self.refused.get(name, (None, "", False))
        return known == stamp and (costly or not again)


def examine(
    root: Path,
    names: Sequence[str],
    look: str | None,
    kind: type[Info],
    index_path: str | Path | None = None,
    again: bool = True,
) -> tuple[dict[str, Info], dict[str, str]]:
    """Inspect every file, in child processes. Returns infos by name, and the reasons of refused files by name.

    `look` is a key of `looks.LOOKS`, and `kind` the dataclass that it returns; None opens no file, and refuses empty
    files only. With `index_path`, answers are kept in that file and used while a file's size and time of change stay
    the same. Refused files are inspected again, except those that ended the decoder or took too long; with
    `again=False` none is.
    """
    stamps, reasons = _stamps(root, names)
    if look is None:
        empty = {name: EMPTY for name, (size, _) in stamps.items() if size == 0}
        return {name: kind() for name in stamps if name not in empty}, _ordered(names, {**reasons, **empty})
    index = Index.load(index_path, kind)
    pending = [name for name, stamp in stamps.items() if not index.is_known(name, stamp, again)]
    saved, wait = time.monotonic(), SAVED
    try:
        with waits.bar(what="looking at files", total=len(pending), unit="file") as bar:
            for name, answer in look_at(root, pending, look):
                bar.update()
                index.add(name, stamps[name], answer)
                if time.monotonic() - saved > wait:  # so that little is lost if this process is ended
                    begun = time.monotonic()
                    index.save()
                    saved = time.monotonic()
                    wait = max(SAVED, 20 * (saved - begun))
    finally:  # an interrupted scan goes on from this point
        if pending:
            index.save()
    infos = {name: index.files[name][1] for name in stamps if name in index.files}
    refused = {name: index.refused[name][1] for name in stamps if name in index.refused}
    return infos, _ordered(names, {**reasons, **refused})


def _stamps(root: Path, names: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Size and time of change of every file by name, and the reasons why others have none."""
    stamps, reasons = {}, {}
    for name in names:
        try:
            status = os.stat(root / name)
        except OSError as error:
            reasons[name] = str(error.strerror)
        else:
            stamps[name] = [status.st_size, status.st_mtime_ns]
    return stamps, reasons


def _ordered(names: Sequence[str], reasons: dict[str, str]) -> dict[str, str]:
    return {name: reasons[name] for name in names if name in reasons}


class Substitutes:
    """Substitutes for files of a set of `size` files that do not decode, with a single warning for each of them.

    The substitute depends on the request alone, so that a run is repeatable, resumed and on any number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned: set[int] = set()

    def take(self, index: int, seed: int, read: Callable[[int], Taken]) -> Taken:
        """`read(index)`; if that raises VideoDecodeError, `read` of files drawn from the seed, at most 8 files in all.

        Raises VideoDecodeError if none of them decodes.
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
        """Warn, once for each file, that the file named in the error is skipped."""
        if index not in self._warned:
            self._warned.add(index)
            warnings.warn(f"{error}; it is skipped, another file takes its place", stacklevel=3)

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        yield index
        others = torch.randperm(self.size, generator=generator(seed, "substitute"))[:TRIES].tolist()
        yield from [other for other in others if other != index][: TRIES - 1]
