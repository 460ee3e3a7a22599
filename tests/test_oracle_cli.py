"""The command that does every task along the exact field: its clips, its numbers, its film."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eqm_video.data.moving_shapes import distance, measure_motion, track
from eqm_video.errors import UserError
from eqm_video.output.media import to_uint8
from eqm_video.output.overlays import MOVING, RESTING
from eqm_video.studies.oracle.pictures import HOLD, PICTURES, ROUNDS, Strip, draw_moment, moments, posterised
from eqm_video.studies.oracle.runs import COLOURS, GROUND, moving_clips, tasks, way_come
from eqm_video.studies.oracle.study import Oracle


def test_the_clips_show_what_their_names_say():
    clips, names = moving_clips(32, 8)
    assert clips.shape == (16, 8, 3, 32, 32) and len(set(names)) == 16
    for clip, name in zip(to_uint8(clips), names, strict=True):
        assert measure_motion(clip, endless=True).label == name
        places = track(clip, endless=True)
        assert distance(places[0], np.array([15.5, 15.5]), 32) < 0.2
        assert distance(places[-1], places[0], 32) == pytest.approx(16, abs=0.3)  # half the world away
        colours = {tuple(pixel) for pixel in clip.reshape(-1, 3)}
        assert GROUND in colours and any(colour in colours for colour in COLOURS.values())
    torch.testing.assert_close(clips[0, 0], clips[3, 0], rtol=0, atol=0)
    torch.testing.assert_close(clips[0, -1], clips[1, -1], rtol=0, atol=1e-9)
    torch.testing.assert_close(clips[2, -1], clips[3, -1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("frames", [5, 8, 16])
def test_tasks_know_frames_that_are_there(frames):
    found = {task.name: task for task in tasks(frames)}
    assert found["image-to-video"].known == (0,)
    assert found["in-betweening"].known == (0, frames - 1)
    assert found["in-betweening"].gammas(frames).tolist() == [1.0] + [0.0] * (frames - 2) + [1.0]
    first, second = found["inpainting in time"].known
    assert 0 < first < second < frames - 1
    ramp = found["mixed noise"].gammas(frames)
    assert ramp[0] == 0.9 and ramp[-1] == 0 and (ramp.diff() < 0).all()


def test_the_way_that_a_frame_has_come_is_its_gamma_on_the_straight_path():
    goals, noise = torch.rand(2, 3, 3, 4, 4).double(), torch.randn(2, 3, 3, 4, 4).double()
    start = torch.tensor([0.0, 0.4, 1.0]).double()
    gammas = torch.stack([start, 0.5 * (1 + start), torch.ones(3).double()])  # (S, T)
    spread = gammas[None, :, :, None, None, None]
    walks = spread * goals[:, None] + (1 - spread) * noise[:, None]
    torch.testing.assert_close(way_come(walks, goals, start), gammas.expand(2, 3, 3))


def strip(steps: int = 40, frames: int = 5) -> Strip:
    gammas = np.linspace(0, 1, steps + 1)[:, None].repeat(frames, axis=1)
    gammas[:, 0] = 1
    states = np.random.default_rng(0).integers(0, 256, (steps + 1, frames, 8, 8, 3), dtype=np.uint8)
    return Strip("image-to-video", "the first frame is known", states, gammas, np.arange(frames) == 0, "DiscUp")


def test_the_film_holds_its_start_walks_and_plays_its_end():
    order = moments([strip()])
    assert order[: HOLD + 1] == [0] * (HOLD + 1)
    assert order[-ROUNDS * 5 :] == [40] * (ROUNDS * 5)
    walked = order[HOLD : -ROUNDS * 5]
    assert len(walked) <= PICTURES and (np.diff(walked) > 0).all() and max(walked) < 40


def test_a_picture_marks_known_frames_shows_gammas_and_names_the_end():
    one = strip()
    early, late = draw_moment([one, one], 10, 3), draw_moment([one, one], 40, 3)
    assert early.shape == late.shape and early.dtype == np.uint8 and early.shape[1] < 900

    def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((picture == colour).all(axis=2).sum())

    assert count(early, RESTING) > 400  # the border and the bar of the known frame, in two rows
    assert count(late, RESTING) > count(early, RESTING) + 400
    assert count(early, MOVING) > 100 and count(late, MOVING) == 0
    without = Strip(**{**one.__dict__, "end": ""})
    named = draw_moment([without], 40, 3) != draw_moment([one], 40, 3)
    assert named.any() and (draw_moment([without], 10, 3) == draw_moment([one], 10, 3)).all()


def test_the_clip_beside_the_frames_plays():
    one = strip()
    first, second = draw_moment([one], 40, 0), draw_moment([one], 40, 1)
    changed = np.flatnonzero((first != second).any(axis=(0, 2)))
    frame = one.states[40, 0].repeat(8, axis=0).repeat(8, axis=1)  # 8 pixels are shown as 64
    assert changed.max() - changed.min() + 1 <= 64
    left = changed.min()
    shown = [first[top : top + 64, left : left + 64] for top in range(first.shape[0] - 63)]
    assert any(np.array_equal(picture, frame) for picture in shown)


def test_noise_is_shown_in_few_colours_and_what_is_clear_in_all():
    one = strip()
    assert set(np.unique(posterised(one.states))) == {0, 85, 170, 255}
    assert len(np.unique(draw_moment([one], 10, 0))) < len(np.unique(draw_moment([one], 40, 0)))


def test_the_command_writes_a_film_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--out", tmp_path, "--num-samples", 4, "--size", 8, "--frames", 5, "--steps", 40, "--step-size", 0.02]
    assert Oracle.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "image-to-video" in said and "oracle.gif" in said
    record = json.loads((tmp_path / "oracle.json").read_text())
    assert len(record["settings"]["clips"]) == 16 and record["settings"]["seeds"] == 4
    found = record["tasks"]
    assert list(found) == [task.name for task in tasks(5)]
    for one in found.values():
        assert one["at_a_clip"] == one["at_an_agreeing_clip"] == 1 and one["known_frames_unchanged"]
        assert one["rms_from_clip"] < 1e-4 and one["nfe"] == 40 and sum(one["chosen"].values()) == 4
        stopping = one["per_frame_stopping"]
        assert stopping["same_clip"] == 1 and stopping["rms_from_clip"] < 1.3 * 0.1 * 0.2 / 4
        assert all(stopping["frame_nfe"][frame] == 0 for frame in one["known"])
        assert stopping["nfe"] < 40 and max(stopping["frame_nfe"]) <= stopping["nfe"]
    assert found["image-to-video"]["agreeing_clips"] == ["DiscRight", "DiscLeft", "DiscDown", "DiscUp"]
    assert found["in-betweening"]["agreeing_clips"] == ["DiscRight", "DiscLeft"]
    assert found["continuation"]["chosen"] == {"DiscRight": 4}
    assert found["continuation"]["gradient_on_known_frames"] < 1e-6
    other = found["continuation"]["one_gamma_for_the_clip"]
    assert other["gradient_on_known_frames"] > 0.05 and other["at_an_agreeing_clip"] <= 1
    mixed = found["mixed noise"]["per_frame_stopping"]
    assert sum(mixed["frame_nfe"]) < 0.8 * 5 * mixed["nfe_together"]
    with Image.open(tmp_path / "oracle.gif") as film:
        assert film.n_frames > 10 and film.width < 900


def test_the_film_can_be_left_out_and_samples_do_not_depend_on_their_number(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("eqm_video.studies.oracle.study.tasks", lambda frames: tasks(frames)[1:2])
    chosen = []
    for count in (2, 5):
        words = ["--num-samples", count, "--size", 8, "--frames", 5, "--steps", 30, "--step-size", 0.02, "--no-film"]
        assert Oracle.main([str(word) for word in [*words, "--out", tmp_path, "--seed", 3]]) == 0
        chosen.append(json.loads((tmp_path / "oracle.json").read_text())["tasks"]["image-to-video"]["chosen"])
    assert not (tmp_path / "oracle.gif").exists()
    assert all(chosen[1][name] >= number for name, number in chosen[0].items())


def test_the_film_in_the_docs_is_small_enough_for_a_page(root: Path):
    film = root / "docs" / "video" / "oracle.gif"
    assert film.stat().st_size < 1.5e6
    with Image.open(film) as opened:
        assert opened.width <= 900


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--step-size 0.05", "--step-size is 0.05: it must be a number above 0 and at most 0.045"),
        ("--step-size 0", "--step-size is 0: it must be a number above 0 and at most 0.045"),
        ("--frames 4", "--frames is 4: it must be a whole number from 5 to 16"),
        ("--size 200", "--size is 200x200: it must be a whole number from 8 to 64"),
        ("--num-samples 1", "--num-samples is 1: it must be a whole number of at least 2"),
    ],
)
def test_wrong_words_are_refused(words: str, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=says):
        Oracle.main([*words.split(), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
