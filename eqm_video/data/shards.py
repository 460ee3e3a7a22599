"""Shards of latents on disk: safetensors files in which every tensor has its place before the first one is written.

A shard holds whole files of a data set: the moments of each, one tensor for every mirroring, and the seconds of its
frames. The header is written first and the rest of the file is a hole, so that a process may fill it in any order and
be killed at any time. A journal beside the shard, a line of JSON for every file, says which of them are there: a line
is written after the tensors have reached the disk.

Legend: F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from eqm_video.system.files import MARK, refusing, write_file

LARGEST = 512 * 2**20  # bytes of a shard, unless a single file has more
MOST = 2**14  # files in a shard: its header stays under a few MB
ALIGNED = 8  # bytes

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Slot:
    """The place of a file in a shard: its frames, and where its moments and its seconds begin, in bytes."""

    frames: int
    moments: int
    seconds: int


def divide(counts: Sequence[int], frame: int, least: int = 1) -> list[range]:
    """Cut files with `counts` frames, of `frame` bytes each, into shards: consecutive positions for each of them.

    There are at least `least` shards where there are as many files, so that as many processes have work.
    """
    limit = min(LARGEST, -(-sum(counts) * frame // max(1, least)))
    parts, first, size = [], 0, 0
    for place, count in enumerate(counts):
        if place > first and (size + count * frame > limit or place - first >= MOST):
            parts.append(range(first, place))
            first, size = place, 0
        size += count * frame
    return [*parts, range(first, len(counts))] if counts else []


def create(path: Path, names: Sequence[str], counts: Sequence[int], shape: Shape, mirrorings: int) -> None:
    """Write the header of a shard for files of `counts` frames, moments of `shape` (2C, h, w), and make room for them.

    `names` are distinct. Raises UserError where the system refuses.
    """
    header: dict[str, Any] = {"__metadata__": {"origin": MARK.decode(), "format": "pt"}}
    place = 0
    for name, count in zip(names, counts, strict=True):  # first, since they need places that 8 divides
        header[f"{plain(name)}/seconds"] = {
            "dtype": "F64",
            "shape": [count],
            "data_offsets": [place, place + 8 * count],
        }
        place += 8 * count
    for name, count in zip(names, counts, strict=True):
        for kind in ("moments", "mirrored")[:mirrorings]:
            end = place + 2 * count * math.prod(shape)
            header[f"{plain(name)}/{kind}"] = {"dtype": "F16", "shape": [count, *shape], "data_offsets": [place, end]}
            place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)

    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + place)

    write_file(path, write)


def plain(name: str) -> str:
    """A file's name as it stands in a header, which is UTF-8: other bytes are spelled out. No two names become one."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def slots(path: Path) -> dict[str, Slot]:
    """The places in a shard, by plain name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    slots = {}
    for key, entry in header.items():
        name, _, kind = key.rpartition("/")
        if kind == "moments":
            seconds = header[f"{name}/seconds"]["data_offsets"][0]
            slots[name] = Slot(entry["shape"][0], 8 + length + entry["data_offsets"][0], 8 + length + seconds)
    return slots


# Writing ------------------------------------------------------------------------------------------------------------


class ShardWriter:
    """A shard that is being filled. UserError where the system refuses to write."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.frame = path, 2 * math.prod(shape)

    def __enter__(self) -> ShardWriter:
        with refusing(self.path):
            self.file, self.journal = self.path.open("r+b"), journal_of(self.path).open("ab")
            self.journal.write(b"\n")  # ends a line that a power failure cut short
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.journal.close()

    def moments(self, slot: Slot, first: int, mirrorings: Sequence[np.ndarray]) -> None:
        """Write the moments of frames from `first` on, float16 (count, 2C, h, w), of every mirroring."""
        with refusing(self.path):
            for number, moments in enumerate(mirrorings):
                self.file.seek(slot.moments + (number * slot.frames + first) * self.frame)
                self.file.write(np.ascontiguousarray(moments, np.float16).data)

    def seconds(self, slot: Slot, seconds: np.ndarray) -> None:
        """Write the times of a file's frames (F,)."""
        with refusing(self.path):
            self.file.seek(slot.seconds)
            self.file.write(np.ascontiguousarray(seconds, np.float64).data)

    def finish(self, lines: Iterable[Sequence[Any]]) -> None:
        """Note in the journal that files are whole, once all that was written is on the disk."""
        with refusing(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.journal.write(b"".join(json.dumps(list(line)).encode() + b"\n" for line in lines))
            self.journal.flush()
            os.fsync(self.journal.fileno())


def journal_of(path: Path) -> Path:
    """The journal beside a shard."""
    return path.with_suffix(".jsonl")


def read_journal(path: Path) -> Iterator[list[Any]]:
    """The lines of a shard's journal; a last one that was cut short is none."""
    file = journal_of(path)
    for line in file.read_bytes().split(b"\n")[:-1] if file.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:  # empty, or cut short by a power failure
            continue


# Reading ------------------------------------------------------------------------------------------------------------


class ShardMaps:
    """The shards of a folder as memory maps, each opened when it is first read, and anew in a pickled copy."""

    def __init__(self, folder: Path, names: Sequence[str], shape: Shape) -> None:
        self.folder, self.names, self.shape = folder, list(names), shape
        self._maps: dict[int, np.memmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}

    def moments(self, shard: int, slot: Slot, mirrored: int) -> np.ndarray:
        """The moments of a file, float16 (F, 2C, h, w), of one mirroring: a view of the map."""
        shape = (slot.frames, *self.shape)
        return np.ndarray(shape, "<f2", self._map(shard), slot.moments + mirrored * 2 * math.prod(shape))

    def seconds(self, shard: int, slot: Slot) -> np.ndarray:
        """The times of a file's frames (F,), float64: a view of the map."""
        return np.ndarray((slot.frames,), "<f8", self._map(shard), slot.seconds)

    def _map(self, shard: int) -> np.memmap:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / self.names[shard], np.uint8, "r")
        return self._maps[shard]
