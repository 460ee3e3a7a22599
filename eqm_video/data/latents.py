"""Latents that were computed before training, which then neither decodes nor encodes: in memory, or on disk.

A codec works frame by frame and the crop of a set is fixed, so the posterior of every frame (of both mirrorings, if
flips are on) can be computed before the first step. A request returns the same window, flip, label and times as the
set itself, with moments instead of pixels. Files are decoded, cropped and encoded in pieces of a few frames. The
moments are kept in half precision, which rounds them by less than a codec's own noise.
`LatentsInMemory` is for small sets; `latent_cache.py` has those on disk.

Legend: B clips, T frames, F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.ahead import read_ahead
from eqm_video.data.buckets import Bucket
from eqm_video.data.clips import ClipSet, batch_of
from eqm_video.data.layout import quote
from eqm_video.data.scan import Substitutes
from eqm_video.data.video import VideoDecodeError
from eqm_video.errors import UserError
from eqm_video.randomness import generator
from eqm_video.system import waits

if TYPE_CHECKING:
    from tqdm import tqdm

    from eqm_video.codec import Codec

LIMIT = 8 * 2**30  # bytes in memory; larger sets are encoded online, or kept on disk
DTYPE = torch.float16  # of the moments


@dataclass
class LatentClip:
    """A clip as a posterior: `Clip` with `moments` (T, 2C, h, w), mean and log-variance, instead of pixels."""

    moments: Tensor  # float16
    label: int
    times: Tensor  # float32 (T,), seconds from the clip's first frame
    name: str
    start: int


def collate_latents(clips: Sequence[LatentClip]) -> dict[str, Any]:
    """A batch: moments float16 (B, T, 2C, h, w), labels int64 (B,), times float32 (B, T) in seconds, names."""
    return batch_of(clips, "moments")


class LatentSet(ABC):
    """The moments of every frame of `data`; `set[(index, seed)]` as the set itself.

    `unreadable` has the reasons of files that did not decode when they were encoded: requests for one of these get
    another file, drawn from their seed.
    """

    def __init__(self, data: ClipSet, unreadable: dict[int, str]) -> None:
        self.data, self.unreadable = data, unreadable

    def __len__(self) -> int:
        """The number of files of the set, including those that were left out."""
        return len(self.data)

    def __getitem__(self, request: tuple[int, int]) -> LatentClip:
        """The clip of request (index, seed): the moments of the pixels of `data[(index, seed)]`."""
        index, seed = request[0], int(request[1])
        return self.substitutes.take(index, seed, lambda file: self._drawn(file, seed))

    @property
    def substitutes(self) -> Substitutes:
        """Other files in place of those that are left out: the set's own rule."""
        return self.data.substitutes

    def view(self, shape: Bucket) -> LatentSet:
        """The same latents, cut into clips of another shape; nothing is encoded or copied."""
        other = copy.copy(self)
        other.data = self.data.view(shape)
        return other

    def clip(self, index: int, generator: None = None) -> LatentClip:
        """The central window of one file, not mirrored, as `data.clip(index)`. VideoDecodeError where it was left out.

        `generator` is there for the interface of `ClipSet.clip` alone.
        """
        return self._clip(index, max(0, self.data.length(index) - self.data.span) // 2, 0)

    def _drawn(self, index: int, seed: int) -> LatentClip:
        """The clip of one file, or its stand-in: window and mirroring drawn from the seed."""
        index = self.data.stand_in(index, seed)
        start, mirrored = self.data.draw(index, generator(seed))
        return self._clip(index, start, int(mirrored))

    def _clip(self, index: int, start: int, mirrored: int) -> LatentClip:
        if index in self.unreadable:
            raise VideoDecodeError(self.unreadable[index])
        name, label, _ = self.data.files[index]
        moments, seconds = self._file(index, mirrored)
        rows, times = self.data.window(index, start, seconds)
        return LatentClip(torch.from_numpy(moments[rows]), label, torch.from_numpy(times).float(), name, start)

    @abstractmethod
    def _file(self, index: int, mirrored: int) -> tuple[np.ndarray, np.ndarray]:
        """The moments of a file, float16 (F, 2C, h, w), and the seconds of its frames (F,). Nothing is copied."""


class LatentsInMemory(LatentSet):
    """A small set, encoded once and kept in CPU memory.

    A file with a frame that does not decode is left out, with a warning. `taken` bytes are what other sets of the run
    hold already; `bytes` is that and what this one adds.

    Raises:
        UserError: the moments would take more than 8 GiB, those of a file are not finite, or no file decodes.
    """

    def __init__(
        self, data: ClipSet, codec: Codec, device: str | torch.device, *, quiet: bool = False, taken: int = 0
    ) -> None:
        super().__init__(data, {})
        shape = moments_shape(codec, data.size)
        self.bytes = taken + total_bytes(data, shape)
        if self.bytes > LIMIT:
            frames = sum(data.length(index) for index in range(len(data)))
            raise UserError(
                f"the latents of the {frames} frames in {data.root} would take "
                f"{self.bytes / 2**30:.1f} GiB of memory{' with those of the videos' if taken else ''} (the limit is "
                f"{LIMIT // 2**30}): type data.latents=online, or keep them on disk (eqm-video cache --help)"
            )
        self.files: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        lengths = [data.length(index) for index in range(len(data))]
        with waits.bar(what="encoding", total=sum(lengths), unit="frame", shown=not quiet) as bar:
            done = 0
            for index, length in enumerate(lengths):
                self._encode(index, codec, device, bar)
                done += length
                bar.update(done - bar.n)  # past the rest of a file that does not decode
        if not self.files:
            reasons = list(self.unreadable.values())
            raise UserError(f"none of the {len(reasons)} files in {data.root} can be decoded: {quote(reasons)}")

    def _encode(self, index: int, codec: Codec, device: str | torch.device, bar: tqdm) -> None:
        """Encode one file, or leave it out with a warning; `bar` counts frames."""
        data, shape = self.data, moments_shape(codec, self.data.size)
        stored = [np.empty((data.length(index), *shape), np.float16) for _ in range(1 + data.flip)]
        for piece in encode_files(data, [index], codec, device):
            if isinstance(piece, Unreadable):
                self.unreadable[index] = piece.reason
                data.substitutes.warn(index, VideoDecodeError(piece.reason))
                return
            for kept, moments in zip(stored, piece.mirrorings, strict=True):
                kept[piece.first : piece.first + len(moments)] = moments
            bar.update(len(piece.mirrorings[0]))
        self.files[index] = stored, data.seconds(index)

    def _file(self, index: int, mirrored: int) -> tuple[np.ndarray, np.ndarray]:
        mirrorings, seconds = self.files[index]
        return mirrorings[mirrored], seconds


# Encoding -----------------------------------------------------------------------------------------------------------


def moments_shape(codec: Codec, size: tuple[int, int]) -> tuple[int, int, int]:
    """(2C, h, w) of the moments of a frame of `size` (H, W) pixels."""
    return 2 * codec.latent_channels, size[0] // codec.downsampling, size[1] // codec.downsampling


def total_bytes(data: ClipSet, shape: tuple[int, int, int]) -> int:
    """Bytes that the moments of a set take, `shape` (2C, h, w) a frame: of both mirrorings, where flips are on."""
    frames = sum(data.length(index) for index in range(len(data)))
    return DTYPE.itemsize * math.prod(shape) * frames * (1 + data.flip)


@dataclass(frozen=True)
class Piece:
    """Moments of consecutive frames of a file, from frame `first` on: float16 (count, 2C, h, w) of each mirroring."""

    index: int
    first: int
    mirrorings: list[np.ndarray]
    last: bool  # whether the file ends here


@dataclass(frozen=True)
class Unreadable:
    """A file that does not decode to its end."""

    index: int
    reason: str


def encode_files(
    data: ClipSet, indices: Sequence[int], codec: Codec, device: str | torch.device, *, threads: int = 0, batch: int = 1
) -> Iterator[Piece | Unreadable]:
    """Encode files in the order of `indices`, a few frames at a time.

    Up to `threads` files are decoded ahead, each in a thread. Files of a single frame, as images are, are encoded
    `batch` at once. UserError where moments are not finite in half precision.
    """
    waiting: list[tuple[int, int, np.ndarray, bool]] = []
    for index, pixels in read_ahead(indices, lambda index: _checked_pieces(data, index), threads):
        if isinstance(pixels, VideoDecodeError):
            yield Unreadable(index, str(pixels))
            continue
        first, frames = pixels
        waiting.append((index, first, frames, first + len(frames) == data.length(index)))
        if data.length(index) > 1 or len(waiting) == batch:
            yield from _encode(data, waiting, codec, device)
            waiting = []
    if waiting:
        yield from _encode(data, waiting, codec, device)


def _checked_pieces(data: ClipSet, index: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first frame, pixels) of the pieces of a file. VideoDecodeError where it ends before its last frame."""
    first, count = 0, data.length(index)
    for frames in data.pieces(index):
        yield first, frames
        first += len(frames)
    if first < count:
        raise VideoDecodeError(f"{data.root / data.files[index][0]}: frame {first} does not decode")


def _encode(
    data: ClipSet, waiting: list[tuple[int, int, np.ndarray, bool]], codec: Codec, device: str | torch.device
) -> Iterator[Piece]:
    """The moments of pieces (index, first frame, pixels (count, H, W, 3), whether the last), encoded together."""
    joined = waiting[0][2] if len(waiting) == 1 else np.concatenate([frames for _, _, frames, _ in waiting])
    pixels = torch.from_numpy(joined).permute(0, 3, 1, 2)[None].to(device).float() / 127.5 - 1
    both = [pixels, pixels.flip(-1)] if data.flip else [pixels]
    mirrorings = [codec.moments(picture)[0].to(DTYPE).cpu() for picture in both]
    place = 0
    for index, first, frames, last in waiting:
        parts = [moments[place : place + len(frames)] for moments in mirrorings]
        place += len(frames)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise UserError(
                f"the latents of {data.root / data.files[index][0]} are not finite (frames {first} to "
                f"{first + len(frames) - 1}): take another codec, or leave the file out"
            )
        yield Piece(index, first, [part.numpy() for part in parts], last)
