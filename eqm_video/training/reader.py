"""The wait for the next batch. It has a limit and ends at a stop signal; killed workers are started again."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eqm_video.data.layout import quote
from eqm_video.errors import UserError
from eqm_video.system.patience import DATA, patience
from eqm_video.training.signals import Stopped

POLL = 0.2  # seconds between two checks of the stop signal
SAY = 60.0  # seconds between two warnings
RESTARTS = 3  # restarts of killed workers in a row, without a batch between them


@dataclass(eq=False)
class Reader:
    """The batches [number, stop) of `load(number, stop)`, in order.

    Batches are fetched in a thread, so that a wait can end: at a stop signal (`stopping()`) with Stopped, after `DATA`
    seconds with a UserError that names the files (`names(batch)`). Killed workers are started again with the same
    batch: its clips depend on its number alone.
    """

    load: Callable[[int, int], Iterator[Any]]
    names: Callable[[int], list[str]]
    number: int  # of the next batch, the first one at the start
    stop: int
    stopping: Callable[[], bool]

    def __post_init__(self) -> None:
        self._restarts = 0
        self._wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._fetched: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._batches: Any = None
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Any:
        if self.number >= self.stop:
            self.close()
            raise StopIteration
        if self._thread is None:
            self._start()
        self._wanted.put(True)
        while True:
            batch, error, killed = self._wait()
            if killed is not None:
                self._start_again(killed)
                self._wanted.put(True)
            elif error is not None:
                raise _plain(error)
            else:
                self.number, self._restarts = self.number + 1, 0
                return batch

    def close(self) -> None:
        """End the thread and the workers.

        Workers ignore SIGTERM, the signal by which an interpreter ends its daemons before it waits for them: a worker
        that is still there, since an error holds on to its loader, would keep the process from ending.
        """
        self._wanted.put(False)
        for worker in getattr(self._batches, "_workers", ()):
            worker.kill()

    def _start(self) -> None:
        """Start the workers and the thread at the next batch."""
        with _keep_child_handler():
            self._batches = self.load(self.number, self.stop)
        self._wanted, self._fetched = queue.SimpleQueue(), queue.SimpleQueue()
        # A daemon: if it hangs in a decoder, the process must still be able to end.
        self._thread = threading.Thread(target=_serve, args=(self._batches, self._wanted, self._fetched), daemon=True)
        self._thread.start()

    def _start_again(self, killed: str) -> None:
        self._restarts += 1
        named = quote(self.names(self.number)) or "clips without names"
        what = f"a process that reads data was ended by {killed}, around the files {named}"
        if self._restarts > RESTARTS:
            raise UserError(
                f"{what}, {self._restarts} times: memory may be short (type a smaller data.workers), or a decoder "
                "fails on one of these files (remove it, and start a new run)"
            )
        warnings.warn(f"{what}; started again ({self._restarts} of {RESTARTS})", stacklevel=3)
        self.close()
        self._start()

    def _wait(self) -> tuple[Any, Exception | None, str | None]:
        """(batch, error, signal of a killed worker) from the thread.

        Stopped at a stop signal, UserError after the limit.
        """
        began, said, limit = time.monotonic(), 0, patience(DATA)
        while True:
            try:
                return self._fetched.get(timeout=min(POLL, limit / 4))
            except queue.Empty:
                waited = time.monotonic() - began
            killed = _killed(self._batches)  # the thread would notice some seconds later
            if killed is not None:
                return None, None, killed
            if self.stopping():
                raise Stopped
            if waited > limit:
                raise UserError(
                    f"no data came for {waited:.0f} s: still reading {self._reading()}. Look at the disk and at these "
                    "files, and at the free memory and /dev/shm of this machine"
                )
            if waited > (said + 1) * SAY:
                said += 1
                warnings.warn(f"waiting for data for {waited:.0f} s: {self._reading()}", stacklevel=3)

    def _reading(self) -> str:
        return quote(self.names(self.number)) or f"batch {self.number}"


def _serve(batches: Iterator[Any], wanted: queue.SimpleQueue, fetched: queue.SimpleQueue) -> None:
    """Run the thread: fetch a batch for each request, and hand over every failure, so that none goes unnoticed."""
    with _hand_over(batches, fetched):
        while wanted.get():
            fetched.put((next(batches), None, None))


class _hand_over:  # noqa: N801 (used like a function)
    """A block whose end goes to the queue: as the exception, or as the signal that killed a worker."""

    def __init__(self, batches: Iterator[Any], fetched: queue.SimpleQueue) -> None:
        self.batches, self.fetched = batches, fetched

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.fetched.put((None, error, _killed(self.batches) if isinstance(error, RuntimeError) else None))
        return True


def _killed(batches: Any) -> str | None:
    """The signal or exit code that ended a worker of a DataLoader's iterator; None if none died."""
    for worker in getattr(batches, "_workers", ()):
        if worker.exitcode not in (None, 0):
            number = -worker.exitcode
            with contextlib.suppress(ValueError):
                return signal.Signals(number).name
            return f"exit code {worker.exitcode}"
    return None


@contextlib.contextmanager
def _keep_child_handler() -> Iterator[None]:
    """Undo torch's SIGCHLD handler, which would raise anywhere, in the middle of an optimizer step for instance.

    The wait for a batch notices the death of its worker.
    """
    number = getattr(signal, "SIGCHLD", None)
    before = signal.getsignal(number) if number is not None else None
    if getattr(before, "__module__", "").startswith("torch.utils.data"):  # from a loader that was made elsewhere
        before = signal.SIG_DFL
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


def _plain(error: BaseException) -> BaseException:
    """The error without the worker's traceback, which a UserError from a worker carries in its text."""
    if not isinstance(error, UserError):
        return error
    sentence = str(error).strip().splitlines()[-1]
    return UserError(sentence.split("Error: ", 1)[-1])
