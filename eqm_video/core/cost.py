"""The cost of a field: floating-point operations of an evaluation, counted without computing it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eqm_video.core.energy import Field


def count_operations(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of an evaluation of the field on latents of `shape` (multiply-add: 2).

    An evaluation is a forward pass; with an explicit energy also its derivative by the latents. `network` is on the
    meta device.
    """
    latents = torch.zeros(shape, device="meta")
    gamma = torch.zeros(shape[:2], device="meta")
    labels = torch.zeros(shape[0], dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Field(network)(latents, labels, gamma=gamma)
    return counter.get_total_flops()
