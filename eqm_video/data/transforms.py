"""Resizing and cropping: the centre crop of ADM, DiT and SiT, the same for videos and photographs.

The picture is halved with a box filter while it is at least twice too large, resized bicubically until the short side
fits, and its centre is cut out (`center_crop_arr` of openai/guided-diffusion). Pillow resizes the output of every
decoder. `crop_fast` is torch's bicubic filter in one pass, several times faster and a little different.

Legend: T frames, H W height and width in pixels, h w those of the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from eqm_video.errors import UserError

LARGEST = 2**24  # pixels of a resized picture, beyond which only the crop is resized
DIRECTED = re.compile(r"(?:left|right)(?:ward|wards|hand|handed|side)?|(?:counter|anti)?clockwise|c?cw")
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # "TurnLeft", "move_left" and "TURN-LEFT" are two words each


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of `size`, a whole number for both or a pair. UserError below 1 pixel."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UserError(f"data.size is {size}; type at least 1 pixel for each side")
    return height, width


def center_crop(frame: np.ndarray, size: int | tuple[int, int], *, pixel_aspect: float = 1.0) -> np.ndarray:
    """Resize a picture and crop its centre, uint8 (H,W,3) → (h,w,3), as DiT and SiT do.

    `pixel_aspect` is the width of a pixel over its height. If it is not 1, the same resize makes the pixels square,
    without halving before.
    """
    height, width = sides(size)
    picture = Image.fromarray(frame)
    while pixel_aspect == 1 and picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX)
    shown = picture.width * pixel_aspect
    scale = max(height / picture.height, width / shown)
    full = (max(width, round(shown * scale)), max(height, round(picture.height * scale)))
    left, top = (full[0] - width) // 2, (full[1] - height) // 2
    if full[0] * full[1] > LARGEST:  # a very long picture: only the kept part is enlarged
        across, down = picture.width / full[0], picture.height / full[1]
        right, bottom = min((left + width) * across, picture.width), min((top + height) * down, picture.height)
        box = (left * across, top * down, right, bottom)
        return np.asarray(picture.resize((width, height), resample=Image.Resampling.BICUBIC, box=box))
    pixels = np.asarray(picture.resize(full, resample=Image.Resampling.BICUBIC))
    return pixels[top : top + height, left : left + width]


def crop_fast(frames: np.ndarray, size: int | tuple[int, int], *, pixel_aspect: float = 1.0) -> np.ndarray:
    """Resize and crop the centre of frames, uint8 (T,H,W,3) → (T,h,w,3), in one pass of torch's bicubic filter.

    The filter widens with the scale, in place of ADM's halving; `pixel_aspect` is as in `center_crop`. Frames above
    `LARGEST` once resized are cropped by `center_crop`.
    """
    height, width = sides(size)
    shown = frames.shape[2] * pixel_aspect
    scale = max(height / frames.shape[1], width / shown)
    full = (max(height, round(frames.shape[1] * scale)), max(width, round(shown * scale)))
    if full[0] * full[1] > LARGEST:
        return np.stack([center_crop(frame, size, pixel_aspect=pixel_aspect) for frame in frames])
    picture = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if full != frames.shape[1:3]:
        picture = interpolate(picture, full, mode="bicubic", antialias=True)
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    return picture[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).contiguous().numpy()


def crop_clip(
    frames: np.ndarray,
    size: int | tuple[int, int],
    *,
    flip: bool = False,
    pixel_aspect: float = 1.0,
    resize: str = "adm",
) -> np.ndarray:
    """Crop all frames of a clip alike, uint8 (T,H,W,3) → (T,h,w,3); `flip` mirrors all of them left to right.

    `resize` is "adm" (`center_crop`) or "torch" (`crop_fast`).
    """
    if resize == "torch":
        cropped = crop_fast(frames, size, pixel_aspect=pixel_aspect)
    else:
        cropped = np.stack([center_crop(frame, size, pixel_aspect=pixel_aspect) for frame in frames])
    return np.ascontiguousarray(cropped[:, :, ::-1]) if flip else cropped


def directed_labels(labels: Iterable[str]) -> list[str]:
    """The class names that a mirror image contradicts: those with a word for left, right or clockwise.

    In words written together ("turnleft") it is recognised if the mirrored name ("turnright") is a class too.
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
    return {name.replace(side, other) for side, other in swaps if side in name}
