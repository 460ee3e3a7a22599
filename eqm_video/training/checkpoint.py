"""Checkpoints to resume from. A checkpoint is whole or absent, whatever happens while it is written.

A checkpoint is a folder such as `step_00005000`. It is filled under another name, flushed to disk, and renamed. Only
the final name makes it a checkpoint: a crash leaves older ones untouched, and at worst a leftover that the next start
removes.

    checkpoint.json      step, configuration, data, versions, number of processes, hashes of the files; written last
    model.safetensors    the trained weights
    ema/                 the averaged network, as `save_pretrained` writes it
    adapters/            its adapters (LoRA), if it has any; in ema/ they are merged into the weights
    optimizer.pt         optimizer, gradient scaler and running means (tensors and numbers only: read with weights_only)
    pipeline.json        settings of the pipeline that samples from the averaged network

Processes that hold parts of the weights (FSDP) write those instead of model.safetensors and of the tensors of the
optimizer, a file each. Any number of processes reads either form, whether it holds parts or all.

    parts/               trained weights and optimizer state, by torch.distributed.checkpoint in safetensors
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqm_video.errors import UserError, first_line
from eqm_video.models.adapters import has_adapters, merged, read_weights, save_adapters
from eqm_video.models.loading import load_transformer
from eqm_video.system.files import finish, flush
from eqm_video.system.record import ADVICE, NAME, RECORD, damage, is_checkpoint, list_files, read_record
from eqm_video.training.ema import Ema
from eqm_video.training.sharding import is_part, part_of, read_parts, write_parts

__all__ = ["Checkpoints", "is_checkpoint", "load_state", "read_record", "replace_folder", "save_state"]

PARTS = "parts"
ADAPTERS = "adapters"
_LEFTOVER = ".incomplete-"  # prefix of folders that are being written or deleted
_OURS = re.compile(rf"{re.escape(_LEFTOVER)}(deleting-|parts-)?(step_\d{{8,}}|export(_best)?)")
_WRITTEN = re.compile(  # the files of earlier versions' checkpoints, whose records do not list them
    r"(model\.safetensors|optimizer\.pt|pipeline\.json|ema/(config\.json|.*\.safetensors(\.index\.json)?))"
)
_ASIDE = "damaged-"  # prefix of checkpoints that were set aside to resume from an older one


class Checkpoints:
    """The checkpoints of a run, in `folder`. Only the main process writes; the newest `keep` are kept, None: all."""

    def __init__(self, folder: str | Path, keep: int | None = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def named(self) -> list[Path]:
        """Every folder with a checkpoint's name, oldest first, whole or not."""
        paths = self.folder.glob("step_*") if self.folder.is_dir() else ()
        return sorted((path for path in paths if NAME.fullmatch(path.name) and path.is_dir()), key=step_of)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return [path for path in self.named() if is_checkpoint(path)]

    def newest(self) -> Path | None:
        """The whole checkpoint of the highest step, or None. `damage` tells whether its files were damaged later."""
        return next((path for path in reversed(self.named()) if is_checkpoint(path)), None)

    def at(self, step: int | None) -> Path | None:
        """The whole checkpoint of a step, or None."""
        path = self.folder / f"step_{step or 0:08d}"
        return path if step is not None and is_checkpoint(path) else None

    def newest_intact(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest checkpoint with intact files (or None), and the faults of newer ones, by path."""
        wrong: dict[Path, str] = {}
        for path in reversed(self.named()):
            fault = damage(path)
            if fault is None:
                return path, wrong
            wrong[path] = fault
        return None, wrong

    def set_aside(self, step: int) -> list[Path]:
        """Rename every checkpoint after `step`, whole or not, to `damaged-...`; returns the new names."""
        return [_rename_aside(path) for path in self.named() if step_of(path) > step]

    def remove_leftovers(self) -> None:
        """Delete folders that a crash left half-written or half-deleted. Files of others stay."""
        for path in self.folder.glob(f"{_LEFTOVER}*"):
            if _OURS.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

    def stage(self, step: int) -> Path:
        """The folder in which all processes put their parts of checkpoint `step`, before it is written."""
        return self.folder / f"{_LEFTOVER}parts-step_{step:08d}"

    def write(
        self,
        step: int,
        fill: Callable[[Path], None],
        record: dict[str, Any],
        *,
        prune: bool = True,
        best: int | None = None,
    ) -> Path:
        """Write checkpoint `step` and delete the oldest; returns its folder. UserError where it cannot be written.

        fill: puts the files into the folder that it gets. record: the entries of checkpoint.json. best: the step of a
        checkpoint that stays, whatever its age.
        """
        final = self.folder / f"step_{step:08d}"

        def seal(folder: Path) -> None:
            _write_json(folder / RECORD, {"step": step, **record, "files": list_files(folder)})

        try:
            if os.path.lexists(final) and not is_checkpoint(final):
                _rename_aside(final)
            replace_folder(final, fill, seal)
        except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
            newest = self.newest()
            kept = f"the newest whole one is {newest}" if newest else "there is none yet"
            raise UserError(f"cannot write the checkpoint of step {step} to {self.folder}: {error}; {kept}") from error
        if prune:
            self._prune(best)
        return final

    def _prune(self, best: int | None) -> None:
        for path in self.all()[: -self.keep] if self.keep else ():
            if step_of(path) == best:
                continue
            try:
                remove_folder(path)
            except OSError as error:  # the new one is written: an old one only costs room
                warnings.warn(f"cannot delete the old checkpoint {path} ({error.strerror})", stacklevel=2)


def replace_folder(final: Path, fill: Callable[[Path], None], seal: Callable[[Path], None] | None = None) -> None:
    """Make the folder `final`, whole or not at all; a folder of that name is replaced. `seal` runs after `fill`.

    `files.writing_folder` is for folders with files of others: it replaces only files of the same names.
    """
    partial = _free(final.parent / f"{_LEFTOVER}{final.name}")
    partial.mkdir(parents=True)
    fill(partial)
    if seal is not None:
        seal(partial)
    for path in sorted(partial.rglob("*"), reverse=True):
        finish(path)
    flush(partial)
    if final.exists():
        remove_folder(final)
    os.rename(partial, final)
    flush(final.parent)


def renew_folder(path: Path) -> None:
    """Make the folder `path`, empty."""
    if path.is_dir():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def move_into(source: Path, folder: Path) -> None:
    """Move everything in `source` into `folder`, on the same disk, and delete `source`."""
    for path in source.iterdir():
        os.rename(path, folder / path.name)
    source.rmdir()


def remove_folder(path: Path) -> None:
    """Delete a folder. It is renamed first, so that a crash never leaves half of it looking whole.

    If somebody put their own files into it, only ours are deleted, the record first: the rest is no checkpoint.
    """
    if not path.is_symlink() and (ours := _own_files(path)) is not None:
        for file in ours:
            file.unlink(missing_ok=True)
        return
    doomed = _free(path.parent / f"{_LEFTOVER}deleting-{path.name}")
    os.rename(path, doomed)
    if doomed.is_symlink():  # a link to a checkpoint that was moved elsewhere: leave its target alone
        doomed.unlink()
    else:
        shutil.rmtree(doomed)


def _own_files(path: Path) -> list[Path] | None:
    """Our files in a checkpoint that also holds files of others, the record first; None if all files are ours."""
    if NAME.fullmatch(path.name) is None or not is_checkpoint(path):
        return None
    inside = {str(file.relative_to(path).as_posix()) for file in path.rglob("*") if not file.is_dir()}
    listed = read_record(path).get("files")
    ours = {name for name in inside if _WRITTEN.fullmatch(name)} if listed is None else inside & listed.keys()
    return None if inside <= {*ours, RECORD} else [path / RECORD, *(path / name for name in sorted(ours))]


def _rename_aside(path: Path) -> Path:
    """Rename a folder that is no checkpoint to resume from to a free name `damaged-...`; returns the new path."""
    names = (f"{_ASIDE}{path.name}{end}" for end in ("", *(f"-{k}" for k in range(2, 10_000))))
    target = next(path.parent / name for name in names if not os.path.lexists(path.parent / name))
    os.rename(path, target)
    return target


def _free(path: Path) -> Path:
    """A free path: `path` after deleting a leftover folder there, or another name if it cannot be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    return path if not os.path.lexists(path) else path.with_name(f"{path.name}.{os.getpid()}")


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(NAME.fullmatch(path.name).group(1))


def save_state(
    folder: Path, *, network: nn.Module, ema: Ema, optimizer: Any, scaler: Any, extra: dict[str, Any]
) -> None:
    """Write everything that training changes; `extra` holds plain numbers, lists and tensors.

    For a network in parts this is what `save_parts` leaves to the main process.
    """
    state = optimizer.state_dict()
    if ema.sharded:
        state = _without_parts(state)
    else:
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        merged(ema.network).save_pretrained(folder / "ema")
        if has_adapters(ema.network):
            save_adapters(ema.network, folder / ADAPTERS)
    state = {
        "optimizer": state,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "ema_updates": ema.updates,
        "extra": extra,
    }
    with (folder / "optimizer.pt").open("wb") as file:  # opened here, so that a full disk is an OSError
        torch.save(state, file)


def save_parts(folder: Path, *, network: nn.Module, ema: Ema, optimizer: Any, main: bool) -> None:
    """Write the parts of all processes, which call it together, and the averaged network.

    OSError or SafetensorError in some or all of them if that fails.
    """
    slots = {
        f"optimizer.{part}.{index}.{key}": value
        for part, index, entry in _entries(optimizer.state_dict())
        for key, value in entry.items()
        if is_part(value)
    }
    write_parts(folder / PARTS, {**_named(network), **slots})
    with ema.whole() as average:
        if main:
            average.save_pretrained(folder / "ema")


def load_state(folder: Path, *, network: nn.Module, ema: Ema, optimizer: Any, scaler: Any) -> dict[str, Any]:
    """Restore the state that `save_state` wrote, bit for bit, and return its `extra`.

    UserError for another architecture, and for files that changed since they were written.
    """
    fault = damage(folder)
    if fault is not None:
        raise _damaged(folder, fault)
    weights, average, state = _read_state(folder)
    try:
        if weights is None:
            _load_parts(folder, network, optimizer, state["optimizer"])
        else:
            _load_whole(weights, network, optimizer, state["optimizer"])
        if has_adapters(network):  # all other weights are frozen: their average is what they are
            average = {**weights, **read_weights(folder / ADAPTERS)}
        ema.load(average, state["ema_updates"])
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"its parts are cut short or damaged ({first_line(error)})") from error
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()
        raise UserError(f"{folder} does not fit this network or optimizer: {' '.join(first[:2])}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(folder, "optimizer.pt holds no state of an optimizer") from error
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return state["extra"]


def _load_whole(weights: dict[str, Tensor], network: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Load whole weights into a network, and make those of the optimizer's `state` parts if it has parts."""
    present = network.state_dict()
    weights = {name: part_of(value, present[name]) if name in present else value for name, value in weights.items()}
    network.load_state_dict(weights, strict=True)
    parameters = _parameters(optimizer)
    for part, index, entry in _entries(state):
        like = parameters[part][index]
        entry |= {key: part_of(value, like) for key, value in entry.items() if value.shape == like.shape}


def _load_parts(folder: Path, network: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Read what this process holds from a checkpoint in parts: weights, and the tensors that `state` lacks."""
    slots, parameters = {}, _parameters(optimizer)
    for part, index, entry in _entries(state):
        for key in [key for key, value in entry.items() if value is None]:
            entry[key] = torch.empty_like(parameters[part][index]).detach()
            slots[f"optimizer.{part}.{index}.{key}"] = entry[key]
    read_parts(folder / PARTS, {**_named(network), **slots})


def _named(network: nn.Module) -> dict[str, Tensor]:
    """The trained weights, by their names among the parts."""
    return {f"network.{name}": value.detach() for name, value in network.state_dict().items()}


def _entries(state: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(part of the optimizer, number of the parameter there, its tensors by name) in an optimizer's state."""
    for number, part in enumerate(state.get("parts", [state])):
        for index, entry in part["state"].items():
            yield number, index, entry


def _parameters(optimizer: Any) -> list[list[Tensor]]:
    """The parameters of every part of an optimizer, in the order of their numbers in its state."""
    inner = getattr(optimizer, "optimizer", optimizer)  # without Accelerate's wrapper
    parts = getattr(inner, "parts", [inner])
    return [[tensor for group in part.param_groups for tensor in group["params"]] for part in parts]


def _without_parts(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of an optimizer's state with None in place of tensors in parts."""
    if "parts" in state:
        return {**state, "parts": [_without_parts(part) for part in state["parts"]]}
    kept = {
        index: {key: None if is_part(value) else value for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": kept}


def _read_state(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any]]:
    """Weights (None: they are in parts), averaged weights and the rest, as plain numbers.

    UserError where a file is cut short or damaged.
    """
    try:
        weights = None if (folder / PARTS).is_dir() else load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"model.safetensors is cut short or damaged ({first_line(error)})") from error
    try:
        average = dict(load_transformer(folder / "ema", torch.float32).named_parameters())
    except (UserError, OSError, SafetensorError) as error:
        raise _damaged(folder, f"the averaged weights are damaged ({first_line(error)})") from error
    try:
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        raise _damaged(folder, f"optimizer.pt cannot be read ({error.strerror or first_line(error)})") from error
    # Torch's own message is left out: it advises a way of loading that runs code from the file.
    except (EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise _damaged(folder, "optimizer.pt is cut short or damaged, and nothing of it was used") from error
    fault = _fault_of(state)
    if fault is not None:
        raise _damaged(folder, f"optimizer.pt is damaged: {fault}")
    return weights, average, state


def _fault_of(state: Any) -> str | None:
    """The fault of a state that `save_state` cannot have written, in words; None for a good state."""
    if not isinstance(state, dict) or not {"optimizer", "scaler", "ema_updates", "extra"} <= state.keys():
        return "it lacks parts"
    updates, extra = state["ema_updates"], state["extra"]
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 0:
        return f"its number of averaged steps is {updates!r}"
    if not isinstance(extra, dict) or not {"meter", "seconds", "skipped"} <= extra.keys():
        return "it lacks the running means"
    meter, seconds, skipped = extra["meter"], extra["seconds"], extra["skipped"]
    if not isinstance(meter, dict) or not {"sums", "norms"} <= meter.keys():
        return "it lacks the running means"
    if not isinstance(seconds, int | float) or not isinstance(skipped, int) or not 0 <= seconds < math.inf:
        return "its running time is no number"
    parts = state["optimizer"].get("parts", [state["optimizer"]]) if isinstance(state["optimizer"], dict) else [None]
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "param_groups" in part for part in parts):
        return "it holds no state of an optimizer"
    numbers = [value for part in parts for group in part["param_groups"] for value in group.values()]
    if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
        return "a setting of its optimizer is not finite"
    return None


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"cannot read the checkpoint {folder}: {what}; {ADVICE}")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
