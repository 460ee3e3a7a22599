"""The record of a checkpoint, `checkpoint.json`, and the check of the files beside it.

The record is written last, with the size and SHA-256 of every other file. A folder without a readable record was never
whole; a file that differs from the record was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError
from eqm_video.system.hashing import add_file

RECORD = "checkpoint.json"
NAME = re.compile(r"step_(\d{8,})")
LARGEST = 64 * 2**20  # bytes of a record: 1000 files and 100,000 labels take a tenth of that
ADVICE = "resume from an older one: --resume --from-older"
# Field: (type, the type in words). Records of earlier versions lack some fields.
_FIELDS = {
    "world_size": (int, "a whole number from 1 on"),
    "config": (dict, "an object"),
    "data": (dict, "an object"),
    "versions": (dict, "an object"),
    "files": (dict, "an object"),
}


def read_record(path: Path, *needed: str) -> dict[str, Any]:
    """The record of the checkpoint folder `path`, with its types checked.

    UserError for a missing or damaged record, or a record without one of the fields `needed`.
    """
    file = Path(path) / RECORD
    if not file.is_file():
        raise UserError(
            f"{path} is no whole checkpoint (it has no {RECORD}); give a folder such as RUN/checkpoints/step_00005000"
        )
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
        _check(record, Path(path).name, needed)
    except RecursionError as error:
        raise UserError(f"{file} is damaged (nested too deep); {ADVICE}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); {ADVICE}") from error
    return record


def is_checkpoint(path: Path) -> bool:
    """Whether a folder has a checkpoint's name and a readable record, so that it was whole when it was written."""
    if NAME.fullmatch(path.name) is None or not (path / RECORD).is_file():
        return False
    try:
        read_record(path)
    except UserError:
        return False
    return True


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file in a folder, at any depth, by relative path; without the record."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(_hash, paths))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }


def damage(folder: Path) -> str | None:
    """The damage of a checkpoint's files, as a part of a sentence; None if all files agree with the record."""
    try:
        files = read_record(folder).get("files", {})
    except UserError as error:
        return str(error).partition("; ")[0]
    wrong, whole = [], []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            wrong.append(f"{name} is cut short or altered ({path.stat().st_size} of {entry['bytes']} bytes)")
        else:
            whole.append(name)
    try:
        with ThreadPoolExecutor(4) as pool:
            hashes = list(pool.map(lambda name: _hash(folder / name), whole))
        pairs = zip(whole, hashes, strict=True)
        different = [name for name, digest in pairs if digest != files[name]["sha256"]]
        wrong += [f"{name} is damaged (its SHA-256 is not the recorded one)" for name in different]
    except OSError as error:
        wrong.append(f"{error.filename} cannot be read ({error.strerror})")
    return ", ".join(wrong) or None


def _check(record: Any, name: str, needed: tuple[str, ...]) -> None:
    """ValueError unless a record has the form that `Checkpoints.write` gives it."""
    if not isinstance(record, dict):
        raise ValueError(f"it holds no object but {_brief(record)}")
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"its step is {_brief(step)}, not a whole number from 0 on")
    named = NAME.fullmatch(name)
    if named is not None and int(named[1]) != step:
        raise ValueError(f"its step is {step}, its folder's {int(named[1])}")
    for key, (kind, words) in _FIELDS.items():
        if key in record and (not isinstance(record[key], kind) or isinstance(record[key], bool)):
            raise ValueError(f"its {key} is {_brief(record[key])}, not {words}")
    if record.get("world_size", 1) < 1:
        raise ValueError(f"its world_size is {record['world_size']}")
    _check_data(record.get("data"))
    for file, entry in record.get("files", {}).items():
        inside = not Path(file).is_absolute() and ".." not in Path(file).parts
        right = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        if not inside or not right:
            raise ValueError(f"its entry of {_brief(file)} is {_brief(entry)}, not a size and a hash")
    missing = [key for key in needed if key not in record]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")


def _check_data(data: Any) -> None:
    if not data:  # none, or that of a trainer without files
        return
    size, labels = data.get("size"), data.get("labels")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"its data.size is {_brief(size)}, not a whole number from 0 on")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its data.labels are {_brief(labels)}, not names")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _hash(path: Path) -> str:
    return add_file(hashlib.sha256(), path).hexdigest()
