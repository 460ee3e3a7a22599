"""Copies of tensors to and from devices: without a wait if possible, in float64 if the device has it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from eqm_video.errors import UserError

WITHOUT_FLOAT64 = {"mps"}  # Apple's GPUs


def widest(device: torch.device | str) -> torch.dtype:
    """The most exact floating-point type of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64


def double(values: Tensor) -> Tensor:
    """The values in float64, on their own device if it has float64, else on the CPU."""
    if widest(values.device) != torch.float64:
        values = values.to("cpu")
    return values.to(torch.float64)


def send(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on `device`. A copy from the CPU to CUDA uses pinned memory, so the CPU does not wait."""
    device = torch.device(device)
    if values.device.type != "cpu" or device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Fetch:
    """Numbers of a device on their way to the CPU. The CPU waits in `read` alone, and only until they are copied.

    From CUDA they go to pinned memory, in the order of the current stream: work that is queued there later is not
    waited for. `values` must not change afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype).pin_memory()
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrives(self, seconds: float) -> bool:
        """Whether the numbers arrive within that time."""
        end = time.monotonic() + seconds
        while self._copied is not None and not self._copied.query():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def read(self) -> list[float]:
        """The numbers, as `Tensor.tolist` gives them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def open_device(name: str) -> torch.device:
    """A device by its name; "auto" is a GPU if the machine has one, else the CPU. UserError for an unusable device."""
    if name == "auto":
        on_gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(on_gpu)
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--device {name} cannot be used here ({reason}); give --device cpu, or leave it out"
        ) from error
    return torch.device(name)
