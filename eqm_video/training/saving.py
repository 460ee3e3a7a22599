"""The writing of checkpoints, with new tries where a disk is full or away."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from eqm_video.errors import UserError
from eqm_video.system.patience import DATA, FULL, patience
from eqm_video.training.checkpoint import Checkpoints, renew_folder, save_parts, step_of
from eqm_video.training.rescue import Whole
from eqm_video.training.sharding import agree
from eqm_video.training.signals import StopSignals

RETRY = 60.0  # seconds of training between two tries of a failed checkpoint


class Saving:
    """The main process's saving: `write(prune)` writes the checkpoint of the trainer's present step."""

    def __init__(self, checkpoints: Checkpoints, write: Callable[[bool], Path], signals: StopSignals) -> None:
        self.checkpoints, self.write, self.signals = checkpoints, write, signals
        self.whole = Whole()
        self._disk = threading.Lock()
        self._failed: float | None = None  # time of the first failure; None: the last checkpoint was written
        self._tried, self._lost = 0.0, False

    @property
    def overdue(self) -> bool:
        """Whether it is time to try a failed checkpoint again."""
        return self._failed is not None and time.monotonic() - self._tried > patience(RETRY)

    def save(self, must: bool) -> bool:
        """Write a checkpoint; returns whether it was written.

        If that fails, training goes on, and later calls try again, for `DATA` seconds in all. If it `must` be written
        now, this call tries for `FULL` seconds. UserError after that.
        """
        end = self._now() + patience(FULL)
        with self.signals.writing():
            while (error := self._try()) is not None and must and self._now() < end:
                time.sleep(patience(FULL) / 6)
        now = self._now()
        if error is None:
            self._failed = None
        elif must or now - self._failed > patience(DATA):
            self._lost = True
            raise error
        else:
            self._tried = now
        return error is None

    def _now(self) -> float:
        """Seconds on the clock by which tries are counted."""
        return time.monotonic()

    def _write(self) -> UserError | None:
        """Write the checkpoint; returns the error if that fails."""
        try:
            with self._disk:
                self.write(True)
        except UserError as error:
            return error
        return None

    def _try(self) -> UserError | None:
        error = self._write()
        if error is not None and self._failed is None:
            warnings.warn(f"{error}; it is tried again", stacklevel=4)
            self._failed = self._tried = self._now()
        return error

    def keep(self, step: int, network: torch.nn.Module) -> str:
        """Save the last whole step, `step`, after a failure; returns a part of a sentence about what is kept.

        It may be called from another thread than the one that trains. Older checkpoints stay.
        """
        if not self.whole.hold(patience(FULL)):
            return "the step that was being made did not end, so its weights are not kept"
        try:
            newest = self.checkpoints.newest()
            if not self.whole.now:
                return f"the failure came in the middle of an update; the newest checkpoint is {newest or 'none'}"
            if step == 0:
                return "no step was done, so there is nothing to keep"
            if self._lost:  # this very checkpoint could not be written
                return "the steps after that are lost"
            if newest is None or step_of(newest) != step:
                with _beside(next(network.parameters()).device, self.whole.done):
                    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
                        return f"the weights are not finite, and not kept; the newest checkpoint is {newest or 'none'}"
                    with self._disk, self.signals.writing():
                        newest = self.write(False)
            return f"step {step}, the last whole one, is in {newest}: add --resume to go on from it"
        # A fault here must not hide the failure that ends the run.
        except (UserError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            return f"step {step} could not be kept ({error})"
        finally:
            self.whole.release()


class SavingTogether(Saving):
    """The saving of processes that hold parts of the weights: all call `save`, write, and agree on the result.

    A failure between steps keeps nothing: the parts of the other processes would be needed.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        write: Callable[[bool], Path],
        signals: StopSignals,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(checkpoints, write, signals)
        self.accelerator = accelerator

    def _now(self) -> float:
        """The clock of process 0, so that all processes decide alike."""
        return broadcast_object_list([time.monotonic()])[0]

    def _write(self) -> UserError | None:
        error = super()._write()
        fault = agree(None if error is None else str(error), self.accelerator)
        return None if fault is None else UserError(fault)

    def keep(self, step: int, network: torch.nn.Module) -> str:
        """A part of a sentence about what is kept after a failure: the newest checkpoint."""
        return (
            f"the weights of step {step} lie in parts on all processes and are not kept; the newest checkpoint is "
            f"{self.checkpoints.newest() or 'none'}"
        )


def stage_parts(folder: Path, state: dict[str, Any], accelerator: Accelerator) -> Path:
    """Write the parts of all processes into `folder`, which is emptied before; returns it. All call it together.

    state: network, ema and optimizer. UserError in all processes if one of them cannot write.
    """
    main, fault = accelerator.is_main_process, None
    try:
        if main:
            renew_folder(folder)
    except OSError as error:
        fault = str(error)
    if (fault := agree(fault, accelerator)) is None:
        try:
            save_parts(folder, main=main, **state)
        except (OSError, SafetensorError) as error:
            fault = str(error)
        fault = agree(fault, accelerator)
    if fault is not None:
        raise UserError(f"cannot write a checkpoint to {folder.parent}: {fault}")
    return folder


@contextmanager
def _beside(device: torch.device, done: torch.cuda.Event | None) -> Iterator[None]:
    """Read a GPU's weights beside its main stream, in which a collective may hang. `done`: the end of their update."""
    if device.type != "cuda" or done is None:
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_event(done)
    with torch.cuda.stream(stream):
        yield
