"""Pictures to squares of one size: the centre crop of ADM, DiT and SiT, the same one for videos and photographs.

Halve with a box filter while the picture is at least twice too large, resize bicubically until the short side fits,
cut out the centre (`center_crop_arr` of openai/guided-diffusion). One resizer, Pillow's, serves every decoder.

Legend: T frames, H W height and width in pixels, h w those of the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

from eqm_video.errors import UserError

CENTRE = (0.5, 0.5)  # share of the spare room that is cut off at the top and on the left
LARGEST = 2**24  # pixels of a resized picture, most of which the crop throws away
DIRECTED = re.compile(r"(?:left|right)(?:ward|wards|hand|handed|side)?|(?:counter|anti)?clockwise|c?cw")
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # "TurnLeft", "move_left" and "TURN-LEFT" are two words each


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width): one whole number is both. UserError below 1 pixel."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UserError(f"data.size is {size}; type at least 1 pixel for each side")
    return height, width


def center_crop(
    frame: np.ndarray,
    size: int | tuple[int, int],
    position: tuple[float, float] = CENTRE,
    *,
    pixel_aspect: float = 1.0,
) -> np.ndarray:
    """Resize and crop one picture, uint8 (H,W,3) → (h,w,3), as DiT and SiT do; `position` (top, left) in [0, 1].

    `pixel_aspect` is the width of a pixel over its height. Where it is not 1, the picture is made square-pixelled by
    the same resize, without halving before.
    """
    height, width = sides(size)
    picture = Image.fromarray(frame)
    while pixel_aspect == 1 and picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX)
    shown = picture.width * pixel_aspect
    scale = max(height / picture.height, width / shown)
    full = (max(width, round(shown * scale)), max(height, round(picture.height * scale)))
    left, top = int((full[0] - width) * position[1]), int((full[1] - height) * position[0])
    if full[0] * full[1] > LARGEST:  # a sliver: only what is kept is enlarged
        across, down = picture.width / full[0], picture.height / full[1]
        right, bottom = min((left + width) * across, picture.width), min((top + height) * down, picture.height)
        box = (left * across, top * down, right, bottom)
        return np.asarray(picture.resize((width, height), resample=Image.Resampling.BICUBIC, box=box))
    pixels = np.asarray(picture.resize(full, resample=Image.Resampling.BICUBIC))
    return pixels[top : top + height, left : left + width]


def crop_clip(
    frames: np.ndarray,
    size: int | tuple[int, int],
    *,
    flip: bool = False,
    position: tuple[float, float] = CENTRE,
    pixel_aspect: float = 1.0,
) -> np.ndarray:
    """Crop all frames of a clip alike, uint8 (T,H,W,3) → (T,h,w,3); `flip` mirrors all of them left to right."""
    cropped = np.stack([center_crop(frame, size, position, pixel_aspect=pixel_aspect) for frame in frames])
    return np.ascontiguousarray(cropped[:, :, ::-1]) if flip else cropped


def directed_labels(labels: Iterable[str]) -> list[str]:
    """The class names that a mirror image would make wrong: with a word for left, right or clockwise in them.

    Words written together ("turnleft") are found where the mirrored name ("turnright") is a class too.
    """
    labels = list(labels)
    lower = {label.lower() for label in labels}
    return [
        label
        for label in labels
        if any(DIRECTED.fullmatch(word.lower()) for word in WORDS.findall(label)) or _mirrored(label.lower()) & lower
    ]


def _mirrored(name: str) -> set[str]:
    swaps = (("left", "right"), ("right", "left"))
    return {name.replace(here, there) for here, there in swaps if here in name}
