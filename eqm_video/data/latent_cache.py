"""A cache of latents on disk: what is in it, what is missing, and the clips that training takes from it.

A cache is a folder of shards (`shards.py`) and an index, written last, that names the place of every file of a data
set. A file is known by its name, size, time of change and both ends; a hash of its content tells a copy, whose time of
change alone is another, from a changed file. Everything else that latents depend on (the settings: codec, size, crop,
flips, the version of this code) belongs to the cache as a whole.

Legend: F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqm_video.data import shards
from eqm_video.data.clips import ClipSet
from eqm_video.data.identity import Stamp, content, stamp, stamps
from eqm_video.data.latents import LatentSet, Piece, encode_files
from eqm_video.data.layout import quote
from eqm_video.data.shards import ShardMaps, ShardWriter, Slot
from eqm_video.errors import UserError
from eqm_video.system.files import write_record
from eqm_video.system.reading import read_json

if TYPE_CHECKING:
    from eqm_video.codec import Codec

VERSION = 1  # of how frames become latents, and of the files; a cache of another version is made anew
INDEX = "index.json"  # written last
SETTINGS = "settings.json"  # written first
SHARDS = "shard_*.safetensors"
BATCH = 64  # images that are encoded at once

SAID = {  # the settings in words
    "version": "version of the cache's format",
    "codec": "codec",
    "codec_dtype": "codec.dtype",
    "kind": "data.kind",
    "size": "data.size",
    "upright": "data.upright",
    "resize": "data.resize",
    "flip": "data.flip",
    "shape": "shape of the moments",
}


NOWHERE = Slot(0, 0, 0)


@dataclass(frozen=True)
class Entry:
    """A file in the cache. `shard` is the name of its shard; "" where it does not decode, for `reason`."""

    stamp: Stamp
    content: str
    shard: str = ""
    slot: Slot = NOWHERE
    reason: str = ""

    def row(self) -> list[Any]:
        """As in the index and, behind the file's name, in a journal."""
        slot = self.slot
        return [*self.stamp, self.content, self.shard, slot.frames, slot.moments, slot.seconds, self.reason]

    @classmethod
    def of(cls, row: Sequence[Any]) -> Entry:
        """The entry of a row."""
        size, changed, ends, digest, shard, frames, moments, seconds, reason = row
        return cls((size, changed, ends), digest, shard, Slot(frames, moments, seconds), reason)


@dataclass(frozen=True)
class Work:
    """Files of one shard that are to be encoded: their numbers in the set, and their places."""

    shard: str
    indices: list[int]
    slots: list[Slot]


