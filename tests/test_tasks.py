"""The video tasks on endless moving shapes: measures against closed forms, recipes that differ in gamma, tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import tiny_pipeline
from tiny_run import write_codec

from eqm_video import options
from eqm_video.data.datasets import look_at_video
from eqm_video.data.moving_shapes import label_names
from eqm_video.errors import UserError
from eqm_video.sampling.option_groups import Rendered
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies import recipes
from eqm_video.studies.demo import write_videos
from eqm_video.studies.tasks import clips as tasks_clips
from eqm_video.studies.tasks import long as tasks_long
from eqm_video.studies.tasks import report as tasks_report
from eqm_video.studies.tasks import short as tasks_short
from eqm_video.studies.tasks import study as tasks
from eqm_video.training.config import load_config, to_tree
from eqm_video.training.strict_yaml import flatten

NAMES = label_names(("Disc", "Square"))
GAMMAS = {"shared", "per_frame", "context", "context_any", "mixture", "mixture_half"}


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def truth() -> tasks_clips.Truth:
    return tasks_clips.Truth.render(NAMES, 24, 32)


def filled(clips: np.ndarray) -> tasks_short.Filled:
    return tasks_short.Filled(clips, np.full(len(clips), 5), np.full(clips.shape[:2], 5), 1.0)


def task(name: str) -> tasks_short.Task:
    return next(one for one in tasks_short.tasks(8, 3) if one.name == name)


# Clips and baselines ------------------------------------------------------------------------------------------------


def test_truth_goes_on_and_depends_on_its_own_numbers_alone(truth: tasks_clips.Truth) -> None:
    fewer = tasks_clips.Truth.render(NAMES[:2], 8, 32)
    assert np.array_equal(fewer.clips, truth.clips[:2, :8]) and fewer.shapes == ("Disc",)
    assert not np.array_equal(tasks_clips.Truth.render(NAMES[:2], 8, 32, seed=1).clips, fewer.clips)
    low, high = 0.30 * 32 / 7, 0.42 * 32 / 7  # pixels a frame that endless shapes travel
    assert (truth.speeds > low - 0.05).all() and (truth.speeds < high + 0.05).all()
    steps = tasks_clips.distance(truth.places[:, 1:], truth.places[:, :-1], 32)
    assert np.abs(steps - truth.speeds[:, None]).max() < 0.6  # measured in pixels, across the edges too


def test_true_clips_are_of_the_kind_that_a_model_learned():
    """Near the middle across their direction for the shipped model, and where it is asked for; anywhere for others."""
    names = ["DiscRight", "DiscDown"] * 4
    for centred in (True, False):
        places = tasks_clips.Truth.render(names, 8, 32, seed=1, centred=centred).places.mean(axis=1)
        across = np.abs(np.where(np.arange(8) % 2 == 0, places[:, 1], places[:, 0]) - 15.5)
        assert across.max() < 0.12 * 32 + 0.5 if centred else across.max() > 6
    shipped, other = EqMPipeline.from_pretrained("demo"), tiny_pipeline()
    assert tasks_clips.is_centred(Rendered(), shipped) and not tasks_clips.is_centred(Rendered(), other)
    assert tasks_clips.is_centred(Rendered(centred=True), other)


def test_straight_lines_find_what_moves_straight_on(truth: tasks_clips.Truth) -> None:
    size, every = 32, np.arange(9)
    start, step = np.array([[30.0, 5.0]]), np.array([[1.7, -0.5]])
    places = (start[:, None] + step[:, None] * every[:, None]) % size  # over two edges
    for known in ([0, 1, 2], [0, 8], [0, 3, 7]):
        guess = tasks_clips.straight(places[:, known], known, 9, size)
        assert tasks_clips.distance(guess, places, size).max() < 1e-9, known
    held = tasks_clips.held(places[:, [0, 3, 7]], [0, 3, 7], 9)
    wrong = tasks_clips.distance(held, places, size)[0] / np.hypot(1.7, 0.5)
    assert wrong == pytest.approx([0, 1, 2, 0, 1, 2, 3, 0, 1])


def test_description_of_errors() -> None:
    found = tasks_clips.describe(np.array([[0.0, 1.0], [2.0, 5.0]]))
    assert (found["mean"], found["median"], found["near"]) == (2.0, 1.5, 0.5)
    assert found["mean by frame"] == [1.0, 3.0] and found["near by frame"] == [0.5, 0.5]
    assert found["error"] == pytest.approx(np.std([0.5, 3.5], ddof=1) / 2**0.5)


def test_only_models_of_moving_shapes_are_measured() -> None:
    def model(labels: dict, size: tuple = (32, 32), frames: int = 8) -> SimpleNamespace:
        return SimpleNamespace(labels=labels, check_size=lambda: size, check_frames=lambda: frames)

    labels = dict(enumerate(NAMES))
    assert tasks_clips.names_of(model(labels), 10) == [*NAMES, *NAMES[:2]]
    with pytest.raises(UserError, match=r"labels such as DiscRight; this model has walk: train one from configs/gamma"):
        tasks_clips.names_of(model({0: "walk"}), 4)
    with pytest.raises(UserError, match="has no labels"):
        tasks_clips.names_of(model({}), 4)
    for wrong in ({"size": (32, 64)}, {"frames": 1}):
        with pytest.raises(UserError, match="square clips of at least 4 frames"):
            tasks_clips.names_of(model(labels, **wrong), 4)


# Tasks within a clip ------------------------------------------------------------------------------------------------


def test_tasks_know_the_frames_that_they_say() -> None:
    known = {one.name: one.known for one in tasks_short.tasks(8, 3)}
    assert known["generation"] == () and known["image-to-video"] == (0,)
    assert known["continuation"] == known[tasks_short.TOLD] == (0, 1, 2)
    assert known["in-betweening"] == (0, 7) and known["inpainting"] == (0, 3, 7)
    assert task("inpainting").unknown(8) == [1, 2, 4, 5, 6]
    assert [one.name for one in tasks_short.tasks(8, 3) if one.placed] == list(tasks_report.PLACED)


def test_the_truth_is_measured_as_right(truth: tasks_clips.Truth) -> None:
    clips = truth.clips[:, :8]
    for one in tasks_short.tasks(8, 3):
        found = tasks_short.measure(filled(clips), one, truth, clips)
        if one.placed:
            # measured in a part of the clip and in all of it: the same up to the ground's rounding
            assert found["position"]["mean"] < 0.02 and found["position"]["near"] == 1
        if one.told:
            assert (found["direction_accuracy"], found["shape_accuracy"], found["both_accuracy"]) == (1, 1, 1)
            assert found["speed"] == pytest.approx(1, abs=0.05)
        if one.known:
            assert found["changed"] == 0 and found["known position"] < 0.02
    changed = clips.copy()
    changed[3, 2] = 255 - changed[3, 2]
    assert tasks_short.measure(filled(changed), task("continuation"), truth, clips)["changed"] > 100


def test_a_clip_that_stands_still_is_wrong_by_what_it_misses(truth: tasks_clips.Truth) -> None:
    clips = truth.clips[:, :8].copy()
    clips[:, 3:] = clips[:, 2:3]
    found = tasks_short.measure(filled(clips), task("continuation, told"), truth, clips)
    missed = truth.speeds.mean() * np.arange(1, 6)
    assert found["position"]["mean by frame"] == pytest.approx(missed, abs=0.15)
    assert found["direction_accuracy"] == 0 and 0 < found["speed"] < 0.5  # three frames that move are not enough
    guesses = tasks_short.baselines(task("continuation"), truth, truth.clips[:, :8])
    assert guesses["last frame held"]["mean by frame"] == pytest.approx(missed, abs=0.15)
    assert guesses["codec alone"]["mean"] < 0.02
    assert guesses["straight line"]["mean"] < 0.4  # three positions measured to a tenth of a pixel
    assert tasks_short.baselines(task("in-betweening"), truth, truth.clips[:, :8])["straight line"]["mean"] < 0.1


# Long videos --------------------------------------------------------------------------------------------------------


def test_long_videos_are_measured_window_by_window(truth: tasks_clips.Truth) -> None:
    starts, drift = [4, 8, 12, 16, 20], np.arange(5.0)[:, None].repeat(len(NAMES), 1)
    video = tasks_long.Video(truth.clips, starts, drift, np.full(len(NAMES), 100), 2.0, drift)
    found = tasks_long.measure(video, truth, 8)
    assert found["ends"] == [8, 12, 16, 20, 24] and found["nfe a frame"] == 5
    windows = found["windows"]
    assert windows["both"] == windows["direction"] == windows["shape"] == [1] * 5
    assert max(windows["position"]) < 0.05 and windows["speed"] == pytest.approx([1] * 5, abs=0.05)
    assert windows["colour"] == [0] * 5 and windows["drift"] == [0, 1, 2, 3, 4] and found["mean"]["drift"] == 2
    line = tasks_long.extrapolated(truth, truth.clips[:, :4], starts, 24)
    assert line[0] < 0.5 and line == sorted(line)  # a small error of the slope grows

    still = truth.clips.copy()
    still[:, 8:] = still[:, 7:8]
    windows = tasks_long.measure(tasks_long.Video(still, starts, drift, video.nfe, 2.0, drift), truth, 8)["windows"]
    assert windows["both"] == [1, windows["both"][1], 0, 0, 0]  # the second one still holds four frames that move
    assert windows["shape"] == [1] * 5 and windows["speed"][2:] == pytest.approx([0] * 3, abs=1e-9)
    missed = truth.speeds.mean() * np.arange(1, 9)
    assert windows["position"][1:3] == pytest.approx([missed[:4].mean(), missed[4:].mean()], abs=0.15)
    darker = truth.clips.copy()
    darker[:, 16:] -= 20
    windows = tasks_long.measure(tasks_long.Video(darker, starts, drift, video.nfe, 2.0, drift), truth, 8)["windows"]
    assert windows["colour"] == [0, 0, 0, 20, 20] and windows["both"][0] == 1


def test_ways_change_one_choice_at_a_time() -> None:
    usual = tasks_long.Way(4)
    assert usual.name(usual) == "usual"
    names = []
    for listed in tasks_long.ways(usual, 8).values():
        assert listed[0] == usual
        for way in listed[1:]:
            assert len(dict(way.settings().items() - usual.settings().items())) == 1
            names.append(way.name(usual))
    assert len(set(names)) == len(names) == 12
    assert {
        "frame schedule pyramid",
        "context gamma 0.9",
        "history guidance 2.0",
        "guidance scale 1.0",
        "overlap 6",
    } <= set(names)


# The command --------------------------------------------------------------------------------------------------------


def test_endless_videos_are_three_windows_long(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.studies.demo.VIDEOS", 2)
    monkeypatch.setattr("eqm_video.studies.demo.HELD_OUT", 1)
    write_videos(tmp_path / "endless", endless=True)
    files = sorted((tmp_path / "endless").rglob("*.avi"))
    assert len(files) == 16 and {look_at_video(file).frames for file in files} == {24}


def test_recipes_differ_in_gamma_alone() -> None:
    assert set(tasks.RECIPES.names()) == GAMMAS and tasks.RECIPES.names()[0] == "shared"
    first = None
    for name in tasks.RECIPES.names():
        settings = dict(flatten(to_tree(load_config(tasks.RECIPES.folder / f"{name}.yaml"))))
        assert settings["run.dir"] == f"runs/gamma/{name}" and settings["data.root"] == "data/endless_shapes"
        rest = {key: value for key, value in settings.items() if not key.startswith(("gamma", "run.dir"))}
        first = first or rest
        assert rest == first, name
    with pytest.raises(UserError, match="--only mixed: the recipes are shared, "):
        tasks.RECIPES.chosen(["mixed"])


def test_the_best_shows_its_labels_longest_or_continues_best() -> None:
    def found(both: float | None, error: float) -> dict:
        tasks_found = {"tasks": {tasks_short.TOLD: {"position": {"mean": error}}}}
        return tasks_found if both is None else {**tasks_found, "long": {"mean": {"both": both}}}

    assert tasks_report.best({"a": found(0.4, 1.0), "b": found(0.7, 2.0)}) == "b"
    assert tasks_report.best({"a": found(None, 1.0), "b": found(None, 2.0)}) == "a"
    assert tasks_report.best({"a": {}, "b": {}}) == "a"


def test_trains_measures_and_finds_all_of_it_again(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.studies.demo.VIDEOS", 2)
    monkeypatch.setattr("eqm_video.studies.demo.HELD_OUT", 1)
    monkeypatch.setattr(tasks_short, "TOLERANCES", (1.0,))
    ways = {"overlap": [tasks_long.Way(4), tasks_long.Way(6)]}
    monkeypatch.setattr(tasks_long, "ways", lambda plain, frames: ways)
    words = ["--out", tmp_path / "out", "--runs", tmp_path / "runs", "--data", tmp_path / "data"]
    words += ["--clips", 3, "--long-clips", 2, "--length", 12, "--steps", 2, "--only", "shared", "per_frame"]
    write_codec(tmp_path / "codec")
    words += ["train.steps=2", "train.batch_size=4", "held_out.clips=2", "run.report=false"]
    words += [f"codec.name={tmp_path / 'codec'}"]
    words = [str(word) for word in words]
    assert tasks.Tasks.main(words) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert list(found["models"]) == ["shared", "per_frame"] and found["best"] in found["models"]
    for one in found["models"].values():
        assert {name for name, numbers in one["tasks"].items() if numbers["nfe"] == 2} == set(one["tasks"])
        assert all(numbers["changed"] == 0 for numbers in one["tasks"].values() if numbers["known"])
        assert one["long"]["ends"] == [8, 12] and one["long"]["nfe a frame"] == 4 / 8
        assert set(one["baselines"]) == set(tasks_report.PLACED)
    assert [row["tolerance"] for row in found["stopping"]] == [None, 1.0, 1.0]
    assert found["ways"]["overlap"]["overlap 6"]["ends"] == [8, 10, 12]
    for name in ("tasks", "tasks_long", "tasks_ways", "tasks_stopping", "tasks_strips"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    for name in ("tasks", "tasks_long"):
        assert (tmp_path / "out" / f"{name}.gif").read_bytes().startswith(b"GIF89a"), name
    assert (tmp_path / "out" / "tasks.md").read_text() in said
    assert re.search(r"^\| last frame held +\|", said, re.MULTILINE)

    monkeypatch.setattr(recipes.training, "main", None)
    monkeypatch.setattr(tasks_short, "fill", None)
    monkeypatch.setattr(tasks_long, "roll_out", None)
    assert tasks.Tasks.main(words) == 0  # neither trained nor measured again
    again = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert again["models"] == found["models"] and again["ways"] == found["ways"]
    exports = [str(tmp_path / "runs" / name / "export") for name in ("shared", "per_frame")]
    given = ["--models", *exports, *words[:2], "--clips", "3", "--long-clips", "2", "--length", "12", "--steps", "2"]
    assert tasks.Tasks.main([*given, "--parts", "short"]) == 0  # the same models, by their paths


def parsed(*words: object) -> tasks.Tasks:
    return options.parse(tasks.Tasks, [str(word) for word in words], prog="")


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    for words in (["--only", "shared"], ["train.steps=2"]):
        with pytest.raises(UserError, match="--models measures what is trained already"):
            parsed("--out", tmp_path, *words, "--models", "m")
    given = parsed("--out", tmp_path, "--models", "runs/a/export", "runs/b/export", "--best", "c")
    with pytest.raises(UserError, match="--best c: the models are a, b"):
        given.exports()
    # refused before the hours that training takes
    for words, says in {
        "--overlap 8": "--overlap 8: clips of 8 frames leave 1 to 7",
        "--context 8": "--context 8: clips of 8 frames leave 1 to 7",
        "--context-gamma 0": "--context-gamma is 0: it must be a number above 0",
        "--best nobody": "--best nobody: the models are shared, ",
        "--parts ways": "--parts ways is for a single model: add long, or --best",
    }.items():
        with pytest.raises(UserError, match=says):
            parsed("--out", tmp_path, "--runs", tmp_path, "--data", tmp_path / "d", *words.split()).exports()
    assert not (tmp_path / "d").exists()


def test_a_way_changes_the_setting_and_tasks_of_a_clip_do_not_see_it() -> None:
    given = parsed("--out", "x", "--context-gamma", "0.8", "--guidance-scale", "3", "--steps", "7")
    how = Sampling.of(given, context_gamma=1.0)
    assert how == Sampling(steps=7, guidance_scale=3.0)
    way = tasks_long.Way(4, Sampling(context_gamma=0.8))
    assert way.settings() == {"overlap": 4, "frame_schedule": "joint", "context_gamma": 0.8, "history_guidance": 1.0}
    assert way.but("guidance_scale", 1.0).choices()["guidance_scale"] == 1.0
