"""Data that are unreachable for a while, such as on a network disk: wait for them instead of using other files."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eqm_video.data.layout import quote
from eqm_video.data.scan import Substitutes
from eqm_video.data.video import VideoDecodeError
from eqm_video.errors import UserError
from eqm_video.system.patience import DISK, patience

SAMPLE = 8  # files, spread over the set, that show whether the data are reachable
POLL = 0.5  # seconds between two attempts

Taken = TypeVar("Taken")


class PatientSubstitutes(Substitutes):
    """`Substitutes` that distinguish a broken file from an unreachable folder.

    A file that cannot be read gets a substitute only while other files of the set can be read. If none can, the data
    are unreachable: the request waits for them and then reads its own file, so that a network disk that comes back
    changes no batch.
    """

    def __init__(self, root: Path, names: list[str]) -> None:
        super().__init__(len(names))
        self.root, self.names = root, names

    def take(self, index: int, seed: int, read: Callable[[int], Taken]) -> Taken:
        """Read a file or a substitute, see `Substitutes.take`. UserError if the data stay unreachable."""
        return super().take(index, seed, lambda file: self._read(file, read))

    def _read(self, index: int, read: Callable[[int], Taken]) -> Taken:
        while True:
            try:
                return read(index)
            except OSError as error:  # not from a decoder: an input or output error, a stale handle
                if not self.away():
                    name = self.root / self.names[index]
                    raise VideoDecodeError(f"{name}: {error.strerror or error}") from error
            except VideoDecodeError:
                if not self.away():
                    raise
            self._wait()

    def away(self) -> bool:
        """Whether none of a few files, spread over the set, can be opened and read."""
        count = min(SAMPLE, len(self.names))
        return not any(_readable(self.root / self.names[k * len(self.names) // count]) for k in range(count))

    def _wait(self) -> None:
        limit = patience(DISK)
        end = time.monotonic() + limit
        warnings.warn(f"no file in {self.root} can be read: waiting for it, {limit:g} s at most", stacklevel=2)
        while self.away():
            if time.monotonic() > end:
                raise UserError(
                    f"the data folder {self.root} has been away for {limit:g} s: none of {self._named()} can be read; "
                    "bring it back"
                )
            time.sleep(min(POLL, limit / 4))
        warnings.warn(f"{self.root} is back", stacklevel=2)

    def _named(self) -> str:
        return f"{len(self.names)} files ({quote(self.names[:SAMPLE])})"


def patient(data: Any) -> PatientSubstitutes | None:
    """The `PatientSubstitutes` of a set of files; None for a set in memory, which is never unreachable."""
    if not hasattr(data, "files") or not hasattr(data, "root") or hasattr(data, "pixels"):
        return None
    return PatientSubstitutes(data.root, [name for name, *_ in data.files])


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:
        return False
