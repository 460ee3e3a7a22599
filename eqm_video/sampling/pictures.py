"""Pictures of Pillow as the clips that a call starts from.

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
    """Pictures given in place of clips: one, one for each sample, or the frames of every clip."""

    frames: list[list[Image.Image]]  # of each clip; a still has one
    still: bool  # whether each clip is one picture
    single: bool  # whether one picture is given, for any number of clips

    @classmethod
    def of(cls, given: Any) -> Pictures | None:
        """From a picture (the first frame of every clip), a list of pictures (one for each clip), or a list of lists
        (the frames of each clip); None where no picture is given. UserError for a mixture of pictures and others.
        """
        if isinstance(given, Image.Image):
            return cls([[given]], still=True, single=True)
        listed = [list(one) if isinstance(one, (list, tuple)) else one for one in _members(given)]
        nested = [one for one in listed if isinstance(one, list)]
        if not any(isinstance(one, Image.Image) for one in [*listed, *(frame for clip in nested for frame in clip)]):
            return None
        clips = nested if len(nested) == len(listed) else [[one] for one in listed]
        lengths = {len(clip) for clip in clips}
        if len(lengths) != 1 or not all(isinstance(frame, Image.Image) for clip in clips for frame in clip):
            raise UserError(
                "clips mix pictures with something else, or are of different lengths: give one picture, a list of them "
                "(one for each sample), or a list of equally long lists (the frames of each sample)"
            )
        return cls(clips, still=clips is not nested, single=False)

    def clips(self, count: int, frames: int, size: tuple[int, int] | None) -> np.ndarray:
        """The clips, uint8 (B, T, H, W, 3): upright, RGB, resized and cropped to `size` as training data are.

        A still is shown in all `frames`; a single one in all `count` clips. size None: as large as the pictures are.
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


def _members(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else []


def _pixels(picture: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    """(H, W, 3) uint8: the picture as its EXIF mark says it is held, transparency on white."""
    try:
        pixels = rgb(ImageOps.exif_transpose(picture))
    except VideoDecodeError as error:
        raise UserError(f"a picture to start from {error}") from error
    return pixels if size is None else center_crop(pixels, size)
