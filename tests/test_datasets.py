"""Data folders become sets of clips: layouts, windows, times, labels, flips, and what happens to bad files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numbered import number, numbers, write_numbered
from PIL import Image
from torch.utils.data import DataLoader

from eqm_video.core.decay import LinearDecay
from eqm_video.core.objective import EqMObjective
from eqm_video.data import datasets
from eqm_video.data import scan as index_module
from eqm_video.data.datasets import Clip, collate, open_data
from eqm_video.data.moving_shapes import write_moving_shapes
from eqm_video.data.video import VideoDecodeError
from eqm_video.errors import UserError
from eqm_video.randomness import generator
from eqm_video.training.held_out import HeldOut

SIZE = (32, 48)  # the numbered pictures' own shape, halved: nothing is cropped away


def seen(clip: Clip) -> list[int]:
    """The frame numbers that a clip shows."""
    return numbers(clip.pixels.permute(0, 2, 3, 1).numpy())


def open_videos(root: Path, **options: Any) -> Any:
    return open_data("videos", root, **{"frames": 4, "frame_interval": 3, "size": SIZE, **options})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: Jump has 60 and 25 frames, Run has 40."""
    root = tmp_path_factory.mktemp("data")
    write_numbered(root / "Jump" / "v_Jump_g01.mp4", 60)
    write_numbered(root / "Jump" / "v_Jump_g02.AVI", 25, codec="mpeg4", options={"g": "12"})
    write_numbered(root / "Run" / "v_Run_g01.mkv", 40)
    (root / "Run" / "notes.txt").write_text("not a video")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def lists(videos: Path, tmp_path: Path) -> Path:
    """A copy of the class folders with UCF-101's lists; the classes are numbered against the alphabet."""
    root = tmp_path / "ucf"
    shutil.copytree(videos, root)
    folder = root / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_bytes(b"1 Run\r\n2 Jump\r\n")
    (folder / "trainlist01.txt").write_text("Jump/v_Jump_g01.mp4 2\nRun/v_Run_g01.mkv 1\nRun/v_Run_g09.avi 1\n\n")
    (folder / "testlist01.txt").write_text("Jump/v_Jump_g02.AVI\n")
    return root


# ---- layouts and labels ----------------------------------------------------------------------------------------------


def test_class_folders_are_labels_in_order(videos: Path) -> None:
    data = open_videos(videos)
    assert data.labels == ["Jump", "Run"]
    clips = [data.clip(index) for index in range(len(data))]
    assert [clip.name for clip in clips] == ["Jump/v_Jump_g01.mp4", "Jump/v_Jump_g02.AVI", "Run/v_Run_g01.mkv"]
    assert [clip.label for clip in clips] == [0, 0, 1]


def test_a_flat_folder_has_no_labels(videos: Path) -> None:
    data = open_videos(videos / "Jump")
    assert data.labels == [] and len(data) == 2
    assert data.clip(0).label == -1


def test_links_are_followed(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "Hop").symlink_to(videos / "Jump")
    (tmp_path / "set" / "Go").mkdir()
    (tmp_path / "set" / "Go" / "a.mkv").symlink_to(videos / "Run" / "v_Run_g01.mkv")
    data = open_videos(tmp_path / "set")
    assert data.labels == ["Go", "Hop"] and len(data) == 3


@pytest.mark.parametrize("place", ["ucfTrainTestlist", "splits", "."])
def test_official_lists_give_splits_and_numbers(lists: Path, place: str) -> None:
    if place != "ucfTrainTestlist":
        (lists / place).mkdir(exist_ok=True)
        for file in (lists / "ucfTrainTestlist").iterdir():
            file.rename(lists / place / file.name)
    train, test, every = (open_videos(lists, split=split) for split in ("train", "test", None))
    assert train.labels == test.labels == every.labels == ["Run", "Jump"]
    assert [file[:2] for file in train.files] == [("Jump/v_Jump_g01.mp4", 1), ("Run/v_Run_g01.mkv", 0)]
    assert [file[:2] for file in test.files] == [("Jump/v_Jump_g02.AVI", 1)]
    assert [label for _, label, _ in every.files] == [1, 1, 0]
    assert train.report.missing == ["Run/v_Run_g09.avi"] and train.report.used == 2
    assert "1 are listed but not there: Run/v_Run_g09.avi" in train.report.summary()


