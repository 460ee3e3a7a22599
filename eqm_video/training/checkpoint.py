"""Checkpoints to resume from: whole or absent, whatever happens while one is written.

A checkpoint is a folder `step_00005000`. It is filled under another name, flushed to disk, and renamed; the name is
what makes it count, so a crash leaves the older ones untouched and at worst a leftover that the next start removes.

    checkpoint.json      step, configuration, data, versions, number of processes; written last
    model.safetensors    the trained weights
    ema/                 the averaged network, as `save_pretrained` writes it
    optimizer.pt         optimizer, gradient scaler and running means (tensors and numbers only: read with weights_only)
    pipeline.json        how to sample from the averaged network
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from eqm_video.errors import UserError
from eqm_video.folders import load_transformer
from eqm_video.training.ema import Ema

if os.name == "posix":
    import fcntl
else:
    fcntl = None  # no locks there: two runs in one folder are not noticed

LOCK = ".lock"
RECORD = "checkpoint.json"
_NAME = re.compile(r"step_(\d{8,})")
_LEFTOVER = ".incomplete-"  # being written, or being deleted


class Checkpoints:
    """The checkpoints of one run; only the main process writes."""

    def __init__(self, folder: str | Path, keep: int | None = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = self.folder.glob("step_*") if self.folder.is_dir() else ()
        return sorted((path for path in found if is_checkpoint(path)), key=step_of)

    def newest(self) -> Path | None:
        """The whole checkpoint of the highest step, or None."""
        return self.all()[-1] if self.all() else None

    def remove_leftovers(self) -> None:
        """Delete what a crash left half-written or half-deleted."""
        for path in self.folder.glob(f"{_LEFTOVER}*"):
            shutil.rmtree(path)

    def write(self, step: int, fill: Callable[[Path], None], record: dict[str, Any]) -> Path:
        """Write checkpoint `step`: `fill` puts the files into the folder that it is given. Then prune the oldest."""
        final = self.folder / f"step_{step:08d}"
        try:
            write_folder(final, fill, lambda path: _write_json(path / RECORD, {"step": step, **record}))
        except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
            newest = self.newest()
            kept = f"the newest whole one is {newest}" if newest else "there is none yet"
            raise UserError(f"cannot write the checkpoint of step {step} to {self.folder}: {error}; {kept}") from error
        self._prune()
        return final

    def _prune(self) -> None:
        for path in self.all()[: -self.keep] if self.keep else ():
            remove_folder(path)


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Make a run's folder and keep it for this process; UserError where it cannot, or another trains there.

    The system ends the lock with the process, however that ends. It is the process's own (lockf; flock's would live on
    in the workers that decode the data, for a while after their process was killed).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to run.dir={folder} ({error.strerror}): give another run.dir") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise UserError(f"cannot lock run.dir={folder} ({error.strerror}): give another run.dir") from error
                raise UserError(
                    f"another process is training in run.dir={folder}, and nothing was changed: wait for its end, stop "
                    "it, or give another run.dir=FOLDER"
                ) from error
        yield


def write_folder(final: Path, fill: Callable[[Path], None], seal: Callable[[Path], None] | None = None) -> None:
    """Fill a folder so that it appears under its name whole or not at all; one that is there is replaced."""
    partial = final.parent / f"{_LEFTOVER}{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    if seal is not None:
        seal(partial)
    for path in sorted(partial.rglob("*"), reverse=True):
        _flush(path)
    _flush(partial)
    if final.exists():
        remove_folder(final)
    os.rename(partial, final)
    _flush(final.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder; it loses its name first, so that a crash never leaves half of it looking whole."""
    doomed = path.parent / f"{_LEFTOVER}deleting-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return _NAME.fullmatch(path.name) is not None and (path / RECORD).is_file()


def step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint folder's name states."""
    return int(_NAME.fullmatch(path.name).group(1))


def read_record(path: Path) -> dict[str, Any]:
    """What `checkpoint.json` says; UserError unless the folder is a whole checkpoint."""
    file = Path(path) / RECORD
    if not file.is_file():
        raise UserError(
            f"{path} is no whole checkpoint (it has no {RECORD}); give a folder such as RUN/checkpoints/step_00005000"
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); resume from an older checkpoint") from error


def save_state(
    folder: Path, *, network: nn.Module, ema: Ema, optimizer: Any, scaler: Any, extra: dict[str, Any]
) -> None:
    """Write everything that training changes; `extra` holds plain numbers, lists and tensors."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    ema.network.save_pretrained(folder / "ema")
    state = {
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "ema_updates": ema.updates,
        "extra": extra,
    }
    with (folder / "optimizer.pt").open("wb") as file:  # opened here, so that a full disk is an OSError
        torch.save(state, file)


def load_state(folder: Path, *, network: nn.Module, ema: Ema, optimizer: Any, scaler: Any) -> dict[str, Any]:
    """Put back what `save_state` wrote, bit for bit, and return its `extra`; UserError for another architecture."""
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        average = load_transformer(folder / "ema", torch.float32)
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        ema.load(dict(average.named_parameters()), state["ema_updates"])
        optimizer.load_state_dict(state["optimizer"])
    except (UserError, OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[:1]
        raise UserError(f"cannot read the checkpoint {folder}: {' '.join(first)}; resume from an older one") from error
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()
        raise UserError(f"{folder} does not fit this network or optimizer: {' '.join(first[:2])}") from error
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return state["extra"]


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (folders cannot be flushed on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
