"""Video models trained with Equilibrium Matching.

`EqMPipeline`, the networks and `build_model` are imported on first use, so that `import eqm_video` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EqMPipeline": "eqm_video.sampling.pipeline",
    "EqMTransformer": "eqm_video.models.transformer",
    "EqMUNet": "eqm_video.models.unet",
    "build_model": "eqm_video.models.presets",
}

__all__ = ["EqMPipeline", "EqMTransformer", "EqMUNet", "build_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
