"""The progress of a run: its bar, and a forecast of the time that it will take, early enough to change plans."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field

from tqdm import tqdm

from eqm_video.system import waits
from eqm_video.wording import DAY, about, duration, pace

STEPS = 20  # steps after a start, before the forecast
SLOWEST = 3  # steps left out, beside the first: compiling and fetching happen once


@dataclass(eq=False)
class Forecast:
    """Prints once, after the first `STEPS` steps of a start, the time that the steps up to `last` will take.

    It is a line on stdout, on a terminal above the progress bar, with the time between checkpoints, which are written
    every `save_every` steps and every `save_minutes`. Another line warns of a run that cannot end in a day. Held-out
    losses, previews and checkpoints take more.
    """

    last: int
    _: KW_ONLY
    save_every: int | None = None
    save_minutes: float | None = None
    silent: bool = False
    clock: Callable[[], float] = time.perf_counter
    _ends: list[float] = field(default_factory=list, init=False)

    def count(self, step: int) -> None:
        """Count the end of step `step`."""
        if len(self._ends) == STEPS:
            return
        self._ends.append(self.clock())
        if len(self._ends) == STEPS and step < self.last and not self.silent:
            for sentence in self._sentences(step):
                waits.say(sentence)
            sys.stdout.flush()  # a log file shows it at once

    def _sentences(self, step: int) -> Iterator[str]:
        laps = sorted(after - before for before, after in zip(self._ends, self._ends[1:], strict=False))
        usual = laps[: len(laps) - SLOWEST]
        seconds = sum(usual) / len(usual)
        left = seconds * (self.last - step)
        saves = [seconds * self.save_every] if self.save_every else []
        saves += [60 * self.save_minutes] if self.save_minutes else []
        saved = (
            f"; checkpoint {f'every {duration(min(saves))}' if min(saves) < left else 'at the end'}" if saves else ""
        )
        yield f"after {STEPS} steps: {pace(seconds)} a step, {about(left)} to step {self.last}{saved}"
        if left > DAY:
            in_a_day = round(step + DAY / seconds, -2)
            yield (
                f"warning: this run takes more than a day here: type train.steps={in_a_day:.0f} for a day, or give a "
                "smaller model.preset, data.size or train.batch_size (Ctrl-C stops it, --resume goes on)"
            )


@contextmanager
def beside(bar: tqdm, what: str) -> Iterator[None]:
    """A block of work that is no step, named on the bar. Its time does not count in the speed of the steps."""
    begun, before = time.time(), getattr(bar, "desc", None) or ""  # a hidden bar has none
    bar.set_description_str(what)
    try:
        yield
    finally:
        bar.set_description_str(before)
        if not bar.disable:
            spent = time.time() - begun
            bar.start_t += spent
            bar.last_print_t += spent
