"""A learned readout of each frame's level from a network's tokens, trained on the frozen network.

Legend: B clips, T frames, N tokens of a frame, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqm_video.errors import UserError
from eqm_video.system import files

FILE = "readout.safetensors"
WIDTH = 64  # of the hidden layer
LEAST = 0.002  # smallest standard deviation that it claims
AGAIN = "delete it, or train another with eqm-video readout MODEL --data FOLDER --write"


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


def load_readout(folder: Path, width: int | None = None) -> LevelReadout | None:
    """The readout in a model's folder; None if there is none.

    UserError for a damaged file, and where its network's width is not `width`; None: any width.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        weights = load_file(file)
        own = weights["norm.weight"].numel() // 2 if "norm.weight" in weights else 0
        if own < 1 or width not in (None, own):
            raise UserError(f"{file} is a readout of a network of width {own}, and this one has {width}: {AGAIN}")
        readout = LevelReadout(own)
        readout.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise UserError(f"{file} cannot be read as a readout ({reason}): {AGAIN}") from error
    return readout.eval().requires_grad_(False)


def save_readout(readout: LevelReadout | None, folder: Path) -> None:
    """Write a readout into a model's folder, whole or not at all; for None an older one there is deleted."""
    if readout is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in readout.state_dict().items()}
    files.write_file(folder / FILE, lambda aside: save_file(weights, aside))
