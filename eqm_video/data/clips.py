"""Sets of clips. Videos and photographs give the same `Clip`; an image is a clip of a single frame.

A generator draws each training clip, so that it depends on (seed, step, sample) alone. Windows for evaluation are
fixed. Sets of files keep names and numbers only: files are opened for each clip, and worker processes get copies.

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
from eqm_video.data.transforms import crop_clip, directed_labels, sides
from eqm_video.data.video import frame_seconds, read_frames, stream_frames
from eqm_video.errors import UserError
from eqm_video.randomness import generator as make_generator

PIECE = 64  # frames in memory at a time while a file is read from end to end


@dataclass
class Clip:
    """T frames of a video, or an image (T = 1)."""

    pixels: Tensor  # uint8 RGB (T,3,H,W)
    label: int  # index into the set's labels, -1 without labels
    times: Tensor  # float32 (T,), seconds from the clip's first frame
    name: str  # the file, relative to the data folder
    start: int  # the clip's first frame in the file


def collate(clips: Sequence[Clip]) -> dict[str, Any]:
    """A batch: pixels uint8 (B,T,3,H,W), labels int64 (B,), times float32 (B,T) in seconds, names."""
    return batch_of(clips, "pixels")


def batch_of(clips: Sequence[Any], content: str) -> dict[str, Any]:
    """A batch of clips as a dictionary; `content` is the attribute with their pixels or moments, stacked (B,T,...)."""
    return {
        content: torch.stack([getattr(clip, content) for clip in clips]),
        "labels": torch.tensor([clip.label for clip in clips], dtype=torch.int64),
        "times": torch.stack([clip.times for clip in clips]),
        "names": [clip.name for clip in clips],
    }


class ClipSet:
    """The base of all sets of clips. `files` lists (name, label id, info) of every usable file.

    `shortest` is for sets with clips of several shapes: the span of the shortest shape, in source frames. A file then
    belongs to the views for which it is long enough, or to the shortest view if it is too short for all. A subclass
    writes `length` and `_read`. Raises UserError for flips of labels with a direction.
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
        resize: str = "adm",
    ) -> None:
        self.root, self.files, self.labels, self.report = Path(root), list(files), list(labels), report
        self.size, self.flip, self.frames, self.frame_interval = sides(size), flip, frames, frame_interval
        self.shortest, self.resize = shortest, resize
        self.substitutes = Substitutes(len(self.files))
        self._members: list[int] | None = None  # the result of `members`, once it is known
        check_flip(flip, self.labels)

    def __len__(self) -> int:
        """The number of usable files."""
        return len(self.files)

    def __getitem__(self, request: tuple[int, int]) -> Clip:
        """The clip of request (index, seed): file `index`, with window and flip drawn from the seed.

        A file that does not decode is replaced by a file drawn from the seed, with a warning: see `Substitutes`. A file
        that is too short for this view is replaced too: see `stand_in`.
        """
        if not isinstance(request, tuple) or len(request) != 2:
            raise TypeError(f"ask for set[(index, seed)], or call set.clip(index); got set[{request!r}]")
        index, seed = request[0], int(request[1])
        return self.substitutes.take(
            index, seed, lambda file: self.clip(self.stand_in(file, seed), make_generator(seed))
        )

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
        """The set of the files at `indices` alone, with the same labels and the new `report`."""
        other = copy.copy(self)
        other.files, other.report = [self.files[index] for index in indices], report
        other.substitutes, other._members = Substitutes(len(other.files)), None
        return other

    def relabel(self, labels: Sequence[str]) -> ClipSet:
        """The same files, with label ids that index `labels`, which must contain all labels of this set."""
        places = {label: number for number, label in enumerate(labels)}
        numbers = [places[label] for label in self.labels]
        other = copy.copy(self)
        other.labels = list(labels)
        other.files = [(name, numbers[label] if label >= 0 else -1, info) for name, label, info in self.files]
        return other

    def members(self) -> list[int]:
        """The indices of the files that are long enough for this view."""
        if self._members is None:
            self._members = [index for index in range(len(self)) if self._has_part(index)]
        return self._members

    def stand_in(self, index: int, seed: int) -> int:
        """`index`, or a substitute drawn from `seed` if that file is too short for this clip shape.

        All files that are long enough are equally likely as a substitute.
        """
        if self._has_part(index):
            return index
        members = self.members()
        return members[int(torch.randint(len(members), (), generator=make_generator(seed, "long enough", index)))]

    def _has_part(self, index: int) -> bool:
        """Whether a file is as long as a clip of this view, or its last frame is repeated to that length."""
        if self.length(index) >= self.span:
            return True
        # A file too short for every shape belongs to the shortest shape, which repeats its last frame least. (With the
        # policy "skip" such files are not in the set.)
        return self.span <= self.shortest if self.shortest is not None else self.report.policy != "skip"

    def clip(self, index: int, generator: torch.Generator | None = None, *, start: int | None = None) -> Clip:
        """The clip of file `index`: a random window with a generator, else from `start`, else the central window.

        Raises VideoDecodeError, which names the file, if it cannot be decoded, and ValueError for a wrong start.
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
        frames = crop_clip(frames, self.size, flip=mirrored, pixel_aspect=aspect, resize=self.resize)
        frames = frames.transpose(0, 3, 1, 2)
        times = self._times(index, start, seconds).astype(np.float32)
        name, label, _ = self.files[index]
        return Clip(torch.from_numpy(np.ascontiguousarray(frames)), label, torch.from_numpy(times), name, start)

    def windows(self) -> list[tuple[int, int]]:
        """Pairs (index, start) of windows without overlap, in the order of the files, for `clip(index, start=start)`.

        Every file has as many as fit, from its first frame on; a single window lies in the middle.
        """
        pairs = []
        for index in range(len(self)):
            count = self.length(index) // self.span
            starts = [k * self.span for k in range(count)] if count > 1 else [self._last_start(index) // 2]
            pairs += [(index, start) for start in starts]
        return pairs

    def draw(self, index: int, generator: torch.Generator) -> tuple[int, bool]:
        """A random start and whether to mirror. Both are always drawn, so that flips do not change the windows."""
        start = int(torch.randint(0, self._last_start(index) + 1, (), generator=generator))
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        return start, mirrored and self.flip

    def window(self, index: int, start: int, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames (T,) of a file in a clip from `start`, and its times (T,); `seconds` (F,) are those of `whole`."""
        rows = self._rows(index, start)
        return rows, self._times(index, start, seconds[rows])

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """All frames of a file, cropped, uint8 (F,H,W,3), and their seconds (F,) from the first frame."""
        return np.concatenate(list(self.pieces(index))), self.seconds(index)

    def pieces(self, index: int, count: int = PIECE) -> Iterator[np.ndarray]:
        """All frames of a file, cropped, in pieces uint8 (count,H,W,3); the last piece may be shorter.

        Every frame is cropped as soon as it is decoded, so that only a piece of cropped frames is in memory.
        """
        piece: list[np.ndarray] = []
        for frame in self._stream(index):
            aspect = self.pixel_aspect(index)
            piece.append(crop_clip(frame[None], self.size, pixel_aspect=aspect, resize=self.resize)[0])
            if len(piece) == count:
                yield np.stack(piece)
                piece = []
        if piece:
            yield np.stack(piece)

    def seconds(self, index: int) -> np.ndarray:
        """Times (F,) of all frames of a file in seconds from the first frame, float64."""
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
        """All frames (H,W,3) of a file, uncropped, in order."""
        yield from self._read(index, np.arange(self.length(index)))[0]

    def _last_start(self, index: int) -> int:
        return max(0, self.length(index) - self.span)

    def _rows(self, index: int, start: int) -> np.ndarray:
        """The frames (T,) of a window; beyond the end the last frame is repeated."""
        return np.minimum(start + np.arange(self.frames) * self.frame_interval, self.length(index) - 1)

    def _times(self, index: int, start: int, seconds: np.ndarray) -> np.ndarray:
        """Seconds (T,) from the clip's first frame, from those of its rows; they go on while the last frame repeats."""
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
        """Times (F,) of all frames of a file in seconds from the first frame, float64."""
        name, _, info = self.files[index]
        return frame_seconds(self.root / name, info)

    def pixel_aspect(self, index: int) -> float:
        """The width of a pixel of a file over its height."""
        return self.files[index][2].pixel_aspect

    def _times(self, index: int, start: int, seconds: np.ndarray) -> np.ndarray:
        info, offsets = self.files[index][2], np.arange(self.frames) * self.frame_interval
        if info.constant_rate:  # exact; the times in a file are rounded to its ticks
            return offsets / info.fps
        return seconds - seconds[0] + (start + offsets - self._rows(index, start)) / info.fps