@pytest.mark.parametrize(
    ("list_file", "content", "message"),
    [
        ("trainlist01.txt", "Run/a.avi 1\nRun/b.avi 1\n", "names 2 files and none of them"),
        ("trainlist01.txt", "Run/../../secret.avi 1\n", "line 1.*points outside"),
        ("trainlist01.txt", "/etc/secret.avi 1\n", "line 1.*points outside"),
        ("trainlist01.txt", "Jump/v_Jump_g01.mp4 2\nRun/v_Run_g01.mkv 2\n", "line 2.*classInd.txt says 1"),
        ("trainlist01.txt", "Swim/v_Swim_g01.avi 3\n", "does not start with a class"),
        ("trainlist01.txt", "v_Jump_g01.mp4 2\n", "does not start with a class"),
        ("trainlist01.txt", None, r"there is no trainlist01.txt .*testlist01.txt"),
        ("classInd.txt", None, "classInd.txt is missing"),
        ("classInd.txt", "Run\nJump\n", "line 1: got 'Run'"),
        ("classInd.txt", "1 Run\n3 Jump\n", "numbered 1, 2, 3"),
    ],
)
def test_wrong_lists_are_refused(lists: Path, list_file: str, content: str | None, message: str) -> None:
    path = lists / "ucfTrainTestlist" / list_file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        open_videos(lists, split="train")


def test_folders_that_classes_do_not_number_are_refused(lists: Path) -> None:
    (lists / "Run").rename(lists / "Walk")
    with pytest.raises(UserError, match="does not number the class folders Walk"):
        open_videos(lists)


def test_the_real_actions(real: Path) -> None:
    train, test = (open_data("videos", real / "actions", split=s, size=64, frame_interval=2) for s in ("train", "test"))
    assert (len(train), len(test)) == (28, 4)
    assert train.labels == test.labels == ["Bend", "JumpingJack", "WaveOneHand", "WaveTwoHands"]
    assert [label for _, label, _ in test.files] == [0, 1, 2, 3]
    assert not train.report.unreadable and not train.report.missing
    assert len(open_data("videos", real / "actions", size=64)) == 32
    batch = collate([train[(k, 7)] for k in range(3)])
    assert batch["pixels"].shape == (3, 16, 3, 64, 64) and batch["pixels"].dtype == torch.uint8
    assert torch.allclose(batch["times"], (torch.arange(16) * 2 / 25).expand(3, 16))
    with pytest.raises(UserError, match=r"there is no trainlist02.txt"):
        open_data("videos", real / "actions", split="train", fold=2, size=64)


# ---- windows, times, flips -------------------------------------------------------------------------------------------


def test_a_clip_shows_the_frames_of_its_window(videos: Path) -> None:
    data = open_videos(videos)
    for index in range(3):
        for seed in range(4):
            clip = data[(index, seed)]
            assert seen(clip) == [clip.start + 3 * k for k in range(4)]
    assert seen(data.clip(0, start=50)) == [50, 53, 56, 59]
    assert data.clip(0).pixels.shape == (4, 3, *SIZE) and data.clip(0).pixels.dtype == torch.uint8


def test_the_seed_decides_the_window_and_all_windows_come(videos: Path) -> None:
    data = open_videos(videos)
    assert torch.equal(data[(0, 5)].pixels, data[(0, 5)].pixels)
    assert torch.equal(data[(0, 5)].pixels, data.clip(0, generator(5)).pixels)
    starts = {data[(1, seed)].start for seed in range(150)}
    assert starts == set(range(25 - 10 + 1))


def test_evaluation_windows_do_not_overlap(videos: Path) -> None:
    data = open_videos(videos)  # a clip spans 10 frames
    expected = [(0, 10 * k) for k in range(6)] + [(1, 0), (1, 10)] + [(2, 10 * k) for k in range(4)]
    assert data.windows() == expected
    assert [data.clip(0).start, data.clip(0).start] == [25, 25]  # the middle one
    single = open_videos(videos, frames=5, frame_interval=6)  # 25 frames
    assert single.windows() == [(0, 0), (0, 25), (1, 0), (2, 7)]
    with pytest.raises(ValueError, match="start at 0 to 50"):
        data.clip(0, start=51)


