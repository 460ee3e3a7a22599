"""The feature `pixels`: random projections of a clip's pixels, without any network.

Legend: B clips, T frames, D dimensions of a feature, V values of a frame.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from eqm_video.features.feature import Feature, Input
from eqm_video.metrics.frechet import random_projection
from eqm_video.randomness import generator

SIZE, DIMENSIONS = 32, 32


class Pixels(Feature):
    """Random projections of all pixels of a clip: no network, so that a number is of low-order statistics alone.

    Frames of 32x32 pixels in [-1, 1]; each frame has a matrix of its own, so that the order of the frames counts. The
    same matrices for everybody: squared distances are kept on average.
    """

    name = "pixels"
    input = Input("bthwc", (SIZE, SIZE))

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.matrices: list[Tensor] = []
        self.digest = hashlib.sha256(self._matrix(0).cpu().numpy().tobytes()).hexdigest()

    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """features (B, 32)."""
        frames = self.input.prepare(clips).flatten(2)
        features = frames.new_zeros(len(frames), DIMENSIONS)
        for place in range(frames.shape[1]):
            features += frames[:, place] @ self._matrix(place)
        return {"features": features}

    def _matrix(self, place: int) -> Tensor:
        """The matrix (V, D) of the frame at `place`."""
        for missing in range(len(self.matrices), place + 1):
            drawn = random_projection(3 * SIZE**2, DIMENSIONS, generator("pixel features", missing))
            self.matrices.append(drawn.to(self.device))
        return self.matrices[place]
