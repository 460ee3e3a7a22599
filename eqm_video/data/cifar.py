"""CIFAR-10 as published: the python archive, or the folder in it, read without unpacking or running anything.

    cifar-10-python.tar.gz
        cifar-10-batches-py/batches.meta       names of the 10 classes
        cifar-10-batches-py/data_batch_1 ...   five batches of 10,000 training pictures, and test_batch

Legend: N pictures, 32 x 32 pixels, 3 colours.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.data.unpickle import read_plain
from eqm_video.errors import UserError

FOLDER = "cifar-10-batches-py"
META = "batches.meta"
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SIDE = 32
ARCHIVES = (".tar.gz", ".tgz", ".tar")
LARGEST = 64 * 2**20  # bytes of a file; a batch has 31 MB
UNPACKED = 2**30  # bytes of a whole archive; the real one has 186 MB


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split, in the order of the batches."""

    pixels: np.ndarray  # uint8 RGB (N,32,32,3)
    label_ids: list[int]
    labels: list[str]
    names: list[str]  # "data_batch_1/leptodactylus_pentadactylus_s_000004.png"


def find_cifar(root: Path) -> Path | None:
    """The archive at `root`, or the folder of batches at or in it; None if `root` is something else."""
    if os.path.isfile(root):  # False without an error for a folder that may not be read; `check_folder` reports that
        return root if root.name.lower().endswith(ARCHIVES) else None
    for folder in (root, root / FOLDER):
        if any(os.path.isfile(folder / name) for name in (META, *BATCHES["train"], *BATCHES["test"])):
            return folder
    return None


def read_cifar(place: Path, split: str | None) -> Pictures:
    """The pictures of a split ("train", "test", None: both, in this order) at `place`, a result of `find_cifar`.

    UserError if a file is missing, damaged, too large, not plain data, or of other shapes than CIFAR-10's.
    """
    if split not in (None, *BATCHES):
        raise UserError(f"data.split is {split!r}; type train, test, or null for every picture")
    batches = BATCHES[split] if split else (*BATCHES["train"], *BATCHES["test"])
    read = _from_folder if place.is_dir() else _from_archive
    contents = read(place, (META, *batches))
    labels = _labels(read_plain(contents.pop(META), f"{place}: {META}"), f"{place}: {META}")
    pixels, label_ids, names = [], [], []
    for batch in batches:
        where = f"{place}: {batch}"
        data, ids, files = _batch(read_plain(contents.pop(batch), where), len(labels), where)
        pixels.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        label_ids += ids
        names += [f"{batch}/{file}" for file in files]
    return Pictures(np.concatenate(pixels), label_ids, labels, names)


def _from_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of the files `names` in a folder."""
    contents = {}
    for name in names:
        try:
            _check_size((folder / name).stat().st_size, f"{folder}: {name}")
            contents[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror})") from error
    return _complete(contents, folder, names)


def _from_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of the files `names` in an archive; nothing is unpacked to the disk."""
    requested, contents, total = {f"{FOLDER}/{name}": name for name in names}, {}, 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                total += member.size
                if total > UNPACKED:
                    raise UserError(f"{path} unpacks to more than {UNPACKED >> 20} MiB; it is not CIFAR-10's archive")
                name = requested.get(member.name.removeprefix("./"))
                if name is None or not member.isreg():
                    continue
                _check_size(member.size, f"{path}: {name}")
                contents[name] = archive.extractfile(member).read()
                if len(contents) == len(names):
                    break
    except UserError:
        raise
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        OverflowError,
    ) as error:  # from damaged headers
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile adds a line for every compression it tried
        raise UserError(f"{path} cannot be read as an archive ({reason}): download it again") from error
    return _complete(contents, path, names)


def _check_size(size: int, where: str) -> None:
    if size > LARGEST:
        raise UserError(f"{where} has {size >> 20} MiB, a file of CIFAR-10 at most 31: it is something else")


def _complete(contents: dict[str, bytes], place: Path, names: Sequence[str]) -> dict[str, bytes]:
    missing = [name for name in names if name not in contents]
    if missing:
        inside = f" (in {FOLDER}/)" if place.is_file() else ""
        raise UserError(
            f"{place} lacks {', '.join(missing)}{inside}: give cifar-10-python.tar.gz as it comes from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html, or the folder {FOLDER} in it; other pictures go into class "
            "folders of PNGs"
        )
    return contents


def _labels(meta: dict[str, Any], where: str) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    names = meta.get("label_names")
    if not isinstance(names, list) or not names:
        raise UserError(f"{where} holds no label_names but {', '.join(meta) or 'nothing'}: it is not CIFAR-10's")
    labels = [_text(name, where) for name in names]
    if len(set(labels)) < len(labels):
        raise UserError(f"{where} names a class twice; the classes need different names")
    return labels


def _batch(batch: dict[str, Any], classes: int, where: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Pixels (N, 3072), label numbers and file names of a batch; UserError unless they fit together."""
    data, labels, files = (batch.get(key) for key in ("data", "labels", "filenames"))
    if data is None or labels is None or files is None:
        raise UserError(f"{where} holds {', '.join(batch) or 'nothing'}, but not CIFAR-10's data, labels and filenames")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * SIDE**2 or not len(data):
        shape = getattr(data, "shape", type(data).__name__)
        raise UserError(f"{where}: data are {shape}, not (N, {3 * SIDE**2}), the colours of {SIDE} x {SIDE} pixels")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise UserError(f"{where}: labels are not numbers from 0 to {classes - 1}, one for each of {classes} classes")
    if not isinstance(files, list) or not len(data) == len(labels) == len(files):
        raise UserError(f"{where}: there are {len(data)} pictures, but not as many labels and filenames")
    return data, labels, [_text(file, where) for file in files]


def _text(value: Any, where: str) -> str:
    """A name as text; Python 2 wrote names as bytes."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable() or not text:
        raise UserError(f"{where}: a value of type {type(value).__name__} is not a printable name")
    return text
