"""Clips of moving shapes that share frames, and what tests ask of descents that end at them."""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.core.decay import TruncatedDecay
from eqm_video.randomness import generator, normal
from eqm_video.studies.oracle.runs import moving_clips

DECAY = TruncatedDecay(a=0.8, gain=4.0)
SIZE, FRAMES = 8, 5
DATA = moving_clips(SIZE, FRAMES, ("Disc", "Square"))[0].mean(dim=2, keepdim=True)  # (8, 5, 1, 8, 8) grey
DATA = 2 * (DATA - DATA.amin()) / (DATA.amax() - DATA.amin()) - 1


def spread(frames: Tensor) -> Tensor:
    return frames[:, :, None, None, None]


def noise(count: int, seed: int = 0) -> Tensor:
    return normal(DATA.shape[1:], [generator("tasks", seed, index) for index in range(count)], dtype=torch.float64)


def nearest(latents: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest clip and the largest difference from it, (B,) each."""
    away, chosen = (latents[:, None] - DATA).abs().amax(dim=(2, 3, 4, 5)).min(dim=1)
    return chosen, away
