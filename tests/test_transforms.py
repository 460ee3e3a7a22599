"""The centre crop is that of ADM, DiT and SiT, and flips are refused where they would make a label wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqm_video.data.transforms import center_crop, crop_clip, crop_fast, directed_labels
from eqm_video.errors import UserError


def adm_center_crop(picture: Image.Image, size: int) -> np.ndarray:
    """`center_crop_arr` of openai/guided-diffusion, which DiT and SiT use, as it stands there."""
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.Resampling.BOX)
    scale = size / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.Resampling.BICUBIC)
    array = np.array(picture)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(240, 320), (320, 241), (64, 64), (65, 333), (31, 40), (500, 333), (128, 129)])
@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_crop_is_adms(shape: tuple[int, int], size: int) -> None:
    frame = noise(*shape)
    assert np.array_equal(center_crop(frame, size), adm_center_crop(Image.fromarray(frame), size))


def test_the_crop_of_real_photographs_is_adms(real: Path) -> None:
    for path in sorted((real / "images").glob("*/*"))[::20]:
        picture = Image.open(path).convert("RGB")
        assert np.array_equal(center_crop(np.asarray(picture), 64), adm_center_crop(picture, 64))


def test_height_and_width_may_differ() -> None:
    frame = noise(100, 100)
    assert center_crop(frame, (48, 96)).shape == (48, 96, 3)
    assert center_crop(frame, (96, 48)).shape == (96, 48, 3)
    assert np.array_equal(center_crop(frame, (40, 40)), center_crop(frame, 40))
    assert np.array_equal(center_crop(frame, (40, 100)), frame[30:70])


def test_a_clip_has_one_crop_and_one_flip() -> None:
    clip = np.stack([noise(48, 64)] * 3)
    cropped, flipped = crop_clip(clip, 24), crop_clip(clip, 24, flip=True)
    assert cropped.shape == (3, 24, 24, 3) and cropped.dtype == np.uint8
    assert all(np.array_equal(frame, cropped[0]) for frame in cropped)
    assert np.array_equal(flipped, cropped[:, :, ::-1])


def test_sizes_below_a_pixel_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 pixel"):
        center_crop(noise(8, 8), 0)


@pytest.mark.parametrize(
    "label",
    ["move_left", "TurnRight", "circle right", "DiscLeft", "LEFT_TURN", "walk leftward", "clockwise", "spin_ccw"],
)
def test_labels_with_a_direction(label: str) -> None:
    assert directed_labels(["Bend", label]) == [label]


def test_labels_without_a_direction() -> None:
    names = ["BrightSky", "upright", "copyright", "PlayingPiano", "n01443537", "cleft", "HandstandPushups", "move_up"]
    assert directed_labels(names) == []
    assert directed_labels(["upright", "upleft", "bright"]) == ["upright", "upleft"]  # a mirrored pair


def test_the_fast_resize_is_near_adms_above_half_the_size_and_crops_the_same_part() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((160, 120), Image.Resampling.BICUBIC))
    frames = np.stack([smooth, np.full((120, 160, 3), 90, np.uint8)])
    exact, fast = (crop_clip(frames, 64, resize=kind) for kind in ("adm", "torch"))
    assert fast.shape == exact.shape == (2, 64, 64, 3) and fast.dtype == np.uint8
    difference = np.abs(fast.astype(int) - exact)
    assert 0 < difference.max() <= 2 and (difference > 0).mean() < 0.1
    assert (crop_clip(frames, 64, resize="torch", flip=True) == fast[:, :, ::-1]).all()
    assert (crop_fast(frames[:1], 64) == fast[:1]).all()  # frame by frame, whatever the batch
    assert (crop_fast(frames, (120, 160)) == frames).all()
    wide, narrow = (crop_fast(frames, 64, pixel_aspect=aspect) for aspect in (2.0, 1.0))
    assert wide.shape == narrow.shape and (wide != narrow).any()
