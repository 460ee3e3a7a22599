"""Peak signal-to-noise ratio: how much of a picture survives a codec or a sampler."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST = 100.0  # dB; equal pictures have no noise at all, and a mean needs a number


def psnr(pixels: Tensor, truth: Tensor, *, span: float, dims: int = 3) -> Tensor:
    """10 log10(span² / mean squared error) in dB, float64, at most 100: one number for the last `dims` dimensions.

    pixels, truth: of one shape, such as (B, C, H, W) for a number of each picture (B,), or with dims=4 (B, T, H, W, C)
    for a number of each clip (B,). span: from black to white, such as 255 for 8-bit pixels, or 2 for pixels in [-1, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if pixels.shape != truth.shape:
        raise ValueError(f"pixels {tuple(pixels.shape)} and truth {tuple(truth.shape)} must have one shape")
    error = (pixels.float() - truth.float()).square().mean(dim=tuple(range(-dims, 0)), dtype=torch.float64)
    return (10 * torch.log10(span**2 / error)).clamp(max=HIGHEST)
