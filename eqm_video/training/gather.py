"""Clips of all processes in one tensor, with gradients, for losses that compare clips with each other.

Legend: B clips of one process, P processes.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_clips(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """(B, ...) of every process, put together in their order: (P B, ...), the same in all of them.

    For a loss that every process then computes alike, from the whole, and that is differentiated through a module whose
    gradients the processes average (DDP): the averaged gradient is that of the loss. Processes must hold equally many
    clips. With one process the tensor itself.
    """
    return tensor if accelerator.num_processes == 1 else _Gather.apply(tensor, accelerator)


class _Gather(torch.autograd.Function):
    """All-gather, whose backward needs no communication.

    Every process has the loss's gradient by the whole tensor, so its own part of that is already exact. A process adds
    only its own clips' share to the gradient of the weights, which DDP then divides by P: hence the factor P.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, accelerator: Accelerator) -> Tensor:
        ctx.rank, ctx.processes = accelerator.process_index, accelerator.num_processes
        return accelerator.gather(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.chunk(ctx.processes)[ctx.rank] * ctx.processes, None