class LatentCache:
    """The cache of one data set in `folder`, for latents of these `settings`; `files` has its entries by name."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.files: dict[str, Entry] = {}

    @property
    def shape(self) -> shards.Shape:
        """(2C, h, w) of the moments of a frame."""
        return tuple(self.settings["shape"])

    def read(self) -> LatentCache:
        """Read the index, if there is one, and what was encoded since, to go on filling the cache. Returns the cache.

        UserError where the cache is of other settings, or damaged.
        """
        if (self.folder / SETTINGS).is_file() and not self._empty:
            self.check(read_json(self.folder / SETTINGS)["settings"], exactly=True)
        if (self.folder / INDEX).is_file():
            self.files = {name: Entry.of(row) for name, row in read_index(self.folder)["files"].items()}
        self._read_journals()
        return self

    def begin(self) -> None:
        """Make the folder and say of which settings it is."""
        if self._empty:
            write_record(self.folder / SETTINGS, {"settings": self.settings})

    def check(self, there: Mapping[str, Any], exactly: bool = False) -> None:
        """UserError, naming the differences, where the cache is of other settings.

        Unless `exactly`, one with flips serves a set without.
        """
        ours = dict(self.settings)
        if not exactly and not ours["flip"]:
            ours["flip"] = there.get("flip")
        named = "; ".join(_differs(key, there.get(key), ours[key]) for key in ours if there.get(key) != ours[key])
        if named:
            raise UserError(
                f"the latents in {self.folder} are of other settings ({named}): give the settings that they were made "
                "with, or make others in another folder (eqm-video cache --help)"
            )

    def missing(self, data: ClipSet) -> list[int]:
        """The files of a set that the cache does not have, or has from before they changed.

        A file whose time of change alone is another is read as a whole, and its entry renewed where it is the same.
        """
        missing = []
        for index, now in enumerate(stamps(data)):
            entry = self.files.get(data.files[index][0])
            if entry is None or now[0] != entry.stamp[0] or (entry.shard and entry.slot.frames != data.length(index)):
                missing.append(index)
            elif not _same(now, entry.stamp):
                if content(data, index) == entry.content:
                    self.files[data.files[index][0]] = replace(entry, stamp=_stamp(data, index))
                else:
                    missing.append(index)
        return missing

    def plan(self, data: ClipSet, missing: Sequence[int], processes: int = 1) -> list[Work]:
        """Give every missing file a place: one that it had in a shard when a process was killed, or in new shards."""
        used = {(entry.shard, entry.slot.moments) for entry in self.files.values()}
        names = {shards.plain(data.files[index][0]): index for index in missing}
        works = []
        for path in sorted(self.folder.glob(SHARDS)):
            free = [
                (names[name], slot)
                for name, slot in shards.slots(path).items()
                if name in names and slot.frames == data.length(names[name]) and (path.name, slot.moments) not in used
            ]
            if free:
                works.append(Work(path.name, *map(list, zip(*free, strict=True))))
                for index, _ in free:
                    del names[shards.plain(data.files[index][0])]
        rest, mirrorings = list(names.values()), 1 + self.settings["flip"]
        counts = [data.length(index) for index in rest]
        first = 1 + max((int(path.stem.rpartition("_")[2]) for path in self.folder.glob(SHARDS)), default=-1)
        for part in shards.divide(counts, mirrorings * self.frame_bytes, processes - len(works)):
            path = self.folder / f"shard_{first + len(works):06d}.safetensors"
            indices = [rest[place] for place in part]
            labels = [data.files[index][0] for index in indices]
            shards.create(path, labels, [counts[place] for place in part], self.shape, mirrorings)
            places = shards.slots(path)
            works.append(Work(path.name, indices, [places[shards.plain(label)] for label in labels]))
        return works

    @property
    def frame_bytes(self) -> int:
        """Bytes of the moments of a frame, of one mirroring."""
        return 2 * math.prod(self.shape)

    def fill(
        self, data: ClipSet, work: Work, codec: Codec, device: Any, threads: int, pulse: Callable[[int], Any]
    ) -> list[str]:
        """Encode the files of one shard; returns the names of those that do not decode. `pulse(frames)` as they come.

        UserError where moments are not finite, a file vanishes, or the disk is full.
        """
        slots, unreadable = dict(zip(work.indices, work.slots, strict=True)), []
        begun: dict[int, Stamp] = {}
        with ShardWriter(self.folder / work.shard, self.shape) as writer:
            done: list[list[Any]] = []
            for piece in encode_files(data, work.indices, codec, device, threads=threads, batch=BATCH):
                index, name = piece.index, data.files[piece.index][0]
                begun.setdefault(index, _stamp(data, index))
                if isinstance(piece, Piece):
                    writer.moments(slots[index], piece.first, piece.mirrorings)
                    pulse(len(piece.mirrorings[0]))
                    if not piece.last:
                        continue
                    writer.seconds(slots[index], data.seconds(index))
                    entry = Entry(
                        _unchanged(data, index, begun.pop(index)), content(data, index), work.shard, slots[index]
                    )
                else:
                    unreadable.append(name)
                    entry = Entry(_stamp(data, index), content(data, index), reason=piece.reason)
                done.append([name, *entry.row()])
                if data.length(index) > 1 or len(done) == BATCH:
                    writer.finish(done)
                    done = []
            writer.finish(done)
        return unreadable

    def seal(self, data: ClipSet) -> None:
        """Write the index, of the files of this set alone, and delete journals and shards that it does not need."""
        self._read_journals()
        names = {name for name, _, _ in data.files}
        files = {name: entry.row() for name, entry in self.files.items() if name in names}
        needed = {self.files[name].shard for name in files} - {""}
        sizes = {name: (self.folder / name).stat().st_size for name in sorted(needed)}
        index = {"settings": self.settings, "root": str(data.root), "shards": sizes, "files": files}
        write_record(self.folder / INDEX, index)
        for path in self.folder.glob(SHARDS):
            shards.journal_of(path).unlink(missing_ok=True)
            if path.name not in needed:
                path.unlink()

    @property
    def _empty(self) -> bool:
        """Whether nothing was ever encoded, so that the settings may still be others."""
        return not (self.folder / INDEX).is_file() and not any(self.folder.glob(SHARDS))

    def _read_journals(self) -> None:
        for path in sorted(self.folder.glob(SHARDS)):
            self.files |= {name: Entry.of(row) for name, *row in shards.read_journal(path)}


class LatentsOnDisk(LatentSet):
    """A set whose moments are in a cache: no file of the set is decoded.

    Raises:
        UserError: the cache is not finished, or damaged; it is of other settings; it lacks files of the set, or has
            them from before they changed.
    """

    def __init__(self, data: ClipSet, cache: LatentCache, advice: str) -> None:
        index = read_index(cache.folder)
        cache.check(index["settings"])
        cache.files = {name: Entry.of(row) for name, row in index["files"].items()}
        if missing := cache.missing(data):
            raise UserError(f"the cache {cache.folder} {_lacks(cache, data, missing)}; {advice} encodes these alone")
        self.cache = cache
        entries = [cache.files[name] for name, _, _ in data.files]
        super().__init__(data, {index: entry.reason for index, entry in enumerate(entries) if not entry.shard})
        if len(self.unreadable) == len(data):
            reasons = list(self.unreadable.values())
            raise UserError(f"none of the {len(reasons)} files in {data.root} can be decoded: {quote(reasons)}")
        names = sorted({entry.shard for entry in entries if entry.shard})
        for name in names:
            _check_size(cache.folder / name, index["shards"].get(name))
        places = {name: number for number, name in enumerate(names)}
        self.places = [(places.get(entry.shard, -1), entry.slot) for entry in entries]
        self.maps = ShardMaps(cache.folder, names, cache.shape)

    def _file(self, index: int, mirrored: int) -> tuple[np.ndarray, np.ndarray]:
        shard, slot = self.places[index]
        return self.maps.moments(shard, slot, mirrored), self.maps.seconds(shard, slot)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache; UserError where there is none, or it is damaged."""
    file = Path(folder) / INDEX
    if not file.is_file():
        begun = any(Path(folder).glob(SHARDS))
        what = "is not finished: the command that fills it goes on where it stopped" if begun else "holds no latents"
        raise UserError(f"{folder} {what}; type eqm-video cache --config RECIPE --out {Path(folder).parent}")
    try:
        index = json.loads(file.read_bytes())
        if not all(isinstance(index[key], dict) for key in ("settings", "shards", "files")):
            raise ValueError("it has no settings, shards and files")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}): delete the folder {folder}, and fill the cache again") from error
    return index


