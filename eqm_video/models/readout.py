"""A learned readout of each frame's level from a network's tokens, trained on the frozen network.

Legend: B clips, T frames, N tokens of a frame, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FILE = "readout.safetensors"
WIDTH = 64  # of the hidden layer
LEAST = 0.002  # smallest standard deviation that it claims


class LevelReadout(nn.Module):
    """The level of every frame, and its standard deviation, from the tokens after the last block.

    Args:
        width: D of the network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.layers = nn.Sequential(nn.Linear(2 * width, WIDTH), nn.GELU(), nn.Linear(WIDTH, 2))

    @staticmethod
    def features(hidden: Tensor) -> Tensor:
        """Mean and standard deviation over the tokens of each frame: (B, T, N, D) -> (B, T, 2 D) float32."""
        values = hidden.float()
        return torch.cat([values.mean(dim=2), values.std(dim=2, unbiased=False)], dim=2)

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Level in (0, 1) and standard deviation of features (..., 2 D)."""
        level, spread = self.layers(self.norm(features)).unbind(dim=-1)
        return level.sigmoid(), LEAST + nn.functional.softplus(spread - 3)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The levels (B, T) and their standard deviations (B, T) of tokens (B, T, N, D)."""
        self.to(hidden.device)
        return self.read(self.features(hidden))


def load_readout(folder: Path) -> LevelReadout | None:
    """The readout of an export's folder; None if it has none."""
    if not (folder / FILE).is_file():
        return None
    weights = load_file(folder / FILE)
    readout = LevelReadout(weights["norm.weight"].shape[0] // 2)
    readout.load_state_dict(weights)
    return readout.eval().requires_grad_(False)
