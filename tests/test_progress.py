"""The forecast of a run: the time to its last step."""

from __future__ import annotations

import io

import pytest
from tiny_run import tiny_trainer
from tqdm.auto import tqdm

from eqm_video.training.progress import STEPS, Forecast, beside
from eqm_video.wording import about, duration, pace


def clock(*seconds: float):
    """A clock that goes on by each of these from one reading to the next, and by the last of them for ever."""
    now, laps = 100.0, list(seconds)
    while True:
        yield now
        now += laps.pop(0) if len(laps) > 1 else laps[0]


def say(last: int, first: int, count: int, *laps: float, silent: bool = False) -> None:
    time = clock(*laps)
    forecast = Forecast(last, silent=silent, clock=lambda: next(time))
    for step in range(first, first + count):
        forecast.count(step)


def test_the_time_to_the_last_step_is_printed_once_after_some_steps(capsys: pytest.CaptureFixture[str]) -> None:
    say(2520, 1, STEPS - 1, 0.2)
    assert capsys.readouterr().out == ""
    say(2520, 1, 200, 0.2)
    assert capsys.readouterr().out == f"after {STEPS} steps: 0.2 s a step, about 8 min to step 2520\n"


def test_it_counts_from_the_step_that_was_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    say(2520, 2001, 200, 0.2)
    assert capsys.readouterr().out == f"after {STEPS} steps: 0.2 s a step, about 100 s to step 2520\n"


def test_the_time_between_checkpoints_is_told_and_a_run_of_more_than_a_day_warns(capsys) -> None:
    time = clock(3.0)
    forecast = Forecast(100_000, save_every=2000, save_minutes=10, clock=lambda: next(time))
    for step in range(1, 100):
        forecast.count(step)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"after {STEPS} steps: 3 s a step, about 3 days 11 h to step 100000; checkpoint every 10 min"
    assert second.startswith("warning: this run takes more than a day here: type train.steps=28800 for a day, or")
    for settings, says in (({"save_every": 400}, "every 80 s"), ({"save_minutes": 60}, "at the end"), ({}, None)):
        forecast = Forecast(2520, **settings, clock=clock(0.2).__next__)
        for step in range(1, 100):
            forecast.count(step)
        end = f"; checkpoint {says}" if says else ""
        assert capsys.readouterr().out == f"after {STEPS} steps: 0.2 s a step, about 8 min to step 2520{end}\n"


def test_what_is_done_beside_the_steps_is_no_part_of_their_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])
    with tqdm(total=100, file=io.StringIO(), mininterval=0) as bar:
        for _ in range(10):
            now[0] += 2.0
            bar.update()
        with beside(bar, "preview"):
            now[0] += 500.0
            assert "preview" in str(bar)
        now[0] += 2.0
        bar.update()
        assert bar.format_dict["elapsed"] == pytest.approx(22.0) and "preview" not in str(bar)
        assert bar.format_dict["rate"] == pytest.approx(0.5)
    with tqdm(total=1, disable=True) as bar, beside(bar, "preview"):
        pass


def test_compilation_is_no_part_of_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    say(10_020, 1, 200, 60.0, 0.5, 30.0, 0.5)  # shapes of later buckets are compiled later
    assert "0.5 s a step, about 1 h 23 min to step 10020" in capsys.readouterr().out


def test_nothing_is_printed_for_a_short_run_or_by_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    say(STEPS, 1, STEPS, 0.2)
    say(2500, 1, 100, 0.2, silent=True)
    assert capsys.readouterr().out == ""


def test_durations() -> None:
    given = [0.4, 89, 100, 150, 3570, 3600, 12_000, 86_000, 86_400 * 2.2, 86_400, 86_400 * 1234.4]
    words = ["0 s", "89 s", "100 s", "2 min", "1 h 0 min", "1 h 0 min", "3 h 20 min", "23 h 53 min", "2 days 5 h"]
    words += ["1 day", "1,234 days"]
    assert [duration(one) for one in given] == words
    assert [about(86_400 * days) for days in (17, 364, 14_165)] == [
        "about 17 days",
        "about 364 days",
        "more than a year",
    ]
    assert [pace(one) for one in (0.0123, 9.96, 99.6, 1000)] == ["0.012 s", "10 s", "100 s", "17 min"]


def test_a_run_tells_it(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer(tmp_path, steps=STEPS + 2).run()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if f"to step {STEPS + 2}" in line] == said and len(said) == 1
