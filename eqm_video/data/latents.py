"""Latents of a small set, encoded once and kept in memory: training then neither decodes nor encodes.

A codec works frame by frame and the crop of a set is fixed, so the posterior of every frame (of both mirrorings, where
flips are on) can be computed before the first step. What a request returns is what the set itself would return, with
moments instead of pixels: the same window, flip, label and times.

Legend: B clips, T frames, F frames of a whole file, C channels, h w height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from eqm_video.codec import Codec
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

    Raises:
        UserError: the moments would take more than 8 GiB, or no file decodes.
    """

    def __init__(self, data: ClipSet, codec: Codec, device: str | torch.device, *, quiet: bool = False) -> None:
        self.data = data
        self._check_size(codec)
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

    def _clip(self, index: int, seed: int) -> LatentClip:
        """The clip of one file. VideoDecodeError where it was left out."""
        if index in self.unreadable:
            raise VideoDecodeError(self.unreadable[index])
        name, label, _ = self.data.files[index]
        start, mirrored = self.data.draw(index, generator(seed))
        mirrorings, seconds = self.files[index]
        rows, times = self.data.window(index, start, seconds)
        return LatentClip(
            mirrorings[int(mirrored)][torch.from_numpy(rows)], label, torch.from_numpy(times).float(), name, start
        )

    def _check_size(self, codec: Codec) -> None:
        height, width = self.data.size
        values = 2 * codec.latent_channels * (height // codec.downsampling) * (width // codec.downsampling)
        frames = sum(self.data.length(index) for index in range(len(self.data)))
        size = 4 * values * frames * (2 if self.data.flip else 1)
        if size > LIMIT:
            raise UserError(
                f"the latents of {frames} frames would take {size / 2**30:.1f} GiB of memory (the limit is "
                f"{LIMIT // 2**30}): type data.latents=online"
            )
