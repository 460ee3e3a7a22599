"""CIFAR-10's files in small: pickles as Python 2's cPickle wrote them, byte by byte, and the archive around them."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
META = {b"num_cases_per_batch": 10000, b"label_names": [label.encode() for label in LABELS], b"num_vis": 3072}
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class Python2Pickle:
    """A pickle of protocol 2 with dictionaries, lists, bytes, whole numbers and uint8 arrays, as cPickle made them."""

    def __init__(self, value: Any) -> None:
        self.memos = 0
        self.content = b"\x80\x02" + self._of(value) + b"."

    def _put(self) -> bytes:
        self.memos += 1
        return b"q" + bytes([self.memos]) if self.memos < 256 else b"r" + struct.pack("<i", self.memos)

    def _of(self, value: Any) -> bytes:
        if isinstance(value, dict):
            pairs = [b"}" + self._put() + b"("]
            pairs += [self._of(key) + self._of(inner) for key, inner in value.items()]
            return b"".join(pairs) + b"u"
        if isinstance(value, list):
            parts = [b"]" + self._put()]
            for first in range(0, len(value), 1000):
                chunk = [self._of(inner) for inner in value[first : first + 1000]]
                parts.append(b"(" + b"".join(chunk) + b"e" if len(chunk) > 1 else chunk[0] + b"a")
            return b"".join(parts)
        if isinstance(value, bytes):
            return _bytes(value) + self._put()
        if isinstance(value, np.ndarray):
            return self._array(value)
        return _whole(value)

    def _array(self, array: np.ndarray) -> bytes:
        assert array.dtype == np.uint8
        function = b"cnumpy.core.multiarray\n_reconstruct\n" + self._put() + b"cnumpy\nndarray\n" + self._put()
        empty = function + b"K\x00\x85U\x01b\x87R" + self._put()
        kind = b"cnumpy\ndtype\n" + self._put() + b"U\x02u1K\x00K\x01\x87R" + self._put()
        kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(map(_whole, array.shape)) + {1: b"\x85", 2: b"\x86", 3: b"\x87"}[array.ndim]
        return empty + b"(K\x01" + shape + kind + b"\x89" + _bytes(array.tobytes()) + b"tb"


def _whole(number: int) -> bytes:
    if 0 <= number < 1 << 16:
        return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)
    return b"J" + struct.pack("<i", number)


def _bytes(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def python2(value: Any) -> bytes:
    """The pickle of a value as Python 2 wrote it."""
    return Python2Pickle(value).content


def batch(name: str, pictures: np.ndarray, labels: list[int]) -> dict[bytes, Any]:
    """The content of a batch file, for pictures uint8 (N,32,32,3)."""
    return {
        b"batch_label": f"batch {name}".encode(),
        b"labels": [int(label) for label in labels],
        b"data": np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).reshape(len(pictures), -1),
        b"filenames": [f"{name}_s_{index:06d}.png".encode() for index in range(len(pictures))],
    }


def cifar_files(pictures: np.ndarray, labels: list[int], tests: int) -> dict[str, bytes]:
    """All seven files of pictures uint8 (N,32,32,3): the last `tests` of them are the test batch."""
    count = len(pictures) - tests
    parts = [*np.array_split(np.arange(count), 5), np.arange(count, count + tests)]
    files = {"batches.meta": python2(META)}
    for name, rows in zip(BATCHES, parts, strict=True):
        files[name] = python2(batch(name, pictures[rows], [labels[row] for row in rows]))
    return files


def random_pictures(count: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Pictures of noise, uint8 (N,32,32,3), and labels."""
    pictures = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return pictures, [3 * index % 10 for index in range(count)]


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder cifar-10-batches-py in `folder`."""
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def write_archive(path: Path, files: dict[str, bytes], inside: str = "cifar-10-batches-py/") -> Path:
    """The archive, its files in the order of the published one: not sorted."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in sorted(files, key=lambda name: name[::-1], reverse=True):
            member = tarfile.TarInfo(inside + name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return path
