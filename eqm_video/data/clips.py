"""Sets of clips: videos and photographs give the same `Clip`, an image being one of a single frame.

A training clip is drawn with a generator, so that (seed, step, sample) decide it and nothing else. For evaluation the
windows are fixed. Sets of files hold names and numbers only: files are opened for each clip, and worker processes get
copies.

Legend: B clips, T frames, H W height and width in pixels after the crop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.buckets import Bucket
from eqm_video.data.image import read_image
from eqm_video.data.layout import quote
from eqm_video.data.scan import Report, Substitutes
from eqm_video.data.transforms import center_crop, crop_clip, directed_labels, sides
from eqm_video.data.video import frame_seconds, read_frames, stream_frames
from eqm_video.errors import UserError
from eqm_video.randomness import generator as make_generator

PIECE = 64  # frames that are held at a time where a file is read from end to end


@dataclass
class Clip:
    """One clip: T frames of a video, or an image (T = 1)."""

    pixels: Tensor  # uint8 RGB (T,3,H,W)
    label: int  # index into the set's labels, -1 without labels
    times: Tensor  # float32 (T,), seconds from the clip's first frame
    name: str  # of the file, relative to the data folder
    start: int  # the clip's first frame in the file


def collate(clips: Sequence[Clip]) -> dict[str, Any]:
    """A batch: pixels uint8 (B,T,3,H,W), labels int64 (B,), times float32 (B,T) in seconds, names."""
    return batch_of(clips, "pixels")


def batch_of(clips: Sequence[Any], content: str) -> dict[str, Any]:
    """A batch of clips, whose `content` is the attribute that holds what they show: pixels, or moments."""
    return {
        content: torch.stack([getattr(clip, content) for clip in clips]),
        "labels": torch.tensor([clip.label for clip in clips], dtype=torch.int64),
        "times": torch.stack([clip.times for clip in clips]),
        "names": [clip.name for clip in clips],
    }


class ClipSet:
    """What all kinds of sets share. `files` lists (name, label id, info) of every usable file.

    `shortest` is for sets that are meant for several shapes of clips: the span of the shortest of them, in source
    frames. A file has then a part in the views for which it is long enough, or, too short for all, in the shortest one.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[str, int, Any]],
        labels: Sequence[str],
        report: Report,
        *,
        size: int | tuple[int, int],
        flip: bool = False,
        frames: int = 1,
        frame_interval: int = 1,
        shortest: int | None = None,
    ) -> None:
        self.root, self.files, self.labels, self.report = Path(root), list(files), list(labels), report
        self.size, self.flip, self.frames, self.frame_interval = sides(size), flip, frames, frame_interval
        self.shortest = shortest
        self.substitutes = Substitutes(len(self.files))
        self._members: list[int] | None = None  # what `members` found, once it was asked for
        check_flip(flip, self.labels)

    def __len__(self) -> int:
        """The number of usable files."""
        return len(self.files)

    def __getitem__(self, request: tuple[int, int]) -> Clip:
        """The clip of request (index, seed): file `index`, window and flip drawn from the seed.

        Where it does not decode, that of another file, drawn from the seed too, with a warning: see `Substitutes`.
        Where it has no part in this view, being too short for it: see `stand_in`.
        """
        if not isinstance(request, tuple) or len(request) != 2:
            raise TypeError(f"ask for set[(index, seed)], or call set.clip(index); got set[{request!r}]")
        index, seed = request[0], int(request[1])
        return self.substitutes.take(index, seed, lambda one: self.clip(self.stand_in(one, seed), make_generator(seed)))

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip, both counted."""
        return Bucket(self.frames, self.frame_interval).span

    def view(self, shape: Bucket) -> ClipSet:
        """The same files, cut into clips of another shape; nothing is read or copied."""
        other = copy.copy(self)
        other.frames, other.frame_interval, other._members = shape.frames, shape.frame_interval, None
        return other

    def subset(self, indices: Sequence[int], report: Report) -> ClipSet:
        """The files at `indices` alone, with the same labels; `report` says what became of all."""
        other = copy.copy(self)
        other.files, other.report = [self.files[index] for index in indices], report
        other.substitutes, other._members = Substitutes(len(other.files)), None
        return other

    def relabel(self, labels: Sequence[str]) -> ClipSet:
        """The same files, their labels numbered as in `labels`, which holds all of them."""
        places = {label: number for number, label in enumerate(labels)}
        numbers = [places[label] for label in self.labels]
        other = copy.copy(self)
        other.labels = list(labels)
        other.files = [(name, numbers[label] if label >= 0 else -1, info) for name, label, info in self.files]
        return other

    def members(self) -> list[int]:
        """The files that have a part in this view."""
        if self._members is None:
            self._members = [index for index in range(len(self)) if self._has_part(index)]
        return self._members

    def stand_in(self, index: int, seed: int) -> int:
        """The file of a request: `index`, or in place of one that has no part in this view, another.

        That one is drawn from the seed among those that have one, so that all of these come equally often.
        """
        if self._has_part(index):
            return index
        members = self.members()
        return members[int(torch.randint(len(members), (), generator=make_generator(seed, "long enough", index)))]

    def _has_part(self, index: int) -> bool:
        """Whether a file is as long as a clip of this view, or is to hold its last frame in it."""
        if self.length(index) >= self.span:
            return True
        # Too short for every shape (where such files are skipped, they are not in the set): held where least is held.
        return self.span <= self.shortest if self.shortest is not None else self.report.policy != "skip"

    def clip(self, index: int, generator: torch.Generator | None = None, *, start: int | None = None) -> Clip:
        """The clip of one file: a random window with a generator, else from `start`, else the central window.

        Raises VideoDecodeError, which names the file, where it cannot be decoded any more.
        """
        if generator is not None and start is not None:
            raise ValueError("give a generator for a random window, or a start, not both")
        last, mirrored = self._last_start(index), False
        if generator is not None:
            start, mirrored = self.draw(index, generator)
        elif start is None:
            start = last // 2
        elif not 0 <= start <= last:
            raise ValueError(f"start={start}, but windows of this file start at 0 to {last}")
        frames, seconds = self._read(index, self._rows(index, start))
        aspect = self.pixel_aspect(index)
        frames = crop_clip(frames, self.size, flip=mirrored, pixel_aspect=aspect).transpose(0, 3, 1, 2)
        times = self._times(index, start, seconds).astype(np.float32)
        name, label, _ = self.files[index]
        return Clip(torch.from_numpy(np.ascontiguousarray(frames)), label, torch.from_numpy(times), name, start)

    def windows(self) -> list[tuple[int, int]]:
        """(index, start) of windows without overlap, in the order of the files, each for `clip(index, start=start)`.

        Of every file as many as fit, from its first frame on; a single one lies in the middle.
        """
        pairs = []
        for index in range(len(self)):
            count = self.length(index) // self.span
            starts = [k * self.span for k in range(count)] if count > 1 else [self._last_start(index) // 2]
            pairs += [(index, start) for start in starts]
        return pairs

    def draw(self, index: int, generator: torch.Generator) -> tuple[int, bool]:
        """A random start and whether to mirror. Both are always drawn: switching flips on changes no window."""
        start = int(torch.randint(0, self._last_start(index) + 1, (), generator=generator))
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        return start, mirrored and self.flip

    def window(self, index: int, start: int, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of a file's frames a clip shows (T,), and its times (T,); `seconds` (F,) as `whole` gives them."""
        rows = self._rows(index, start)
        return rows, self._times(index, start, seconds[rows])

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """All frames of a file, cropped, uint8 (F,H,W,3), and their seconds from the first one (F,)."""
        return np.concatenate(list(self.pieces(index))), self.seconds(index)

    def pieces(self, index: int, count: int = PIECE) -> Iterator[np.ndarray]:
        """All frames of a file, cropped, uint8 (count,H,W,3) at a time; the last piece may hold fewer.

        Every frame is cropped as soon as it is decoded, so that no more than a piece of cropped ones is in memory.
        """
        piece: list[np.ndarray] = []
        for frame in self._stream(index):
            piece.append(center_crop(frame, self.size, pixel_aspect=self.pixel_aspect(index)))
            if len(piece) == count:
                yield np.stack(piece)
                piece = []
        if piece:
            yield np.stack(piece)

    def seconds(self, index: int) -> np.ndarray:
        """Times (F,) of all frames of a file in seconds from the first one, float64."""
        return np.zeros(1)

    def pixel_aspect(self, index: int) -> float:
        """The width of a pixel of a file over its height."""
        return 1.0

    def length(self, index: int) -> int:
        """The number of frames of a file."""
        raise NotImplementedError

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T,H,W,3) at `rows`, uncropped, and their seconds (T,)."""
        raise NotImplementedError

    def _stream(self, index: int) -> Iterator[np.ndarray]:
        """All frames (H,W,3) of a file, uncropped, one after the other."""
        yield from self._read(index, np.arange(self.length(index)))[0]

    def _last_start(self, index: int) -> int:
        return max(0, self.length(index) - self.span)

    def _rows(self, index: int, start: int) -> np.ndarray:
        """The frames (T,) of a window; beyond the end the last one is held."""
        return np.minimum(start + np.arange(self.frames) * self.frame_interval, self.length(index) - 1)

    def _times(self, index: int, start: int, seconds: np.ndarray) -> np.ndarray:
        """Seconds (T,) from the clip's first frame, given those of its rows; they go on where the last one is held."""
        return seconds - seconds[0]


