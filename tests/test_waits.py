"""Progress: a bar on a terminal, a line a minute in a file, nothing with --quiet; and one home for all of it."""

from __future__ import annotations

import ast
import io
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled

from eqm_video import cli
from eqm_video.cli import main
from eqm_video.codec import Codec
from eqm_video.system import waits

PACKAGE = Path(waits.__file__).parents[1]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture()
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that tqdm and `waits` read; the test sets them."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("eqm_video.system.waits.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("silent", [False, True])
def test_a_bar_appears_on_a_terminal_once_a_wait_is_long(silent, monkeypatch, clock) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with waits.quiet(silent), waits.bar(range(4), "counting", unit="sheep") as bar:
        for index in bar:
            clock[0] += 1
            assert index or screen.getvalue() == "", "a short wait needs no bar"
    assert ("counting" in screen.getvalue()) == (not silent)
    assert "counting" not in screen.getvalue().rpartition("\r")[2], "it leaves the screen at its end"


def test_a_file_gets_a_plain_line_a_minute(monkeypatch, clock) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with waits.bar(what="encoding", total=1000, unit="clip") as bar:
        for _ in range(1000):
            clock[0] += 0.5
            bar.set_postfix({"loss": 3})
            bar.update()
            if bar.n == 500:
                waits.say("a sentence", file)
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue() and len(lines) == 9 and "a sentence" in lines
    assert lines[0] == "encoding: 119 of 1000 clips, 01:00 so far, 07:24 left, loss=3"


@pytest.mark.parametrize(
    ("total", "unit", "line"),
    [
        (200, "batch", "120 of 200 batches"),
        (200, "canvas", "120 of 200 canvases"),
        (None, "clip", "120 clips"),
        (200, "", "120 of 200"),
    ],
)
def test_a_line_names_its_units_in_english(total, unit, line, monkeypatch, clock) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with waits.bar(what="counting", total=total, unit=unit) as bar:
        for _ in range(120):
            clock[0] += 0.5
            bar.update()
    assert file.getvalue().startswith(f"counting: {line}, ")


def test_a_short_wait_leaves_no_trace_in_a_file(monkeypatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    assert list(waits.bar(range(100), "counting")) == list(range(100))
    assert file.getvalue() == ""


def test_processes_beside_the_first_show_nothing(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert waits.bar(range(3), delay=0).disable
    monkeypatch.setenv("LOCAL_RANK", "0")
    with waits.bar(range(3), delay=0) as bar:
        assert not bar.disable


def test_the_codec_shows_how_far_it_is(monkeypatch) -> None:
    screen, codec = Terminal(), Codec.load("pixels", chunk=2)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(waits.bar, "__kwdefaults__", {**waits.bar.__kwdefaults__, "delay": 0.0})
    codec.decode(torch.zeros(1, 6, 3, 8, 8))
    assert "decoding" in screen.getvalue() and re.search(r"/6 \[", screen.getvalue())


@pytest.mark.parametrize("more", [[], ["--quiet"]])
def test_every_command_can_be_quiet(more, tmp_path, monkeypatch, capsys) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(waits.bar, "__kwdefaults__", {**waits.bar.__kwdefaults__, "delay": 0.0})
    words = ["oracle", "--out", str(tmp_path / "o"), "--num-samples", "2", "--frames", "5", "--size", "8"]
    assert main([*words, "--steps", "2", "--no-film", *more]) == 0
    assert ("every task" in screen.getvalue()) == (not more)
    assert "in-betweening" in capsys.readouterr().out, "results are printed all the same"
    assert not waits.bar(range(1)).disable, "and only that command was quiet"


def test_downloads_are_quiet_with_the_command(monkeypatch) -> None:
    seen = []
    command = SimpleNamespace(run=lambda words: seen.append(are_progress_bars_disabled()) or 0)
    monkeypatch.setitem(cli.COMMANDS, "recipes", command)
    before = are_progress_bars_disabled()
    assert main(["recipes"]) == 0 and main(["recipes", "--quiet"]) == 0
    assert seen == [before, True] and are_progress_bars_disabled() == before


def test_quiet_is_in_the_help_and_a_slip_is_named(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "--quiet: show no progress" in capsys.readouterr().out
    assert main(["doctor", "--quite"]) == 2
    assert "did you mean --quiet?" in capsys.readouterr().err


def test_progress_has_one_home() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path != Path(waits.__file__):
                called = ast.unparse(node.func)
                assert called not in ("tqdm", "tqdm.write", "auto.tqdm"), f"{path}:{node.lineno}: use system/waits.py"


def test_a_hub_that_does_not_answer_is_told_in_one_line(monkeypatch, capsys, caplog) -> None:
    """huggingface_hub logs two lines for each of its tries; one sentence says as much."""
    logger = logging.getLogger("huggingface_hub.utils._http")

    def run(words: list[str]) -> int:
        for attempt in range(1, 6):
            logger.warning("'no route' thrown while requesting HEAD https://hub/x")
            logger.warning("Retrying in %ss [Retry %d/5].", 2**attempt, attempt)
        logger.warning("Rate limited.")
        return 0

    monkeypatch.setitem(cli.COMMANDS, "doctor", SimpleNamespace(run=run))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().err
    assert said.count("the Hugging Face hub does not answer") == 1 and "thrown" not in said
    assert [record.getMessage() for record in caplog.records] == ["Rate limited."]
    logger.warning("Retrying in 1s")
    assert caplog.records[-1].getMessage() == "Retrying in 1s", "outside of a command nothing is hidden"
