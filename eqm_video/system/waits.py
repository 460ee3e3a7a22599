"""Progress of long work: a bar on a terminal or in a notebook, a line a minute in a file, nothing if quiet.

Every loop that may take longer than a few seconds goes through `bar`, so that all of them look alike, and so that
`--quiet` and a log file are decided in one place.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import auto
from tqdm import tqdm as plain

from eqm_video.wording import counted

SOON = 2.0  # seconds before a bar appears: a shorter wait needs none
BETWEEN = 60.0  # seconds between the lines of a bar whose output is no terminal

_silent = False  # for all threads: encoders run in some of their own


@contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """A block in which no progress is shown if `silent` is true."""
    global _silent
    before, _silent = _silent, _silent or silent
    try:
        yield
    finally:
        _silent = before


def bar(
    items: Iterable[Any] | None = None,
    what: str = "",
    *,
    unit: str = "",
    total: int | None = None,
    done: int = 0,
    delay: float = SOON,
    keep: bool = False,
    shown: bool = True,
    **look: Any,
) -> plain:
    """A progress bar over `items`, or one of `total` units that the caller moves with `update`; used with `with`.

    what: the work, in a word or two. unit: of a step, such as "clip". done: units that earlier runs did. delay: seconds
    before it appears. keep: whether it stays on the screen when it ends. shown: False hides it. look: further settings
    of tqdm, for a terminal. Only the first process of a machine shows any.
    """
    settings: dict[str, Any] = {"desc": what, "unit": unit or "it", "total": total, "initial": done}
    if _silent or not shown or os.environ.get("LOCAL_RANK", "0") != "0":
        return plain(items, **settings, disable=True)
    if not (_in_notebook() or sys.stderr.isatty()):
        return Lines(items, **settings, leave=False, delay=BETWEEN, mininterval=BETWEEN, miniters=1)
    return auto.tqdm(items, **{**settings, "leave": keep, "delay": delay, "dynamic_ncols": True, **look})


def say(sentence: str, file: TextIO | None = None) -> None:
    """Print a line, by default to stdout, above the bars that are on the screen."""
    plain.write(sentence, file=file)


def _in_notebook() -> bool:
    """Whether tqdm draws widgets, as it does in Jupyter."""
    return any(base.__module__ == "tqdm.notebook" for base in auto.tqdm.__mro__)


class Lines(plain):
    """A progress bar for a file: a plain line a minute, without carriage returns."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if a minute has passed since the one before."""
        now = time.monotonic()
        if msg == "" or now - self._said < BETWEEN:
            return False
        self._said = now
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: a line that is written stays."""

    def moveto(self, n: int) -> None:
        """Nothing: a file has no cursor."""

    def __str__(self) -> str:
        """The work, how far it is, and the time left."""
        state = self.format_dict
        name = f"{self.desc.removesuffix(': ')}: " if self.desc else ""
        rate = (self.n - self.initial) / max(state["elapsed"], 1e-9)
        last = self.total or self.n
        gone = (f"{self.n} of " if self.total else "") + (str(last) if self.unit == "it" else counted(last, self.unit))
        left = f", {self.format_interval((self.total - self.n) / rate)} left" if self.total and rate else ""
        more = f", {self.postfix}" if self.postfix else ""
        return f"{name}{gone}, {self.format_interval(state['elapsed'])} so far{left}{more}"