def test_times_are_seconds_and_the_product_of_rate_and_interval_decides(tmp_path: Path) -> None:
    slow = open_videos(write_numbered(tmp_path / "slow" / "a.mp4", 40, fps=25).parent)
    fast = open_videos(write_numbered(tmp_path / "fast" / "a.mp4", 40, fps=50).parent, frame_interval=6)
    assert slow.clip(0).times.dtype == torch.float32
    assert torch.allclose(slow.clip(0).times, torch.tensor([0, 0.12, 0.24, 0.36]))
    assert torch.equal(slow[(0, 1)].times, fast[(0, 2)].times)


def test_irregular_videos_carry_their_own_times(tmp_path: Path) -> None:
    ticks = np.cumsum([0, *np.random.default_rng(1).integers(1, 6, 39)])
    data = open_videos(write_numbered(tmp_path / "a.mp4", 40, ticks=ticks).parent)
    clip = data.clip(0, start=12)
    assert clip.times.numpy() == pytest.approx((ticks[[12, 15, 18, 21]] - ticks[12]) / 25, abs=1e-3)


def test_whole_files_and_windows_give_the_same_clips(videos: Path, tmp_path: Path) -> None:
    ticks = np.cumsum([0, *np.random.default_rng(1).integers(1, 6, 19)])
    shutil.copy(videos / "Run" / "v_Run_g01.mkv", tmp_path)
    write_numbered(tmp_path / "irregular.mp4", 20, ticks=ticks)
    data = open_videos(tmp_path, frames=8, flip=True)  # 22 frames: the irregular video is shorter
    for index in range(2):
        frames, seconds = data.whole(index)
        assert len(frames) == len(seconds) == data.length(index)
        for seed in range(4):
            clip, (start, mirrored) = data[(index, seed)], data.draw(index, generator(seed))
            rows, times = data.window(index, start, seconds)
            expected = torch.from_numpy(frames[rows].copy()).permute(0, 3, 1, 2)
            assert torch.equal(clip.pixels, expected.flip(-1) if mirrored else expected)
            assert np.array_equal(clip.times.numpy(), times.astype(np.float32)) and (np.diff(times) > 0).all()
    picture = Image.fromarray(frames[0])
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.png")
    images = open_data("images", tmp_path / "images", frames=1, size=SIZE)
    assert np.array_equal(images.whole(0)[0], frames[:1]) and images.length(0) == 1


def test_short_videos_follow_the_policy(videos: Path) -> None:
    options = {"frames": 10, "frame_interval": 4}  # 37 frames; g02 has 25
    held = open_videos(videos, **options)
    clip = held[(1, 0)]
    assert len(held) == 3 and clip.start == 0
    assert seen(clip) == [0, 4, 8, 12, 16, 20, 24, 24, 24, 24]
    assert torch.allclose(clip.times, torch.arange(10) * 4 / 25)
    assert held.report.short == {"Jump/v_Jump_g02.AVI": 25}
    skipped = open_videos(videos, short="skip", **options)
    assert [name for name, _, _ in skipped.files] == ["Jump/v_Jump_g01.mp4", "Run/v_Run_g01.mkv"]
    assert (skipped.report.used, skipped.report.found) == (2, 3) and "skipped" in skipped.report.summary()
    with pytest.raises(UserError, match=r"1 of 3 videos .*g02.AVI \(25 frames\); type data.short=repeat"):
        open_videos(videos, short="error", **options)


@pytest.mark.parametrize("short", ["repeat", "skip", "error"])
def test_clips_longer_than_every_video_are_refused(videos: Path, short: str) -> None:
    with pytest.raises(UserError, match=r"spans 88 .*g01.mp4\) has 60; type data.frames=20 or data.frame_interval=2,"):
        open_videos(videos, frames=30, short=short)
    with pytest.raises(UserError, match=r"type data.frames=20 or data.frames=60 data.frame_interval=1, or less"):
        open_videos(videos, frames=61, short=short)
    with pytest.raises(UserError, match=r"spans 61 .* type data.frames=60, or less"):
        open_videos(videos, frames=61, frame_interval=1, short=short)


def test_flips_take_the_whole_clip_and_change_no_window(videos: Path) -> None:
    plain, flipping = open_videos(videos), open_videos(videos, flip=True)
    flipped = 0
    for seed in range(20):
        straight, clip = plain[(0, seed)], flipping[(0, seed)]
        assert clip.start == straight.start
        mirrored = torch.equal(clip.pixels, straight.pixels.flip(-1))
        assert mirrored or torch.equal(clip.pixels, straight.pixels)
        flipped += mirrored
    assert 4 <= flipped <= 16
    assert torch.equal(flipping.clip(0).pixels, plain.clip(0).pixels)  # never in evaluation


