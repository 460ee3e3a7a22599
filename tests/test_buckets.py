"""Shapes of clips: their text, frames and times, and the videos that are long enough for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numbered import numbers, write_numbered
from PIL import Image
from tiny_run import write_codec

from eqm_video.codec import Codec
from eqm_video.data.buckets import Bucket, Views
from eqm_video.data.datasets import Clip, collate, open_data
from eqm_video.data.latents import LatentsInMemory
from eqm_video.errors import UserError
from eqm_video.sampling.arguments import frame_times
from eqm_video.training.batches import Batches, BatchPlan
from eqm_video.training.config import load_config, to_tree, to_yaml
from eqm_video.training.data import open_training_data
from eqm_video.training.run import playback_fps

SIZE = (32, 48)
SHAPES = [Bucket(1, 1), Bucket(2, 1), Bucket(4, 3), Bucket(5, 7), Bucket(8, 2), Bucket(16, 1)]


def open_videos(root: Path, **options: object) -> object:
    return open_data("videos", root, **{"frames": 4, "frame_interval": 3, "size": SIZE, **options})


def seen(clip: Clip) -> list[int]:
    return numbers(clip.pixels.permute(0, 2, 3, 1).numpy())


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 60, 40, 20 and 12 frames."""
    root = tmp_path_factory.mktemp("videos")
    for name, frames in (("a", 60), ("b", 40), ("c", 20), ("d", 12)):
        write_numbered(root / f"{name}.mp4", frames)
    return root


# ------------------------------------------------------------------------------------------------------ spelling


@pytest.mark.parametrize(
    ("text", "shape"),
    [("16x3", Bucket(16, 3)), (" 2x1:0.5", Bucket(2, 1, 0.5)), ("8x10:3", Bucket(8, 10, 3.0)), ("4x2:1", Bucket(4, 2))],
)
def test_shapes_are_read_and_written(text: str, shape: Bucket) -> None:
    assert Bucket.parse(text) == shape and Bucket.parse(str(shape)) == shape


@pytest.mark.parametrize(
    "text", ["16", "16x", "x3", "0x3", "16x0", "16x3:0", "16x3:-1", "16x3:e", "16x3:1e999", "a", ""]
)
def test_other_text_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match="write FRAMESxINTERVAL, such as 16x3"):
        Bucket.parse(text)


def test_recipes_name_shapes_in_a_list_or_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {buckets: [16x3, 32x1:0.5]}")
    config = load_config(tmp_path / "a.yaml")
    assert config.data.shapes == (Bucket(16, 3), Bucket(32, 1, 0.5))
    assert load_config(None, ["data.buckets=16x3,32x1:0.5"]) == config
    assert to_tree(config)["data"]["buckets"] == ["16x3", "32x1:0.5"]
    (tmp_path / "b.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "b.yaml") == config
    assert load_config(tmp_path / "a.yaml", ["data.buckets=[]", "frames=7"]).data.shapes == (Bucket(7, 3),)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.buckets=16x3,12"], r"data.buckets\[1\]: '12' is not a shape of a clip"),
        (["data.buckets=16x3,1x1"], r"data.buckets has 1x1, clips of one frame.*data.image_fraction"),
        (["frames=1", "data.buckets=16x3"], r"frames=1 is the image mode.*data.buckets"),
        (["data.kind=images", "frames=1", "data.buckets=16x3"], r"image mode.*data.buckets"),
        (
            ["gamma=context", "gamma.patterns=ends", "data.buckets=16x3,2x1"],
            r"data.buckets=16x3,2x1 none .* every bucket",
        ),
        (["frames=1", "data.image_fraction=0.5"], r"image mode.*data.image_fraction"),
        (["data.image_fraction=1"], r"data.image_fraction is 1.0: it must be a number of at least 0 and below 1"),
        (["data.image_fraction=-0.1"], r"it must be a number of at least 0 and below 1"),
        (["data.images=photos"], r"data.images is given, but data.image_fraction is 0"),
        (["data.image_fraction=0.001"], r"of train.batch_size=64 samples are 0 images"),
        (
            ["data.image_fraction=0.25", "train.batch_size=24", "train.accumulation=4"],
            r"6 of them images .* cannot be cut",
        ),
    ],
)
def test_shapes_without_a_possible_step_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(None, overrides)


# --------------------------------------------------------------------------------------------- frames and their times


