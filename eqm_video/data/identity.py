"""Identity of a set of files: hashes that show whether a run resumes on the data that it began with.

They depend on the names, sizes and both ends of all files, not on the folder's place or the files' times: a copy of the
data has the same identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eqm_video.data.layout import quote
from eqm_video.errors import UserError
from eqm_video.system import waits
from eqm_video.system.hashing import add_file

ENDS = 4096  # bytes of each end of a file
OPENED = 20_000  # files up to which the ends are read; for larger sets names and sizes alone count
LISTED = 1000  # files up to which each has its own hash in the record; in larger sets each label has a hash
THREADS = 8

Stamp = tuple[int, int, str]


def identity(data: Any) -> dict[str, Any]:
    """Hashes of a set: `total`, and `files` by name or `labels` by label, which locate a difference."""
    rows = sorted((name, data.labels[label] if label >= 0 else "") for name, label, _ in data.files)
    if hasattr(data, "pixels"):  # pictures in memory, from an archive
        return {"total": _short(data.pixels.tobytes(), repr([(name, label) for name, label, _ in data.files]).encode())}
    opened = len(rows) <= OPENED
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda row: _of_file(Path(data.root), *row, opened), rows, chunksize=64))
    named = {name: digest for (name, _), digest in zip(rows, hashes, strict=True)}
    hashed: dict[str, Any] = {"total": _short(*(digest.encode() for digest in hashes))}
    if len(rows) <= LISTED:
        return {**hashed, "files": named}
    by_label: dict[str, list[bytes]] = {}
    for (name, label), _ in zip(rows, hashes, strict=True):
        by_label.setdefault(label, []).append(named[name].encode())
    return {**hashed, "labels": {label: _short(*digests) for label, digests in by_label.items()}}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The difference between two identities, as a part of a sentence; None if they are equal."""
    if old.get("total") == new.get("total"):
        return None
    for key, noun in (("files", "files"), ("labels", "files of the labels")):
        then, now = old.get(key), new.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            other = [name for name in then if name in now and then[name] != now[name]]
            gone, added = [name for name in then if name not in now], [name for name in now if name not in then]
            changes = (("changed", other), ("gone", gone), ("new", added))
            parts = [f"{word}: {quote(names)}" for word, names in changes if names]
            return f"other {noun} than then ({'; '.join(parts)})" if parts else None
    return "other files than then"


def stamps(data: Any) -> list[Stamp]:
    """(size in bytes, time of change in ns, hash of both ends) of every file of a set; UserError where one is gone.

    In sets of more than 20,000 files the ends are not read, and their hash is "". A picture in memory has no time, and
    its ends are all of it.
    """
    if hasattr(data, "pixels"):
        return [(picture.nbytes, 0, _short(picture.tobytes())) for picture in data.pixels]
    opened = len(data.files) <= OPENED
    with ThreadPoolExecutor(THREADS) as pool:
        blocks = pool.map(  # a task a file would cost more than the look at it
            lambda first: [stamp(Path(data.root) / row[0], opened) for row in data.files[first : first + 256]],
            range(0, len(data.files), 256),
        )
        return [entry for block in blocks for entry in block]


def stamp(path: Path, opened: bool = True) -> Stamp:
    """The stamp of one file, with the hash of its ends where it is `opened`; UserError where it cannot be read."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns, _short(_ends(path, status.st_size)) if opened else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read any more ({error.strerror}): bring it back, and start again") from error


def content(data: Any, index: int) -> str:
    """A hash of all bytes of a file of a set; UserError where it cannot be read."""
    if hasattr(data, "pixels"):
        return _short(data.pixels[index].tobytes())
    path = Path(data.root) / data.files[index][0]
    try:
        return add_file(hashlib.blake2b(digest_size=12), path).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read any more ({error.strerror}): bring it back, and start again") from error


def contents(data: Any, indices: Sequence[int]) -> str:
    """A hash of all bytes of some files of a set; UserError where one cannot be read."""
    with waits.bar(what="files checked", total=len(indices), unit="file") as bar, ThreadPoolExecutor(THREADS) as pool:
        digests = []
        for digest in pool.map(lambda index: content(data, index), indices):
            digests.append(digest.encode())
            bar.update()
    return _short(*digests)


def _of_file(root: Path, name: str, label: str, opened: bool) -> str:
    path = root / name
    try:
        size = path.stat().st_size
        ends = _ends(path, size) if opened else b""
    except OSError:  # the file has vanished: its hash differs from that of any file
        size, ends = -1, b""
    return _short(name.encode("utf-8", "surrogateescape"), label.encode("utf-8", "replace"), str(size).encode(), ends)


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        head = file.read(ENDS)
        file.seek(max(ENDS, size - ENDS))
        return head + file.read(ENDS)


def _short(*parts: Sequence[Any]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part)
    return digest.hexdigest()
