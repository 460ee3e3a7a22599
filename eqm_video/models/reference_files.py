"""Files of reference weights: safetensors, and files of torch.save, from which only tensors are unpickled."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eqm_video.errors import UserError, cut, short

# Errors of torch's unpickler on a damaged file.
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
_DAMAGED += (ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile, NotImplementedError)


def read_weights(source: Path) -> dict[str, Tensor]:
    """The state dict of a file, the EMA weights if it has several. Only tensors are unpickled, so no code runs.

    Raises UserError for a missing or damaged file, another format, or content other than named tensors.
    """
    if not source.is_file():
        raise UserError(f"{source} is not a file; give a .safetensors or .pt file of reference weights")
    if zipfile.is_zipfile(source) and not _is_plain_archive(source):
        raise UserError(
            f"{source} is a compressed archive, which torch never writes: unpack it, or save the weights again"
        )
    if source.suffix == ".safetensors":
        try:
            loaded = load_file(source)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{source} cannot be read as safetensors: {cut(str(error), 200)}") from error
    elif source.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        loaded = _read_pickle(source)
    else:
        raise UserError(
            f"{source} ends in {source.suffix!r}; weights are read from .safetensors, .pt, .pth, .ckpt, .bin"
        )
    for key in ("ema", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        content = ", ".join(map(_name, list(loaded)[:8])) if isinstance(loaded, dict) else type(loaded).__name__
        raise UserError(
            f"{source} holds {content or 'nothing'}; expected a state dict, at the top or under 'ema' or 'model'"
        )
    if not all(isinstance(key, str) for key in loaded):
        raise UserError(f"{source} names its tensors {short(list(loaded))}; names must be text")
    renamed = {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in loaded.items()}
    if len(renamed) != len(loaded):
        raise UserError(
            f"{source} holds tensors with and without module. or _orig_mod. before their name: save one set"
        )
    _check_whole(renamed, source)
    return renamed


def _is_plain_archive(source: Path) -> bool:
    """Whether a zip file's members are stored without compression: the file's size then bounds the memory."""
    try:
        with zipfile.ZipFile(source) as archive:
            return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error):
        return True  # damaged: torch gives the reason


def _read_pickle(source: Path) -> object:
    try:
        # A reference checkpoint keeps its arguments beside the weights: a Namespace is a harmless container.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Memory-mapped: the optimizer and raw weights in the same file are then never read.
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        with source.open("rb") as file:
            if not zipfile.is_zipfile(source) and file.read(1) != pickle.PROTO:
                raise UserError(
                    f"{source} is no whole torch checkpoint: it is neither a zip archive nor a pickle"
                ) from error
        match = re.search(r"GLOBAL (\S+)", str(error))
        content = f"a Python object ({match[1]})" if match else "more than tensors"
        raise UserError(
            f"{source} holds {content}, and loading that could run code. If you trust the file, save its weights "
            f"alone: torch.save({{'ema': torch.load({str(source)!r}, weights_only=False)['ema']}}, 'weights.pt'), "
            "then give weights.pt"
        ) from error
    except _DAMAGED as error:
        reason = cut(str(error).strip().partition("\n")[0], 200) or type(error).__name__
        raise UserError(f"{source} cannot be read as a torch checkpoint (damaged?): {reason}") from error


def _check_whole(weights: dict[str, Tensor], source: Path) -> None:
    """UserError unless the file has all numbers of each tensor: a view that repeats a few could have any size."""
    for key, weight in weights.items():
        if weight.layout != torch.strided or weight.is_meta:
            raise UserError(f"{source} holds {short(key)} as {weight.layout} on {weight.device}: save dense weights")
        stored = weight.untyped_storage().nbytes()
        if weight.numel() * weight.element_size() > stored:
            raise UserError(
                f"{source} holds {stored:,} bytes of {short(key)}, whose shape is {tuple(weight.shape)}: save the "
                "weights again, with .contiguous()"
            )


def _name(key: object) -> str:
    return cut(key) if isinstance(key, str) else short(key)
