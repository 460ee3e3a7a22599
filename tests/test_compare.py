"""`compare` on moving shapes: copies of training clips are found, noise is far away, and halves share no group."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import cifar_files, random_pictures, write_archive
from PIL import Image

from eqm_video import cli
from eqm_video.data.datasets import open_data
from eqm_video.data.moving_shapes import write_moving_shapes
from eqm_video.output import media
from eqm_video.studies.compare.memorisation import open_held_out
from eqm_video.studies.compare.report import caption
from eqm_video.studies.compare.windows import Windows, thin
from eqm_video.system import files

FRAMES, SIZE = 4, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """8 labels, 5 videos of 16 frames each (groups 1 to 5), the last one for test."""
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_moving_shapes(folder, videos=5, held_out=1, frames=16, size=SIZE, fps=8)
    return folder


def clip_set(data: Path, split: str | None = "train"):
    return open_data("videos", data, split=split, frames=FRAMES, frame_interval=2, size=SIZE)


def fake(folder: Path, pixels: np.ndarray, labels: list[str] | None, fps: float = 4.0) -> Path:
    folder.mkdir(exist_ok=True)
    media.write_npz(folder / "samples.npz", pixels, np.zeros(len(pixels), np.int64))
    files.write_text(folder / "samples.json", json.dumps({"labels": labels, "settings": {"fps": fps}}))
    return folder


def copies(data: Path, folder: Path, starts=(0, 4, 8)) -> tuple[Path, list[tuple[str, int]]]:
    """Samples that are windows of the training videos, and which."""
    videos = clip_set(data)
    clips = [videos.clip(index, start=start) for start in starts for index in range(0, len(videos), 2)]
    pixels = np.stack([clip.pixels.permute(0, 2, 3, 1).numpy() for clip in clips])
    fake(folder, pixels, [videos.labels[clip.label] for clip in clips])
    return folder, [(clip.name, clip.start) for clip in clips]


def run(*arguments) -> int:
    return cli.main(["compare", *map(str, arguments)])


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def results(out: Path) -> tuple[dict, dict]:
    return json.loads((out / "compare.json").read_text()), json.loads((out / "nearest.json").read_text())


@pytest.fixture(scope="module")
def copied(data, tmp_path_factory) -> tuple[Path, list[tuple[str, int]], str]:
    """Copies that were compared: their folder, where they come from, what was printed."""
    folder, where = copies(data, tmp_path_factory.mktemp("copied"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run(folder, "--data", data, "--features", "pixels", "--stride", 4) == 0
    return folder, where, said.getvalue()


def test_copies_of_training_clips_are_found(copied):
    folder, where, said = copied
    summary, nearest = results(folder / "compare")
    assert [(row["name"], row["start"]) for row in nearest["samples"]] == where
    assert all(row["rms"] == 0 and row["label"] == row["nearest_label"] for row in nearest["samples"])
    videos, count = 32, 48
    # 16 frames, and 7 for a window: starts 0, 4 and 8
    assert summary["data"] | {"root": ""} == {
        "root": "",
        "split": "train",
        "fold": 1,
        "files": videos,
        "unreadable": 0,
        "windows": 3 * videos,
        "stride": 4,
        "frame_interval": 2,  # 8 fps of the data, 4 of the samples
    }
    assert summary["nearest"]["samples"] == {"median": 0, "min": 0, "max": 0, "count": count}
    assert summary["nearest"]["samples nearer than any real clip"] == count
    for scale in ("another file", "another group"):
        assert summary["nearest"][f"real clips to {scale}"]["min"] > 1
        assert nearest[f"real clips to {scale}"]["count"] == 3 * videos
    mmd = summary["metrics"]["mmd"]
    assert summary["halved by"] == "group" and mmd["title"] == "MMD (pixels)"
    assert mmd["n"] == {"samples": 48, "real": 64}  # a file of 16 frames has two windows of 7
    assert mmd["floor"]["n"] == {"samples": 32, "real": 32} and mmd["value"] < mmd["floor"]["max"]
    assert summary["protocol"]["feature"]["name"] == "pixels" and summary["protocol_hash"] in said
    grid = Image.open(folder / "compare" / "nearest.gif")
    assert grid.n_frames == FRAMES and 0.7 < grid.width / grid.height < 1.4
    assert "48 of 48 samples are nearer" in said and "nearest.gif" in said


def test_copies_count_as_memorised_and_real_clips_hardly_ever(data, copied):
    folder, _, said = copied
    summary, nearest = results(folder / "compare")
    memorised = summary["memorisation"]
    assert memorised["samples"] == {"memorised": 48, "share": 1.0, "count": 48, "median": 0.0}
    assert memorised["held-out clips"]["count"] == 24 and memorised["held-out clips"]["memorised"] == 0
    assert memorised["real clips to another file"]["share"] < 0.05
    assert summary["nearest"]["held-out clips"]["count"] == 24 and summary["nearest"]["held-out clips"]["min"] > 1
    windows = Windows(clip_set(data), 4)
    clips = torch.cat([clips for _, clips in windows.read()]).flatten(1).double()
    for row in nearest["samples"][::7]:
        own = next(k for k in range(len(windows)) if windows.place(k)[:2] == (row["name"], row["start"]))
        apart = (clips - clips[own]).square().mean(1).sqrt()
        assert row["second_rms"] == pytest.approx(float(apart[windows.files != windows.files[own]].min()))
    assert "samples: 48 of 48" in said
    assert Image.open(folder / "compare" / "memorisation.png").width > 400


def test_held_out_clips_that_cannot_be_had_are_named(data, tmp_path, capsys):
    folder, _ = copies(data, tmp_path)
    root = tmp_path / "train only"
    shutil.copytree(data, root)
    (root / "splits" / "testlist01.txt").unlink()
    words = ("--features", "pixels", "--stride", 8, "--out", tmp_path / "out")
    assert run(folder, "--data", root, *words) == 0
    assert "no held-out clips beside the samples: there is no testlist01.txt" in capsys.readouterr().out
    assert "held-out clips" not in results(tmp_path / "out")[0]["memorisation"]
    assert run(folder, "--data", data, "--split", "all", *words) == 0
    assert "held-out" not in capsys.readouterr().out


def test_the_test_batch_of_cifar_is_held_out(tmp_path):
    """CIFAR-10 is pictures in arrays: its test batch stands beside its training batches."""
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", cifar_files(*random_pictures(36), tests=6))
    train = open_data("images", path, split="train", frames=1, size=32)
    assert len(open_held_out(train, path, None)) == 6


def test_by_default_every_start_is_looked_at(data, tmp_path):
    folder, where = copies(data, tmp_path, starts=(1, 6, 9))
    assert run(folder, "--data", data, "--features", "pixels") == 0
    summary, nearest = results(folder / "compare")
    assert [(row["name"], row["start"]) for row in nearest["samples"]] == where
    assert summary["nearest"]["samples"]["max"] == 0 and summary["data"]["windows"] == 32 * 10


def test_real_clips_are_compared_with_other_files_by_hand(data, tmp_path):
    folder, _ = copies(data, tmp_path)
    assert run(folder, "--data", data, "--features", "pixels", "--stride", 4, "--out", tmp_path / "out") == 0
    summary, _ = results(tmp_path / "out")
    windows = Windows(clip_set(data), 4)
    clips = torch.cat([clips for _, clips in windows.read()]).flatten(1).double()
    differences = torch.cdist(clips, clips) / clips.shape[1] ** 0.5
    for name, keys in (("file", windows.files), ("group", windows.groups)):
        found = differences.masked_fill(keys[:, None] == keys, torch.inf).min(1).values
        assert summary["nearest"][f"real clips to another {name}"]["max"] == pytest.approx(float(found.max()))
        assert summary["nearest"][f"real clips to another {name}"]["min"] == pytest.approx(float(found.min()))


def test_noise_is_far_away_and_seeds_repeat(data, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, FRAMES, SIZE, SIZE, 3), np.uint8)
    folder = fake(tmp_path / "noise", noise, None)
    options = (folder, "--data", data, "--features", "pixels", "--stride", 4)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(*options, "--seed", seed, "--out", tmp_path / name) == 0
    (one, nearest), (again, _), (other, _) = (results(tmp_path / name) for name in "abc")
    measures = ("samples", "clips", "data", "nearest", "memorisation", "metrics")
    assert (
        all(one[key] == again[key] for key in measures)
        and one["metrics"]["mmd"]["interval"] != other["metrics"]["mmd"]["interval"]
        and one["metrics"]["mmd"]["value"] == other["metrics"]["mmd"]["value"]
        and one["nearest"] == other["nearest"]
    )
    assert one["nearest"]["samples"]["min"] > one["nearest"]["real clips to another file"]["max"]
    assert one["nearest"]["samples nearer than any real clip"] == 0 and one["memorisation"]["samples"]["memorised"] == 0
    assert one["metrics"]["mmd"]["value"] > one["metrics"]["mmd"]["floor"]["max"]
    assert {row["label"] for row in nearest["samples"]} == {None}


def test_images_have_a_still_picture_and_halves_by_file(tmp_path):
    root, rng = tmp_path / "images", np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)
    for index, picture in enumerate(pictures):
        media.write_png(root / f"{index:02d}.png", picture)
    folder = fake(tmp_path / "samples", pictures[::2], None)
    assert run(folder, "--data", root, "data.split=null", "--columns", 2) == 0
    summary, nearest = results(folder / "compare")
    assert [row["name"] for row in nearest["samples"]] == [f"{index:02d}.png" for index in range(0, 12, 2)]
    assert summary["nearest"]["samples"]["max"] == 0 and "real clips to another group" not in summary["nearest"]
    assert summary["halved by"] == "file" and summary["metrics"]["mmd"]["title"] == "MMD (pixels)"
    with Image.open(folder / "compare" / "nearest.png") as grid:
        assert grid.width > 2 * 2 * SIZE
    assert not (folder / "compare" / "nearest.gif").exists()


def test_captions_are_short():
    assert caption("Run", "Run/v_Run_g01_c02.avi") == "Run | g01_c02"
    assert caption("Run", "Walk/v_Walk_g01_c02.avi") == "Run | Walk_g01_c02"
    assert caption(None, "0001.png") == "sample | 0001"


def test_windows_are_those_of_the_set(data, monkeypatch):
    monkeypatch.setattr("eqm_video.studies.compare.windows.CHUNK", 2 * FRAMES * SIZE * SIZE * 3)
    videos = clip_set(data)
    windows = Windows(videos, 3)
    chosen = thin(torch.arange(len(windows)), 11)
    read = list(windows.read(chosen))
    assert torch.equal(torch.cat([numbers for numbers, _ in read]), chosen) and max(len(n) for n, _ in read) <= 2
    for numbers, clips in read:
        for number, clip in zip(numbers.tolist(), clips, strict=True):
            index, start = windows.places[number]
            assert torch.equal(clip, videos.clip(index, start=start).pixels.permute(0, 2, 3, 1))


def test_mistakes_are_explained(data, tmp_path, capsys):
    folder, _ = copies(data, tmp_path / "copies")
    assert "there is no" in fails(capsys, tmp_path, "--data", data)
    (tmp_path / ".parts-eqm").mkdir()
    assert "unfinished" in fails(capsys, tmp_path, "--data", data)
    assert "does not exist" in fails(capsys, folder, "--data", tmp_path / "nothing")
    assert "shorter than a clip" in fails(capsys, folder, "--data", data, "--frame-interval", 9)
    assert "did you mean frame_interval=3" in fails(capsys, folder, "--data", data, "data.interval=3")
    assert "--kind videos" in fails(capsys, folder, "--data", data, "data.kind=images")
    few = fake(tmp_path / "few", np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8), None)
    assert "needs 2 clips of each set" in fails(capsys, few, "--data", data, "--features", "pixels")
    assert "did you mean mmd?" in fails(capsys, folder, "--data", data, "--metrics", "mdm")
    assert "--data must be given" in fails(capsys, folder)


def test_data_without_lists_or_of_one_file(data, tmp_path, capsys):
    folder, _ = copies(data, tmp_path / "copies")
    root = tmp_path / "flat"
    root.mkdir()
    (root / "one.avi").write_bytes((data / clip_set(data).files[0][0]).read_bytes())
    assert "type --split all" in fails(capsys, folder, "--data", root, "--split", "train")
    assert "a single usable file" in fails(capsys, folder, "--data", root, "data.split=null")
    assert "a single usable file" in fails(capsys, folder, "--data", root)  # without lists every file is used


def test_damaged_samples(data, tmp_path, capsys):
    pixels = np.zeros((3, FRAMES, SIZE, SIZE, 3), np.uint8)
    folder = fake(tmp_path / "samples", pixels, ["a"])
    assert "1 labels" in fails(capsys, folder, "--data", data)
    (folder / "samples.json").write_text("{}")
    assert "samples.json is damaged" in fails(capsys, folder, "--data", data)
    np.savez(folder / "samples.npz", arr_0=pixels.astype(np.float32))
    assert "float32" in fails(capsys, folder, "--data", data)
    np.savez(folder / "samples.npz", arr_0=np.array([{}], dtype=object))  # a pickle: never loaded
    assert "samples.npz cannot be read as clips" in fails(capsys, folder, "--data", data)
    (folder / "samples.npz").write_bytes(b"PK")
    assert "samples.npz cannot be read as clips" in fails(capsys, folder, "--data", data)
