"""The protocol of a feature: clips in, rows of numbers out, and a hash of what made them.

Legend: B clips, T frames, H W pixels, h w those of a network's input, D dimensions of a feature.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eqm_video.errors import UserError
from eqm_video.system.hashing import add_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
LAYOUTS = ("bcthw", "btchw", "bthwc", "bchw", "bhwc")
RANGES = ("0:255", "0:1", "-1:1", "imagenet")


@dataclass(frozen=True)
class Input:
    """The input of a network.

    layout: the order of the axes; without a t each frame goes alone, and frames are pooled as [mean, mean |change|].
    size: (h, w), or None for the clips' own. values: the range of the pixels, or imagenet for its mean and standard
    deviation. fit: stretch both sides to `size`, or crop the centre once the short side fits. antialias: whether a
    picture that shrinks is smoothed first; the published FVD scripts do not.
    """

    layout: str = "bcthw"
    size: tuple[int, int] | None = (224, 224)
    values: str = "-1:1"
    fit: Literal["stretch", "crop"] = "stretch"
    antialias: bool = True

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or self.values not in RANGES:
            raise ValueError(f"layout {self.layout!r} must be of {LAYOUTS} and values {self.values!r} of {RANGES}")

    @property
    def by_frame(self) -> bool:
        """Whether each frame goes through the network alone."""
        return "t" not in self.layout

    def prepare(self, clips: Tensor) -> Tensor:
        """Clips uint8 (B, T, H, W, 3) as the network takes them; frames that go alone are (B·T, ...)."""
        frames = clips.flatten(0, 1).movedim(-1, 1).float()
        if self.size is not None:
            frames = fit_to(frames, self.size, self.fit, self.antialias)
        if self.values == "imagenet":
            mean, std = (torch.tensor(each, device=frames.device).view(3, 1, 1) for each in (MEAN, STD))
            frames = (frames / 255 - mean) / std
        elif self.values != "0:255":
            frames = frames / 255 if self.values == "0:1" else frames / 127.5 - 1
        if self.by_frame:
            return frames.movedim(1, -1) if self.layout == "bhwc" else frames
        videos = frames.unflatten(0, clips.shape[:2])
        return {"btchw": videos, "bcthw": videos.transpose(1, 2), "bthwc": videos.movedim(2, -1)}[self.layout]


class Feature(ABC):
    """A network that turns clips into features.

    name: as typed. outputs: the names of a call's results; None where they are known only after a call. digest: SHA-256
    of the weights. source: where they lie. verified: who states the hash of this very file; empty if nobody does.
    input: what the network is given.
    """

    name: ClassVar[str] = ""
    least_frames: ClassVar[int] = 1
    outputs: tuple[str, ...] | None = ("features",)
    digest: str = ""
    source: str = ""
    verified: str = ""
    input: Input | None = None

    @classmethod
    def says(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")

    @abstractmethod
    def __call__(self, clips: Tensor) -> dict[str, Tensor]:
        """Outputs by name, each (B, ·) float32, of clips uint8 (B, T, H, W, 3) on the network's device.

        features (B, D) always; logits (B, K) and spatial (B, S) where the network has them.
        """

    def record(self) -> dict[str, Any]:
        """The entry of the record, a part of the protocol's hash."""
        return {"name": self.name, "weights": self.digest}


def fit_to(frames: Tensor, size: tuple[int, int], fit: str, antialias: bool) -> Tensor:
    """Frames (N, 3, H, W) resized bilinearly to (N, 3, h, w): stretched, or cropped about the centre."""
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    smooth = antialias and (height > size[0] or width > size[1])
    if fit == "stretch":
        return interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=smooth)
    scale = max(size[0] / height, size[1] / width)
    full = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    frames = interpolate(frames, size=full, mode="bilinear", align_corners=False, antialias=smooth)
    top, left = (full[0] - size[0]) // 2, (full[1] - size[1]) // 2
    return frames[..., top : top + size[0], left : left + size[1]]


def pool_frames(frames: Tensor) -> Tensor:
    """Features of frames (B, T, D) as features of clips: [mean over frames, mean |change|], (B, 2D); (B, D) if T = 1.

    The second half sees how much changes from frame to frame; the first alone would not see time at all.
    """
    mean = frames.mean(1)
    return mean if frames.shape[1] == 1 else torch.cat([mean, frames.diff(dim=1).abs().mean(1)], 1)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. UserError where it cannot be read."""
    try:
        return add_file(hashlib.sha256(), path).hexdigest()
    except OSError as error:
        raise UserError(f"the weights {path} cannot be read ({error.strerror}); give the path of the file") from error
