"""Passing clips through a network or a codec in batches, and the labels of clips to sample.

Legend: N clips, T frames, C latent channels, H W pixels, h w latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.system import waits

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline


def batches(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` out of `count`."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def labels_in_turn(pipeline: EqMPipeline, count: int) -> list[str | None]:
    """Labels of `count` clips, the model's in turn; None for each where it knows none."""
    names = list(pipeline.labels.values()) or [None]
    return [names[k % len(names)] for k in range(count)]


def encode(pipeline: EqMPipeline, clips: NDArray[np.uint8], batch_size: int) -> Tensor:
    """The codec's latents (N, T, C, h, w) of clips uint8 (N, T, H, W, 3)."""
    return torch.cat([pipeline.encode(clips[part]) for part in batches(len(clips), batch_size)])


def rebuild(pipeline: EqMPipeline, clips: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
    """Clips uint8 (N, T, H, W, 3) after the codec and back: no prediction can be closer to the truth."""
    parts = waits.bar(batches(len(clips), batch_size), "through the codec", unit="batch")
    return np.concatenate([pipeline.decode(pipeline.encode(clips[part])) for part in parts])
