"""I3D, Inception-v1 inflated to three dimensions: the network whose logits FVD is defined on.

Written after Carreira and Zisserman, "Quo Vadis, Action Recognition?" (2017, arXiv:1705.07750), figure 3. The names of
the layers are those of the published state dicts, so that these load strictly.

Legend: B clips, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

LABELS = 400  # of Kinetics-400


class SamePadding(nn.Module):
    """A convolution or a pooling after which a side of n has n / stride values, rounded up, as in TensorFlow.

    The zeros before and after differ by one where their number is odd. A maximum over them is one over the values, as
    these are never negative.
    """

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]

    def fill(self, values: Tensor) -> Tensor:
        """Values (B, C, T, H, W) with the zeros around them."""
        sides: list[int] = []
        for side, kernel, stride in zip(values.shape[2:], self.kernel, self.stride, strict=True):
            missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            sides = [missing // 2, missing - missing // 2, *sides]  # pad counts from the last axis
        return pad(values, sides) if any(sides) else values


class Unit3D(SamePadding):
    """A convolution, its batch normalisation and a ReLU; `last`: a convolution with a bias alone."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, eps: float = 1e-5, *, last: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), each side divided by the stride."""
        values = self.conv3d(self.fill(values))
        return values if self.bn is None else relu(self.bn(values))


class Pool(SamePadding):
    """A maximum over windows."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.pool = nn.MaxPool3d(kernel, stride)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T', H', W')."""
        return self.pool(self.fill(values))


class Mixed(nn.Module):
    """An Inception block: 1x1x1; 1x1x1 and 3x3x3, twice; a maximum and 1x1x1. `widths`: channels of its six units."""

    def __init__(self, inputs: int, widths: Sequence[int], eps: float) -> None:
        super().__init__()
        self.b0 = Unit3D(inputs, widths[0], eps=eps)
        self.b1a, self.b1b = Unit3D(inputs, widths[1], eps=eps), Unit3D(widths[1], widths[2], 3, eps=eps)
        self.b2a, self.b2b = Unit3D(inputs, widths[3], eps=eps), Unit3D(widths[3], widths[4], 3, eps=eps)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit3D(inputs, widths[5], eps=eps)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W)."""
        branches = self.b0(values), self.b1b(self.b1a(values)), self.b2b(self.b2a(values)), self.b3b(self.b3a(values))
        return torch.cat(branches, 1)


class I3DNetwork(nn.Module):
    """The RGB stream of I3D: 12.3 million parameters, and 0.4 million of the 400 logits.

    eps: added to the variance in batch normalisation.
    """

    MIXED: ClassVar[dict[str, tuple[int, ...]]] = {  # channels of the units of each block
        "3b": (64, 96, 128, 16, 32, 32),
        "3c": (128, 128, 192, 32, 96, 64),
        "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64),
        "4d": (128, 128, 256, 24, 64, 64),
        "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128),
        "5b": (256, 160, 320, 32, 128, 128),
        "5c": (384, 192, 384, 48, 128, 128),
    }
    POOLS: ClassVar[
        dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]
    ] = {  # before the block: name, kernel, stride
        "3b": ("3a_3x3", (1, 3, 3), (1, 2, 2)),
        "4b": ("4a_3x3", (3, 3, 3), (2, 2, 2)),
        "5b": ("5a_2x2", (2, 2, 2), (2, 2, 2)),
    }

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit3D(3, 64, 7, 2, eps),
            "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit3D(64, 64, eps=eps),
            "Conv3d_2c_3x3": Unit3D(64, 192, 3, eps=eps),
        }
        channels = 192
        for name, widths in self.MIXED.items():
            if name in self.POOLS:
                title, kernel, stride = self.POOLS[name]
                layers[f"MaxPool3d_{title}"] = Pool(kernel, stride)
            layers[f"Mixed_{name}"] = Mixed(channels, widths, eps)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.order = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.logits = Unit3D(channels, LABELS, last=True)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1] to logits before the softmax (B, 400), averaged over time and place.

        T is 9 or more and both sides are 193 to 224 pixels: the average is over 2 x 7 x 7 values.
        """
        for name in self.order:
            clips = getattr(self, name)(clips)
        pooled = nn.functional.avg_pool3d(clips, (2, 7, 7), stride=1)
        return self.logits(pooled).mean((2, 3, 4))