def _check_size(path: Path, size: int | None) -> None:
    """UserError where a shard is not there, or not as long as it was: reading a map of it would end the process."""
    actual = path.stat().st_size if path.is_file() else None
    if actual is None or actual != size:
        what = "is missing" if actual is None else f"has {actual} of {size} bytes"
        raise UserError(f"{path} {what}: bring it back, or delete the folder {path.parent} and fill the cache again")


def _stamp(data: ClipSet, index: int) -> Stamp:
    """The stamp of one file, ends included."""
    if hasattr(data, "pixels"):
        return stamps(data.subset([index], data.report))[0]
    return stamp(data.root / data.files[index][0])


def _unchanged(data: ClipSet, index: int, before: Stamp) -> Stamp:
    """The stamp from before a file was read; UserError where it is another now."""
    if _stamp(data, index) != before:
        raise UserError(
            f"{data.root / data.files[index][0]} changed while it was encoded: start again when it is whole"
        )
    return before


def _same(now: Stamp, then: Stamp) -> bool:
    """Whether two stamps are of one file; ends that were not read (of large sets) are equal to all."""
    return now[:2] == then[:2] and (now[2] in ("", then[2]) or then[2] == "")


def _differs(key: str, there: Any, here: Any) -> str:
    """A setting and its values in words; of a codec the part of it that differs."""
    if key == "codec" and isinstance(there, dict):
        parts = [part for part in here if there.get(part) != here[part]]
        return f"a codec with other {' and other '.join(parts)}"
    return f"{SAID[key]} {there} there, {here} here"


def _lacks(cache: LatentCache, data: ClipSet, missing: Sequence[int]) -> str:
    """The numbers of files of a set that are not in its cache, or have changed, with names of some."""
    names = [data.files[index][0] for index in missing]
    changed, new = [name for name in names if name in cache.files], [name for name in names if name not in cache.files]
    parts = [f"lacks {len(new)} of {len(data)} files: {quote(new)}"] if new else []
    parts += [f"has {len(changed)} of {len(data)} files from before they changed: {quote(changed)}"] if changed else []
    return " and ".join(parts)
