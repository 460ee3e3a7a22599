"""A forecast of the time that a run will take, early enough to change plans."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm.auto import tqdm

STEPS = 20  # steps after a start, before the forecast
SLOWEST = 3  # steps left out, beside the first: compiling and fetching happen once


class Forecast:
    """Prints once, after the first `STEPS` steps of a start, the time that the steps up to `last` will take.

    It is a line on stdout, on a terminal above the progress bar. Held-out losses, previews and checkpoints take more.
    """

    def __init__(self, last: int, *, silent: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self.last, self.silent, self.clock = last, silent, clock
        self._ends: list[float] = []

    def count(self, step: int) -> None:
        """Count the end of step `step`."""
        if len(self._ends) == STEPS:
            return
        self._ends.append(self.clock())
        if len(self._ends) == STEPS and step < self.last and not self.silent:
            tqdm.write(self._sentence(step))
            sys.stdout.flush()  # a log file shows it at once

    def _sentence(self, step: int) -> str:
        laps = sorted(after - before for before, after in zip(self._ends, self._ends[1:], strict=False))
        usual = laps[: len(laps) - SLOWEST]
        seconds = sum(usual) / len(usual)
        left = duration(seconds * (self.last - step))
        return f"after {STEPS} steps: {seconds:.2g} s a step, about {left} to step {self.last}"


def duration(seconds: float) -> str:
    """A time in words, in two units at most: `40 s`, `7 min`, `3 h 20 min`, `2 d 5 h`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
