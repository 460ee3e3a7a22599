"""The feature `random`: an untrained network. For tests, and to see what a number can mean without any training.

Legend: B clips, T frames.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, leaky_relu

from eqm_video.features.feature import Feature, Input, pool_frames
from eqm_video.randomness import generator

CHANNELS = (3, 32, 64, 128)
SIZE = 64
MAPS, CELLS = 7, 8  # of the spatial output


class Random(Feature):
    """An untrained convolutional network, the same for everybody: never trained, and no judge of quality.

    Three 3x3 convolutions with stride 2 on frames of 64x64 pixels; a clip's features are the means of all maps over
    space, and over time their mean and mean change.
    """

    name = "random"
    outputs = ("features", "spatial")
    input = Input("bchw", (SIZE, SIZE))

    def __init__(self, device: torch.device | str = "cpu") -> None:
        draw = generator("random features")
        pairs = list(pairwise(CHANNELS))
        weights = [
            torch.randn(wide, narrow, 3, 3, generator=draw) * (2 / (9 * narrow)) ** 0.5 for narrow, wide in pairs
        ]
        self.digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()
        self.weights = [weight.to(device) for weight in weights]

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, 448), (B, 224) of images; spatial (B, 448)."""
        every = self.maps(self.input.prepare(clips))
        means = [maps.mean((2, 3)) for maps in every]
        spatial = adaptive_avg_pool2d(every[1][:, :MAPS], CELLS).flatten(1).unflatten(0, clips.shape[:2]).mean(1)
        return {"features": pool_frames(torch.cat(means, 1).unflatten(0, clips.shape[:2])), "spatial": spatial}

    def maps(self, frames: Tensor) -> list[Tensor]:
        """The maps of every layer, (N, C, h, w), of frames (N, 3, H, W) in [-1, 1]; they can be differentiated."""
        every = []
        for weight in self.weights:
            frames = leaky_relu(conv2d(frames, weight, stride=2, padding=1), 0.2)
            every.append(frames)
        return every
