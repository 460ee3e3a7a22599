"""Latents of a small set, encoded once and kept in memory: training then neither decodes nor encodes.

A codec works frame by frame and the crop of a set is fixed, so the posterior of every frame (of both mirrorings, where
flips are on) can be computed before the first step. What a request returns is what the set itself would return, with
moments instead of pixels: the same window, flip, label and times.

Legend: B clips, T frames, F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

import copy
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


@dataclass
class LatentClip:
    """One clip as a posterior: `Clip` with `moments` (T, 2C, h, w), mean and log-variance, instead of pixels."""

    moments: Tensor
    label: int
    times: Tensor  # float32 (T,), seconds from the clip's first frame
    name: str
    start: int


def collate_latents(clips: Sequence[LatentClip]) -> dict[str, Any]:
    """A batch: moments float32 (B, T, 2C, h, w), labels int64 (B,), times float32 (B, T) in seconds, names."""
    return batch_of(clips, "moments")


class LatentSet:
    """The moments of every frame of `data`, in CPU memory; `set[(index, seed)]` as the set itself.

    A file with a frame that does not decode is left out, with a warning: requests for it get another one, drawn from
    their seed.

    `taken` bytes are what other sets of the run hold already; `bytes` is that and what this one adds.

    Raises:
        UserError: the moments would take more than 8 GiB, or no file decodes.
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
                frames, seconds = data.whole(index)
            except VideoDecodeError as error:
                self.unreadable[index] = str(error)
                data.substitutes.warn(index, error)
                continue
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].to(device).float() / 127.5 - 1
            mirrorings = [pixels, pixels.flip(-1)] if data.flip else [pixels]
            self.files[index] = [codec.moments(one)[0].float().cpu() for one in mirrorings], seconds
        if not self.files:
            reasons = list(self.unreadable.values())
            raise UserError(f"none of the {len(reasons)} files in {data.root} can be decoded: {quote(reasons)}")

    def __len__(self) -> int:
        """The number of files of the set, with those that were left out."""
        return len(self.data)

    def __getitem__(self, request: tuple[int, int]) -> LatentClip:
        """The clip of request (index, seed), the one whose pixels `data[(index, seed)]` gives."""
        index, seed = request[0], int(request[1])
        return self.data.substitutes.take(index, seed, lambda one: self._clip(one, seed))

    def view(self, shape: Bucket) -> LatentSet:
        """The same latents, cut into clips of another shape; nothing is encoded or copied."""
        other = copy.copy(self)
        other.data = self.data.view(shape)
        return other

    def _clip(self, index: int, seed: int) -> LatentClip:
        """The clip of one file. VideoDecodeError where it was left out."""
        index = self.data.stand_in(index, seed)
        if index in self.unreadable:
            raise VideoDecodeError(self.unreadable[index])
        name, label, _ = self.data.files[index]
        start, mirrored = self.data.draw(index, generator(seed))
        mirrorings, seconds = self.files[index]
        rows, times = self.data.window(index, start, seconds)
        return LatentClip(
            mirrorings[int(mirrored)][torch.from_numpy(rows)], label, torch.from_numpy(times).float(), name, start
        )

    def _size(self, codec: Codec) -> int:
        """Bytes that the moments of the set take."""
        height, width = self.data.size
        values = 2 * codec.latent_channels * (height // codec.downsampling) * (width // codec.downsampling)
        frames = sum(self.data.length(index) for index in range(len(self.data)))
        return 4 * values * frames * (2 if self.data.flip else 1)
