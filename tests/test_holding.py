"""Files of one's own that are held out: a share by name and seed, or a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from numbered import write_numbered
from PIL import Image
from tiny_run import main, read_metrics, recipe, write_videos

from eqm_video.data.buckets import Bucket
from eqm_video.data.clips import ClipSet
from eqm_video.data.datasets import Share, open_data
from eqm_video.data.holding import choose_held_out
from eqm_video.data.scan import Report
from eqm_video.errors import UserError
from eqm_video.training.config import load_config
from eqm_video.training.held_out import note_unheld

NAMES = [f"{label}/{k}.mp4" for label in "ab" for k in range(100)]
LABELS = [0] * 100 + [1] * 100


@pytest.fixture(autouse=True)
def _fresh(fresh_accelerator: None) -> None:
    """Runs of one process, one after the other."""


def test_names_and_seed_decide_and_nothing_else() -> None:
    held = choose_held_out(NAMES, LABELS, 0.2, 5)
    assert 20 <= sum(held) <= 60 and held == choose_held_out(NAMES, LABELS, 0.2, 5)
    assert held != choose_held_out(NAMES, LABELS, 0.2, 6)
    more = choose_held_out(["c/new.mp4", *NAMES], [2, *LABELS], 0.2, 5)
    assert more[1:] == held  # files that come later move none
    wider = choose_held_out(NAMES, LABELS, 0.4, 5)
    assert all(wide for wide, narrow in zip(wider, held, strict=True) if narrow)
    assert choose_held_out(["Caf\u00e9/1", *NAMES], [2, *LABELS], 0.5, 1) == choose_held_out(
        ["Cafe\u0301/1", *NAMES], [2, *LABELS], 0.5, 1
    )


def test_every_class_keeps_a_file_and_one_at_least_is_held_out() -> None:
    held = choose_held_out(NAMES, LABELS, 0.9999, 1)
    assert [sum(held[:100]), sum(held[100:])] == [99, 99]
    assert sum(choose_held_out(NAMES[:3], [0, 0, 0], 1e-6, 1)) == 1
    assert choose_held_out(["a", "b", "c"], [0, 1, 1], 1e-6, 1)[0] is False  # the only one of its class
    with pytest.raises(UserError, match="of 2 files none can be held out, every class keeps one"):
        choose_held_out(["a/1", "b/1"], [0, 1], 0.5, 1)


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_the_two_parts_of_a_folder(kind: str, tmp_path: Path) -> None:
    for name in (f"{label}/{k}" for label in "ab" for k in range(8)):
        (tmp_path / "set" / name[0]).mkdir(parents=True, exist_ok=True)
        if kind == "videos":
            write_numbered(tmp_path / "set" / f"{name}.mp4", 6)
        else:
            Image.new("RGB", (16, 16)).save(tmp_path / "set" / f"{name}.png")
    settings = {"frames": 4 if kind == "videos" else 1, "frame_interval": 1, "size": 16}

    def part(**share: Any) -> Any:
        index, report = tmp_path / "index.json", tmp_path / "report.json"
        return open_data(
            kind, tmp_path / "set", share=Share(0.3, 1, **share), index_path=index, report_path=report, **settings
        )

    train, held = part(), part(held_out=True)
    names = [{name for name, _, _ in one.files} for one in (train, held)]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == 16
    assert train.labels == held.labels == ["a", "b"]
    assert set(train.report.held_out) == names[1] and train.report.used == len(train) == len(names[0])
    assert f"{len(held)} are held out: " in train.report.summary()
    drawn = {train[(index % len(train), index)].name for index in range(40)}
    assert drawn == names[0] and train.substitutes.size == len(train)


def test_a_bucket_whose_long_videos_are_all_held_out_is_refused(tmp_path: Path) -> None:
    names = [f"{k}.mp4" for k in range(6)]
    held = choose_held_out(names, [-1] * 6, 0.3, 2)
    for name, out in zip(names, held, strict=True):
        write_numbered(tmp_path / name, 12 if out else 4)
    buckets = [Bucket(4, 1), Bucket(10, 1)]
    with pytest.raises(UserError, match=r"long enough for clips of 10x1 .* held out by held_out.fraction=0.3"):
        open_data("videos", tmp_path, size=16, buckets=buckets, share=Share(0.3, 2))


def test_a_run_never_trains_on_held_out_files(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*recipe(made, tmp_path / "run"), "held_out.fraction=0.3", "held_out.every=2", "preview.every=0"]
    words += ["data.latents=memory"]
    assert main(words) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["held_out"] and report["used"] + len(report["held_out"]) == report["found"]
    assert f"{len(report['held_out'])} are held out: " in capsys.readouterr().out
    record = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/checkpoint.json")).read_text())
    assert record["data"]["size"] == report["used"]
    assert set(read_metrics(tmp_path / "run")[0]["held_out"]) >= {"0.5", "mean"}
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*words, "--resume", "held_out.fraction=0.5", "train.steps=9"]) == 2
    assert "held_out.fraction (0.3 there, 0.5 here)" in capsys.readouterr().err
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*words, "--resume", "held_out.fraction=null", "train.steps=9"]) == 2
    assert "held_out.fraction (0.3 there, null here)" in capsys.readouterr().err


def test_a_folder_is_held_out(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_videos(tmp_path / "val", size=16)
    (tmp_path / "val" / "right" / "bad.mp4").write_text("no video")
    start = [*recipe(made, tmp_path / "run"), "held_out.every=2", "preview.every=0"]
    assert main([*start, f"held_out.root={tmp_path / 'val'}"]) == 0
    assert set(read_metrics(tmp_path / "run")[0]["held_out"]) >= {"0.5", "mean"}
    assert "held out: " in (said := capsys.readouterr().out) and "right/bad.mp4 (" in said
    assert json.loads((tmp_path / "run" / "data_report_held_out.json").read_text())["unreadable"]
    (tmp_path / "val" / "right").rename(tmp_path / "val" / "upward")
    for words, sentence in (
        ([f"held_out.root={tmp_path / 'val'}"], "class folders that are not trained on (upward); those trained on are"),
        ([f"held_out.root={tmp_path / 'val' / 'left'}"], "holds no class folders"),
        ([f"held_out.root={made / 'videos'}"], "is the folder that is trained on"),
        ([f"held_out.root={tmp_path / 'none'}"], "held_out.root: the data folder"),
        (["held_out.split=test"], "held_out.split=test needs UCF-101's lists"),
        (["held_out.split=test"], "held_out.fraction=0.1 to hold out a tenth of your own files, held_out.root=FOLDER"),
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([*recipe(made, tmp_path / "next"), *words]) == 2
        assert sentence in (error := capsys.readouterr().err) and error.count("error:") == 1, error


@pytest.mark.parametrize(("words", "sentence"), [
    (["held_out.fraction=0.1", "held_out.split=test"], "split=test and held_out.fraction=0.1 exclude each other"),
    (["held_out.root=x", "held_out.fraction=0.1"], "held_out.fraction=0.1 and held_out.root=x exclude each other"),
    (["held_out.fraction=1"], "held_out.fraction is 1.0: it must be a number above 0 and below 1"),
    (["held_out.fraction=0"], "held_out.fraction is 0.0: it must be a number above 0 and below 1"),
    (["held_out.fraction=-0.1"], "it must be a number above 0 and below 1"),
])  # fmt: skip
def test_wrong_settings_are_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(None, words)


def test_more_labels_than_classes_are_noted(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*recipe(made, tmp_path / "run"), "model.num_labels=5", "train.steps=1", "preview.every=0"]
    assert main(words) == 0
    assert (
        "model.num_labels=5, but the data have 2 labels: numbers from 2 on are never trained" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("names", "labels", "says"),
    [
        (["a"], [-1], "nothing can be taken from a single file, but held_out.root=FOLDER names other files"),
        (["a/1", "b/1"], [0, 1], "nothing can be taken from classes of a single file, but held_out.root=FOLDER"),
        (["a", "b", "c"], [-1] * 3, "held_out.fraction=0.1 holds out one or more of the files, held_out.root="),
        (NAMES, LABELS, "held_out.fraction=0.1 holds out a tenth of the files, held_out.root=FOLDER names others"),
    ],
)
def test_a_run_without_held_out_files_says_only_what_helps(names, labels, says, tmp_path) -> None:
    data = ClipSet(tmp_path, list(zip(names, labels, [None] * len(names), strict=True)), ["a", "b"], Report(""), size=8)
    assert says in note_unheld(data) and "held_out.split" not in note_unheld(data)
    if "fraction" in says:
        assert sum(choose_held_out(names, labels, 0.1, 1)) >= 1
        (tmp_path / "trainlist01.txt").write_text("a 1\n")
        (tmp_path / "classInd.txt").write_text("1 a\n")
        assert note_unheld(data).endswith(", held_out.split=test takes the test list")
    else:
        with pytest.raises(UserError, match="none can be held out"):
            choose_held_out(names, labels, 0.1, 1)