def test_flips_are_refused_where_labels_have_a_direction(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos / "Run", tmp_path / "TurnLeft")
    assert len(open_videos(tmp_path)) == 1
    with pytest.raises(UserError, match=r"\(TurnLeft\).*type data.flip=false"):
        open_videos(tmp_path, flip=True)


# ---- images ----------------------------------------------------------------------------------------------------------


def test_images_give_the_same_clips(tmp_path: Path) -> None:
    for name, mode in (
        ("a/x.JPEG", "RGB"),
        ("a/y.png", "RGBA"),
        ("b/z.png", "L"),
        ("b/w.bmp", "P"),
        ("b/v.webp", "RGB"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (200, 30, 90)).convert(mode).save(tmp_path / name)
    data = open_data("images", tmp_path, frames=1, size=16)
    assert data.labels == ["a", "b"] and len(data) == 5
    batch = collate([data[(k, 0)] for k in range(5)])
    assert batch["pixels"].shape == (5, 1, 3, 16, 16)
    assert batch["labels"].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(batch["times"], torch.zeros(5, 1))
    assert data.windows() == [(k, 0) for k in range(5)]


def test_the_real_photographs(real: Path) -> None:
    data = open_data("images", real / "images", frames=1, size=32)
    assert len(data) == len(data.labels) == 195
    assert [data.clip(k).label for k in (0, 100, 194)] == [0, 100, 194]
    assert data[(3, 1)].pixels.shape == (1, 3, 32, 32)


def test_images_cannot_have_more_frames(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"type data\.frames=1"):
        open_data("images", tmp_path, frames=16)


def test_unreadable_images_are_left_out_and_damaged_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("good.png", "half.png"):
        picture.save(tmp_path / name)
    content = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    data = open_data("images", tmp_path, frames=1, size=16)
    assert [name for name, _, _ in data.files] == ["good.png"]
    assert set(data.report.unreadable) == {"empty.jpg", "half.png", "text.jpg"}
    assert data.report.unreadable["half.png"].startswith("cannot be decoded")
    monkeypatch.setattr(datasets, "DECODED", 3)  # of larger sets the headers alone are read
    data = open_data("images", tmp_path, frames=1, size=16)
    assert [name for name, _, _ in data.files] == ["good.png", "half.png"]
    assert set(data.report.unreadable) == {"empty.jpg", "text.jpg"}
    with pytest.raises(VideoDecodeError, match=r"half.png: cannot be decoded"):
        data.clip(1)
    with pytest.warns(UserWarning, match=r"half.png: cannot be decoded .*; it is skipped"):
        assert data[(1, 0)].name == "good.png"
    quick = open_data("images", tmp_path, frames=1, size=16, verify="size")
    assert set(quick.report.unreadable) == {"empty.jpg"}


# ---- bad folders and files -------------------------------------------------------------------------------------------


def test_unreadable_videos_are_listed_skipped_and_counted(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(videos, root)
    whole = (root / "Run" / "v_Run_g01.mkv").read_bytes()
    (root / "Run" / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "Run" / "text.avi").write_text("not a video at all")
    (root / "Jump" / "empty.mp4").touch()
    data = open_videos(root, report_path=tmp_path / "reports" / "data.json")
    assert len(data) == 3
    reasons = data.report.unreadable
    assert list(reasons) == ["Jump/empty.mp4", "Run/cut.mkv", "Run/text.avi"]
    assert reasons["Jump/empty.mp4"] == "the file is empty (0 bytes)"
    assert reasons["Run/cut.mkv"].startswith("truncated, ")
    assert reasons["Run/text.avi"].startswith("cannot be read as a video")
    saved = json.loads((tmp_path / "reports" / "data.json").read_text())
    assert saved["unreadable"] == reasons and (saved["found"], saved["used"]) == (6, 3)
    assert "3 of 6 files" in data.report.summary() and "3 cannot be read" in data.report.summary()


def test_nothing_but_unreadable_videos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.avi").touch()
    (tmp_path / "b.avi").write_text("not a video")
    with pytest.raises(UserError, match=r"none of the 2 videos in .* can be read: a.avi \(the file is empty"):
        open_videos(tmp_path, report_path=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["used"] == 0


@pytest.fixture
def spoiled(videos: Path, tmp_path: Path) -> Any:
    """A set whose first file went bad after the first look."""
    shutil.copytree(videos, tmp_path / "spoiled")
    data = open_videos(tmp_path / "spoiled")
    (tmp_path / "spoiled" / "Jump" / "v_Jump_g01.mp4").write_text("overwritten")
    return data


def test_another_file_takes_the_place_of_one_that_goes_bad_later(spoiled: Any, videos: Path) -> None:
    whole, copy = open_videos(videos), pickle.loads(pickle.dumps(spoiled))
    with pytest.raises(VideoDecodeError, match=r"v_Jump_g01.mp4: cannot be decoded"):
        spoiled.clip(0)
    with pytest.warns(UserWarning) as warned:
        names = [spoiled[(0, seed)].name for seed in range(8)]
    said = [str(one.message) for one in warned if one.category is UserWarning]  # Python 3.12 warns of forks too
    assert len(said) == 1 and "v_Jump_g01.mp4: cannot be decoded" in said[0]
    assert set(names) == {"Jump/v_Jump_g02.AVI", "Run/v_Run_g01.mkv"}  # drawn from the seed
    with pytest.warns(UserWarning, match="it is skipped, another file takes its place"):
        assert [copy[(0, seed)].name for seed in reversed(range(8))] == names[::-1]
    for index in (1, 2):
        assert torch.equal(spoiled[(index, 4)].pixels, whole[(index, 4)].pixels)


def test_a_video_broken_in_the_middle_is_replaced_where_a_clip_needs_that_part(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "broken.mp4", 60, options={"g": "6", "bf": "0"})
    write_numbered(tmp_path / "whole.mp4", 60)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    data = open_videos(tmp_path)
    assert len(data) == 2 and not data.report.unreadable
    with pytest.warns(UserWarning, match=r"broken.mp4: cannot be decoded"):
        clips = [data[(0, seed)] for seed in range(12)]
    assert {clip.name for clip in clips} == {"broken.mp4", "whole.mp4"}
    assert all(seen(clip) == [clip.start + 3 * k for k in range(4)] for clip in clips)


def test_a_set_without_one_file_that_decodes_ends_the_run(spoiled: Any) -> None:
    for name, _, _ in spoiled.files:
        (spoiled.root / name).write_text("overwritten")
    with (
        pytest.warns(UserWarning, match="it is skipped"),
        pytest.raises(UserError, match=r"3 of 3 files were tried in a row and none .*v_Jump_g01.mp4: .*; repair"),
    ):
        spoiled[(0, 0)]


def test_workers_replace_files_alike(spoiled: Any) -> None:
    requests = [(index, seed) for seed in range(2) for index in range(3)]
    with pytest.warns(UserWarning, match="it is skipped"):
        here = [spoiled[request].name for request in requests]
    loader = DataLoader(spoiled, batch_size=1, sampler=requests, collate_fn=collate, num_workers=2)
    assert [name for batch in loader for name in batch["names"]] == here


def test_a_held_out_clip_that_does_not_decode_is_replaced(spoiled: Any) -> None:
    def encode(batch: dict[str, Any], generators: None) -> torch.Tensor:
        return batch["pixels"].float()

    options = {"clips": 3, "gammas": [0.5], "seed": 0, "reference_fps": 8.0, "accelerator": Accelerator(cpu=True)}
    for _ in range(2):
        held_out = HeldOut(spoiled, collate, encode, EqMObjective(LinearDecay()), **options)
        with pytest.warns(UserWarning, match=r"v_Jump_g01.mp4: cannot be decoded"):
            replaced = held_out._clip(0, 2)["clean"]
        assert any(torch.equal(replaced, held_out._clip(k, 2)["clean"]) for k in (1, 2))


def test_bad_folders_are_explained(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "cat" / "a.png")
    shutil.copytree(videos, tmp_path / "deep" / "train")
    shutil.copytree(videos, tmp_path / "mixed")
    shutil.copy(videos / "Run" / "v_Run_g01.mkv", tmp_path / "mixed" / "loose.mkv")
    for name, message in {
        "absent": r"absent does not exist.\n.*\n.*CLASS/run.avi",
        "file.txt": "is a file, not a folder",
        "empty": r"there are no videos in .*empty.\n(.|\n)*trainlist01.txt",
        "images": "no videos in .* but images: type data.kind=images data.frames=1",
        "deep": r"more than one folder deep \(in train\).*deep/train is the folder",
        "mixed": r"directly \(loose.mkv\) and in folders \(Jump, Run\)",
    }.items():
        with pytest.raises(UserError, match=message):
            open_videos(tmp_path / name)
    with pytest.raises(UserError) as refused:
        open_videos(videos / "Run" / "v_Run_g01.mkv")
    assert f"give {videos / 'Run'}, which holds it" in str(refused.value)
    assert f"{videos / 'Run'}/CLASS/run.avi" in str(refused.value) and "mkv/" not in str(refused.value)
    with pytest.raises(UserError) as refused:  # a command with --split takes no keys of a recipe
        open_data("videos", tmp_path / "images", frames=1, frame_interval=1, size=8, split_option="--split")
    assert "but images: give a folder of videos" in str(refused.value) and "data." not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, "data.split=train needs UCF-101's lists"),
        ({"split": "val"}, "type train, test, or null"),
        ({"short": "loop"}, "type one of repeat, skip, error"),
        ({"frames": 0}, "data.frames is 0; type a whole number from 1 on"),
        ({"frame_interval": 0}, "data.frame_interval is 0"),
        ({"size": 0}, "at least 1 pixel"),
        ({"verify": "all"}, "type one of header, size"),
    ],
)
def test_wrong_settings_are_refused(videos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_videos(videos, **options)
    with pytest.raises(UserError, match="type one of videos, images"):
        open_data("films", videos)


def test_requests_are_pairs(videos: Path) -> None:
    data = open_videos(videos)
    with pytest.raises(TypeError, match=r"set\[\(index, seed\)\]"):
        data[0]
    with pytest.raises(ValueError, match="not both"):
        data.clip(0, generator(1), start=3)


# ---- the index, workers ----------------------------------------------------------------------------------------------


def test_the_index_saves_a_second_look(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, index = tmp_path / "set", tmp_path / "index.json"
    shutil.copytree(videos, root)
    (root / "Run" / "text.avi").write_text("not a video")
    looked: list[str] = []
    look_at = index_module.look_at

    def counting(root: Path, names: list[str], look: str) -> Any:
        looked.extend(Path(name).name for name in names)
        return look_at(root, names, look)

    monkeypatch.setattr(index_module, "look_at", counting)
    first = open_videos(root, index_path=index)
    assert len(looked) == 4
    looked.clear()
    second = open_videos(root, index_path=index)
    assert looked == ["text.avi"]  # what could not be read is looked at again
    assert second.files == first.files and second.report == first.report
    write_numbered(root / "Run" / "v_Run_g01.mkv", 50)
    looked.clear()
    assert open_videos(root, index_path=index).files[2][2].frames == 50
    assert sorted(looked) == ["text.avi", "v_Run_g01.mkv"]
    index.write_text("{ half a fi")
    looked.clear()
    assert len(open_videos(root, index_path=index)) == 3 and len(looked) == 4
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_unwritable_report_is_an_error(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*report.json"):
        open_videos(videos, report_path=tmp_path / "file" / "report.json")


def test_shapes_in_a_place_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/shapes: .*choose another folder"):
        write_moving_shapes(tmp_path / "file" / "shapes", videos=1)


def test_sets_can_be_pickled(videos: Path) -> None:
    data = open_videos(videos)
    data.clip(0)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[(2, 3)].pixels, data[(2, 3)].pixels)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_give_the_same_clips(videos: Path, context: str) -> None:
    data = open_videos(videos)
    requests = [(index, seed) for seed in range(2) for index in range(3)]
    here = collate([data[request] for request in requests])  # readers were used in this process before the fork
    loader = DataLoader(
        data, batch_size=3, sampler=requests, collate_fn=collate, num_workers=2, multiprocessing_context=context
    )
    batches = list(loader)
    for key in ("pixels", "labels", "times"):
        assert torch.equal(torch.cat([batch[key] for batch in batches]), here[key])
    assert [name for batch in batches for name in batch["names"]] == here["names"]
    assert number(here["pixels"][0, 0].permute(1, 2, 0).numpy()) == data[(0, 0)].start