class VideoSet(ClipSet):
    """Clips of `frames` frames, every `frame_interval`-th of the source, from videos: see `open_data`."""

    def length(self, index: int) -> int:
        """The number of frames of a file."""
        return self.files[index][2].frames

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name, _, info = self.files[index]
        return read_frames(self.root / name, rows.tolist(), info=info)

    def _stream(self, index: int) -> Iterator[np.ndarray]:
        name, _, info = self.files[index]
        return stream_frames(self.root / name, info)

    def seconds(self, index: int) -> np.ndarray:
        """Times (F,) of all frames of a file in seconds from the first one, float64."""
        name, _, info = self.files[index]
        return frame_seconds(self.root / name, info)

    def pixel_aspect(self, index: int) -> float:
        """The width of a pixel of a file over its height."""
        return self.files[index][2].pixel_aspect

    def _times(self, index: int, start: int, seconds: np.ndarray) -> np.ndarray:
        info, offsets = self.files[index][2], np.arange(self.frames) * self.frame_interval
        if info.constant_rate:  # exact, while the times in a file are rounded to its ticks
            return offsets / info.fps
        return seconds - seconds[0] + (start + offsets - self._rows(index, start)) / info.fps


class ImageSet(ClipSet):
    """Photographs as clips of one frame, at time 0; `upright` turns them as EXIF data ask for: see `open_data`."""

    def __init__(self, *args: Any, upright: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.upright = upright

    def length(self, index: int) -> int:
        """1: an image is one frame."""
        return 1

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return read_image(self.root / self.files[index][0], upright=self.upright)[None], np.zeros(1)


class ArraySet(ClipSet):
    """Pictures that lie in memory, `pixels` uint8 RGB (N,H,W,3), as clips of one frame, at time 0."""

    def __init__(
        self,
        root: Path,
        pixels: np.ndarray,
        files: Sequence[tuple[str, int, Any]],
        labels: Sequence[str],
        report: Report,
        *,
        size: int | tuple[int, int],
        flip: bool = False,
    ) -> None:
        super().__init__(root, files, labels, report, size=size, flip=flip)
        self.pixels = pixels

    def subset(self, indices: Sequence[int], report: Report) -> ArraySet:
        """The pictures at `indices` alone."""
        other = super().subset(indices, report)
        other.pixels = self.pixels[list(indices)]
        return other

    def length(self, index: int) -> int:
        """1: an image is one frame."""
        return 1

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[index][None], np.zeros(1)


def check_flip(flip: bool, labels: Sequence[str]) -> None:
    """UserError where mirrored clips would be under the wrong label."""
    directed = directed_labels(labels) if flip else []
    if directed:
        raise UserError(f"labels with a direction ({quote(directed)}) are wrong once mirrored: type data.flip=false")
