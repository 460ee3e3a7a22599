"""`sample_video.py` from clips and pictures: continuation, in-betweening, image to video, and long videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered import numbers, write_numbered
from PIL import Image
from sample_command import count_batches, fails, files, npz, run, settings_of
from tiny_models import tiny_pipeline

from eqm_video.data.datasets import open_data
from eqm_video.data.image import read_image
from eqm_video.data.transforms import center_crop
from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer
from eqm_video.sampling.clips import ClipSpec, open_path
from eqm_video.sampling.known import keyframes_of, name_frames, parse_keyframe, parse_known
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "real"
ORANGE = (230, 159, 0)


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """3 frames of 16 pixels at 10 fps; labels up, down, left."""
    folder = tmp_path_factory.mktemp("model") / "export"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Class folders of videos at 25 fps: up/a, up/b and other/c of 30 frames, left/short of 2."""
    root = tmp_path_factory.mktemp("videos")
    for index, name in enumerate(("up/a", "up/b", "other/c")):
        write_numbered(root / f"{name}.mp4", 30 + index)
    write_numbered(root / "left/short.mp4", 2)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    for index, name in enumerate(("a", "b", "c")):
        colours = np.stack([np.broadcast_to(ramp[:, None], (40, 56))] * 3, axis=-1).copy()
        colours[..., index] //= 2
        Image.fromarray(colours).save(root / f"{name}.png")
    return root


def reconstructed(clips: np.ndarray) -> np.ndarray:
    pipe = tiny_pipeline()
    return pipe.decode(pipe.encode(clips))


def differs(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


# Which frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("first", [0]),
        ("last", [7]),
        ("ends", [0, 7]),
        ("first:4", [0, 1, 2, 3]),
        ("last:2", [6, 7]),
        ("0-3", [0, 1, 2, 3]),
        ("0,-1", [0, 7]),
        ("0-2,5,-1", [0, 1, 2, 5, 7]),
        ("-3--1", [5, 6, 7]),
        ("3,3,1-3", [1, 2, 3]),
        ("0--2", list(range(7))),
    ],
)
def test_known_frames_by_words_and_numbers(text, frames):
    assert parse_known(text).of(8) == frames


@pytest.mark.parametrize("text", ["", "x", "0:3", "first:0", "1.5", "0-", "ends:2", "0 3", "0,,1"])
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(UserError, match=r"not a frame|are no frames"):
        parse_known(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8", "numbers go from 0 to 7"),
        ("-9", "numbers go from 0 to 7"),
        ("first:9", "numbers go from 0 to 7"),
        ("3-1", "frame 3 comes after frame 1"),
        ("0-7", "nothing is left to sample"),
    ],
)
def test_frames_that_a_clip_has_not(text, says):
    with pytest.raises(UserError, match=says):
        parse_known(text).of(8)


