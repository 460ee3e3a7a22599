"""Signals that end a run: after the first it finishes the step, writes a checkpoint, and stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopped(Exception):  # noqa: N818 (a request, not an error)
    """Raised by a wait or a side task that ends because of a stop signal."""


class StopSignals:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag that the loop reads.

    A second signal ends the process at once. Launchers repeat signals that the terminal has already sent to all
    processes: a repetition within a second counts as the same signal. While a checkpoint is written a second signal
    waits for it; a third throws it away. SIGHUP stays ignored where it was, as under nohup. `newest()` gives the newest
    checkpoint for messages, printed if `speaks`.
    """

    def __init__(self, newest: Callable[[], Any] = lambda: None, speaks: bool = True) -> None:
        self.received = False
        self.newest, self.speaks = newest, speaks
        self._last = 0.0
        self._writing = self._warned = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A block in which a checkpoint is written: a second signal is answered, but does not end the process yet."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = self._warned = False

    def check(self, *unused: object) -> None:
        """Raise Stopped if a signal has come: a callback for long tasks."""
        if self.received:
            raise Stopped

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._last = True, now
            self._say("stopping after this step with a checkpoint; once more stops at once, without one")
        elif now - self._last > 1:
            self._last = now
            if self._writing and not self._warned:
                self._warned = True
                self._say("the checkpoint is being written, then the run stops; once more throws it away")
                return
            newest = self.newest()
            kept = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint"
            self._say(f"stopped at once, no checkpoint was written; {kept}")
            raise SystemExit(128 + number)

    def _say(self, sentence: str) -> None:
        """Write past Python's buffers, which may be in use when the signal comes. The terminal may be gone."""
        if self.speaks:
            try:
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{sentence}\n".encode())
            except (OSError, ValueError):
                return
