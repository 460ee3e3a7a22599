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
from eqm_video.features.mobilenet import MobileNet
from eqm_video.features.pixels import Pixels
from eqm_video.features.transnet import TransNet
from eqm_video.features.untrained import Random

FEATURES: dict[str, type[Feature]] = {
    "transnet": TransNet,
    "i3d": I3D,
    "inception": Inception,
    "mobilenet": MobileNet,
    "hub:NAME": Hub,
    "FILE": File,
    "random": Random,
    "pixels": Pixels,
}
SIMPLE = {"transnet": TransNet, "random": Random, "pixels": Pixels}  # those that need no more than their name
WITH_FILE = {"i3d": "i3d_torchscript.pt", "inception": "inception-2015-12-05.pt", "mobilenet": "nsfwjs-4.3.0.tgz"}


def is_known(name: str) -> bool:
    """Whether a word names a feature: one of the list, hub:NAME, or a file."""
    return name in (*SIMPLE, *WITH_FILE) or name.startswith("hub:") or _is_file(name)


def open_feature(name: str, taken: Input, weights: Path | None = None, device: torch.device | str = "cpu") -> Feature:
    """The feature `name` on a device.

    taken: the input of i3d and of files. weights: the file of a feature that has one.

    UserError for an unknown name, weights that are missing or that the feature has no use for, and files that cannot
    be opened.
    """
    if name in WITH_FILE:
        if weights is None:
            raise UserError(
                f"--features {name} needs its file: type --weights PATH/{WITH_FILE[name]} (docs/evaluate.md)"
            )
        if name == "i3d":
            return I3D(weights, taken, device)
        return (Inception if name == "inception" else MobileNet)(weights, device)
    if weights is not None:
        raise UserError(f"--weights {weights} is for the features {', '.join(WITH_FILE)}, not for {name}: leave it out")
    if name.startswith("hub:"):
        return Hub(name.removeprefix("hub:"), device)
    if _is_file(name):
        return File(Path(name), taken, device)
    if name not in SIMPLE:
        near = difflib.get_close_matches(name, FEATURES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"--features {name}: there is no such feature{hint}; type transnet, random, pixels, {', '.join(WITH_FILE)} "
            "with --weights FILE, hub:OWNER/NAME, or a TorchScript or ONNX file"
        )
    return SIMPLE[name](device)


def _is_file(name: str) -> bool:
    return name.endswith((*SCRIPTS, ".onnx"))
