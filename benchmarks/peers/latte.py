"""Latte (arXiv 2401.03048) as a peer: `--peer CHECKOUT --adapter benchmarks/peers/latte.py`. timm is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """The two parts of timm that Latte uses are this, and `Mlp`."""

    def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.num_patches, self.patch_size = (size // patch) ** 2, (patch, patch)
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (BT,C,H,W) to tokens (BT,N,D)."""
        return self.proj(frames).flatten(2).mT


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: type, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(in_features, hidden_features),
            act_layer(),
            nn.Linear(hidden_features, in_features),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (...,D) to (...,D)."""
        return self.fc2(self.act(self.fc1(tokens)))


class Peer(nn.Module):
    """Latte, called like the others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents (B,T,C,H,W) and labels (B,) to a tensor of the latents' shape, at time 0."""
        return self.inner(latents, torch.zeros(len(labels), device=labels.device), y=labels)


def make(
    peer: Path, *, width: int, depth: int, heads: int, patch: int, frames: int, size: int, channels: int, labels: int
) -> nn.Module:
    """Latte without its doubled output; its blocks alternate between space and time, and come in pairs."""
    parts = ModuleType("timm.models.vision_transformer")
    parts.PatchEmbed, parts.Mlp = PatchEmbed, Mlp
    sys.modules |= {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models"), parts.__name__: parts}
    sys.path.insert(0, str(peer / "models"))
    import latte

    inner = latte.Latte(
        input_size=size, patch_size=patch, in_channels=channels, hidden_size=width, depth=depth, num_heads=heads,
        num_frames=frames, num_classes=labels, learn_sigma=False, extras=2, attention_mode="math",
    )  # fmt: skip
    return Peer(inner)
