"""Every window of a data set, read file by file: the clips that samples are compared with.

Legend: W windows, M windows of a chunk, N queries, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.datasets import ClipSet
from eqm_video.metrics.nearest import NearestClips
from eqm_video.system import waits

CHUNK = 2**24  # pixel values of a chunk of samples or windows
KEPT = 2**28  # pixel values of windows that are kept as queries, at most
QUERIES = 256  # real clips whose own nearest clip is searched for
GROUP = re.compile(r"v_.+_g(\d+)_c\d+")  # UCF-101's names: the clips of a group show the same person, or the same place


class Windows:
    """All windows of `data` that start at a multiple of `stride` source frames, in the order of the files."""

    def __init__(self, data: ClipSet, stride: int) -> None:
        self.data = data
        self.places = [
            (index, start)
            for index in range(len(data))
            for start in range(0, max(0, data.length(index) - data.span) + 1, stride)
        ]
        self.files = torch.tensor([index for index, _ in self.places])
        groups = [GROUP.fullmatch(PurePosixPath(name).stem) for name, _, _ in data.files]
        keys = [match[1] if match else "" for match in groups]
        self.grouped = all(keys) and len(set(keys)) > 1
        order = {key: number for number, key in enumerate(sorted(set(keys)))}
        self.of_files = torch.tensor([order[key] for key in keys]) if self.grouped else torch.arange(len(data))
        self.groups = self.of_files[self.files]  # the group (or file) number of each window; `of_files`: of each file

    def __len__(self) -> int:
        return len(self.places)

    def place(self, number: int) -> tuple[str, int, str | None]:
        """(file name, first source frame, label or None) of a window."""
        index, start = self.places[number]
        name, label, _ = self.data.files[index]
        return name, start, self.data.labels[label] if label >= 0 else None

    def read(self, numbers: Tensor | None = None, what: str = "files") -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks (window numbers (M,), pixels (M,T,H,W,3)) of all windows, or of `numbers` (ascending).

        Memory holds the frames of a single file and a chunk. VideoDecodeError, a UserError, if a file no longer
        decodes.
        """
        numbers = torch.arange(len(self)) if numbers is None else numbers
        files = self.files[numbers]
        for index in waits.bar(files.unique().tolist(), what, unit="file"):
            frames, seconds = self.data.whole(index)
            rows = max(1, CHUNK // (self.data.frames * frames[0].size))
            for part in numbers[files == index].split(rows):
                starts = [self.places[number][1] for number in part.tolist()]
                clips = np.stack([frames[self.data.window(index, start, seconds)[0]] for start in starts])
                yield part, torch.from_numpy(clips)


def thin(numbers: Tensor, count: int) -> Tensor:
    """`count` of the numbers (W,), evenly spaced; all of them if there are no more."""
    count = min(count, len(numbers))
    return numbers[torch.arange(count) * len(numbers) // count]


@dataclass(frozen=True)
class Search:
    """A search for the nearest windows of `nearest.queries`.

    Queries that are windows search other files (or groups).
    """

    nearest: NearestClips
    files: Tensor  # (W,) file of every window: the second-nearest is from another file than the nearest
    numbers: Tensor | None = None  # (N,) the queries' own window numbers
    keys: Tensor | None = None  # (W,) file or group of every window

    def update(self, clips: Tensor, numbers: Tensor) -> None:
        """Compare the queries with windows (M,T,H,W,3) of the numbers (M,)."""
        allowed = None if self.numbers is None else self.keys[self.numbers][:, None] != self.keys[numbers]
        self.nearest.update(clips, numbers, allowed, self.files[numbers])


def real_searches(windows: Windows, values: int) -> dict[str, Search]:
    """Searches for the clip of "another file" nearest to real clips, and of "another group", if names have groups.

    The queries are at most `QUERIES` real clips, evenly spaced; `values` is T·H·W·3.
    """
    numbers, queries = some_windows(windows, values)
    keys = {"another file": windows.files} | ({"another group": windows.groups} if windows.grouped else {})
    return {
        f"real clips to {name}": Search(NearestClips(queries), windows.files, numbers, key)
        for name, key in keys.items()
    }


def some_windows(windows: Windows, values: int) -> tuple[Tensor, Tensor]:
    """At most `QUERIES` windows, evenly spaced: numbers (N,) and pixels (N,T,H,W,3); `values` is T·H·W·3."""
    numbers = thin(torch.arange(len(windows)), max(1, min(QUERIES, KEPT // values)))
    return numbers, torch.cat([clips for _, clips in windows.read(numbers, "clips to search for")])


def look(windows: Windows, searches: Iterable[Search]) -> None:
    """Read every window once, and update the searches."""
    for numbers, clips in windows.read():
        for search in searches:
            search.update(clips, numbers)
