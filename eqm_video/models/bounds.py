"""Checks of a model's `config.json` against the weights beside it, before anything is built from it.

The header of a safetensors file lists every tensor with its shape, which bounds the number of layers and their widths.
A configuration that asks for more would fill the memory while it is built.
"""

from __future__ import annotations

import math
import numbers
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eqm_video.errors import UserError, cut, short
from eqm_video.system.reading import check_regular, read_json

# Keys that count layers, and those whose lists have an entry for each level of a U-Net or an autoencoder.
_LAYERS = ("depth", "layers_per_block", "num_layers", "num_encoder_blocks", "num_decoder_blocks")
_LEVELS = ("multipliers", "block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")
_LEAST = 2**16  # lower limit of the bound, for sizes that are not widths, such as those of an image
_MAY_BE_ZERO = ("num_labels", "dropout")


def check_config(network: type | None, folder: Path) -> None:
    """Raise UserError, naming file and key, if the `config.json` of `folder` cannot be one of the class `network`.

    None stands for a class of another library.

    Its values must have the types that the class declares, and may not ask for more layers or larger sizes than the
    safetensors files beside it can fill. Only headers are read; missing weights are not noticed.
    """
    file = folder / "config.json"
    config = {key: value for key, value in read_json(file).items() if not key.startswith("_")}
    shapes = weight_shapes(folder)
    if network is not None and network.__module__.startswith(f"{__package__}."):
        _check_types(network, config, file)
    if not shapes:
        return
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.") and name.count(".") > 1})
    if blocks and config.get("depth", 0) > blocks:
        raise UserError(f"{file}: depth is {short(config['depth'])}, but the weights beside it have {blocks} blocks")
    levels = max(len(value) if isinstance(value := config.get(key), list) else 1 for key in _LEVELS)
    counts = [value if isinstance(value, list) else [value] * levels for value in map(config.get, _LAYERS)]
    if max(levels, sum(_whole_numbers(counts))) > len(shapes):
        named = ", ".join(f"{key} {short(config[key])}" for key in (*_LAYERS, *_LEVELS) if key in config)
        raise UserError(f"{file} asks for more layers ({named}) than the {len(shapes)} tensors beside it can fill")
    most = max(_LEAST, sum(math.prod(shape) for shape in shapes.values()))
    for key, value in config.items():
        if any(abs(number) > most for number in _whole_numbers(value)):
            raise UserError(f"{file}: {key} is {short(value)}, more than all {most:,} numbers of the weights beside it")


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder's safetensors files, from their headers; UserError for a damaged one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        check_regular(file)
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot load {file} as safetensors: {cut(str(error), 200)}") from error
    return shapes


def _whole_numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value, and in lists inside it."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    for inner in value if isinstance(value, list) else ():
        yield from _whole_numbers(inner)


def _check_types(network: type, config: Mapping[str, Any], file: Path) -> None:
    hints = typing.get_type_hints(network.__init__)
    for key, value in config.items():
        hint = hints.get(key)
        if typing.get_origin(hint) is not None:  # a list of whole numbers
            fits, needed = (
                isinstance(value, list) and all(_is_number(item, int, 0) for item in value),
                "a list of numbers",
            )
        elif hint in (int, float):
            fits = _is_number(value, hint, 0 if key in _MAY_BE_ZERO else None)
            needed = f"a {'whole ' if hint is int else ''}number {'of at least' if key in _MAY_BE_ZERO else 'above'} 0"
        else:
            fits, needed = hint is None or isinstance(value, hint), "true or false" if hint is bool else "text"
        if not fits:
            raise UserError(f"{file}: {key} is {short(value)}; it must be {needed}")


def _is_number(value: Any, kind: type, least: int | None) -> bool:
    """Whether a value is a finite number of a kind, of at least `least`, or above 0."""
    real = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return real and abs(value) < math.inf and (value > 0 if least is None else value >= least)


def check_scaling(config: Mapping[str, Any], channels: int, name: str) -> None:
    """Raise UserError unless an autoencoder's config can scale latents of `channels` channels.

    `name` is the codec's name in the message.
    """

    def refuse(key: str, needed: str) -> UserError:
        return UserError(f"codec {name!r}: {key} is {short(config.get(key))} in its config.json; it must be {needed}")

    if not _is_finite(config.get("scaling_factor")) or config["scaling_factor"] == 0:
        raise refuse("scaling_factor", "a number other than 0")
    if config.get("shift_factor") is not None and not _is_finite(config["shift_factor"]):
        raise refuse("shift_factor", "a number, or null")
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return
    for key in ("latents_mean", "latents_std"):
        values = config[key]
        if not isinstance(values, Sequence) or len(values) != channels or not all(map(_is_finite, values)):
            raise refuse(key, f"a list of {channels} numbers, one for each latent channel")
    if 0 in config["latents_std"]:
        raise refuse("latents_std", "a list of numbers other than 0")


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < 1e30
