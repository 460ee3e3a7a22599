"""Readings of motion: flicker, motion energy, and frozen frames.

Legend: N clips, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.metric import Reading
from eqm_video.system.devices import double

LUMA = (0.299, 0.587, 0.114)
STILL = 0.5  # mean absolute change, of 255, below which a frame counts as frozen


def changes(clips: Tensor) -> Tensor:
    """Mean absolute change from frame to frame (N, T - 1), of 255, float64."""
    return double(torch.stack([clip.float().diff(dim=0).abs().flatten(1).mean(1) for clip in clips]))


class Flicker(Reading, name="flicker", title="flicker"):
    """Flicker: the RMS second difference over time of the frames' mean brightness, of 255.

    Motion and camera pans change the mean brightness smoothly, and count little.
    """

    least_frames = 3

    def read(self, clips: Tensor) -> Tensor:
        """(N,) float64."""
        weights = torch.tensor(LUMA, dtype=torch.float64)
        light = double(torch.stack([clip.float().mean(dim=(1, 2)) for clip in clips])) @ weights
        return light.diff(n=2, dim=1).square().mean(1).sqrt()


class Motion(Reading, name="motion", title="motion energy"):
    """Motion energy: the mean absolute change of a pixel from frame to frame, of 255."""

    def read(self, clips: Tensor) -> Tensor:
        """(N,) float64."""
        return changes(clips).mean(1)


class Frozen(Reading, name="frozen", title="frozen frames"):
    """Frozen frames: the share of frames that equal the one before, up to a mean change of 0.5 of 255."""

    def read(self, clips: Tensor) -> Tensor:
        """(N,) float64."""
        return double(changes(clips) < STILL).mean(1)
