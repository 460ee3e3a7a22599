"""The answer to failures between steps: the last whole step is saved before the run ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from eqm_video.errors import UserError, first_line
from eqm_video.system.memory import is_out_of_memory, out_of_memory


class Whole:
    """A lock around the update of a step. Outside of it weights, average and optimizer belong to the same step.

    `now` is True while they do; it stays False after a failure inside the update.
    """

    def __init__(self) -> None:
        self.now = True
        self.done: torch.cuda.Event | None = None  # with several processes on GPUs: recorded after the last update
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.now = False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.now = kind is None
        self._lock.release()

    def hold(self, seconds: float) -> bool:
        """Hold back the next update, from another thread; returns whether that succeeded within `seconds`."""
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        """Undo `hold`."""
        self._lock.release()


class Rescue:
    """A `with` block: when an error leaves it, `save()` is called first, and the error then says what was kept.

    `save()` returns that as a part of a sentence. A UserError or OSError becomes a UserError with it; for any other
    exception, whose traceback follows, it is printed.
    """

    def __init__(self, save: Callable[[], str]) -> None:
        self.save = save

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):  # no error, or an exit on purpose
            return
        kept = self.save()
        if is_out_of_memory(error):
            advice = "type a smaller train.batch_size or data.workers, or train.gradient_checkpointing=true"
            raise UserError(f"{out_of_memory(error, advice)}; {kept}") from error
        if isinstance(error, UserError):
            raise UserError(f"{error}; {kept}") from error
        if isinstance(error, OSError):
            where = f": {error.filename}" if error.filename else ""
            raise UserError(f"{error.strerror or error}{where}; {kept}") from error
        if _lost_peer(error):
            raise UserError(f"another process of this run is gone ({first_line(error)[:160]}); {kept}") from error
        print(f"the run failed between steps; {kept}", file=sys.stderr, flush=True)


def _lost_peer(error: Exception) -> bool:
    """Whether a collective failed because a process is gone. gloo has no exception type of its own for that."""
    text = str(error)
    named = "gloo" in text and ("Connection" in text or "closed" in text or "Timed out" in text)
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and named)
