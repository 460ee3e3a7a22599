"""The quick part of the faults: a few of each attack, on the real command line. `make faults` is the long part."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import warm

from faults import attacks, made
from faults.attacks import Row, Training
from faults.server import Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="needs fork and Linux")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(warm.python()) as started:
        yield started


@pytest.fixture(scope="module")
def training(server, tmp_path_factory) -> Training:
    return Training(server, tmp_path_factory.mktemp("training"))


def assert_held(row: Row, tries: int) -> None:
    assert row.held, (row.crashes, row.lost_steps, row.wrong_values, row.details[:3])
    assert row.tries >= tries


def test_a_killed_run_resumes_to_the_same_bits(training) -> None:
    assert training.operations > 60
    assert_held(attacks.kills(training, 3), 3)


def test_a_full_disk_ends_in_a_sentence_and_the_run_resumes(training) -> None:
    assert_held(attacks.full_disk(training, 2), 2)
    assert_held(attacks.small_files(training, [2**14]), 1)


def test_a_killed_sampling_ends_with_the_same_files(training) -> None:
    assert_held(attacks.sampling(training, 1), 1)


def test_damaged_checkpoints_are_noticed(training) -> None:
    assert_held(attacks.checkpoints(training, 12), 12)


def test_damaged_videos_are_refused_or_read_as_they_are(server, tmp_path) -> None:
    assert_held(attacks.videos(server, tmp_path, 20), 20)


def test_other_damaged_files_are_refused_or_read(server, tmp_path) -> None:
    assert_held(attacks.images(server, tmp_path, 25), 25)
    assert_held(attacks.recipes(server, tmp_path, 40), 40)
    assert_held(attacks.archives(server, tmp_path, 20), 20)
    assert_held(attacks.weights(server, tmp_path, 20), 20)


def test_memory_does_not_grow(server, tmp_path) -> None:
    assert_held(attacks.memory(server, tmp_path, 60), 1)


# ------------------------------------------------------------------------------------------- the attacks themselves


def test_an_attack_sees_a_crash_a_lost_step_and_a_wrong_value(training, server, tmp_path) -> None:
    """The table would be worth nothing if the attacks could not fail."""
    row = Row("x")
    outcome = server.run("train", "run.dir=/dev/null/x", *training.recipe)
    assert outcome.code == 2 and not outcome.crashed and len(outcome.errors) == 1
    assert server.run("nothing", call="missing").crashed
    training.disturbed(row, "nothing", made.SAVE_EVERY)
    assert row.held and row.tries == 1
    expected = training.expected
    training.expected = {**expected, "metrics": "other"}
    training.disturbed(row, "another loss", made.SAVE_EVERY)
    training.expected = expected
    assert row.wrong_values == 1
    files = {"accepted": ["whole.avi", "a.avi", "b.avi"], "refused": {"c.avi": "cut"}, "crashes": {}}
    row = Row("y")
    assert attacks.what_came_of_it(row, files) == "2 read, 1 refused" and row.held
    assert (
        attacks.what_came_of_it(row, {**files, "later": {"b.avi": "damaged"}})
        == "1 read, 2 refused (1 of them when read)"
    )
    assert row.held
    attacks.what_came_of_it(row, {**files, "accepted": ["a.avi"]})
    assert row.wrong_values == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5}\n')
    assert attacks.lost(tmp_path / "run") == 5


def test_the_clips_of_the_attacks_are_read_frame_by_frame(tmp_path: Path) -> None:
    """Before anything is damaged, every codec shows the square where it was drawn."""
    from eqm_video.data.video import probe, read_frames

    clips = made.write_clips(tmp_path)
    assert len(clips) >= 6
    for path in clips:
        info = probe(path)
        frames, _ = read_frames(path, range(info.frames), info=info)
        assert 22 <= info.frames <= 24, path.name
        places = [int(np.flatnonzero(frame[24, :, 0] > 150)[0]) for frame in frames]
        assert np.abs(np.diff(places) % 32 - 2).max() <= 2, (path.name, places)