def test_keyframes_are_checked_and_sorted():
    given = [parse_keyframe(word) for word in ("-1=b=c.png", "0=a.png")]
    assert list(keyframes_of(given, 5).items()) == [(0, Path("a.png")), (4, Path("b=c.png"))]
    for words, says in ((("0=a", "-5=b"), "frame 0 twice"), (("5=a",), "from 0 to 4")):
        with pytest.raises(UserError, match=says):
            keyframes_of([parse_keyframe(word) for word in words], 5)
    with pytest.raises(UserError, match="the only frame is known"):
        keyframes_of([(0, Path("a"))], 1)
    for word in ("a.png", "0=", "x=a.png"):
        with pytest.raises(UserError, match="FRAME=IMAGE"):
            parse_keyframe(word)
    assert name_frames([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


# Which frames of a file ---------------------------------------------------------------------------------------------


def shown(path: Path, *needed: int, **asked) -> list[int]:
    """The numbers of the source frames that a clip of 4 frames at 8 fps shows."""
    found = open_path(path, ClipSpec(4, (32, 48), 8.0, needed, **asked))
    return numbers(found.clips[0].read())


def test_the_frames_of_a_video_at_the_models_rate(videos):
    path = videos / "up" / "a.mp4"  # 25 fps: every 3rd frame is 8.3 fps
    assert shown(path, 0, 1, 2, 3) == [0, 3, 6, 9]
    assert shown(path, 0, 1, 2, 3, at=0.4) == [10, 13, 16, 19]
    assert shown(path, 0, 1, 2, 3, frame_interval=5) == [0, 5, 10, 15]
    assert shown(path, 0, 1, at=1.04) == [26, 29, 29, 29]  # the others need not exist, and hold the nearest
    assert shown(path, 0, 1, at="end") == [26, 29, 29, 29]  # the last known frame is the file's last
    assert shown(path, 0, 3, at="end") == [20, 20, 29, 29]
    assert shown(path, 3) == [9, 9, 9, 9]


def test_a_video_too_short_for_its_known_frames_is_refused(videos):
    for needed, asked in (((0, 1), {"at": 1.08}), ((0, 3), {"frame_interval": 10}), ((3,), {"at": 5.0})):
        with pytest.raises(UserError, match=r"a.mp4 has 30 frames \(1.20 s at 25 fps\)"):
            shown(videos / "up" / "a.mp4", *needed, **asked)
    with pytest.raises(UserError, match=r"short.mp4 has 2 frames"):
        shown(videos / "left", 0, 1)


def test_short_videos_of_a_folder_are_left_out_and_named(videos):
    found = open_path(videos, ClipSpec(4, (32, 48), 8.0, (0, 1)))
    assert [clip.path.stem for clip in found.clips] == ["c", "a", "b"]  # by folder: left, other, up
    assert "1 are too short and left out: short.mp4" in found.notes[0]
    assert [clip.label for clip in found.clips] == ["other", "up", "up"]


# Sampling -----------------------------------------------------------------------------------------------------------


def test_continuation_of_videos_with_their_labels(export, videos, tmp_path, capsys):
    assert run(export, "--out", tmp_path, "--start-from", videos, "--known", "0-1") == 0
    said = capsys.readouterr().out
    assert "starts from 3 videos" in said and "every 2nd frame of 25 fps = 12.5 fps, 0.00 to 0.08 s" in said
    assert "known: frames 0-1 of 3; each its own label, 1 have none that the model knows" in said
    samples, labels = npz(tmp_path)
    assert labels == [-1, 0, 0]
    data = open_data("videos", videos, frames=3, frame_interval=2, size=16, short="skip")
    names = [name for name, _, _ in data.files]
    assert names == ["other/c.mp4", "up/a.mp4", "up/b.mp4"]
    clips = np.stack([data.clip(k, start=0).pixels.movedim(1, -1).numpy() for k in range(3)])
    assert differs(samples[:, :2], reconstructed(clips)[:, :2]) <= 1
    how = {"clips": clips, "known": [0, 1], "seeds": range(3), "fps": 12.5, "output_type": "uint8"}
    expected = tiny_pipeline()([None, 0, 0], **how).frames
    assert differs(samples, expected) <= 1  # what the unknown frames show in the file does not matter
    assert differs(samples[:, 2], reconstructed(clips)[:, 2]) > 20
    found = settings_of(tmp_path)
    assert found["known"] == [0, 1] and found["labels"] == ["of the clips"] and len(found["start_from"]) == 32
    assert found["fps"] == 12.5


# When frames are ----------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch) -> list[torch.Tensor]:
    """The times (B, T) of every call of the network."""
    seen, forward = [], EqMTransformer.forward

    def watched(self, latents, labels=None, *, times=None, **more):
        seen.append(times)
        return forward(self, latents, labels, times=times, **more)

    monkeypatch.setattr(EqMTransformer, "forward", watched)
    return seen


def times_at(*rates: float) -> torch.Tensor:
    """Times of 3 frames at these rates, in the model's 8 reference frames a second: (B, T)."""
    return torch.tensor([[8 * frame / rate for frame in range(3)] for rate in rates])


def delay(file: Path) -> int:
    return Image.open(file).info["duration"]  # milliseconds


@pytest.mark.parametrize(
    ("words", "interval"),
    [
        ((), 2),  # nearest to the model's 10 fps
        (("--frame-interval", 1), 1),
        (("--frame-interval", 5), 5),
        (("--fps", 8), 3),
        (("--fps", 8, "--frame-interval", 3), 3),
        (("--length", 5, "--overlap", 1, "--frame-interval", 4), 4),
    ],
)
def test_the_network_gets_the_times_of_a_videos_frames(export, videos, tmp_path, told, words, interval):
    common = ("--start-from", videos / "up" / "a.mp4", "--known", "0-1", "--steps", 2, "--out", tmp_path)
    assert run(export, *common, *words) == 0
    rows = interval * np.arange(3)  # at 25 frames a second
    expected = torch.from_numpy(rows / 25 * 8).float()[None]
    assert len(told) >= 2 and all(torch.allclose(times, expected) for times in told)
    assert settings_of(tmp_path)["fps"] == pytest.approx(25 / interval) and "clip_fps" not in settings_of(tmp_path)
    assert delay(tmp_path / "clips" / "000000.gif") == delay(tmp_path / "grid.gif") == 40 * interval


def test_videos_of_several_rates_are_conditioned_and_shown_at_their_own(export, tmp_path, told, capsys):
    for name, rate in (("a", 25), ("b", 50)):
        write_numbered(tmp_path / "in" / f"{name}.mp4", 30, fps=rate)
    words = ("--start-from", tmp_path / "in", "--known", "0-1", "--steps", 1, "--num-samples", 2)
    assert run(export, "--out", tmp_path / "both", *words) == 0
    assert torch.allclose(told[0], times_at(12.5, 10)) and len(told) == 1
    found = settings_of(tmp_path / "both")
    assert (found["fps"], found["clip_fps"]) == (10.0, [12.5, 10.0])
    delays = [delay(tmp_path / "both" / name) for name in ("clips/000000.gif", "clips/000001.gif", "grid.gif")]
    assert delays == [80, 100, 100]
    assert "at 10 to 12.5 fps" in capsys.readouterr().out
    told.clear()
    words = ("--known", "0-1", "--steps", 1, "--num-samples", 3, "--batch-size", 2)
    assert run(export, "--out", tmp_path / "next", "--start-from", tmp_path / "both" / "samples.npz", *words) == 0
    assert torch.allclose(torch.cat(told), times_at(12.5, 10, 12.5))  # finished clips keep their rates


def test_single_frames_and_pictures_go_with_any_rate(export, videos, pictures, tmp_path, told):
    video = ("--start-from", videos / "up" / "a.mp4", "--known", "first")
    for name, words, rate in (
        ("frame", video, 10),  # the model's own
        ("asked", (*video, "--fps", 4), 4),
        ("every", (*video, "--frame-interval", 5), 5),
        ("image", ("--start-from", pictures / "a.png"), 10),
        ("keys", ("--keyframes", f"0={pictures / 'a.png'}", "--fps", 6), 6),
    ):
        told.clear()
        assert run(export, "--out", tmp_path / name, *words, "--steps", 1, "--num-samples", 1) == 0
        assert torch.allclose(torch.cat(told), times_at(rate)), name
        assert settings_of(tmp_path / name)["fps"] == rate


def test_finished_clips_are_at_the_rate_that_is_written_beside_them(export, tmp_path, told, capsys):
    assert run(export, "--out", tmp_path / "one", "--num-samples", 1, "--fps", 5, "--steps", 1) == 0
    words = (export, "--start-from", tmp_path / "one" / "samples.npz", "--known", "0", "--steps", 1)
    for name, more, rate in (("own", (), 5), ("asked", ("--fps", 4), 4)):
        told.clear()
        assert run(*words, *more, "--out", tmp_path / name) == 0
        assert torch.allclose(torch.cat(told), times_at(rate)) and settings_of(tmp_path / name)["fps"] == rate
    (tmp_path / "one" / "samples.json").write_text("{}")
    assert "give --fps" in fails(capsys, *words, "--out", tmp_path / "damaged")
    (tmp_path / "one" / "samples.json").unlink()
    assert run(*words, "--out", tmp_path / "unknown") == 0
    assert settings_of(tmp_path / "unknown")["fps"] == 10


def test_another_rate_of_the_same_frame_is_another_sample(export, videos, tmp_path, capsys):
    words = (export, "--out", tmp_path, "--start-from", videos / "up" / "a.mp4", "--known", "0", "--steps", 1)
    assert run(*words, "--frame-interval", 2) == 0
    assert "fps: 12.5 there, 25.0 here" in fails(capsys, *words, "--frame-interval", 1)


# Sampling -----------------------------------------------------------------------------------------------------------


def test_labels_of_clips_can_be_overridden(export, videos, tmp_path):
    common = (export, "--start-from", videos, "--known", "first", "--steps", 1)
    assert run(*common, "--out", tmp_path / "none", "--labels", "none") == 0
    assert run(*common, "--out", tmp_path / "left", "--labels", "left") == 0
    assert npz(tmp_path / "none")[1] == [-1] * 4 and npz(tmp_path / "left")[1] == [2] * 4
    file = ("--start-from", videos / "up" / "a.mp4", "--known", "first", "--steps", 1)
    assert run(export, *file, "--out", tmp_path / "file", "--num-samples", 2) == 0
    assert npz(tmp_path / "file")[1] == [0, 0]
    file = ("--start-from", videos / "up" / "a.mp4", "--known", "first", "--compose", "down", "left")
    assert run(export, *file, "--out", tmp_path / "composed", "--steps", 1) == 0
    assert npz(tmp_path / "composed")[1] == [-1]


def test_batch_sizes_do_not_matter(export, videos, tmp_path):
    common = (export, "--start-from", videos, "--known", "ends", "--num-samples", 5)
    for size in (1, 2, 5):
        assert run(*common, "--out", tmp_path / str(size), "--batch-size", size) == 0
    whole = npz(tmp_path / "5")[0]
    assert differs(npz(tmp_path / "1")[0], whole) <= 1 and differs(npz(tmp_path / "2")[0], whole) <= 1
    assert settings_of(tmp_path / "1") == settings_of(tmp_path / "5")
    clips = {name for name in files(tmp_path / "5") if name.startswith("clips/")}
    assert clips == {f"clips/{k:06d}.gif" for k in range(5)}


def test_image_to_video(export, pictures, tmp_path, capsys):
    common = (export, "--start-from", pictures / "b.png", "--num-samples", 3)
    assert run(*common, "--out", tmp_path / "one") == 0
    assert "known: frame 0 of 3; unlabelled" in capsys.readouterr().out
    samples, labels = npz(tmp_path / "one")
    picture = center_crop(read_image(pictures / "b.png"), 16)
    assert differs(samples[:, 0], reconstructed(np.stack([picture] * 3)[None])[0]) <= 1
    assert labels == [-1] * 3 and differs(samples[0, 1:], samples[1, 1:]) > 5  # one picture, three futures
    assert run(export, "--start-from", pictures, "--out", tmp_path / "all") == 0
    assert len(npz(tmp_path / "all")[0]) == 3  # one clip of each image
    assert run(export, "--start-from", pictures, "--out", tmp_path / "loop", "--known", "ends", "--num-samples", 1) == 0
    loop = npz(tmp_path / "loop")[0][0]
    assert (loop[0] == loop[2]).all() and differs(loop[0], loop[1]) > 5


def test_an_animation_is_a_picture_and_no_clip(export, pictures, tmp_path, capsys):
    frames = [Image.fromarray(np.full((16, 16, 3), grey, dtype=np.uint8)) for grey in (40, 120, 200)]
    still = tmp_path / "still.gif"
    frames[0].save(still)
    for name in ("film.gif", "film.webp", "film.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
        words = ("--out", tmp_path / name[5:], "--start-from", tmp_path / name, "--num-samples", 1, "--steps", 1)
        for wrong in (("--known", "first:2"), ("--known", "ends"), ("--start-gamma", 0.5)):
            said = fails(capsys, export, *words, *wrong)
            assert f"{name} is an animation, of which the first picture is read: give it as a video" in said
        assert run(export, *words) == 0
        assert "(animation, of which the first picture is read); known: frame 0 of 3" in capsys.readouterr().out
    assert run(export, "--out", tmp_path / "s", "--start-from", still, "--known", "ends", "--steps", 1) == 0
    assert "of which the first picture" not in capsys.readouterr().out


def test_keyframes(export, pictures, tmp_path, capsys):
    words = (f"0={pictures / 'a.png'}", f"-1={pictures / 'c.png'}")
    assert run(export, "--out", tmp_path, "--num-samples", 2, "--labels", "left", "--keyframes", *words) == 0
    assert "known: frames 0, 2 of 3" in capsys.readouterr().out
    samples = npz(tmp_path)[0]
    for frame, name in ((0, "a"), (2, "c")):
        picture = center_crop(read_image(pictures / f"{name}.png"), 16)
        assert differs(samples[:, frame], reconstructed(picture[None, None])[0, 0]) <= 1
    assert settings_of(tmp_path)["known"] == [0, 2]


def test_known_frames_of_samples_keep_their_labels(export, tmp_path, capsys):
    assert run(export, "--out", tmp_path / "first", "--num-samples", 3, "--labels", "left", "none", "up") == 2
    assert run(export, "--out", tmp_path / "first", "--num-samples", 3, "--labels", "left", "up") == 0
    words = ("--start-from", tmp_path / "first" / "samples.npz", "--known", "last:2")
    assert run(export, "--out", tmp_path / "second", *words) == 0
    samples, labels = npz(tmp_path / "second")
    assert labels == [2, 0, 2]
    assert differs(samples[:, 1:], reconstructed(npz(tmp_path / "first")[0])[:, 1:]) <= 1


def test_finished_clips_of_another_shape_are_refused(export, tmp_path, capsys):
    assert run(export, "--out", tmp_path / "first", "--num-samples", 2, "--size", 8, "--steps", 1) == 0
    words = ("--start-from", tmp_path / "first" / "samples.npz", "--steps", 1)
    said = fails(capsys, export, "--out", tmp_path / "x", *words, "--known", "first")
    assert "3 frames of 8x8 pixels, but this model makes 3 frames of 16x16" in said and "--size 8x8" in said
    assert run(export, "--out", tmp_path / "asked", *words, "--known", "first", "--size", 8) == 0
    assert run(export, "--out", tmp_path / "partial", *words, "--start-gamma", 0.5) == 0  # as it always was
    assert "leave --frames and --size out" in fails(capsys, export, "--out", tmp_path / "x", *words, "--size", 16)


def test_partial_denoising_beside_known_frames(export, videos, tmp_path, capsys):
    path = videos / "up" / "a.mp4"
    common = (export, "--start-from", path, "--known", "first", "--start-gamma", 0.9, "--frame-interval", 4)
    assert run(*common, "--out", tmp_path) == 0
    clip = open_data("videos", path.parent, frames=3, frame_interval=4, size=16).clip(0, start=0).pixels
    clip = clip.movedim(1, -1).numpy()[None]
    how = {"clips": clip, "known": [0], "start_gamma": 0.9, "seeds": [0], "fps": 6.25, "output_type": "uint8"}
    expected = tiny_pipeline()([0], **how).frames
    assert differs(npz(tmp_path)[0], expected) <= 1
    assert "a.mp4 has 30 frames" in fails(capsys, *common, "--at", 1.1, "--out", tmp_path / "x")  # all frames now


def test_options_of_known_frames_reach_the_pipeline(export, videos, tmp_path):
    path = videos / "up" / "a.mp4"
    words = ("frame_schedule=pyramid", "context_gamma=0.9", "history_guidance=1.5", "known=first")
    assert run(export, "--out", tmp_path, "--start-from", path, *words) == 0
    clip = open_data("videos", path.parent, frames=3, frame_interval=2, size=16).clip(0, start=0).pixels
    given = {"frame_schedule": "pyramid", "context_gamma": 0.9, "history_guidance": 1.5, "known": [0]}
    clip = clip.movedim(1, -1).numpy()[None]
    expected = tiny_pipeline()([0], clips=clip, seeds=[0], output_type="uint8", **given).frames
    assert differs(npz(tmp_path)[0], expected) <= 1
    assert {key: settings_of(tmp_path)[key] for key in given} == given
    assert run(export, "--out", tmp_path / "delay", "--frame-schedule", 1, "--num-samples", 1) == 0
    assert settings_of(tmp_path / "delay")["frame_schedule"] == 1


def test_other_starts_are_other_samples(export, videos, tmp_path, capsys):
    common = ("--out", tmp_path, "--num-samples", 1, "--steps", 1)
    assert run(export, *common, "--start-from", videos / "up" / "a.mp4", "--known", "first") == 0
    for other in (("--known", "ends"), ("--known", "first", "--at", 0.2), ("--known", "first", "--start-gamma", 0.5)):
        said = fails(capsys, export, *common, "--start-from", videos / "up" / "a.mp4", *other)
        assert "made with other settings" in said
    said = fails(capsys, export, *common, "--start-from", videos / "up" / "b.mp4", "--known", "first")
    assert "start_from:" in said
    assert run(export, *common, "--start-from", videos / "up" / "a.mp4", "--known", "0") == 0  # the same in other words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--known", "first"), "--known needs clips to start from"),
        (("--at", "1"), "--at needs clips to start from"),
        (("--split", "test"), "--split needs clips to start from"),
        (("--start-from", "VIDEOS"), "--known FRAMES"),
        (("--start-from", "VIDEO"), "--known FRAMES"),
        (("--start-from", "VIDEO", "--known", "3"), "numbers go from 0 to 2"),
        (("--start-from", "VIDEO", "--known", "0-2"), "nothing is left to sample"),
        (("--start-from", "VIDEO", "--known", "0", "--at", "7"), "has 30 frames"),
        (("--start-from", "VIDEO", "--known", "0", "--size", "18"), "not divisible by 4"),
        (("--start-from", "VIDEO", "--known", "0", "--split", "test"), "--split chooses among the files of a folder"),
        (("--start-from", "VIDEOS", "--known", "0", "--split", "test"), "needs UCF-101's lists"),
        (("--start-from", "VIDEOS", "--known", "0", "--fold", "2"), "add --split"),
        (("--start-from", "IMAGE", "--at", "1"), "--at is for videos"),
        (("--start-from", "IMAGE", "frames=1"), "--start-gamma"),
        (("--start-from", "TEXT", "--known", "0"), "give a samples.npz"),
        (("--start-from", "BROKEN", "--known", "0"), "cannot be read as a video"),
        (
            (
                "--start-from",
                "TORN",
            ),
            "cannot be",
        ),
        (("--start-from", "nowhere.mp4"), "does not exist"),
        (("--keyframes", "0=IMAGE", "--start-from", "IMAGE"), "leave --start-from out"),
        (("--keyframes", "0=IMAGE", "--known", "0"), "leave --known out"),
        (("--keyframes", "0=IMAGE", "--start-gamma", "0.5"), "leave --start-gamma out"),
        (("--keyframes", "3=IMAGE"), "numbers go from 0 to 2"),
        (("--keyframes", "0=VIDEO"), "cannot be"),
        (("--keyframes", "0=nowhere.png"), "nowhere.png"),
        (("--context-gamma", "0.9"), "--context-gamma needs known frames"),
        (("--history-guidance", "2"), "--history-guidance needs known frames"),
        (("--frame-schedule", "5"), "--frame-schedule: "),
        (("--frame-schedule", "pyramid", "--sampler", "euler"), "leave --frame-schedule out"),
        (("--start-from", "VIDEO", "--known", "0-1", "--fps", "25", "--frame-interval", "5"), "--frame-interval 1"),
        (("--length", "9", "--start-from", "VIDEO", "--known", "last"), "count them from 0 within the first window"),
        (("--length", "9", "--start-from", "VIDEO", "--known", "0,-1"), "--known 0,-1: with --length"),
        (("--length", "9", "--keyframes", "0=IMAGE", "-1=IMAGE"), "--keyframes -1="),
        (("--overlap", "1"), "add --length"),
        (("--length", "3"), "no longer than one window of 3 frames"),
        (("--length", "9", "--overlap", "3"), "overlap is 3"),
        (("--length", "9", "frames=1"), "frames=1 are images"),
    ],
)
def test_what_cannot_be_is_refused(export, videos, pictures, tmp_path, arguments, says, capsys):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "torn.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    places = {
        "VIDEOS": videos,
        "VIDEO": videos / "up" / "a.mp4",
        "IMAGE": pictures / "a.png",
        "TEXT": tmp_path / "a.txt",
        "BROKEN": tmp_path / "broken.mp4",
        "TORN": tmp_path / "torn.png",
    }
    words = []
    for word in arguments:
        frame, equals, name = word.rpartition("=")
        words.append(f"{frame}{equals}{places.get(name, name)}")
    assert says in fails(capsys, export, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


# Marks --------------------------------------------------------------------------------------------------------------


def test_known_frames_are_marked_in_the_grid_only(export, videos, tmp_path):
    common = (export, "--start-from", videos / "up" / "a.mp4", "--known", "0,2", "--out", tmp_path, "--scale", 2)
    assert run(*common, "--format", "gif,png", "--num-samples", 2) == 0
    grid = Image.open(tmp_path / "grid.gif")
    ground, marked = [], []
    for frame in range(3):
        grid.seek(frame)
        picture = np.asarray(grid.convert("RGB")).astype(int)
        edge = picture[18:20, 4:30]  # below the caption: 16 + 2 pixels a side, twice enlarged
        marked.append(np.abs(edge - ORANGE).max() <= 8)
        ground.append(edge.min() >= 250)
    strip = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    orange = (np.abs(strip - ORANGE).max(axis=-1) == 0).any(axis=0)
    width = (strip.shape[1] - 4) // 3
    assert [bool(orange[2 + k * width : 2 + (k + 1) * width].any()) for k in range(3)] == [True, False, True]
    clip = np.asarray(Image.open(tmp_path / "clips" / "000000.png"))
    assert clip.shape == (16, 48, 3) and (clip == np.concatenate(list(npz(tmp_path)[0][0]), axis=1)).all()
    assert grid.size[0] == 2 + 2 * (2 * 18 + 2) and marked == [True, False, True] and ground == [False, True, False]
    assert run(*common, "--format", "gif", "--num-samples", 2, "--no-marks") == 0
    assert Image.open(tmp_path / "grid.gif").size[0] == 2 + 2 * (2 * 16 + 2)


# Long videos --------------------------------------------------------------------------------------------------------


def test_a_long_video_is_that_of_roll_out(export, videos, tmp_path, capsys):
    words = ("--length", 8, "--overlap", 1, "--start-from", videos / "up" / "a.mp4", "--known", "first:2")
    assert run(export, "--out", tmp_path, *words, "--num-samples", 3, "--batch-size", 3, "--format", "gif,mp4") == 0
    said = capsys.readouterr().out
    samples, labels = npz(tmp_path)
    assert samples.shape == (3, 8, 16, 16, 3) and labels == [0, 0, 0]
    clip = open_data("videos", videos / "up", frames=3, frame_interval=2, size=16).clip(0, start=0).pixels
    clips = np.stack([clip.movedim(1, -1).numpy()] * 3)
    windows = list(
        roll_out(tiny_pipeline(), [0] * 3, length=8, overlap=1, clips=clips, known=[0, 1], seeds=range(3), fps=12.5)
    )
    expected = np.concatenate([window.frames for window in windows], axis=1)
    assert differs(samples, expected) <= 1
    record = json.loads((tmp_path / "samples.json").read_text())
    assert [row["first_new_frame"] for row in record["drift"]] == [window.start for window in windows] == [0, 3, 5, 7]
    for row, window in zip(record["drift"], windows, strict=True):
        assert row["context_rms"] == pytest.approx(float(window.drift.mean()), rel=1e-3)
        new = window.rms[~window.known].mean()
        assert row["new_rms"] == pytest.approx(float(new), rel=1e-3)
        assert row["motion"] == pytest.approx(float(window.motion.mean()), rel=1e-3)
        assert f"window {window.index}, frames {window.start}-" in said
    assert record["nfe"] == sum(window.nfe for window in windows).tolist()
    assert (record["settings"]["length"], record["settings"]["overlap"]) == (8, 1)
    clips = {f"clips/{k:06d}.{kind}" for k in range(3) for kind in ("gif", "mp4")}
    assert files(tmp_path) == {"grid.gif", "grid.mp4", "samples.npz", "samples.json", *clips}


def test_a_long_video_from_noise_has_half_a_window_of_overlap(export, tmp_path):
    assert run(export, "--out", tmp_path, "--length", 6, "--num-samples", 2, "--labels", "up", "--frames", 4) == 0
    found = json.loads((tmp_path / "samples.json").read_text())
    assert (found["settings"]["frames"], found["settings"]["overlap"]) == (4, 2)
    assert found["drift"][0]["context_rms"] is None and found["drift"][1]["context_rms"] > 0
    first = tiny_pipeline()([0, 0], seeds=[0, 1], num_frames=4, output_type="uint8").frames
    assert differs(npz(tmp_path)[0][:, :4], first) <= 1


def test_an_interrupted_long_video_goes_on(export, tmp_path, monkeypatch):
    common = (export, "--num-samples", 4, "--batch-size", 2, "--length", 7, "--overlap", 1)
    assert run(*common, "--out", tmp_path / "whole") == 0
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        call, windows = EqMPipeline.sample, []

        def stopped(self, how, labels, **options):
            if len(windows) == 5:  # 3 windows a batch: in the middle of the second one
                raise KeyboardInterrupt
            windows.append(len(labels))
            return call(self, how, labels, **options)

        patch.setattr(EqMPipeline, "sample", stopped)
        assert run(*common, "--out", out) == 130
    left = {name.removeprefix(".parts-eqm/") for name in files(out) if name.startswith(".parts-eqm/")}
    assert left == {"settings.json", "00000000.npy", "nfe_00000000.npy", "drift_00000000.npy"}
    with monkeypatch.context() as patch:
        sizes = count_batches(patch)
        assert run(*common, "--out", out) == 0
        assert sizes == [2, 2, 2]
    assert files(out) == files(tmp_path / "whole")
    assert (npz(out)[0] == npz(tmp_path / "whole")[0]).all()
    one, two = (json.loads((place / "samples.json").read_text()) for place in (out, tmp_path / "whole"))
    assert one == two
    assert (out / "clips" / "000003.gif").read_bytes() == (tmp_path / "whole" / "clips" / "000003.gif").read_bytes()


# Real clips ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real clips of ../shared/real")
def test_real_people_go_on_through_the_bundled_codec(export, tmp_path, capsys):
    model = EqMPipeline.from_pretrained(export)
    words = ("--codec", "bundled", "--size", 32, "--known", "0,-1", "--start-from", REAL / "actions", "--split", "test")
    assert run(export, "--out", tmp_path, *words, "--steps", 2) == 0
    assert "starts from 4 videos" in capsys.readouterr().out
    data = open_data("videos", REAL / "actions", split="test", frames=3, frame_interval=2, size=32)
    clips = np.stack([data.clip(k, start=0).pixels.movedim(1, -1).numpy() for k in range(4)])
    from eqm_video.codec import Codec

    pipe = EqMPipeline(model.transformer, Codec.load("bundled").vae, **{"size": 32, "frames": 3})
    with torch.no_grad():
        back = pipe.decode(pipe.encode(clips))
    assert differs(npz(tmp_path)[0][:, [0, 2]], back[:, [0, 2]]) <= 1
    assert np.abs(back.astype(int) - clips).mean() < 12  # the codec knows people, so that the check means something