class ImageSet(ClipSet):
    """Photographs as clips of a single frame, at time 0; `upright` applies their EXIF rotation: see `open_data`."""

    def __init__(self, *args: Any, upright: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.upright = upright

    def length(self, index: int) -> int:
        """The number of frames, 1 for an image."""
        return 1

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return read_image(self.root / self.files[index][0], upright=self.upright)[None], np.zeros(1)


class ArraySet(ClipSet):
    """Pictures in memory, `pixels` uint8 RGB (N,H,W,3), as clips of a single frame, at time 0."""

    def __init__(self, *args: Any, pixels: np.ndarray, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.pixels = pixels

    def subset(self, indices: Sequence[int], report: Report) -> ArraySet:
        """The set of the pictures at `indices` alone, with the new `report`."""
        other = super().subset(indices, report)
        other.pixels = self.pixels[list(indices)]
        return other

    def length(self, index: int) -> int:
        """The number of frames, 1 for an image."""
        return 1

    def _read(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[index][None], np.zeros(1)


def check_flip(flip: bool, labels: Sequence[str]) -> None:
    """UserError if `flip` is true and a label has a direction, which a mirrored clip would contradict."""
    directed = directed_labels(labels) if flip else []
    if directed:
        raise UserError(f"labels with a direction ({quote(directed)}) are wrong once mirrored: type data.flip=false")
