"""Launchers: what `accelerate launch` and torchrun may ask for, and what would silently train another run."""

from __future__ import annotations

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType

from eqm_video.errors import UserError
from eqm_video.training.config import Config

# Every process holds the whole network; nothing else is supported.
PLAIN = tuple(kind for kind in DistributedType if kind == DistributedType.NO or kind.value.startswith("MULTI_"))
SHARDED = (
    "training in parts (FSDP, DeepSpeed, Megatron-LM, tensor or context parallelism) is not supported. Every process "
    "holds the whole network: launch with --multi_gpu, and save memory with train.accumulation and "
    "train.gradient_checkpointing=true"
)
OFF = ("", "0", "no", "false")
# Settings of a launcher that would train another run than the recipe says: (variable, values without effect, advice).
LAUNCHER = (
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("", "1"), "type train.accumulation=N instead"),
    ("ACCELERATE_DYNAMO_BACKEND", ("", "no"), "type train.compile=true instead"),
    ("ACCELERATE_USE_FSDP", OFF, SHARDED),
    ("ACCELERATE_USE_DEEPSPEED", OFF, SHARDED),
    ("ACCELERATE_USE_MEGATRON_LM", OFF, SHARDED),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", OFF, SHARDED),
)


def check_environment() -> None:
    """UserError where a launcher's settings, which come as variables, would silently train another run."""
    for name, harmless, advice in LAUNCHER:
        value = os.environ.get(name, "").strip()
        if value.lower() not in harmless:
            raise UserError(
                f"{name}={value} is set, by `accelerate launch`, its configuration file or your shell: unset it; "
                f"{advice}"
            )


def note_precision(config: Config) -> list[str]:
    """A note where a launcher asks for another precision than the recipe, which decides."""
    asked, used = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), config.train.mixed_precision
    if asked in ("", "no", used):  # `accelerate launch` says no where nobody asked
        return []
    return [f"note: the launcher's mixed precision {asked} is not used: train.mixed_precision={used}"]


def check_launch(accelerator: Accelerator) -> None:
    """UserError where processes would not train together, each as the only one, or share weights in parts."""
    if accelerator.distributed_type not in PLAIN:
        raise UserError(f"{accelerator.distributed_type.value} was asked of the launcher: {SHARDED}")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # `accelerate launch --cpu --num_processes 2` names an address for its processes to meet at, and starts only one.
    lonely = "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()
    if asked > accelerator.num_processes:
        given = f"the launcher started {asked} processes, but Accelerate sees {accelerator.num_processes} here"
    elif lonely and accelerator.num_processes == 1:
        given = "`accelerate launch` was asked for several processes on the CPU, and starts a single one"
    else:
        return
    count = max(2, asked)
    raise UserError(
        f"{given}: they would not train together. On CPUs type\n  ACCELERATE_USE_CPU=1 torchrun --standalone "
        f"--nproc_per_node {count} -m eqm_video train --config ...\nand on GPUs\n  accelerate launch --multi_gpu "
        f"--num_processes {count} -m eqm_video train --config ..."
    )
