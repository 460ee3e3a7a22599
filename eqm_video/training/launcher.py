"""Checks of launchers: settings of `accelerate launch` and torchrun that would silently train another run."""

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
# Variables of a launcher that would overrule the recipe: (variable, values without effect, advice).
LAUNCHER = (
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("", "1"), "type train.accumulation=N instead"),
    ("ACCELERATE_DYNAMO_BACKEND", ("", "no"), "type train.compile=true instead"),
    ("ACCELERATE_USE_FSDP", OFF, SHARDED),
    ("ACCELERATE_USE_DEEPSPEED", OFF, SHARDED),
    ("ACCELERATE_USE_MEGATRON_LM", OFF, SHARDED),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", OFF, SHARDED),
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
