"""Records of studies: the documents' numbers are those of the records, and nothing else passes for one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eqm_video import cli
from eqm_video.commands import records as command
from eqm_video.errors import UserError
from eqm_video.output import records
from eqm_video.system import machine

NUMBERS = {"command": "eqm-video sweep m", "commit": "abc", "machine": {"processor": "P"}, "settings": {}, "rows": []}
RESULT = {"share, told": {"mean": 0.951, "runs": 3, "interval": [0.9, 0.97]}, "alone": {"mean": 0.5, "runs": 1}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Records with one of the sweep."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({**NUMBERS, "found": RESULT}))
    (folder / "sweep.png").write_bytes(b"picture")
    (folder / "run.log").write_text("log")
    command.add(folder, "tiny", tmp_path / "records")
    return tmp_path / "records"


def views(study: str, numbers: dict) -> dict[str, str]:
    return {"table": f"| {study} | {numbers['found']['alone']['mean']} |\n| - | - |", "word": "plain"}


def test_a_record_has_the_numbers_the_command_the_commit_and_what_was_drawn(root: Path) -> None:
    found = records.load(root, "sweep/tiny")
    assert found.items() >= {"study": "sweep", **NUMBERS, "found": RESULT}.items()
    assert {path.name for path in (root / "sweep" / "tiny").iterdir()} == {"record.json", "sweep.png", "run.log"}
    with pytest.raises(UserError, match=r"exists: give another --name, or --overwrite"):
        command.add(root.parent / "out", "tiny", root)
    command.add(root.parent / "out", "tiny", root, overwrite=True)
    with pytest.raises(UserError, match=r"holds the numbers of 0 studies"):
        command.add(root, "tiny", root)
    with pytest.raises(UserError, match=r"no record sweep/large .*: the records are sweep/tiny"):
        records.load(root, "sweep/large")
    (root / "sweep" / "tiny" / "record.json").write_text(json.dumps({**NUMBERS, "study": "sweep", "commit": None}))
    with pytest.raises(UserError, match="says nothing of commit"):
        records.load(root, "sweep/tiny")


def test_the_command_tells_studies_apart_that_call_their_numbers_alike(tmp_path: Path) -> None:
    numbers = {**NUMBERS, "command": "eqm-video reconstruct demo --out x"}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    assert command.add(tmp_path, "photos", tmp_path / "records") == tmp_path / "records" / "reconstruct" / "photos"
    (tmp_path / "numbers.json").write_text(json.dumps(NUMBERS | {"command": "by hand"}))
    with pytest.raises(UserError, match=r"holds the numbers of 0 studies"):
        command.add(tmp_path, "other", tmp_path / "records")


def test_marked_places_are_written_from_records(root: Path) -> None:
    text = "<!-- record sweep/tiny found/{} as {} -->{}<!-- end --> stay"
    told = text.format("share, told/mean", ".0%", "12 %")
    assert records.fill(told, root, views) == text.format("share, told/mean", ".0%", "95 %")
    high = records.fill(text.format("share, told/interval/1", ".2f", ""), root, views)
    assert high == text.format("share, told/interval/1", ".2f", "0.97")
    once = records.fill(text.format("alone/mean", ".2f", ""), root, views)
    assert once == text.format("alone/mean", ".2f", "0.50 (n = 1)") and records.fill(once, root, views) == once
    table = records.fill("a\n<!-- record sweep/tiny table --><!-- end -->\nb", root, views)
    assert "-->\n\n| sweep | 0.5 |\n| - | - |\n\n<!-- end -->\nb" in table and records.fill(table, root, views) == table
    assert records.unmarked(told) == " stay"
    for what, says in {
        "found/alone/median as .1f": "there is no 'median'; here are mean, runs",
        "found/alone/mean/x as .1f": "there is no 'x'; here are no mapping",
        "found/share, told/interval/2 as .1f": "there is no '2'; here are no mapping",
        "found/alone/mean as .1k": "0.5 has no format '.1k'",
        "tables": "the views are table, word",
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            records.fill(f"<!-- record sweep/tiny {what} --><!-- end -->", root, views)


def test_the_documents_say_what_the_records_say() -> None:
    for page in command.pages(command.ROOT):
        text = page.read_text(encoding="utf-8")
        assert records.fill(text, command.RECORDS, command.views) == text, f"{page.name}: type eqm-video records"


NUMBER = re.compile(r"\d+(?:\.\d+)? ?%|\d*\.\d+|\d+ of \d+")
WITHOUT = re.compile(r"<!-- no record: ([^\n]+?) -->(.*?)<!-- end -->", re.DOTALL)
TABLES = (
    "README.md",
    "docs/results.md",
    "docs/video.md",
    "docs/landscape.md",
    "video_samples/README.md",
)


def plain(text: str) -> str:
    """A document without what records have written, what is marked to have no record, code, and targets of links."""
    text = WITHOUT.sub("", records.unmarked(text))
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|95 % interval", "", text, flags=re.DOTALL)


def loose(text: str) -> list[str]:
    """The numbers in a document's tables that no record has written."""
    return [number for line in plain(text).splitlines() if line.startswith("|") for number in NUMBER.findall(line)]


@pytest.mark.parametrize("name", TABLES)
def test_numbers_of_tables_have_a_record_or_are_marked(name: str) -> None:
    text = (command.ROOT / name).read_text(encoding="utf-8")
    assert loose(text) == []
    assert all("one run" in why for why, _ in WITHOUT.findall(text))


def test_a_number_of_a_table_without_a_record_is_noticed() -> None:
    assert loose("of 3.5 % in text\n| a | 12 % | `0.2` |\n| <!-- record a/b c as d -->0.4<!-- end --> |") == ["12 %"]
    assert loose("<!-- no record: one run -->\n| 0.5 |\n<!-- end -->\n| 3 of 4 |") == ["3 of 4"]


def test_the_comparison_has_no_number_without_a_record() -> None:
    text = (command.ROOT / "docs" / "forcing.md").read_text(encoding="utf-8")
    assert NUMBER.findall(plain(text)) == []
    few = WITHOUT.findall(records.unmarked(text))  # small measurements, which say how many seeds they had
    assert len(few) <= 4
    for why, part in few:
        seeds = "one seed" if "one seed" in why else "three seeds"
        assert seeds in why and seeds in part and NUMBER.search(part), why


def test_the_command_adds_and_writes(root: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    top = tmp_path / "clone"
    (top / "benchmarks").mkdir(parents=True)
    (top / "README.md").write_text("<!-- record sweep/one found/alone/mean as .1f --><!-- end -->")
    (top / "video_samples").mkdir()
    (top / "video_samples" / "README.md").write_text("nothing")
    monkeypatch.setattr(command, "ROOT", top)
    monkeypatch.setattr(command, "RECORDS", top / "benchmarks" / "records")
    words = ["records", "--add", str(tmp_path / "out"), "--name"]
    assert cli.main([*words, "a/b"]) == 2 and "give the record a name without /" in capsys.readouterr().err
    assert cli.main([*words, "one"]) == 0
    assert "written: README.md" in capsys.readouterr().out
    assert (top / "README.md").read_text().count("-->0.5 (n = 1)<!--") == 1
    assert cli.main(["records"]) == 0 and "nothing was written" in capsys.readouterr().out
    with pytest.raises(UserError, match="a record of 'dance': there is no such study"):
        command.views("dance", {})


def test_a_checkout_names_its_commit() -> None:
    found = machine.commit()
    if not (command.ROOT / ".git").exists():
        assert found is None
    else:
        assert re.fullmatch(r"[0-9a-f]{12}\+?", found)
