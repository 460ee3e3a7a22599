"""Networks: a transformer for images and videos, a U-Net for small images, their presets, and the converter."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EqMOutput": "transformer",
    "EqMTransformer": "transformer",
    "EqMUNet": "unet",
    "PRESETS": "presets",
    "UNET_PRESETS": "presets",
    "build_model": "presets",
}

__all__ = ["PRESETS", "UNET_PRESETS", "EqMOutput", "EqMTransformer", "EqMUNet", "build_model"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import eqm_video.models` alone loads neither torch nor diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
