"""Held-out clips of a folder of videos or images, at the frames, size and rate that a model was trained on.

Legend: N clips, T frames, H W pixels; pixels uint8 RGB, channels last.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.data.cifar import find_cifar
from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.data.layout import EXTENSIONS, check_folder
from eqm_video.errors import UserError
from eqm_video.randomness import fold


@dataclass(frozen=True)
class Clips:
    """Pixels (N, T, H, W, 3), the name of each clip's file, its label (None: unlabelled), and its frames per second."""

    pixels: np.ndarray
    files: list[str]
    labels: list[str | None]
    rates: list[float] | None = None  # frames per second of the clips; None for still images

    def partners(self, seed: int) -> list[int]:
        """For each clip the number of a clip of another file and, if possible, of another label."""
        rng, numbers = np.random.default_rng(fold("partners", seed)), []
        for file, label in zip(self.files, self.labels, strict=True):
            others = [k for k, name in enumerate(self.files) if name != file]
            if not others:
                raise UserError(
                    "clips are compared with clips of another file, but all are of the same file: add another"
                )
            numbers.append(int(rng.choice([k for k in others if self.labels[k] != label] or others)))
        return numbers


class Source:
    """Windows of the files of a folder, without overlap, evenly thinned to `count`; they can be read at other offsets.

    Args:
        root: a folder of videos or of images, or CIFAR-10 as published. An image is repeated for all frames of a clip.
        frames, size, fps: of the clips. `frame_interval` None chooses the interval nearest to `fps`.
    """

    def __init__(
        self,
        root: Path,
        *,
        frames: int,
        size: tuple[int, int],
        fps: float,
        count: int,
        frame_interval: int | None = None,
        **lists: Any,
    ) -> None:
        self.frames, kind = frames, kind_of(root)
        if kind == "images":
            self.data: ClipSet = open_data(kind, root, frames=1, size=size, **lists)
        else:
            self.data = open_at(fps, root, frames=frames, size=size, frame_interval=frame_interval, **lists)
        if not self.data.report.complete:
            print(self.data.report.summary())
        windows = self.data.windows()
        kept = min(count, len(windows))
        self.windows = [windows[k * len(windows) // kept] for k in range(kept)]

    def read(self, offsets: np.ndarray | None = None) -> Clips | None:
        """The clips. With `offsets` (T,), ascending from 0, frame k is offsets[k] frame intervals after the first.

        A clip that would end after its file starts earlier. None if a file is too short for that.
        """
        offsets = np.arange(self.frames) if offsets is None else offsets
        if self.data.frames == 1:  # pictures, or single frames of videos
            offsets = np.zeros(self.frames, dtype=int)
        rows = offsets * self.data.frame_interval
        if any(self.data.length(index) <= rows[-1] for index, _ in self.windows):
            return None
        clips, frames, opened = [], np.empty(0), -1
        for index, start in self.windows:
            if index != opened:
                frames, opened = self.data.whole(index)[0], index
            clips.append(frames[rows + min(start, len(frames) - 1 - rows[-1])])
        files = [self.data.files[index] for index, _ in self.windows]
        labels = [self.data.labels[label] if label >= 0 else None for _, label, _ in files]
        interval = self.data.frame_interval
        rates = [float(info.fps) / interval for _, _, info in files] if self.data.frames > 1 else None
        return Clips(np.stack(clips), [name for name, _, _ in files], labels, rates)


def kind_of(root: Path) -> str:
    """The kind of files in a folder, "videos" or "images"; CIFAR-10, archive or folder, is images.

    UserError for a folder with both or neither, and for a path that is not a folder.
    """
    if find_cifar(Path(root)) is not None:
        return "images"
    if not os.path.isdir(root):
        problem = "is a file" if os.path.exists(root) else "does not exist"
        alone = " (one with this file alone will do)" if os.path.exists(root) else ""
        raise UserError(f"{root} {problem}; give a folder of videos or of images{alone}")
    check_folder("videos", Path(root))
    names = [name.lower() for _, _, inside in os.walk(root) for name in inside if not name.startswith(".")]
    kinds = [kind for kind, endings in EXTENSIONS.items() if any(name.endswith(tuple(endings)) for name in names)]
    stills = [name for name in names if name.endswith(tuple(EXTENSIONS["images"]))]
    if len(kinds) == 2 and all(name.endswith(".gif") for name in stills):
        return "videos"  # GIFs beside videos are previews
    if len(kinds) != 1:
        content = "videos and images" if kinds else "neither videos nor images"
        raise UserError(f"{root} holds {content}; give a folder with files of a single kind")
    return kinds[0]


def open_at(fps: float, root: Path, *, frame_interval: int | None = None, **settings: Any) -> ClipSet:
    """Videos as clips of about `fps` frames per second, or of every `frame_interval`-th frame if it is not None."""
    data = open_data("videos", root, frame_interval=frame_interval or 1, short="skip", **settings)
    if frame_interval is None and data.frames > 1:
        rate = statistics.median(info.fps for _, _, info in data.files)
        data = open_data("videos", root, frame_interval=max(1, round(rate / fps)), short="skip", **settings)
    return data
