"""The processes of a launch, and the device of each."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState

from eqm_video.errors import UserError
from eqm_video.system.devices import open_device


def start_processes(device: str, command: str = "sample") -> PartialState:
    """Accelerate's state of this launch. UserError if the launcher's processes do not know of each other.

    `command` is the one of `eqm-video` that was launched.
    """
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # the others may wait for a slower process
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > state.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but each is alone: on CPUs type ACCELERATE_USE_CPU=1 torchrun "
            f"--standalone --nproc_per_node {launched} -m eqm_video {command} ... --device cpu"
        )
    return state


def choose_device(name: str, state: PartialState) -> torch.device:
    """The device of this process. UserError where `name` does not exist, or fixes one for several processes."""
    if state.num_processes > 1 and name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: with several processes each takes its own device; leave --device out")
    if name == "auto" or state.num_processes > 1:
        return state.device
    return open_device(name)
