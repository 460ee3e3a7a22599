"""The feature `inception`: what FID, KID and the Inception Score are defined on, from a file on this machine.

Legend: B clips, T frames.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eqm_video.features.feature import Feature, Input, hash_file, pool_frames
from eqm_video.features.file import named, open_script


class Inception(Feature):
    """Inception-v3 of 2015, pool_3 and class probabilities: --weights FILE, NVIDIA's inception-2015-12-05.pt.

    The file takes pixels 0 to 255 and resizes them itself, as TensorFlow did, and is called twice: with
    return_features=True, and as it is for the probabilities, whose logarithms are the logits. Frames of a clip are
    pooled; FID is the name of single pictures' distance only: --frames 1.
    """

    name = "inception"
    outputs = ("features", "logits")
    input = Input("bchw", None, "0:255")

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.source, self.digest = str(path), hash_file(path)
        self.network = open_script(path, device)

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, 2048), (B, 4096) of clips with several frames; logits (B, 1008)."""
        frames = self.input.prepare(clips)
        known = {argument.name for argument in self.network.forward.schema.arguments}
        if "return_features" not in known:
            outputs = named(self.network(frames), self.source)
        else:
            features, chances = self.network(frames, return_features=True), self.network(frames)
            outputs = {"features": features.flatten(1), "logits": chances.clamp_min(1e-12).log()}
        outputs = {name: value.unflatten(0, clips.shape[:2]) for name, value in outputs.items()}
        pooled = {name: value.mean(1) for name, value in outputs.items()}
        return {**pooled, "features": pool_frames(outputs["features"])}
