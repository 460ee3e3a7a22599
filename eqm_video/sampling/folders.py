"""Folders that hold a model: exports, training runs, checkpoints and networks are told apart, and the newest chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from eqm_video.errors import UserError
from eqm_video.models.loading import NETWORKS, class_in, word
from eqm_video.sampling.option_words import SHIPPED, check_model
from eqm_video.system.record import is_checkpoint

PARTS = ("transformer", "vae")
SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "demo"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}


def newest_of_run(run: Path) -> Path:
    """The folder to sample from in a training run: its export, else its newest whole checkpoint. UserError for none."""
    if (run / "export" / "model_index.json").is_file():
        return run / "export"
    candidates = (folder for folder in run.glob("checkpoints/step_*") if holds_model(folder) and is_checkpoint(folder))
    whole = sorted(candidates, key=lambda folder: (len(folder.name), folder.name))  # by step, past 8 digits too
    if not whole:
        raise UserError(f"{run} is a training run without an export or a whole checkpoint yet; wait for its first one")
    return whole[-1]


def find_model(path: str | Path) -> str:
    """The folder that `load_pipeline` loads for a path: a run's export or newest checkpoint, or `path` itself."""
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir() or (folder / "export").is_dir():
        folder = newest_of_run(folder)
    return str(folder if folder.is_dir() else path)


def note_best(path: str | Path, loaded: str | Path) -> str | None:
    """A line on the best export of a training run, whose last one was loaded; None for other paths, or without one."""
    run, best = Path(path).expanduser(), Path(loaded).parent / "export_best"
    if Path(loaded) != run / "export" or not (best / "model_index.json").is_file():
        return None
    return f"{loaded} has the weights of the last step; type {best} for those of the best evaluation"


def holds_model(folder: Path) -> bool:
    """Whether a folder is a training checkpoint with all files that a pipeline is made of; its record is not read."""
    return all((folder / name).is_file() for name in ("checkpoint.json", "pipeline.json", "ema/config.json"))


def local_folder(path: str | Path, hub: dict[str, Any]) -> Path:
    """The folder at `path`. A hub id `OWNER/NAME` is downloaded first. UserError for anything else.

    `SHIPPED` is the folder of the model that ships with the package, unless a folder of that name is there.
    hub: keywords of huggingface_hub's snapshot_download, such as revision and token.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    check_model(path)
    if str(path) == SHIPPED:
        return SHIPPED_FOLDER
    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **hub))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} is not a folder and cannot be fetched from the Hugging Face hub ({reason}): give the folder of "
            "an export or a training run, or a hub id OWNER/NAME"
        ) from error


def describe_folder(folder: Path, index: Mapping[str, Any]) -> str:
    """A folder without an export in words: the thing it is instead, and how to load it."""
    if index:
        return f"its model_index.json describes a {word(index.get('_class_name'))}, which is another architecture"
    if holds_model(folder):
        return "it is a training checkpoint; load it with EqMPipeline.from_checkpoint"
    if (folder / "checkpoints").is_dir():
        return "it is a training run; give its export folder, or a folder in its checkpoints"
    if name := class_in(folder / "config.json"):
        hint = "; add its codec (--codec)" if name in NETWORKS else ""
        return f"it holds a single {name}{hint}"
    names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    return f"it has no model_index.json (found: {names})"


def part_dtype(dtypes: Any, part: str) -> torch.dtype | str | None:
    """The dtype of a part ("transformer", "vae") of a pipeline: a torch dtype, "auto", or None (float32).

    dtypes: the `torch_dtype` of a call. It is a dtype or its name, "auto" (as the weights were saved), or a mapping of
    these by part, in which "default" serves all other parts. Raises UserError for anything else.
    """
    if isinstance(dtypes, Mapping):
        if unknown := set(dtypes) - {*PARTS, "default"}:
            raise UserError(
                f"torch_dtype names {sorted(map(str, unknown))}; the parts are {', '.join(PARTS)}, or default"
            )
        for value in dtypes.values():
            _as_dtype(value)
        dtypes = dtypes.get(part, dtypes.get("default"))
    return _as_dtype(dtypes)


def _as_dtype(value: Any) -> torch.dtype | str | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    dtype = DTYPES.get(str(value).removeprefix("torch.")) if isinstance(value, (str, torch.dtype)) else None
    if dtype is None:
        raise UserError(
            f"torch_dtype is {value!r}; it must be one of {', '.join(DTYPES)} (or torch's of that name), auto, or a "
            "mapping of these by part, such as {'transformer': torch.bfloat16, 'vae': torch.float32}"
        )
    return dtype
