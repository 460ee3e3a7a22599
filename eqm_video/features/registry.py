"""All features by name, and the one that --features and --weights ask for."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from eqm_video.errors import UserError
from eqm_video.features.feature import Feature, Input
from eqm_video.features.file import SCRIPTS, File
from eqm_video.features.hub import Hub
from eqm_video.features.i3d import I3D
from eqm_video.features.inception import Inception
from eqm_video.features.pixels import Pixels
from eqm_video.features.transnet import TransNet
from eqm_video.features.untrained import Random

FEATURES: dict[str, type[Feature]] = {
    "transnet": TransNet,
    "i3d": I3D,
    "inception": Inception,
    "hub:NAME": Hub,
    "FILE": File,
    "random": Random,
    "pixels": Pixels,
}
SIMPLE = {"transnet": TransNet, "random": Random, "pixels": Pixels}  # those that need no more than their name


def is_known(name: str) -> bool:
    """Whether a word names a feature: one of the list, hub:NAME, or a file."""
    return name in (*SIMPLE, "i3d", "inception") or name.startswith("hub:") or _is_file(name)


def open_feature(name: str, taken: Input, weights: Path | None = None, device: torch.device | str = "cpu") -> Feature:
    """The feature `name` on a device. `taken`: the input of i3d and of files; `weights`: the file of i3d or inception.

    UserError for an unknown name, weights that are missing or that the feature has no use for, and files that cannot
    be opened.
    """
    if name in ("i3d", "inception"):
        if weights is None:
            file = {"i3d": "i3d_torchscript.pt", "inception": "inception-2015-12-05.pt"}[name]
            raise UserError(f"--features {name} needs its file: type --weights PATH/{file} (docs/evaluate.md)")
        return I3D(weights, taken, device) if name == "i3d" else Inception(weights, device)
    if weights is not None:
        raise UserError(f"--weights {weights} is for the features i3d and inception, not for {name}: leave it out")
    if name.startswith("hub:"):
        return Hub(name.removeprefix("hub:"), device)
    if _is_file(name):
        return File(Path(name), taken, device)
    if name not in SIMPLE:
        near = difflib.get_close_matches(name, FEATURES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"--features {name}: there is no such feature{hint}; type transnet, random, pixels, i3d or inception with "
            "--weights FILE, hub:OWNER/NAME, or a TorchScript or ONNX file"
        )
    return SIMPLE[name](device)


def _is_file(name: str) -> bool:
    return name.endswith((*SCRIPTS, ".onnx"))
