"""Signals that end a run: it stops after the step, with a checkpoint, and says so at the first one."""

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
    """A stop signal has come; raised where a wait or a side task ends for it."""


class StopSignals:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag that the loop reads; a second one ends the process at once.

    Launchers forward what the terminal has already sent to the whole process group: a repetition within a second counts
    as the same signal. A signal while a checkpoint is written waits for it; one more throws it away. SIGHUP stays
    ignored where it is, as under nohup. `newest()` names the newest checkpoint; only `speaks` prints.
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
        """While a checkpoint is written: a second signal is answered, and does not end the process yet."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = self._warned = False

    def check(self, *unused: object) -> None:
        """Raise Stopped where a signal has come: a callback for tasks that take long."""
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
        """Write past Python's buffers: those may be in use where the signal came, and the terminal may be gone."""
        if self.speaks:
            try:
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{sentence}\n".encode())
            except (OSError, ValueError):
                return
