"""Activation checkpointing: parts of a block that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# Operations whose results are kept: nearly all of a block's arithmetic, in a part of its activations.
PRODUCTS = frozenset(
    {
        *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default),
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


def keep_products(block: nn.Module, *inputs: Any) -> Any:
    """Selective checkpointing: `network.enable_gradient_checkpointing(keep_products)`, for an implicit field.

    Matrix products and attention are kept, all the rest is computed again: normalisation, modulation, rotation, GELU.
    Values and gradients are the same, bit for bit.
    """
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_contexts)


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


_contexts = partial(create_selective_checkpoint_contexts, _policy)
