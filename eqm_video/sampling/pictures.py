"""Clips to start from, made of Pillow's pictures.

Legend: B clips, T frames, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from eqm_video.data.containers import VideoDecodeError
from eqm_video.data.image import rgb
from eqm_video.data.transforms import center_crop
from eqm_video.errors import UserError


@dataclass(frozen=True)
class Pictures:
    """Pictures in place of clips: a single picture, a picture for each sample, or the frames of every clip."""

    frames: list[list[Image.Image]]  # the pictures of each clip; a still has one
    still: bool  # whether each clip is a single picture
    single: bool  # whether there is one picture for all clips

    @classmethod
    def of(cls, clips: Any) -> Pictures | None:
        """The pictures in the `clips` of a call; None if it has no pictures.

        Forms are a picture (the first frame of every clip), a list of pictures (one for each clip), and a list of lists
        (the frames of each clip). UserError for pictures mixed with anything else, and for clips of unequal lengths.
        """
        if isinstance(clips, Image.Image):
            return cls([[clips]], still=True, single=True)
        listed = [list(item) if isinstance(item, (list, tuple)) else item for item in _members(clips)]
        nested = [item for item in listed if isinstance(item, list)]
        if not any(isinstance(item, Image.Image) for item in [*listed, *(frame for clip in nested for frame in clip)]):
            return None
        clips = nested if len(nested) == len(listed) else [[item] for item in listed]
        lengths = {len(clip) for clip in clips}
        if len(lengths) != 1 or not all(isinstance(frame, Image.Image) for clip in clips for frame in clip):
            raise UserError(
                "clips mix pictures with something else, or are of different lengths: give one picture, a list of them "
                "(one for each sample), or a list of equally long lists (the frames of each sample)"
            )
        return cls(clips, still=clips is not nested, single=False)

    def clips(self, count: int, frames: int, size: tuple[int, int] | None) -> np.ndarray:
        """The clips, uint8 (B, T, H, W, 3): upright, RGB, resized and cropped to `size` as training data are.

        A still fills all `frames`; a single picture fills all `count` clips. size None: the size of the pictures, which
        must then be equal (UserError).
        """
        if size is None and len({frame.size for clip in self.frames for frame in clip}) > 1:
            raise UserError(
                "the pictures differ in size, and this model has none of its own: give size (height, width)"
            )
        made = []
        for clip in self.frames:
            pixels = np.stack([_pixels(frame, size) for frame in clip])
            made.append(np.repeat(pixels, frames, axis=0) if self.still else pixels)
        return np.repeat(np.stack(made), count if self.single else 1, axis=0)


def _members(clips: Any) -> Sequence[Any]:
    return clips if isinstance(clips, (list, tuple)) else []


def _pixels(picture: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    """The picture (H, W, 3) uint8, turned upright by its EXIF mark, with transparency on white."""
    try:
        pixels = rgb(ImageOps.exif_transpose(picture))
    except VideoDecodeError as error:
        raise UserError(f"a picture to start from {error}") from error
    return pixels if size is None else center_crop(pixels, size)
