"""Strict loading of weights: a network or an autoencoder is loaded whole, or refused with an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn

from eqm_video.errors import UserError, cut, first_line, short
from eqm_video.models.bounds import check_config
from eqm_video.models.transformer import EqMTransformer
from eqm_video.models.unet import EqMUNet
from eqm_video.system.reading import read_json

NETWORKS = {network.__name__: network for network in (EqMTransformer, EqMUNet)}  # by the class in config.json
SAVED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # by safetensors

_UNUSABLE = (OSError, ValueError, RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def load_weights(
    model_class: type[ModelMixin],
    source: str | Path,
    what: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    variant: str | None = None,
) -> Any:
    """Load a model from diffusers' safetensors, as float32 by default. UserError unless every weight fits.

    diffusers on its own only warns of missing and surplus weights, and fills in missing ones with random numbers.
    `what` names the model in the message. torch_dtype: "auto" is the dtype in which a folder's weights were saved.
    variant: the part of the file names before .safetensors, such as "fp16"; None reads files without a variant.
    """
    folder = Path(source) / subfolder
    if folder.is_dir() and variant not in (variants := _variants(folder)) and variants:
        ways = (f"give variant={name!r}" if name else "leave variant out" for name in sorted(variants, key=str))
        missing = f"weights of the variant {variant!r}" if variant else "weights without a variant"
        raise UserError(f"{folder} has no {missing}: {' or '.join(ways)}")
    if folder.is_dir() and (folder / "config.json").is_file():
        check_config(model_class, folder)
    needed = "needed is a complete folder of safetensors weights with the config.json they were saved with"
    if folder.is_dir() and not variants:  # diffusers would also log it
        raise UserError(f"cannot load {what} as {model_class.__name__} (no .safetensors is in {folder}); {needed}")
    try:
        model, report = model_class.from_pretrained(
            str(source),
            subfolder=subfolder or None,
            revision=revision,
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _UNUSABLE as error:  # missing, unreadable, of other shapes, a bad configuration
        raise UserError(f"cannot load {what} as {model_class.__name__} ({first_line(error)}); {needed}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            names = sorted(report[kind])
            raise UserError(
                f"{what} is of another architecture than its config.json says: {len(names)} {kind.replace('_', ' ')}, "
                f"such as {names[0]!r}"
            )
    if torch_dtype == "auto":
        torch_dtype = _saved_dtype(folder, variant, what)
    return nn.Module.to(model, torch_dtype or torch.float32)  # the `to` of diffusers warns of every change of dtype


def _variants(folder: Path) -> dict[str | None, Path]:
    """The variants of the safetensors in a folder, each with its first file; None is the variant without a name.

    A file is called NAME.safetensors or NAME.VARIANT.safetensors. Weights in several files are called
    NAME-00001-of-00002 or NAME.VARIANT-00001-of-00002.
    """
    files = sorted(folder.glob("*.safetensors"), reverse=True)
    stems = ((re.sub(r"-\d{5}-of-\d{5}$", "", file.stem), file) for file in files)
    return {stem.partition(".")[2] or None: file for stem, file in stems}


def _saved_dtype(folder: Path, variant: str | None, what: str) -> torch.dtype:
    """The first floating-point dtype among the saved weights of a folder; float32 if there is none."""
    file = _variants(folder).get(variant) if folder.is_dir() else None
    if file is None:
        raise UserError(
            f'{what} is in no folder here for torch_dtype="auto" to look at: name a dtype, such as "float16"'
        )
    with safe_open(file, framework="pt") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118
    return next((SAVED[kind] for kind in kinds if kind in SAVED), torch.float32)


def load_transformer(
    folder: Path, dtype: torch.dtype | str | None, variant: str | None = None
) -> EqMTransformer | EqMUNet:
    """Load the network in a folder, of the class in its config.json, with every weight.

    UserError for another architecture, or weights that do not fit. `dtype` and `variant` are as in `load_weights`.
    """
    name = class_in(folder / "config.json")
    if name not in NETWORKS:
        content = "has no config.json" if name is None else f"holds a {name}, another architecture"
        raise UserError(f"the network's folder {folder} {content}; needed is an {' or an '.join(NETWORKS)}")
    what = f"the network in {folder}"
    return load_weights(NETWORKS[name], folder, what, torch_dtype=dtype, variant=variant)


def class_in(config_file: Path) -> str | None:
    """The class in a diffusers `config.json`; None if the file or its entry is missing."""
    name = read_json(config_file).get("_class_name") if config_file.is_file() else None
    return None if name is None else word(name)


def word(value: Any) -> str:
    """A value of a JSON file as text for a message, cut if it is long."""
    return cut(value) if isinstance(value, str) else short(value)
