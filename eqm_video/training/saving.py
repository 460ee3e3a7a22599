"""The writing of checkpoints, with new tries where a disk is full or away."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from eqm_video.errors import UserError
from eqm_video.system.patience import DATA, FULL, patience
from eqm_video.training.checkpoint import Checkpoints, step_of
from eqm_video.training.rescue import Whole
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
        end = time.monotonic() + patience(FULL)
        with self.signals.writing():
            while (error := self._try()) is not None and must and time.monotonic() < end:
                time.sleep(patience(FULL) / 6)
        now = time.monotonic()
        if error is None:
            self._failed = None
        elif must or now - self._failed > patience(DATA):
            self._lost = True
            raise error
        else:
            self._tried = now
        return error is None

    def _try(self) -> UserError | None:
        try:
            with self._disk:
                self.write(True)
        except UserError as error:
            if self._failed is None:
                warnings.warn(f"{error}; it is tried again", stacklevel=4)
                self._failed = self._tried = time.monotonic()
            return error
        return None

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
