"""Layers of the transformer: positions in space and time, attention, adaLN-Zero block, head.

B clips, T frames, C channels, H W height and width, N tokens a frame, D width, K labels.
Inside attention: G groups of a clip that do not see each other, L tokens of a group, A heads, E = D / A their width.
In space G = T and L = N, in time G = N and L = T.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

MAX_SEQUENCES = 65_535
"""CUDA's fused attention kernels put sequences on a grid axis that holds at most this many blocks."""
LIMITED = ("cuda",)
"""Types of devices with that limit."""


@lru_cache(maxsize=32)
def position_table(rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The fixed sin-cos table of a grid of patches (rows * columns, width), as in MAE, DiT and EqM, column first.

    Computed in float64 and rounded to float32 before `dtype`, because trained weights saw the rounded table. A function
    of the grid, not a buffer of the network: it works for any size, and loading cannot leave it empty.
    """
    with torch.inference_mode(False):  # a table made during sampling must also work in training
        quarter = width // 4
        exponents = torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter
        frequencies = 1.0 / 10_000.0**exponents
        down = torch.arange(rows, dtype=torch.float64, device="cpu")[:, None] * frequencies
        across = torch.arange(columns, dtype=torch.float64, device="cpu")[:, None] * frequencies
        across = repeat(torch.cat([across.sin(), across.cos()], dim=1), "w d -> (h w) d", h=rows)
        down = repeat(torch.cat([down.sin(), down.cos()], dim=1), "h d -> (h w) d", w=columns)
        return torch.cat([across, down], dim=1).float().to(device, dtype)


def time_rotation(times: Tensor, head_width: int, base: float) -> Tensor:
    """Cosines and sines of the rotary angles of real-valued times (RoPE, arXiv 2104.09864).

    times: (B,T), in reference frames, float32 or float64; returns (2,B,1,1,T,E/2) in the same dtype. Angle k is
    time * base^(-k/(E/2)) radians, so periods run from 2 pi to nearly 2 pi * base reference frames.
    """
    half = head_width // 2
    frequencies = base ** (-torch.arange(half, dtype=times.dtype, device=times.device) / half)
    angles = times[..., None] * frequencies
    return rearrange(torch.stack([angles.cos(), angles.sin()]), "s b t e -> s b 1 1 t e")


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (B,G,A,T,E) turned by `rotation` (2,B,1,1,T,E/2), computed in the rotation's precision."""
    cosine, sine = rotation
    first, second = heads.to(rotation.dtype).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(heads.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention over S independent sequences (S,A,L,E), in chunks only where a kernel needs them.

    Flash and memory-efficient attention of CUDA refuse more than MAX_SEQUENCES sequences, of any number of heads.
    """
    if query.shape[0] <= MAX_SEQUENCES or query.device.type not in LIMITED:
        return F.scaled_dot_product_attention(query, key, value)
    parts = zip(*(tensor.split(MAX_SEQUENCES) for tensor in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


def normalise(tokens: Tensor) -> Tensor:
    """LayerNorm without weights (eps 1e-6): scale and shift come from the condition."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: normalise (B,T,N,D), then scale and shift per frame, (B,T,1,D) or (B,1,1,D)."""
    return normalise(tokens) * (1 + scale) + shift


class GammaEmbedding(nn.Module):
    """Interpolation factors (…) in [0, 1] to embeddings (…, D): 256 sinusoids, then two linear layers."""

    def __init__(self, width: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.mlp = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, gamma: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed gamma (…) as (…, D) in `dtype`; the sinusoids are in float32, in float64 for a float64 network."""
        exact = torch.promote_types(dtype, torch.float32)
        half = self.sinusoids // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=exact, device=gamma.device) / half)
        angles = gamma.to(exact)[..., None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class Modulation(nn.Module):
    """Condition (B,T,D) or (B,1,D) to `parts` tensors (B,T or 1,1,D) that shift, scale or gate a frame's tokens."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The `parts` tensors (B,T or 1,1,D), each a shift, scale or gate."""
        return self.linear(F.silu(condition)).unsqueeze(2).chunk(self.parts, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention within each group of (B,G,L,D), with rotary times if there is a rotation."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Tokens (B,G,L,D) to (B,G,L,D); `rotation` (2,B,1,1,L,E/2), if not None, turns queries and keys."""
        clips = tokens.shape[0]
        heads = rearrange(self.qkv(tokens), "b g l (three a e) -> three b g a l e", three=3, a=self.num_heads)
        query, key, value = heads.unbind()
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        return self.proj(rearrange(mixed, "(b g) a l e -> b g l (a e)", b=clips))


class MLP(nn.Module):
    """Two linear layers with GELU (tanh form) between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (…,D) to (…,D)."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class EqMBlock(nn.Module):
    """Attention in space, attention in time, MLP; each is added through a gate that starts at zero (adaLN-Zero)."""

    def __init__(self, width: int, num_heads: int, inner: int, temporal: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6)
        self.spatial = Attention(width, num_heads)
        self.mlp = MLP(width, inner)
        self.temporal_modulation = Modulation(width, 3) if temporal else None
        self.temporal = Attention(width, num_heads) if temporal else None

    def modulations(self, condition: Tensor, rotation: Tensor | None = None) -> tuple[tuple[Tensor, ...], ...]:
        """Shifts, scales and gates of the condition (B,T or 1,D): of space and MLP, then of attention in time."""
        here = self.modulation(condition)
        return (here, self.temporal_modulation(condition)) if self._in_time(rotation) else (here,)

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        rotation: Tensor | None = None,
        modulations: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> Tensor:
        """Tokens (B,T,N,D) to (B,T,N,D), with condition (B,T or 1,D); rotation None skips attention in time.

        A block without attention in time ignores the rotation. modulations: those of this condition and rotation, if
        they were computed before.
        """
        here = self.modulation(condition) if modulations is None else modulations[0]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = here
        tokens = tokens + gate * self.spatial(modulate(tokens, shift, scale))
        if self._in_time(rotation):
            shift, scale, gate = self.temporal_modulation(condition) if modulations is None else modulations[1]
            tracks = rearrange(modulate(tokens, shift, scale), "b t n d -> b n t d")
            tokens = tokens + gate * rearrange(self.temporal(tracks, rotation), "b n t d -> b t n d")
        return tokens + mlp_gate * self.mlp(modulate(tokens, mlp_shift, mlp_scale))

    def _in_time(self, rotation: Tensor | None) -> bool:
        return rotation is not None and self.temporal is not None


class Head(nn.Module):
    """The last layer: tokens (B,T,N,D) to the numbers of their patches (B,T,N,outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, condition: Tensor, modulation: tuple[Tensor, ...] | None = None) -> Tensor:
        """Modulate tokens (B,T,N,D) by the condition (B,T or 1,D), then project them.

        modulation: that of this condition, if it was computed before.
        """
        shift, scale = self.modulation(condition) if modulation is None else modulation
        return self.linear(modulate(tokens, shift, scale))
