"""Named sizes of networks: `EqM-S/2` has the width, depth and heads of S, and patches of 2 x 2 latent pixels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer
from eqm_video.models.unet import EqMUNet


@dataclass(frozen=True)
class Preset:
    """Sizes of a transformer; the field names are EqMTransformer's."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int


@dataclass(frozen=True)
class UNetPreset:
    """Sizes of a U-Net; the field names are EqMUNet's."""

    base_channels: int
    multipliers: tuple[int, ...]
    depth: int
    attention_levels: tuple[int, ...]
    dropout: float
    patch_size: int


# name: (width, depth, heads, patches). S to XL are the paper's (and DiT's, SiT's); the others are for a CPU.
_SIZES = {
    "Nano": (128, 4, 4, (1, 2, 4, 8)),
    "Tiny": (192, 6, 6, (1, 2, 4, 8)),
    "XS": (256, 8, 8, (1, 2, 4, 8)),
    "S": (384, 12, 6, (2, 4, 8)),
    "B": (768, 12, 12, (2, 4, 8)),
    "L": (1024, 24, 16, (2, 4, 8)),
    "XL": (1152, 28, 16, (2, 4, 8)),
}

PRESETS = MappingProxyType(
    {
        f"EqM-{name}/{patch}": Preset(width, depth, heads, patch)
        for name, (width, depth, heads, patches) in _SIZES.items()
        for patch in patches
    }
)

UNET_PRESETS = MappingProxyType(
    {
        "EqM-UNet": UNetPreset(128, (2, 2, 2), 4, (1,), 0.3, 4),  # the paper's for CIFAR-10, 56 M parameters
        "EqM-UNet-Tiny": UNetPreset(32, (1, 2, 2), 1, (1,), 0.1, 4),  # for a CPU
    }
)


def find_preset(name: str) -> Preset | UNetPreset:
    """The preset called `name`; UserError for an unknown name, with the nearest preset and a list of all."""
    every = {**PRESETS, **UNET_PRESETS}
    if name in every:
        return every[name]
    folded = {known.lower(): known for known in every}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[near[0]]}? " if near else ""
    sizes = ", ".join(f"EqM-{size}/{{{','.join(map(str, row[3]))}}}" for size, row in _SIZES.items())
    raise UserError(f"unknown preset {name!r}; {hint}The presets are {sizes}, and for images {', '.join(UNET_PRESETS)}")


def preset_name(hidden_size: int, depth: int, num_heads: int, patch_size: int) -> str | None:
    """The name of a transformer with these sizes; None if no preset has them."""
    sizes = Preset(hidden_size, depth, num_heads, patch_size)
    return next((name for name, preset in PRESETS.items() if preset == sizes), None)


def build_model(
    name: str, *, num_labels: int = 1000, temporal: bool = False, in_channels: int | None = None, **options: Any
) -> EqMTransformer | EqMUNet:
    """A freshly initialised network of a preset; `options` are the other arguments of its class.

    The defaults give the paper's image networks; `temporal=True` adds attention in time, which a U-Net refuses with a
    ValueError. `in_channels` None is the class's default: 4 latent channels for a transformer, 3 (pixels) for a U-Net.
    """
    preset = find_preset(name)
    network = EqMUNet if isinstance(preset, UNetPreset) else EqMTransformer
    if in_channels is not None:
        options["in_channels"] = in_channels
    return network(**{**vars(preset), **options}, num_labels=num_labels, temporal=temporal)
