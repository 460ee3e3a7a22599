"""Predictions against the truth: errors and baselines by hand, and the whole command on real encoded videos."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from shape_models import FRAMES, SIZE, pipeline

from eqm_video.data.moving_shapes import write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies import predict as module
from eqm_video.studies.predict import Predict, compare, fade, hold, motion, rms


def ramp(slope: int = 10) -> np.ndarray:
    """Two clips of 5 frames, each of one grey that grows by `slope` a frame."""
    greys = 50 + slope * np.arange(5)[None, :] + np.array([[0], [3]])
    return np.broadcast_to(greys[..., None, None, None], (2, 5, 4, 4, 3)).astype(np.uint8)


def test_baselines_of_a_ramp():
    clips = ramp()
    assert (fade(clips, [0, 4]) == clips).all()  # a straight line is what fading predicts
    assert rms(hold(clips, [0]), clips).tolist() == [[0, 10, 20, 30, 40]] * 2
    assert rms(hold(clips, [0, 4]), clips)[0].tolist() == [0, 10, 20, 10, 0]  # of two, the earlier
    assert rms(fade(clips, [1, 2]), clips)[0].tolist() == [10, 0, 0, 10, 20]  # held outside


def test_errors_are_those_of_the_unknown_frames_and_the_best_sample_is_chosen_by_clip():
    truth = ramp()
    one, other = truth.copy(), truth.copy()
    one[0, 2:] += 6
    other[1, 2:] += 4
    found = compare(np.stack([one, other]), truth, [0, 1])
    assert found["error"]["mean"] == pytest.approx((6 + 0 + 0 + 4) / 4)
    assert found["error"]["best"] == 0
    assert found["error by frame"]["mean"] == pytest.approx([0, 0, 2.5, 2.5, 2.5])
    assert found["error"]["held"] == pytest.approx(20)
    decibels = [(10 * np.log10(255**2 / each**2) + 100) / 2 for each in (6, 4)]  # of a wrong sample, and a perfect one
    assert found["psnr"]["mean"] == pytest.approx(np.mean(decibels)) and "ssim" not in found  # frames are too small
    assert found["psnr"]["low"] == pytest.approx(decibels[0]) and found["psnr"]["high"] == pytest.approx(decibels[1])
    assert compare(truth[None], truth, [0])["motion"] == 1
    still = np.repeat(truth[:, :1], 5, axis=1)
    assert motion(truth) == 10 and compare(still[None], truth, [0])["motion"] == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    write_moving_shapes(root / "videos", videos=2, held_out=1, frames=FRAMES, size=SIZE)
    pipeline(sampler={"steps": 3}).save_pretrained(root / "model")
    return root


def test_the_command(folders, capsys):
    words = [str(folders / "model"), "--data", str(folders / "videos"), "--split", "test", "--clips", "5"]
    words += ["--batch-size", "2", "--samples", "2", "--known", "first", "0,-1", "--device", "cpu"]
    assert Predict.main([*words, "--out", str(folders / "out")]) == 0
    record = json.loads((folders / "out" / "predict.json").read_text())
    assert record["clips"] == 5 and record["labelled"] == 5
    assert list(record["predictions"]) == ["first", "0,-1"]
    ends = record["predictions"]["0,-1"]
    assert ends["known"] == [0, FRAMES - 1]
    by_frame = ends["error by frame"]
    assert all(by_frame["mean"][frame] < 0.6 for frame in (0, -1))  # the known ones, as the codec keeps them
    assert all(by_frame["mean"][frame] > 1 for frame in (1, 2))  # an untrained network knows nothing
    assert ends["error"]["best"] <= ends["error"]["mean"]
    assert ends["psnr"]["low"] < ends["psnr"]["mean"] < ends["psnr"]["high"] and -1 < ends["ssim"]["mean"] < 1
    printed = capsys.readouterr().out
    assert "| 0,-1" in printed and f"{ends['psnr']['mean']:.1f} (" in printed and "predict.gif" in printed
    with Image.open(folders / "out" / "predict.gif") as picture:
        assert picture.n_frames == FRAMES
    for name in ("predict.png", "predict_strips.png"):
        assert (folders / "out" / name).stat().st_size > 1000


def test_pictures_can_leave_out_every_real_frame(folders, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "draw_clips", lambda path, truth, rows, fps: shown.append((truth, rows)) or path)
    words = [str(folders / "model"), "--data", str(folders / "videos"), "--clips", "2", "--known", "first", "0,-1"]
    words += ["--device", "cpu", "--out", str(folders / "private")]
    assert Predict.main(words) == 0 and Predict.main([*words, "--predictions-only"]) == 0
    (truth, open_rows), (nothing, rows) = shown
    assert truth is not None and nothing is None
    for name, known in {"first": [0], "0,-1": [0, FRAMES - 1]}.items():
        hidden = [frame for frame in range(FRAMES) if frame not in known]
        assert (rows[name][0][:, known] == 128).all() and (open_rows[name][0][:, known] != 128).any()
        assert np.array_equal(rows[name][0][:, hidden], open_rows[name][0][:, hidden])


def test_clips_are_conditioned_on_their_true_times(folders, tmp_path, monkeypatch):
    write_moving_shapes(tmp_path / "videos", videos=1, held_out=1, frames=2 * FRAMES, size=SIZE, fps=13)
    fields, made = [], EqMPipeline.field
    monkeypatch.setattr(EqMPipeline, "field", lambda *given, **more: fields.append(made(*given, **more)) or fields[-1])
    words = [str(folders / "model"), "--data", str(tmp_path / "videos"), "--clips", "3", "--batch-size", "2"]
    assert Predict.main([*words, "--known", "first", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    expected = torch.arange(FRAMES) * 2 / 13 * 8  # every 2nd frame is nearest to the model's 8 a second
    assert [len(field.times) for field in fields] == [2, 1]
    assert all(torch.allclose(row, expected) for field in fields for row in field.times)
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["fps"] == [6.5] * 3


def test_frames_may_move_in_turn_by_a_number_of_steps(folders, monkeypatch):
    words = [str(folders / "model"), "--data", str(folders / "videos"), "--clips", "1", "--known", "first"]
    results, sample = [], EqMPipeline.sample
    monkeypatch.setattr(
        EqMPipeline, "sample", lambda *given, **more: results.append(sample(*given, **more)) or results[-1]
    )
    for schedule in ("joint", "1", "autoregressive"):
        out = folders / f"schedule-{schedule}"
        assert Predict.main([*words, "--frame-schedule", schedule, "--device", "cpu", "--out", str(out)]) == 0
    assert [int(result.nfe) for result in results] == [3, 3 + 2 * 1, 3 + 2 * 3]  # 3 steps of 3 frames, 1 or 3 apart
    with pytest.raises(UserError, match="--frame-schedule is diagonal: it must be joint or pyramid"):
        Predict.main([*words, "--frame-schedule", "diagonal", "--out", str(folders / "other")])


def test_frames_that_are_not_there_are_refused_before_any_is_sampled(folders, monkeypatch):
    monkeypatch.setattr(Predict, "predict", lambda *_: pytest.fail("sampled"))
    words = [str(folders / "model"), "--data", str(folders / "videos"), "--out", str(folders / "other")]
    with pytest.raises(UserError, match=r"--known first:9.*numbers go from 0 to 3"):
        Predict.main([*words, "--known", "first", "first:9", "--device", "cpu"])


def test_a_folder_that_is_not_there_does_not_exist(folders):
    words = [str(folders / "model"), "--out", str(folders / "other"), "--device", "cpu"]
    with pytest.raises(UserError, match="nowhere does not exist; give a folder"):
        Predict.main([*words, "--data", str(folders / "nowhere")])
    with pytest.raises(UserError, match=r"config\.json is a file; give a folder"):
        Predict.main([*words, "--data", str(folders / "model" / "transformer" / "config.json")])


def test_images_have_no_frames_to_predict(folders):
    (folders / "images").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(folders / "images" / "one.png")
    words = [str(folders / "model"), "--data", str(folders / "images"), "--out", str(folders / "other")]
    with pytest.raises(UserError, match="holds images"):
        Predict.main([*words, "--device", "cpu"])
