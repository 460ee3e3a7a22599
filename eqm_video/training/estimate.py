"""Memory and time of a training step, counted before anything is allocated.

Weights, gradients, optimizer state and averages follow from the number of parameters. Activations are the tensors that
autograd keeps in a forward pass on the meta device. Times are floating-point operations over a share of the device's
peak.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eqm_video.core.energy import Field, checkpoint_block
from eqm_video.models.recompute import PRODUCTS
from eqm_video.models.transformer import EqMTransformer
from eqm_video.system import machine
from eqm_video.training.config import Config

GIB = 2**30
# Share of the matrix peak that a whole step reaches: 0.75 to 0.78 was measured on a CPU; for GPUs it is an assumption.
REACHED = {"cpu": 0.75, "cuda": 0.4}
# Holes that glibc's heap keeps on a CPU, as shares of the activations without recomputation. Fitted to the peaks of ten
# processes of S/2 and Nano/4; six others were within 7 % of the sum. Recomputed tensors leave larger holes.
HOLES = {"none": 0.37, "selective": 0.53, "block": 0.60}
ENCODE = 273e9 / 256**2  # operations of stable diffusion's encoder for a pixel, counted at 256 px


@dataclass(frozen=True)
class Device:
    """Memory in bytes (None: unknown), and the peaks of matrix products, in operations a second."""

    name: str
    kind: str
    memory: int | None
    bf16: float
    fp32: float  # TF32 on GPUs, as training uses it

    def speed(self, precision: str) -> float:
        """Operations a second that a step may reach."""
        return (self.fp32 if precision == "no" else self.bf16) * REACHED["cuda" if self.kind == "cuda" else "cpu"]


# From the makers' data sheets: GB, and dense TFLOP/s with float32 accumulation.
_SHEETS = {
    "h200": (141, 989, 495),
    "h100": (80, 989, 495),
    "a100": (80, 312, 156),
    "l40s": (48, 362, 183),
    "4090": (24, 165, 83),
    "3090": (24, 71, 36),
}
SPECS = MappingProxyType(
    {name: Device(name, "cuda", int(gb * 1e9), bf16 * 1e12, tf * 1e12) for name, (gb, bf16, tf) in _SHEETS.items()}
)


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device's memory; None if the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()


def this_device(device: torch.device) -> Device:
    """The device at hand; its peak is measured with a matrix product, in half a second."""
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        speeds[dtype] = _peak(device, dtype) if dtype == torch.float32 or machine.has_bf16(device) else 0.0
    exact, half = speeds.values()
    return Device(machine.device_name(device), device.type, free_memory(device), half or exact, exact)


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        machine.synchronise(device)
        begun = time.perf_counter()
        matrix @ matrix
        machine.synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


@dataclass(frozen=True)
class Memory:
    """Bytes of a process while it trains, by what they hold.

    `activations` are those of one forward pass; `heap` is memory between tensors that a CPU's heap keeps.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    codec: int
    heap: int = 0

    @property
    def tensors(self) -> int:
        """The most bytes of tensors at a time: gradients grow while the backward pass frees activations."""
        return self.weights + self.optimizer + self.average + self.codec + max(self.activations, self.gradients)

    @property
    def state(self) -> int:
        """The peak without any activations."""
        return replace(self, activations=0, heap=0).peak

    @property
    def peak(self) -> int:
        """The most bytes at a time."""
        return self.tensors + self.heap

    def gibibytes(self) -> dict[str, float]:
        """All parts and the peak, in GiB."""
        return {name: round(value / GIB, 3) for name, value in {**vars(self), "peak": self.peak}.items()}


