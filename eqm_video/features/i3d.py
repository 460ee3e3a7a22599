"""The feature `i3d`: the logits that FVD is defined on, from a file on this machine.

Legend: B clips, T frames.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eqm_video.features.feature import Feature, Input, hash_file
from eqm_video.features.file import named, open_script


class I3D(Feature):
    """I3D's 400 logits of Kinetics-400, before the softmax: --weights FILE, the TorchScript file of StyleGAN-V.

    `i3d_torchscript.pt` is called as StyleGAN-V calls it: return_features=True, on clips of 224x224 pixels in [-1, 1].
    The resize is this package's, as the protocol says (the file's own is bilinear without antialiasing). No source that
    could be cited gives the file's hash, so it is recorded and printed as unverified.
    """

    name = "i3d"
    least_frames = 10
    outputs = ("features", "logits")

    def __init__(self, path: Path, taken: Input, device: torch.device | str = "cpu") -> None:
        self.input, self.source, self.digest = taken, str(path), hash_file(path)
        self.network = open_script(path, device)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features and logits, both (B, 400)."""
        values = self.input.prepare(clips)
        known = {argument.name for argument in self.network.forward.schema.arguments}
        keywords = {"rescale": False, "resize": False, "return_features": True}
        logits = named(self.network(values, **{key: keywords[key] for key in keywords if key in known}), self.source)
        return {"features": logits["features"], "logits": logits["features"]}
