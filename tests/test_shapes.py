"""Moving shapes: the closed-form measure reads back the written labels, through a real encode and decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_files import decode

from eqm_video.data.moving_shapes import (
    DIRECTIONS,
    SHAPES,
    coverage,
    label_names,
    measure_motion,
    render_clip,
    score_motion,
)
from eqm_video.data.moving_shapes import write_moving_shapes as write
from eqm_video.errors import UserError


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_of_one_radius_have_the_same_area_and_centroid(shape: str) -> None:
    cover = coverage(shape, (30.3, 31.7), 12.0, 64)
    assert cover.sum() == pytest.approx(np.pi * 144, rel=0.01)
    assert (cover.sum(0) * np.arange(64)).sum() / cover.sum() == pytest.approx(30.3, abs=0.1)
    assert (cover.sum(1) * np.arange(64)).sum() / cover.sum() == pytest.approx(31.7, abs=0.1)


@pytest.mark.parametrize("textured", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_measure_reads_back_every_label(textured: bool, size: int) -> None:
    rng = np.random.default_rng(0)
    right, total = 0, 0
    for shape in SHAPES:
        for direction in DIRECTIONS:
            for _ in range(5):
                motion = measure_motion(render_clip(shape, direction, frames=8, size=size, rng=rng, textured=textured))
                assert motion.direction == direction
                right, total = right + (motion.shape == shape), total + 1
    assert right / total >= 0.95


def test_speed_is_measured_in_pixels_a_frame() -> None:
    clip = np.stack([np.uint8(255 * coverage("Disc", (8 + 1.5 * i, 16.0), 5.0, 32)) for i in range(8)])
    motion = measure_motion(np.repeat(clip[..., None], 3, axis=-1))
    assert motion.velocity == pytest.approx((1.5, 0.0), abs=0.02)
    assert motion.label == "DiscRight"
    assert motion.fit > 0.8


def test_unsteady_motion_has_no_direction() -> None:
    rng = np.random.default_rng(0)
    still = render_clip("Disc", "Up", frames=8, size=32, rng=rng)[:1].repeat(8, axis=0)
    assert measure_motion(still).direction is None
    noise = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    assert measure_motion(noise).direction is None
    there_and_back = render_clip("Disc", "Left", frames=8, size=32, rng=rng)
    assert measure_motion(np.concatenate([there_and_back, there_and_back[::-1]])).direction is None
    blank = np.zeros((8, 32, 32, 3), np.uint8)
    assert measure_motion(blank).direction is None


def test_reversed_clips_move_the_other_way() -> None:
    rng = np.random.default_rng(1)
    clip = render_clip("Square", "Down", frames=8, size=32, rng=rng)
    assert measure_motion(clip[::-1]).direction == "Up"


def test_written_set_is_ucf_layout_with_real_videos(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    write(root, shapes=("Disc", "Cross"), videos=3, held_out=1, frames=9, size=32, seed=4)
    names = label_names(("Disc", "Cross"))
    assert (root / "splits/classInd.txt").read_text().split() == [
        word for i, name in enumerate(names, 1) for word in (str(i), name)
    ]
    train = (root / "splits/trainlist01.txt").read_text().splitlines()
    test = (root / "splits/testlist01.txt").read_text().splitlines()
    assert len(train) == 2 * len(names) and len(test) == len(names)
    for line in [entry.split()[0] for entry in train] + test:
        clip = decode(root / line)
        assert clip.shape == (9, 32, 32, 3)
        assert measure_motion(clip, ("Disc", "Cross")).label == line.split("/")[0]


def test_same_seed_same_videos_and_never_over_an_old_set(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, shapes=("Disc",), videos=1, held_out=0, frames=8, seed=7)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.avi"))
    assert len(files) == 4
    assert all(np.array_equal(decode(tmp_path / "a" / f), decode(tmp_path / "b" / f)) for f in files)
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "a", shapes=("Disc",), videos=1, held_out=0)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="unknown shape 'Star'; the shapes are Disc, Square"):
        coverage("Star", (0, 0), 3, 8)


def test_score_counts_what_the_labels_name() -> None:
    rng = np.random.default_rng(0)
    clips = np.stack([render_clip(*what, frames=8, size=32, rng=rng) for what in (("Disc", "Left"), ("Square", "Up"))])
    right = score_motion(clips, ["DiscLeft", "SquareUp"])
    assert (right["direction_accuracy"], right["shape_accuracy"], right["both_accuracy"]) == (1, 1, 1)
    mixed = score_motion(clips, ["DiscUp", "Square"])  # a wrong direction; a label without one
    assert (mixed["direction_accuracy"], mixed["shape_accuracy"], mixed["both_accuracy"]) == (0, 1, 0)
    assert score_motion(clips, ["Left", "Up"])["shape_accuracy"] is None
    with pytest.raises(ValueError, match="2 clips and 1 labels"):
        score_motion(clips, ["DiscLeft"])
