"""Checks of the inputs that all networks share, before anything is computed.

B clips, T frames, C channels, H W height and width, K labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_inputs(
    config: Any, latents: Tensor, labels: Tensor | None, times: Tensor | None, gamma: Tensor | None
) -> None:
    """ValueError unless latents (B,T,C,H,W), labels (B,), times and gamma (B,T) fit a network's `config`.

    The config has in_channels (C), patch_size, which divides H and W, num_labels (K, the null label) and
    conditioned_on_gamma. Labels out of 0…K are noticed on the CPU only: reading them on a GPU would wait for it.
    """
    p, channels, count = config.patch_size, config.in_channels, config.num_labels
    if latents.ndim != 5 or latents.shape[2] != channels:
        raise ValueError(f"latents must be (B,T,C,H,W) with C = {channels}, not {tuple(latents.shape)}")
    clips, frames, _, height, width = latents.shape
    if height % p or width % p:
        raise ValueError(f"latents of height {height} and width {width} must be divisible by the patch size {p}")
    for name, values in (("times", times), ("gamma", gamma)):
        if values is not None and values.shape != (clips, frames):
            raise ValueError(f"{name} must be (B,T) = ({clips}, {frames}), not {tuple(values.shape)}")
    if gamma is None and config.conditioned_on_gamma:
        raise ValueError("this network is conditioned on gamma: pass gamma=(B,T), the factor of every frame")
    if gamma is not None and not config.conditioned_on_gamma:
        raise ValueError(
            "this network is not conditioned on gamma: leave gamma out, or build it with conditioned_on_gamma=True"
        )
    if labels is None:
        return
    if labels.shape != (clips,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be ({clips},) integers, not {tuple(labels.shape)} of {labels.dtype}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and clips:
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high > count:
            raise ValueError(
                f"labels must lie in 0…{count} ({count} is the null label), but they run from {low} to {high}"
            )
