"""Checks of launchers: settings of `accelerate launch` and torchrun that would silently train another run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy

from eqm_video.errors import UserError
from eqm_video.training.config import Config
from eqm_video.training.sharding import Sharding

# Processes as for DDP; `Sharding` cuts the weights after that.
PLAIN = tuple(kind for kind in DistributedType if kind == DistributedType.NO or kind.value.startswith("MULTI_"))
SHARDED = (
    "training in parts is supported by FSDP2 alone (not by DeepSpeed, Megatron-LM, tensor or context parallelism): "
    "launch with --multi_gpu, or with configs/accelerate/fsdp.yaml"
)
FSDP, PARALLELISM = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"
OFF = ("", "0", "no", "false")
# Variables of a launcher that would overrule the recipe: (variable, values without effect, advice).
LAUNCHER = (
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("", "1"), "type train.accumulation=N instead"),
    ("ACCELERATE_DYNAMO_BACKEND", ("", "no"), "type train.compile=true instead"),
    ("ACCELERATE_USE_DEEPSPEED", OFF, SHARDED),
    ("ACCELERATE_USE_MEGATRON_LM", OFF, SHARDED),
)


def check_environment() -> None:
    """UserError where a launcher's environment variables would silently train another run."""
    for name, harmless, advice in LAUNCHER:
        value = os.environ.get(name, "").strip()
        if value.lower() not in harmless:
            raise UserError(
                f"{name}={value} is set, by `accelerate launch`, its configuration file or your shell: unset it; "
                f"{advice}"
            )


def read_sharding() -> Sharding | None:
    """The parts that `accelerate launch` asks for by its variables for FSDP; None where it asks for none.

    UserError for what FSDP could do but this package does not.
    """
    if os.environ.get(FSDP, "").lower() in OFF:
        if os.environ.get(PARALLELISM, "").lower() not in OFF:
            raise UserError(f"{PARALLELISM} is set without FSDP: {SHARDED}")
        return None
    try:
        plugin = FullyShardedDataParallelPlugin()  # reads the launcher's variables
    except ValueError as error:
        raise UserError(f"Accelerate refuses the launcher's settings of FSDP: {error}") from error
    if plugin.fsdp_version != 2:
        raise UserError("the launcher asks for version 1 of FSDP: give fsdp_version: 2, as in fsdp.yaml")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError("fsdp_offload_params=true is not supported: give false, and more processes to save memory")
    if plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing=true is not used: give false, and type train.gradient_checkpointing=true"
        )
    copies = 1
    if os.environ.get(PARALLELISM, "").lower() not in OFF:
        sizes = ParallelismConfig()
        if max(sizes.tp_size, sizes.cp_size, sizes.sp_size) > 1:
            raise UserError(f"the launcher asks for tensor, context or sequence parallelism: {SHARDED}")
        copies = sizes.dp_replicate_size
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if copies * sizes.dp_shard_size != world:
            raise UserError(
                f"the launcher asks for {copies} copies (dp_replicate_size) of {sizes.dp_shard_size} parts "
                f"(dp_shard_size), but starts {world} processes: their product must be the number of processes"
            )
    return Sharding(copies, plugin.reshard_after_forward)


@contextmanager
def plain_processes() -> Iterator[None]:
    """A block in which Accelerate is not asked for FSDP.

    It would cut the weights by itself on GPUs, in another precision than DDP's, and ignore the request on CPUs.
    `Sharding` does the same on both.
    """
    hidden = {name: os.environ.pop(name) for name in (FSDP, PARALLELISM) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_sharding(config: Config) -> None:
    """UserError for a recipe that cannot be trained in parts."""
    if config.model.energy != "implicit":
        raise UserError(
            f"model.energy={config.model.energy} cannot be trained in parts (FSDP): the second derivative needs "
            "weights that are already freed; launch with --multi_gpu, where every process holds the whole network"
        )
    if config.train.mixed_precision == "fp16":
        raise UserError(
            "train.mixed_precision=fp16 cannot be trained in parts (FSDP): one loss scale would be needed for all "
            "parts; type train.mixed_precision=bf16"
        )


def note_precision(config: Config) -> list[str]:
    """A note if the launcher asks for another precision than the recipe, which decides; else an empty list."""
    wanted, used = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), config.train.mixed_precision
    if wanted in ("", "no", used):  # "no" is the default of `accelerate launch`
        return []
    return [f"note: the launcher's mixed precision {wanted} is not used: train.mixed_precision={used}"]


def check_launch(accelerator: Accelerator) -> None:
    """UserError where every process would train alone, and where processes would hold parts of the weights."""
    if accelerator.distributed_type not in PLAIN:
        raise UserError(f"{accelerator.distributed_type.value} was asked of the launcher: {SHARDED}")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # `accelerate launch --cpu --num_processes 2` names an address for its processes, and then starts a single one.
    lonely = "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()
    if launched > accelerator.num_processes:
        fault = f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes} here"
    elif lonely and accelerator.num_processes == 1:
        fault = "`accelerate launch` was asked for several processes on the CPU, and starts a single one"
    else:
        return
    count = max(2, launched)
    raise UserError(
        f"{fault}: they would not train together. On CPUs type\n  ACCELERATE_USE_CPU=1 torchrun --standalone "
        f"--nproc_per_node {count} -m eqm_video train --config ...\nand on GPUs\n  accelerate launch --multi_gpu "
        f"--num_processes {count} eqm-video train --config ..."
    )