@pytest.mark.parametrize("fps", [25, 30, 50])
def test_times_count_intervals_and_not_frames(tmp_path: Path, fps: int) -> None:
    """T frames at interval s of a video of f frames a second: frame k at k s / f, and T - 1 intervals in all."""
    data = open_videos(write_numbered(tmp_path / "a.mp4", 60, fps=fps).parent)
    for shape in SHAPES:
        frames, interval = shape.frames, shape.frame_interval
        view = data.view(shape)
        assert view.span == shape.span == (frames - 1) * interval + 1
        for clip in (view.clip(0), view[(0, 5)], view.clip(0, start=60 - shape.span)):
            assert seen(clip) == [clip.start + k * interval for k in range(frames)]
            expected = torch.tensor([k * interval / fps for k in range(frames)], dtype=torch.float64)
            assert torch.equal(clip.times, expected.float())
            # The network meets the same times in training as in sampling at the rate of the clip.
            torch.testing.assert_close(clip.times * 8.0, frame_times(frames, fps / interval, 8.0), rtol=1e-6, atol=0)
        with pytest.raises(ValueError, match=f"start at 0 to {60 - shape.span}"):
            view.clip(0, start=61 - shape.span)
        if frames > 1:
            assert playback_fps(view, 8.0) == round(fps / interval, 3)
    assert playback_fps(data.view(Bucket(1, 1)), 8.0) == 8.0


def test_times_go_on_while_the_last_frame_repeats(videos: Path) -> None:
    view = open_videos(videos).view(Bucket(8, 3))
    clip = view[(3, 0)]  # 12 frames, of which 22 are asked for
    assert seen(clip) == [0, 3, 6, 9, 11, 11, 11, 11]
    assert torch.equal(clip.times, (torch.arange(8, dtype=torch.float64) * 3 / 25).float())
    assert playback_fps(view, 8.0) == round(25 / 3, 3)


def test_irregular_videos_keep_their_own_times_in_every_shape(tmp_path: Path) -> None:
    ticks = np.cumsum([0, *np.random.default_rng(1).integers(1, 6, 39)])
    data = open_videos(write_numbered(tmp_path / "a.mp4", 40, ticks=ticks).parent)
    for shape in SHAPES:
        rows = 3 + np.arange(shape.frames) * shape.frame_interval
        times = data.view(shape).clip(0, start=3).times.numpy()
        assert times == pytest.approx((ticks[rows] - ticks[3]) / 25, abs=1e-3) and times[0] == 0


def test_a_view_leaves_the_set_as_it_is(videos: Path) -> None:
    data = open_videos(videos)
    view = data.view(Bucket(2, 5))
    assert (data.frames, data.frame_interval, view.frames, view.frame_interval) == (4, 3, 2, 5)
    assert view.files is data.files and view.substitutes is data.substitutes
    assert [len(clip.times) for clip in (data[(0, 1)], view[(0, 1)])] == [4, 2]


# -------------------------------------------------------------------------------------------- videos that are too short


@pytest.mark.parametrize("short", ["skip", "repeat"])
def test_a_video_too_short_for_a_shape_is_substituted(videos: Path, short: str) -> None:
    shapes = [Bucket(6, 3), Bucket(9, 4)]  # 16 and 33 frames
    data = open_videos(videos, short=short, buckets=shapes, frames=50)  # what `frames` says does not matter
    names = ["a.mp4", "b.mp4", "c.mp4"] + (["d.mp4"] if short == "repeat" else [])
    assert [name for name, _, _ in data.files] == names and data.report.short == {"d.mp4": 12}
    small, large = (data.view(shape) for shape in shapes)
    assert small.members() == list(range(len(names))) and large.members() == [0, 1]
    assert [small[(index, 3)].name for index in range(3)] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [large[(index, 3)].name for index in range(2)] == ["a.mp4", "b.mp4"]
    clips = [large[(2, seed)] for seed in range(40)]
    assert [clip.name for clip in clips] == [large[(2, seed)].name for seed in range(40)]
    share = Counter(clip.name for clip in clips)
    assert set(share) == {"a.mp4", "b.mp4"} and min(share.values()) > 8
    for clip in clips[:4]:  # nothing is held
        assert seen(clip) == list(range(clip.start, clip.start + 33, 4))


@pytest.mark.parametrize("latents", [False, True])
def test_only_videos_too_short_for_every_shape_are_lengthened_and_in_the_shortest_alone(
    videos: Path, tmp_path: Path, latents: bool
) -> None:
    shapes = [Bucket(9, 4), Bucket(5, 5), Bucket(11, 2)]  # 33, 21 and 21 frames; c has 20, d 12
    data = open_videos(videos, buckets=shapes)
    assert len(data) == 4 and data.report.short == {"c.mp4": 20, "d.mp4": 12}
    assert seen(data.view(shapes[1])[(3, 0)]) == [0, 5, 10, 11, 11]
    assert seen(data.view(shapes[2])[(2, 0)])[-2:] == [18, 19]
    large = data.view(shapes[0])
    sets = LatentsInMemory(data, Codec.load(str(write_codec(tmp_path / "codec"))), "cpu", quiet=True).view(shapes[0])
    found = {(sets if latents else large)[(index, seed)].name for index in range(4) for seed in range(8)}
    assert found == {"a.mp4", "b.mp4"}
    assert {seen(large[(index, 1)])[-1] - seen(large[(index, 1)])[0] for index in range(4)} == {32}  # nothing is held
    with pytest.raises(UserError, match=r"2 of 4 .* shorter than every clip of data.buckets, the shortest of 21 sou"):
        open_videos(videos, buckets=shapes, short="error")


