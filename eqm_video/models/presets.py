"""The sizes that have names. `EqM-S/2` is width, depth and heads of S with patches of 2 x 2 latent pixels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer


@dataclass(frozen=True)
class Preset:
    """Sizes of a network; the field names are EqMTransformer's."""

    hidden_size: int
    depth: int
    num_heads: int
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


def find_preset(name: str) -> Preset:
    """The preset of that name; an unknown one is an error that lists them and names the nearest."""
    if name in PRESETS:
        return PRESETS[name]
    folded = {known.lower(): known for known in PRESETS}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[near[0]]}? " if near else ""
    sizes = ", ".join(f"EqM-{size}/{{{','.join(map(str, row[3]))}}}" for size, row in _SIZES.items())
    raise UserError(f"unknown preset {name!r}; {hint}The presets are {sizes}")


def preset_name(hidden_size: int, depth: int, num_heads: int, patch_size: int) -> str | None:
    """The name of these sizes, or None where they have none."""
    sizes = Preset(hidden_size, depth, num_heads, patch_size)
    return next((name for name, preset in PRESETS.items() if preset == sizes), None)


def build_model(
    name: str, *, num_labels: int = 1000, temporal: bool = False, in_channels: int = 4, **options: Any
) -> EqMTransformer:
    """A freshly initialised network of a preset; `options` are EqMTransformer's other arguments.

    The defaults give the paper's image networks; `temporal=True` adds attention in time.
    """
    sizes = vars(find_preset(name))
    return EqMTransformer(**{**sizes, **options}, num_labels=num_labels, temporal=temporal, in_channels=in_channels)
