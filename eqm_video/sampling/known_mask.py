"""Known regions of frames: the words of `--known-mask`, and the pixels that they mean.

Forms are a box x0,y0,x1,y1 in pixels (x1 and y1 not counted), `outside:` before a box, or a picture, which is known
where it is white; then, after an @, the frames that it is for, as for `--known`; without them all frames.
T frames, H W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqm_video.data.image import read_image
from eqm_video.data.transforms import center_crop
from eqm_video.errors import UserError
from eqm_video.sampling.known import KnownFrames, parse_known

FORMS = "PICTURE (white is known), x0,y0,x1,y1 or outside:x0,y0,x1,y1, for some frames with @FRAMES, such as @1-7"
BOX = re.compile(r"(outside:)?(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})")
WHITE = 128  # grey levels from here on are known


@dataclass(frozen=True)
class KnownMask:
    """The known region as typed: a box, or the path of a picture, and its frames (None: all)."""

    text: str
    box: tuple[int, int, int, int] | None
    outside: bool
    picture: Path | None
    frames: KnownFrames | None

    def __str__(self) -> str:
        return self.text

    def of(self, frames: int, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The known pixels (T, H, W) of clips of this shape; UserError for a box beyond it, and for no known pixel."""
        plane = self._plane(size)
        if plane.all() or not plane.any():
            what = "all pixels are known, so that nothing is left to sample" if plane.all() else "no pixel is known"
            raise UserError(f"--known-mask {self.text}: {what}; give {FORMS}")
        chosen = np.zeros(frames, bool)
        chosen[list(range(frames)) if self.frames is None else self.frames.of(frames)] = True
        return chosen[:, None, None] & plane

    def _plane(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        height, width = size
        if self.picture is not None:
            if not self.picture.is_file():
                raise UserError(f"--known-mask {self.text}: there is no such picture; give {FORMS}")
            return center_crop(read_image(self.picture, upright=True), size).mean(axis=2) >= WHITE
        left, top, right, bottom = self.box
        if right > width or bottom > height:
            raise UserError(
                f"--known-mask {self.text}: the box ends at {right},{bottom}, and clips are {width}x{height} pixels "
                "(width x height); give a box within"
            )
        plane = np.zeros(size, bool)
        plane[top:bottom, left:right] = True
        return ~plane if self.outside else plane


def parse_known_mask(text: str) -> KnownMask:
    """The known region that the text of `--known-mask` means; UserError for any other text."""
    place, at, frames = text.strip().partition("@")
    chosen = parse_known(frames) if at else None
    if box := BOX.fullmatch(place):
        left, top, right, bottom = (int(number) for number in box.groups()[1:])
        if left >= right or top >= bottom:
            raise UserError(f"--known-mask {text}: the box is empty; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        return KnownMask(text.strip(), (left, top, right, bottom), bool(box[1]), None, chosen)
    if not place:
        raise UserError(f"--known-mask {text!r} names no region; give {FORMS}")
    return KnownMask(text.strip(), None, False, Path(place), chosen)
