"""Options, requests and the look of figures, which all commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from eqm_video.data.layout import list_files
from eqm_video.errors import UserError
from eqm_video.options import parse
from eqm_video.output import plots
from eqm_video.studies import request as module
from eqm_video.studies.adaptive import Adaptive


def parsed(*words: str) -> Adaptive:
    return parse(Adaptive, ["MODEL", "--out", "DIR", "--num-samples", "3", *words], prog="study")


@pytest.mark.parametrize(("text", "size"), [("8", (8, 8)), ("8x16", (8, 16))])
def test_sizes_are_read(text: str, size: tuple[int, int]) -> None:
    assert parsed("--size", text).size == size


@pytest.mark.parametrize("text", ["8x", "8X16", "-8", "0", ""])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--size is"):
        parsed("--size", text)


def test_a_request_is_filled_in_from_the_model():
    pipe = tiny_pipeline()
    request = module.Request.of(pipe, parsed("--batch-size", "2"))
    assert request.ids == [0, 1, 2] and request.names == ["up", "down", "left"] and request.seeds == [0, 1, 2]
    assert (request.frames, request.size, request.guidance_scale) == (3, (16, 16), 1.0)
    assert request.batches() == [slice(0, 2), slice(2, 3)]
    words = "--labels left 0 --num-samples 4 --seed 7 --frames 2 --size 8x16 --guidance-scale 2.5"
    request = module.Request.of(pipe, parsed(*words.split()))
    assert request.ids == [2, 0, 2, 0] and request.seeds == [7, 8, 9, 10]
    assert request.settings() == {
        "num_samples": 4,
        "labels": ["left", "up"],
        "seeds": [7, 10],
        "frames": 2,
        "size": [8, 16],
        "guidance_scale": 2.5,
    }
    unlabelled = module.Request.of(pipe, parsed("--labels", "none"))
    assert unlabelled.ids == [None] * 3 and set(unlabelled.names) == {"unlabelled"}
    with pytest.raises(UserError, match="unknown label"):
        module.Request.of(pipe, parsed("--labels", "right"))


def test_devices():
    assert module.open_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cpu"):
        module.open_device("toaster")


def test_figures_are_as_large_as_requested_and_every_style_differs(tmp_path):
    figure = plots.figure(4.0, 2.0)
    axes = plots.axes(figure, xlabel="step", ylabel="loss")
    for index in range(len(plots.PALETTE)):
        axes.plot([0, 1], [index, 0], label=str(index), **plots.style(index))
    plots.legend(axes)
    with Image.open(plots.save(figure, tmp_path / "deep" / "figure.png")) as picture:
        assert picture.size == (4 * plots.DPI, 2 * plots.DPI)
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > len(plots.PALETTE)
    looks = [tuple(plots.style(index).values()) for index in range(7)]
    assert len(set(looks)) == len({look[0] for look in looks}) == len({look[1] for look in looks}) == 7


def test_a_missing_matplotlib_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install"):
        plots.figure()


@pytest.mark.parametrize(("default", "note"), [("test", "no official list of test files"), ("all", "")])
def test_a_split_falls_back_to_every_file_where_there_are_no_lists(
    default: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    split = module.split_of(None, tmp_path, default)
    assert module.lists_of(split, None) == {"split": None, "fold": 1, "split_option": "--split"}
    said = capsys.readouterr().out
    assert split == "all" and note in said and (not note or "--split all" in said)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "classInd.txt").write_text("1 a\n")
    split = module.split_of(None, tmp_path, default)
    expected = None if default == "all" else default
    assert module.lists_of(split, 2) == {"split": expected, "fold": 2, "split_option": "--split"}
    assert split == default and not capsys.readouterr().out
    assert module.lists_of(module.split_of("test", tmp_path, default), 1)["split"] == "test"


def test_the_error_names_the_option_that_was_typed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^--split test needs UCF-101's lists .*; type --split all to use every file"):
        list_files("videos", tmp_path, split="test", split_option="--split")
    with pytest.raises(UserError, match=r"^data.split=test needs .*; type data.split=null to use every file"):
        list_files("videos", tmp_path, split="test")
