"""Latents of a small set, encoded once and kept in memory: training then neither decodes nor encodes.

A codec works frame by frame and the crop of a set is fixed, so the posterior of every frame (of both mirrorings, if
flips are on) can be computed before the first step. A request returns the same window, flip, label and times as the
set itself, with moments instead of pixels. Files are decoded, cropped and encoded in pieces of a few frames. The
moments are kept in half precision, which rounds them by less than a codec's own noise.

Legend: B clips, T frames, F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from eqm_video.codec import Codec
from eqm_video.data.buckets import Bucket
from eqm_video.data.clips import ClipSet, batch_of
from eqm_video.data.layout import quote
from eqm_video.data.video import VideoDecodeError
from eqm_video.errors import UserError
from eqm_video.randomness import generator

LIMIT = 8 * 2**30  # bytes; larger sets are encoded online
DTYPE = torch.float16  # the moments in memory


@dataclass
class LatentClip:
    """A clip as a posterior: `Clip` with `moments` (T, 2C, h, w), mean and log-variance, instead of pixels."""

    moments: Tensor
    label: int
    times: Tensor  # float32 (T,), seconds from the clip's first frame
    name: str
    start: int


def collate_latents(clips: Sequence[LatentClip]) -> dict[str, Any]:
    """A batch: moments float32 (B, T, 2C, h, w), labels int64 (B,), times float32 (B, T) in seconds, names."""
    return batch_of(clips, "moments")


class LatentSet:
    """The moments of every frame of `data`, in CPU memory, with clips by `set[(index, seed)]` as in the set itself.

    A file with a frame that does not decode is left out, with a warning: requests for it get another file, drawn from
    their seed.

    `taken` is the memory of the run's other sets in bytes; the attribute `bytes` is that plus the memory of this set.

    Raises:
        UserError: the moments would take more than 8 GiB, those of a file are not finite, or no file decodes.
    """

    def __init__(
        self, data: ClipSet, codec: Codec, device: str | torch.device, *, quiet: bool = False, taken: int = 0
    ) -> None:
        self.data = data
        self.bytes = taken + self._size(codec)
        if self.bytes > LIMIT:
            frames = sum(data.length(index) for index in range(len(data)))
            raise UserError(
                f"the latents of the {frames} frames in {data.root} would take "
                f"{self.bytes / 2**30:.1f} GiB of memory{' with those of the videos' if taken else ''} (the limit is "
                f"{LIMIT // 2**30}): type data.latents=online"
            )
        self.files: dict[int, tuple[list[Tensor], Any]] = {}
        self.unreadable: dict[int, str] = {}
        for index in tqdm(range(len(data)), desc="encoding", unit="file", disable=quiet or None):
            try:
                self.files[index] = self._encoded(index, codec, device)
            except VideoDecodeError as error:
                self.unreadable[index] = str(error)
                data.substitutes.warn(index, error)
        if not self.files:
            reasons = list(self.unreadable.values())
            raise UserError(f"none of the {len(reasons)} files in {data.root} can be decoded: {quote(reasons)}")

    def __len__(self) -> int:
        """The number of files of the set, including those that were left out."""
        return len(self.data)

    def __getitem__(self, request: tuple[int, int]) -> LatentClip:
        """The clip of request (index, seed): the moments of the pixels of `data[(index, seed)]`."""
        index, seed = request[0], int(request[1])
        return self.data.substitutes.take(index, seed, lambda file: self._clip(file, seed))

    def view(self, shape: Bucket) -> LatentSet:
        """The same latents, cut into clips of another shape; nothing is encoded or copied."""
        other = copy.copy(self)
        other.data = self.data.view(shape)
        return other

    def _encoded(self, index: int, codec: Codec, device: str | torch.device) -> tuple[list[Tensor], Any]:
        """The moments float16 (F, 2C, h, w) of a file, for each mirroring, and the seconds of its frames (F,).

        Raises VideoDecodeError if it does not decode, UserError if its moments are not finite in half precision.
        """
        count, seconds = self.data.length(index), self.data.seconds(index)
        stored = [torch.empty(count, *self._shape(codec), dtype=DTYPE) for _ in range(2 if self.data.flip else 1)]
        first = 0
        for piece in self.data.pieces(index):
            pixels = torch.from_numpy(piece).permute(0, 3, 1, 2)[None].to(device).float() / 127.5 - 1
            rows = slice(first, first + len(piece))
            for kept, mirroring in zip(stored, [pixels, pixels.flip(-1)], strict=False):
                kept[rows] = codec.moments(mirroring)[0].to(DTYPE).cpu()
                if not torch.isfinite(kept[rows]).all():
                    raise UserError(
                        f"the latents of {self.data.root / self.data.files[index][0]} are not finite (frames {first} "
                        f"to {rows.stop - 1}): take another codec, or leave the file out"
                    )
            first = rows.stop
        if first < count:
            raise VideoDecodeError(f"{self.data.root / self.data.files[index][0]}: frame {first} does not decode")
        return stored, seconds

    def _clip(self, index: int, seed: int) -> LatentClip:
        """The clip of a file. VideoDecodeError if it was left out."""
        index = self.data.stand_in(index, seed)
        if index in self.unreadable:
            raise VideoDecodeError(self.unreadable[index])
        name, label, _ = self.data.files[index]
        start, mirrored = self.data.draw(index, generator(seed))
        mirrorings, seconds = self.files[index]
        rows, times = self.data.window(index, start, seconds)
        moments = mirrorings[int(mirrored)][torch.from_numpy(rows)].float()
        return LatentClip(moments, label, torch.from_numpy(times).float(), name, start)

    def _shape(self, codec: Codec) -> tuple[int, int, int]:
        """The shape (2C, h, w) of the moments of a frame."""
        height, width = self.data.size
        return 2 * codec.latent_channels, height // codec.downsampling, width // codec.downsampling

    def _size(self, codec: Codec) -> int:
        """The memory of the moments of the set, in bytes."""
        frames = sum(self.data.length(index) for index in range(len(self.data)))
        return DTYPE.itemsize * math.prod(self._shape(codec)) * frames * (2 if self.data.flip else 1)
