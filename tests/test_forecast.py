"""The forecast of sampling: from its first steps, and for long clips from shorter ones."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video.core.cost import count_operations
from eqm_video.sampling import forecast
from eqm_video.sampling.forecast import Forecast, note_long


@pytest.mark.parametrize(
    ("laps", "steps", "says"),
    [
        ([9.0, 2.0], 102, "2 s a step, so about 3 min for 102 steps (finished batches stay; after Ctrl-C the same "),
        ([60.0, 1.0], 100, "60 s a step, so about 1 h 39 min for 100 steps"),  # the first step is enough
        ([9.0, 2.0], 32, ""),  # a minute at most
    ],
)
def test_long_work_is_announced_once_after_its_first_steps(laps, steps, says, capsys) -> None:
    times = [sum(laps[:count]) for count in range(len(laps) + 1)]
    work = Forecast(steps, clock=iter(times).__next__)
    silent = Forecast(steps, shown=False, clock=iter(times).__next__)
    for _ in range(steps):
        work.count()
        silent.count()
    said = capsys.readouterr().out
    assert said.startswith(says) and said.count("\n") == bool(says)


def test_a_clip_far_longer_than_those_of_training_is_announced_before_its_first_step(monkeypatch) -> None:
    pipe = tiny_pipeline()
    usual = pipe.config.frames
    settings = {"frames": 100 * usual, "size": [16, 16], "guidance_scale": 1.0}
    assert note_long(pipe, {**settings, "frames": 3 * usual}, 10**9, 1, False) is None
    assert note_long(pipe, settings, 1, 1, False) is None, "it is short"
    said = note_long(pipe, settings, 10**13, 1, False)
    long = f"note: clips of {100 * usual} frames, 100 times as long as those of training, take more than a year "
    assert said.startswith(long)
    assert said.endswith(f"; --length {100 * usual} makes them in windows of {usual} frames")
    assert note_long(pipe, settings, 10**9, 1, True).endswith("(estimated from shorter ones)")
    asked = []
    monkeypatch.setattr(forecast, "_seconds", lambda *given: asked.append(given[1:]) or 1.0)
    plain = note_long(pipe, settings, 100, 2, True)
    guided = note_long(pipe, {**settings, "guidance_scale": 1.5}, 100, 1, True)
    assert asked == [(usual, 100 * usual, [16, 16])] * 2
    assert plain == guided and "about 3 min" in plain, "a guided step evaluates two clips"


def test_the_operations_of_a_step_grow_faster_than_the_clip() -> None:
    with torch.device("meta"):
        empty = tiny_transformer()
    short, long = (count_operations(empty, (1, frames, 4, 8, 8)) for frames in (3, 300))
    assert 100 * short < long < 100**2 * short