def test_too_short_for_one_shape_is_no_error_and_too_long_for_every_video_is(videos: Path) -> None:
    data = open_videos(videos, buckets=[Bucket(9, 4), Bucket(2, 1)], short="error")
    assert len(data) == 4 and data.report.short == {} and data.view(Bucket(9, 4)).members() == [0, 1]
    for short in ("repeat", "skip", "error"):
        with pytest.raises(
            UserError, match=r"clips of 9x8 in data.buckets.*65 source.*a.mp4\) has 60.*take 8x8 or 9x7"
        ):
            open_videos(videos, buckets=[Bucket(2, 1), Bucket(9, 8)], short=short)


def test_the_notes_of_a_run_count_videos_that_its_shapes_leave_out_and_lengthen(videos: Path, tmp_path: Path) -> None:
    def notes(*more: str) -> list[str]:
        words = [f"data.root={videos}", f"run.dir={tmp_path / 'run'}", "data.size=32", *more]
        return open_training_data(load_config(None, words), Accelerator(cpu=True)).notes[1:]

    left_out = "clips of 9x4 come from 2 of {} videos: the others are too short"
    held = "too short for every shape: 1 of these videos; in clips of 6x3 their last frame is repeated"
    assert notes("data.buckets=9x4,6x3") == [left_out.format(4), held]
    assert notes("data.buckets=9x4,6x3", "data.short=skip") == [left_out.format(3)]
    assert notes("data.buckets=4x3,2x1") == notes("frames=9", "data.frame_interval=4") == []


# ----------------------------------------------------------------------------------------------------------- batches


def test_every_batch_has_one_shape_with_workers_too(videos: Path) -> None:
    data = open_videos(videos)
    sets = [data.view(Bucket(4, 3)), data.view(Bucket(7, 1)), data.view(Bucket(1, 1))]
    plan = BatchPlan(size=4, batch_size=4, seed=3, accumulation=2, weights=(1.0, 1.0), images=2, image_size=4)
    found = []
    for workers in (0, 2):
        batches = list(Batches(sets, collate, plan, workers=workers).between(0, 4))
        assert len(batches) == 4 * plan.passes == 16
        found.append(batches)
        for step in range(4):
            counts = [batch["times"].shape for batch in batches[4 * step : 4 * step + 4]]
            frames = {0: 4, 1: 7}[plan.view(step, 3)]
            assert counts == [(1, 1), (1, 1), (1, frames), (1, frames)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one["pixels"], other["pixels"]) and one["names"] == other["names"]
    assert {plan.view(step, 3) for step in range(4)} == {0, 1}


def test_latents_in_memory_are_encoded_once_for_all_shapes(videos: Path, tmp_path: Path) -> None:
    codec = Codec.load(str(write_codec(tmp_path / "codec")))
    data = open_videos(videos, short="skip", buckets=[Bucket(4, 3), Bucket(9, 4)])
    frames, moments = [], codec.moments
    codec.moments = lambda pixels: frames.append(pixels.shape[1]) or moments(pixels)
    stored = LatentsInMemory(data, codec, "cpu", quiet=True)
    codec.moments = moments
    for shape in (Bucket(4, 3), Bucket(9, 4), Bucket(1, 1)):
        online, memory = data.view(shape), stored.view(shape)
        for request in ((0, 1), (2, 5), (3, 7)):
            one, other = online[request], memory[request]
            expected = codec.moments(one.pixels[None].float() / 127.5 - 1)[0]
            torch.testing.assert_close(other.moments.float(), expected, rtol=1e-3, atol=1e-3)  # half precision
            assert (one.name, one.start, one.label) == (other.name, other.start, other.label)
            assert torch.equal(one.times, other.times)
    assert frames == [60, 40, 20, 12]
    later = LatentsInMemory(data, codec, "cpu", quiet=True, taken=100)
    assert later.bytes == stored.bytes + 100 == stored.view(Bucket(2, 1)).bytes + 100


def test_labels_are_numbered_anew_for_a_joint_run(tmp_path: Path) -> None:
    for label in ("Jump", "Walk"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / label / "a.png")
    images = open_data("images", tmp_path, frames=1, size=SIZE)
    moved = images.relabel(["Fall", "Walk", "Jump"])
    assert [label for _, label, _ in moved.files] == [2, 1] and [label for _, label, _ in images.files] == [0, 1]
    assert Views([images, moved])[(1, 0, 4)].label == 2 and moved.labels == ["Fall", "Walk", "Jump"]
