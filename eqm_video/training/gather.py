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
    """The tensors (B, ...) of all processes, joined in their order: (P B, ...), the same in every process.

    Every process computes the same loss from the result. If DDP averages the gradients of the processes, the average is
    the gradient of that loss. All processes must have the same number of clips. A single process gets `tensor` itself.
    """
    return tensor if accelerator.num_processes == 1 else _Gather.apply(tensor, accelerator)


class _Gather(torch.autograd.Function):
    """An all-gather whose backward pass needs no communication.

    Every process has the gradient of the loss by the whole tensor, so that the part of its own clips is exact. Only
    that part enters its gradient of the weights, which DDP divides by P: hence the factor P.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, accelerator: Accelerator) -> Tensor:
        ctx.rank, ctx.processes = accelerator.process_index, accelerator.num_processes
        return accelerator.gather(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.chunk(ctx.processes)[ctx.rank] * ctx.processes, None