def count_memory(
    config: Config, network: nn.Module, shape: Sequence[int], world: int = 1, parts: int = 1, *, kind: str = "cuda"
) -> Memory:
    """The memory of one of `world` processes whose latents have the `shape` (T, C, h, w).

    network: of any device. parts: the number of processes that share the weights. kind: the type of the device that
    trains; a CPU has a heap with holes. Gradients and weights are float32.
    The U-Net's and the transformer's activations are counted in float32; half precision keeps 0.6 of that (B/2: 0.58).
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    matrices = 0
    if config.train.optimizer == "muon":
        named = network.named_parameters()
        matrices = sum(
            p.numel()
            for name, p in named
            if p.ndim == 2 and p.requires_grad and ".modulation" not in name and "blocks" in name
        )
    clips = max(1, config.train.batch_size // world // config.train.accumulation)
    mode, precise = _mode(config), config.train.mixed_precision == "no"
    activations = _activations(network, (clips, *shape), mode)
    holes = HOLES[mode] * _activations(network, (clips, *shape), "none") if kind == "cpu" else 0
    activations, heap = (int(value if precise else 0.6 * value) for value in (activations, holes))
    weights = 4 * parameters // parts
    codec = 4 * 83_653_863 if config.codec.name.startswith("stabilityai/sd-vae") else 0
    slots = (8 * trained - 4 * matrices) // parts
    return Memory(weights, 4 * trained // parts, slots, weights, activations, codec, heap)


def _mode(config: Config) -> str:
    """The way activations are kept: none (all are), selective or block."""
    return config.train.recompute if config.train.gradient_checkpointing else "none"


def _activations(network: nn.Module, shape: tuple[int, ...], mode: str) -> int:
    """Bytes that autograd keeps of a forward pass; a transformer of any depth is counted by one and two blocks."""
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    if not isinstance(network, EqMTransformer):
        return _kept(type(network), json.dumps(settings), shape, mode)

    def blocks(depth: int, mode: str) -> int:
        return _kept(EqMTransformer, json.dumps({**settings, "depth": depth}), shape, mode)

    every = network.config.temporal_every if network.config.temporal else 1  # blocks of two kinds are counted together
    single, more = (blocks(depth, mode) for depth in (every, 2 * every))
    recomputing = 0
    if mode != "none":  # a block that is recomputed has all its activations for a while
        recomputing = (blocks(2 * every, "none") - blocks(every, "none")) // every
        recomputing -= (more - single) // every if mode == "selective" else 0
    return single + (network.config.depth - every) * (more - single) // every + recomputing


@cache
def _kept(network_class: type[nn.Module], settings: str, shape: tuple[int, ...], mode: str) -> int:
    """Bytes that autograd keeps of a forward pass, of a network given by its class and its arguments as JSON.

    They are counted on the meta device, where nothing is allocated.
    """
    with torch.device("meta"):
        return _count_kept(network_class(**json.loads(settings)), shape, mode)


def _count_kept(network: nn.Module, shape: tuple[int, ...], mode: str) -> int:
    implicit = network.config.energy == "implicit"
    if mode != "none":
        network.enable_gradient_checkpointing(None if implicit else checkpoint_block)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}  # storages by their address, held so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    latents, gamma = torch.zeros(shape, device="meta"), torch.zeros(shape[:2], device="meta")
    condition = gamma if network.config.conditioned_on_gamma else None
    kernels = _Flash() if implicit else nullcontext()
    products = _Products() if mode == "selective" else nullcontext()
    with kernels, products, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = Field(network)(latents, None, times=gamma, gamma=condition)
        loss = (output.sample - latents).square().mean()
    del loss
    return sum(storage.nbytes() for storage in kept.values()) + getattr(products, "bytes", 0)


class _Products(TorchDispatchMode):
    """A block that counts `bytes`, the results of the operations that selective checkpointing keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


class _Flash(TorchFunctionMode):
    """A block in which attention keeps what a flash kernel keeps: on the meta device it would keep its matrices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **(kwargs or {}))


def seconds_per_step(config: Config, device: Device, flops: int, frames: int, world: int = 1) -> float:
    """Seconds of an optimizer step on `world` such devices; `flops` of a clip's forward pass, `frames` of a clip.

    A backward pass takes twice a forward pass; recomputing activations is one more. Encoding is counted for stable
    diffusion's autoencoder where latents are computed online.
    """
    passes = 4 if _mode(config) == "block" else 3
    step = passes * flops * config.train.batch_size / device.speed(config.train.mixed_precision)
    if config.data.latents in ("online", "auto") and config.codec.name.startswith("stabilityai/sd-vae"):
        encoding = ENCODE * config.data.size**2 * frames * config.train.batch_size
        step += encoding / device.speed("bf16" if config.codec.dtype == "bf16" else "no")
    return step / world


def note_memory(memory: Memory, device: Device) -> list[str]:
    """A note in a list if the memory does not fit the device; else an empty list."""
    if device.memory is None or memory.peak <= device.memory:
        return []
    advice = "train.accumulation, train.gradient_checkpointing=true or a smaller train.batch_size"
    if memory.state > device.memory:
        advice = "more GPUs that share the weights (configs/accelerate/fsdp.yaml), or a smaller model.preset"
    return [
        f"note: a step needs about {memory.peak / GIB:.1f} GiB, {memory.activations / GIB:.1f} of it for activations, "
        f"and {device.name} has {device.memory / GIB:.1f} GiB: it may end for want of memory; {advice} help"
    ]
