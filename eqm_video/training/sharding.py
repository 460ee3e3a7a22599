"""Training in parts: every process holds a part of each weight, of its average and of its optimizer state (FSDP2).

Torch's `fully_shard` cuts every tensor along its first dimension. A block's weights are gathered for its forward and
its backward pass alone, and gradients are summed into the parts. The parts are DTensors; this module is the only one
that knows how to cut and to gather them, in memory and on disk.

Legend: P processes in R copies of P / R parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from eqm_video.core.energy import Field, FieldOutput


@dataclass(frozen=True)
class Sharding:
    """The parts that a launcher asks for.

    copies: R, the number of groups of processes that hold all parts each; 1 cuts every weight in P parts, more is
    hybrid sharding, where only gradients pass between groups. free: whether a block's whole weights are freed after its
    forward pass and gathered again for the backward pass.
    """

    copies: int = 1
    free: bool = True

    def apply(self, field: Field, accelerator: Accelerator) -> None:
        """Replace the weights of a field by this process's parts, on its device.

        Every process must have the same weights before. Optimizers are made after this call. The field computes in
        the precision of the run; weights, their parts and gradients stay float32.
        """
        device, world = accelerator.device.type, accelerator.num_processes
        if self.copies == 1:
            mesh = init_device_mesh(device, (world,))
        else:
            shape = (self.copies, world // self.copies)
            mesh = init_device_mesh(device, shape, mesh_dim_names=("copies", "parts"))
        for block in getattr(field.network, "blocks", ()):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.free)
        fully_shard(field, mesh=mesh)
        forward = field.forward

        def in_precision(*inputs: Any, **named: Any) -> FieldOutput:
            with accelerator.autocast():
                output = forward(*inputs, **named)
            return replace(output, sample=output.sample.clone())  # FSDP hangs a hook on it, and warns of views

        # Not by FSDP's own mixed precision: it would round the times of frames, and weights that autocast keeps exact.
        field.forward = in_precision


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of which this process holds a part; all processes call it together. A plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_part(value: object) -> bool:
    """Whether a value is a tensor of which this process holds a part."""
    return isinstance(value, DTensor)


def own(tensor: Tensor) -> Tensor:
    """The memory of this process's part, as a plain tensor. A plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of `like`, on its device; `tensor` if `like` is whole.

    Nothing is sent: every process has the whole tensor.
    """
    if not isinstance(like, DTensor):
        return tensor
    moved = tensor.to(own(like).device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def agree(fault: str | None, accelerator: Accelerator) -> str | None:
    """The first fault of any process, the same in all; None if no process has one. All processes call it together."""
    faults = gather_object([fault]) if accelerator.num_processes > 1 else [fault]
    return next((text for text in faults if text is not None), None)


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's parts into `folder`, a safetensors file for each process. All call it together.

    OSError in every process if any of them cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except dcp.CheckpointException as error:  # not an Exception: nothing else in this package would catch it
        causes = "; ".join(f"process {rank}: {cause[0]}" for rank, cause in sorted(error.failures.items()))
        raise OSError(causes) from error


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or parts, from the files that `write_parts` wrote on any number of processes.

    Each process reads alone, and only what it holds. ValueError if names or shapes differ; SafetensorError or OSError
    for files that cannot be read.
    """
    reader = HuggingFaceStorageReader(str(folder))
    saved = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if saved != wanted:
        names = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        first = f"{names[0]} is {saved.get(names[0], 'missing')} there, {wanted.get(names[0], 'missing')} here"
        raise ValueError(f"{len(names)} tensors differ: {first}")
    with warnings.catch_warnings():  # of reading in a single process, which is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
