"""Folders of exports, training runs, checkpoints and networks: telling them apart, and finding the one to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from eqm_video.errors import UserError
from eqm_video.models.loading import NETWORKS, class_in, word
from eqm_video.system.record import is_checkpoint

PARTS = ("transformer", "vae")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}


def newest_of_run(run: Path) -> Path:
    """What to sample from in the folder of a training run: its export, else its newest whole checkpoint."""
    if (run / "export" / "model_index.json").is_file():
        return run / "export"
    found = (folder for folder in run.glob("checkpoints/step_*") if holds_model(folder) and is_checkpoint(folder))
    whole = sorted(found, key=lambda folder: (len(folder.name), folder.name))  # by step, past 8 digits too
    if not whole:
        raise UserError(f"{run} is a training run without an export or a whole checkpoint yet; wait for its first one")
    return whole[-1]


def holds_model(folder: Path) -> bool:
    """Whether a folder is a training checkpoint with all files that a pipeline is made of; its record is not read."""
    return all((folder / name).is_file() for name in ("checkpoint.json", "pipeline.json", "ema/config.json"))


def local_folder(path: str | Path, hub: dict[str, Any]) -> Path:
    """A folder as it is, a hub id `OWNER/NAME` as the folder that it is downloaded to; UserError for anything else."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(path).count("/") != 1:
        raise UserError(
            f"{path} is not a folder; give the folder of an export or a training run, or a hub id OWNER/NAME"
        )
    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **hub))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is not a folder and cannot be fetched from the Hugging Face hub ({reason})") from error


def describe_folder(folder: Path, index: Mapping[str, Any]) -> str:
    """What a folder is instead of an export, and what to type."""
    if index:
        return f"its model_index.json describes a {word(index.get('_class_name'))}, which is another architecture"
    if holds_model(folder):
        return "it is a training checkpoint; load it with EqMPipeline.from_checkpoint"
    if (folder / "checkpoints").is_dir():
        return "it is a training run; give its export folder, or a folder in its checkpoints"
    if name := class_in(folder / "config.json"):
        hint = "; add its codec (--codec)" if name in NETWORKS else ""
        return f"it holds a single {name}{hint}"
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    return f"it has no model_index.json (found: {found})"


def part_dtype(given: Any, part: str) -> torch.dtype | str | None:
    """What a `torch_dtype` says of one part of a pipeline ("transformer", "vae"): a dtype, "auto", or None (float32).

    It is a dtype or the name of one, "auto" (as the weights were saved), or a mapping of these by part, in which
    "default" is for the parts it does not name. Raises UserError for anything else.
    """
    if isinstance(given, Mapping):
        if unknown := set(given) - {*PARTS, "default"}:
            raise UserError(
                f"torch_dtype names {sorted(map(str, unknown))}; the parts are {', '.join(PARTS)}, or default"
            )
        for value in given.values():
            _one_dtype(value)
        given = given.get(part, given.get("default"))
    return _one_dtype(given)


def _one_dtype(given: Any) -> torch.dtype | str | None:
    if given is None or (isinstance(given, str) and given == "auto"):
        return given
    found = DTYPES.get(str(given).removeprefix("torch.")) if isinstance(given, (str, torch.dtype)) else None
    if found is None:
        raise UserError(
            f"torch_dtype is {given!r}; it must be one of {', '.join(DTYPES)} (or torch's of that name), auto, or a "
            "mapping of these by part, such as {'transformer': torch.bfloat16, 'vae': torch.float32}"
        )
    return found
