"""Latents on disk: the clips that memory would give, whatever kills the process that fills the cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from cifar_files import LABELS, cifar_files, random_pictures, write_folder
from numbered import write_numbered
from safetensors import safe_open
from tiny_run import read_metrics, write_codec, write_images, write_videos
from warm import Process
from warm import run as run_warm

from eqm_video import cli
from eqm_video.codec import Codec
from eqm_video.data import latent_cache, shards
from eqm_video.data.buckets import Bucket
from eqm_video.data.datasets import open_data
from eqm_video.data.latents import LatentsInMemory, collate_latents
from eqm_video.errors import UserError
from eqm_video.training import cache
from eqm_video.training.config import load_config, to_yaml
from eqm_video.training.data import LatentCaches

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, six videos, four images."""
    folder = tmp_path_factory.mktemp("made")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    for number, label in enumerate(("left", "right")):  # names without a direction, so that flips are allowed
        (folder / "videos" / label).rename(folder / "videos" / f"class{number}")
    write_images(folder / "images", labels=("class0", "still"), size=16)
    return folder


def words(made: Path, *more: str) -> list[str]:
    """A recipe in words, whose steps are as small as can be."""
    return [
        *(f"data.root={made / 'videos'}", f"codec.name={made / 'codec'}", "data.size=16", "data.workers=0"),
        *("model.preset=EqM-Nano/4", "train.batch_size=4", "train.steps=4", "train.log_every=1", "preview.every=0"),
        *("frames=3", "data.frame_interval=2", "run.report=false", *more),
    ]


def call(command: str, *arguments: object) -> int:
    """A command in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return cli.main([command, *map(str, arguments)])


def fill(made: Path, out: Path, *more: str) -> dict:
    """Fill a cache; its record."""
    assert call("cache", *words(made, *more), "--out", out) == 0
    return json.loads((out / "cache.json").read_text())


def on_disk(made: Path, out: Path, *more: str, **settings: object) -> latent_cache.LatentsOnDisk:
    """The videos' latents in a cache, as training opens them."""
    config = load_config(None, words(made, *more))
    look = {"frames": 3, "frame_interval": 2, "size": 16, "flip": config.data.flip, **settings}
    data = open_data(config.data.kind, config.data.root, **look)
    return LatentCaches.of(config, Codec.load(config.codec.name, weights=False), out).open("data", data)


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the videos, without flips; not to be changed."""
    out = tmp_path_factory.mktemp("plain") / "cache"
    assert fill(made, out)["parts"]["data"] == {"root": str(made / "videos"), "files": 6, "encoded": 6}
    return out


@pytest.mark.parametrize("flip", ["false", "true"])
def test_requests_give_bit_for_bit_what_memory_gives(made: Path, tmp_path: Path, flip: str) -> None:
    fill(made, tmp_path / "cache", f"data.flip={flip}")
    disk = on_disk(made, tmp_path / "cache", f"data.flip={flip}", short="skip", buckets=[Bucket(3, 2), Bucket(5, 1)])
    memory = LatentsInMemory(disk.data, Codec.load(made / "codec"), "cpu", quiet=True)
    requests = [(index, seed) for index in range(len(disk)) for seed in range(4)]
    for shape in (Bucket(3, 2), Bucket(5, 1), Bucket(1, 1)):
        ours, theirs = (collate_latents([one.view(shape)[request] for request in requests]) for one in (disk, memory))
        assert ours["names"] == theirs["names"] and ours["moments"].dtype == torch.float16
        assert all(torch.equal(ours[key], theirs[key]) for key in ("moments", "labels", "times"))
    assert torch.equal(disk.clip(2).moments, memory.clip(2).moments)
    assert disk.clip(2).start == memory.data.clip(2).start
    again = LatentsInMemory(disk.data, Codec.load(made / "codec"), "cpu", quiet=True)[(0, 1)]
    assert torch.equal(again.moments, disk[(0, 1)].moments)


def test_any_reader_of_safetensors_reads_a_shard(made: Path, plain: Path) -> None:
    disk = on_disk(made, plain)
    (path,) = (plain / "data").glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        assert file.metadata()["origin"] == "written by eqm-video" and len(file.keys()) == 12
        for index, (name, _, info) in enumerate(disk.data.files):
            moments, seconds = disk._file(index, 0)
            assert moments.shape == (info.frames, 4, 4, 4)
            np.testing.assert_array_equal(file.get_tensor(f"{name}/moments"), moments)
            np.testing.assert_array_equal(file.get_tensor(f"{name}/seconds"), disk.data.seconds(index))
            np.testing.assert_array_equal(seconds, disk.data.seconds(index))


def test_training_from_a_cache_is_training_from_memory_without_a_codec(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    more = ["data.flip=true", "data.buckets=3x2,5x1", f"data.images={made / 'images'}", "data.image_fraction=0.5"]
    more += ["held_out.fraction=0.3", "held_out.every=2"]
    record = fill(made, tmp_path / "latents", *more)
    assert {name: part["encoded"] for name, part in record["parts"].items()} == {"data": 6, "images": 4}
    runs = {"memory": "memory", "cache": f"cache:{tmp_path / 'latents'}"}
    for name, latents in runs.items():
        if name == "cache":
            monkeypatch.setattr(Codec, "moments", lambda *unused: pytest.fail("something is encoded"))
            monkeypatch.setattr("eqm_video.data.video.read_frames", lambda *unused: pytest.fail("something is decoded"))
            monkeypatch.setattr("eqm_video.data.scan.look_at", lambda root, names, look: _nothing(names))
        assert call("train", *words(made, *more), f"data.latents={latents}", f"run.dir={tmp_path / name}") == 0
    memory, cached = (read_metrics(tmp_path / name) for name in runs)
    assert [line["loss"] for line in memory] == [line["loss"] for line in cached] and len(memory) == 4
    assert memory[1]["held_out"]["mean"] == pytest.approx(cached[1]["held_out"]["mean"], rel=1e-2)
    exported = "export/transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "memory" / exported).read_bytes() == (tmp_path / "cache" / exported).read_bytes()


def _nothing(names: list[str]) -> list:
    assert not names, "something is looked at"
    return []


def test_the_weights_of_the_codec_wait_for_the_export(made: Path, plain: Path, tmp_path: Path) -> None:
    from eqm_video.training import build
    from eqm_video.training.run import Run

    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(None, words(made, f"data.latents=cache:{plain}", f"run.dir={tmp_path / 'run'}"))
    run = Run(config, build.make_accelerator(config))
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    assert run.trainer.run() and not run.codec.has_weights
    assert (run.export() / "vae").is_dir() and run.codec.has_weights


def test_held_out_folders_and_cifar_are_parts(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "videos", tmp_path / "val")
    record = fill(made, tmp_path / "cache", f"held_out.root={tmp_path / 'val'}", "data.flip=true")
    assert set(record["parts"]) == {"data", "held_out"}
    more = [f"held_out.root={tmp_path / 'val'}", "held_out.every=2", f"run.dir={tmp_path / 'run'}"]
    assert call("train", *words(made, *more), f"data.latents=cache:{tmp_path / 'cache'}") == 0
    assert read_metrics(tmp_path / "run")[1]["held_out"]["mean"] > 0

    pictures, labels = random_pictures(18)
    write_folder(tmp_path / "cifar", cifar_files(pictures, labels, 3))
    cifar = ["data.kind=images", f"data.root={tmp_path / 'cifar'}", "frames=1", "codec.name=pixels", "data.size=32"]
    assert fill(made, tmp_path / "pictures", *cifar)["parts"]["data"]["files"] == len(pictures) == 18
    disk = on_disk(made, tmp_path / "pictures", *cifar, split="test", size=32, frames=1, frame_interval=1)
    assert len(disk) == 3 and disk.data.labels == sorted(LABELS)
    levels = (disk[(0, 0)].moments[0, :3].float() + 1) * 127.5
    np.testing.assert_allclose(levels.permute(1, 2, 0), disk.data.pixels[0], atol=0.1)


# Interrupted, repeated, changed -------------------------------------------------------------------------------------


def journaled(folder: Path) -> int:
    """Files that the journals of a cache name."""
    return sum(len(list(shards.read_journal(path))) for path in folder.glob("*.safetensors"))


def until(condition: Callable[[], bool], process: Process) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


def test_a_killed_process_loses_no_finished_video_and_two_others_go_on(made: Path, tmp_path: Path) -> None:
    for k in range(5):
        for label in ("class0", "class1"):
            shutil.copytree(made / "videos" / label, tmp_path / "videos" / f"{label}{k}")
    more, data = [f"data.root={tmp_path / 'videos'}"], tmp_path / "cache" / "data"
    command = ["-m", "eqm_video", "cache", *words(made, *more), "--out", str(tmp_path / "cache")]
    process = Process(*command)
    until(lambda: journaled(data) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = journaled(data)
    assert 3 <= done < 30 and not (data / "index.json").exists()
    with pytest.raises(UserError, match=r"is not finished: .*eqm-video cache"):
        on_disk(made, tmp_path / "cache", *more)
    with (next(data.glob("*.jsonl"))).open("ab") as file:
        file.write(b'["class0/0.mp4", 17')  # as a power failure leaves a line

    ended = run_warm(*command, environment={**os.environ, "ACCELERATE_USE_CPU": "1"}, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert f"{done} are there, {30 - done} are to be encoded" in ended.stdout
    assert json.loads((tmp_path / "cache/cache.json").read_text())["parts"]["data"]["encoded"] == 30 - done
    assert not list(data.glob("*.jsonl"))
    disk = on_disk(made, tmp_path / "cache", *more)
    memory = LatentsInMemory(disk.data, Codec.load(made / "codec"), "cpu", quiet=True)
    for index in range(30):
        np.testing.assert_array_equal(disk._file(index, 0)[0], memory._file(index, 0)[0])


def test_two_processes_share_new_shards(made: Path, plain: Path, tmp_path: Path) -> None:
    disk = on_disk(made, plain)
    made_anew = latent_cache.LatentCache(tmp_path / "data", disk.cache.settings)
    made_anew.begin()
    works = made_anew.plan(disk.data, range(6), processes=2)
    assert sorted(index for work in works for index in work.indices) == [*range(6)] and len(works) == 2
    codec = Codec.load(made / "codec")
    for work in works:  # each by a process of its own, which knows nothing of the others
        other = latent_cache.LatentCache(tmp_path / "data", disk.cache.settings)
        assert other.fill(disk.data, work, codec, "cpu", 2, lambda frames: None) == []
    made_anew.seal(disk.data)
    ours = latent_cache.LatentsOnDisk(disk.data, made_anew, "")
    for index in range(6):
        for one, theirs in zip(ours._file(index, 0), disk._file(index, 0), strict=True):
            np.testing.assert_array_equal(one, theirs)


def test_single_videos_come_and_go(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "videos", tmp_path / "videos")
    more, out = [f"data.root={tmp_path / 'videos'}"], tmp_path / "cache"
    fill(made, out, *more)
    first = (out / "data" / "shard_000000.safetensors").read_bytes()
    shutil.copy(tmp_path / "videos/class0/1.mp4", tmp_path / "videos/class0/9.mp4")
    (tmp_path / "videos/class1/0.mp4").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 6 files: class0/9\.mp4; eqm-video cache .* these alone"):
        on_disk(made, out, *more)
    assert fill(made, out, *more)["parts"]["data"] == {"root": str(tmp_path / "videos"), "files": 6, "encoded": 1}
    assert (out / "data" / "shard_000000.safetensors").read_bytes() == first
    disk = on_disk(made, out, *more)
    names = [name for name, _, _ in disk.data.files]
    np.testing.assert_array_equal(*(disk._file(names.index(f"class0/{k}.mp4"), 0)[0] for k in (1, 9)))

    shutil.copy(tmp_path / "videos/class1/2.mp4", tmp_path / "videos/class0/0.mp4")  # another content
    with pytest.raises(UserError, match=r"has 1 of 6 files from before they changed: class0/0\.mp4"):
        on_disk(made, out, *more)
    assert fill(made, out, *more)["parts"]["data"]["encoded"] == 1
    os.utime(tmp_path / "videos/class0/1.mp4", (1, 1))  # another time, the same content: a copy
    on_disk(made, out, *more)
    assert fill(made, out, *more)["parts"]["data"]["encoded"] == 0
    index = json.loads((out / "data" / "index.json").read_text())
    assert set(index["files"]) == set(names) and index["files"]["class0/1.mp4"][1] == 10**9
    for path in [*(tmp_path / "videos").glob("class?/*")]:
        path.rename(path.with_stem(f"new{path.stem}"))
    assert fill(made, out, *more)["parts"]["data"]["encoded"] == 6
    assert not (out / "data" / "shard_000000.safetensors").exists()  # nothing in it is needed any more


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["data.size=32"], r"data\.size \[16, 16\] there, \[32, 32\] here"),
        (["data.flip=true"], r"data\.flip False there, True here"),
        (["codec.name=CODEC"], "a codec with other weights"),
        (["codec.name=bundled"], "a codec with other config and other weights"),
    ],
)
def test_a_cache_of_other_settings_is_refused(made, plain, tmp_path, capsys, change, sentence) -> None:
    write_codec(tmp_path / "codec", seed=1)
    change = [one.replace("CODEC", str(tmp_path / "codec")) for one in change]
    before = sorted(path.stat().st_mtime_ns for path in plain.rglob("*"))
    for command, more in (
        ("train", [f"data.latents=cache:{plain}", f"run.dir={tmp_path / 'run'}"]),
        ("cache", ["--out", str(plain)]),
    ):
        assert call(command, *words(made, *change), *more) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: the latents in ")
        assert __import__("re").search(sentence, said), said
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert {*before} >= {path.stat().st_mtime_ns for path in plain.rglob("*.*") if path.name != ".lock"}


def test_a_damaged_cache_is_refused(made: Path, plain: Path, tmp_path: Path) -> None:
    def damaged(damage: Callable[[Path], object], sentence: str) -> None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(plain, tmp_path / "cache")
        damage(tmp_path / "cache" / "data")
        with pytest.raises(UserError, match=sentence) as caught:
            on_disk(made, tmp_path / "cache")
        assert "\n" not in str(caught.value)

    shard = "shard_000000.safetensors"
    damaged(lambda folder: (folder / shard).unlink(), f"{shard} is missing: bring it back")
    damaged(lambda folder: os.truncate(folder / shard, 999), f"{shard} has 999 of .* bytes")
    damaged(lambda folder: (folder / "index.json").write_text("{"), r"index\.json is damaged .*fill the cache again")
    damaged(lambda folder: (folder / "index.json").write_text("[]"), r"index\.json is damaged")
    damaged(shutil.rmtree, "holds no latents; type eqm-video cache")


def test_a_video_that_breaks_later_gets_a_substitute(made: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    path = write_numbered(tmp_path / "videos" / "broken.mp4", 60, options={"g": "6", "bf": "0"})
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 600] = bytes(600)
    path.write_bytes(content)
    write_numbered(tmp_path / "videos" / "whole.mp4", 60)
    more = [f"data.root={tmp_path / 'videos'}"]
    record = fill(made, tmp_path / "cache", *more)
    disk = on_disk(made, tmp_path / "cache", *more)
    if not record["unreadable"]:
        pytest.skip("this decoder reads through the damage")
    assert record["unreadable"] == ["broken.mp4"]
    with pytest.warns(UserWarning, match=r"broken\.mp4: .*it is skipped"):
        assert {disk[(0, seed)].name for seed in range(3)} == {"whole.mp4"}
    assert fill(made, tmp_path / "cache", *more)["parts"]["data"]["encoded"] == 0  # it is not tried again


def test_a_dry_run_counts_and_changes_nothing(made, tmp_path, capsys, monkeypatch) -> None:
    assert call("cache", *words(made, "data.flip=true"), "--out", tmp_path / "cache", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 videos, 60 frames, moments 4x4x4 float16 of both mirrorings: 15.4 kB; 0 are there, 6 are to be" in said
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    assert call("cache", *words(made), "--out", tmp_path / "cache") == 2
    assert "the latents take 7.7 kB, but the disk of --out" in capsys.readouterr().err
    monkeypatch.undo()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    fill(made, tmp_path / "cache", "data.flip=true")  # nothing was encoded: other settings are fine


def test_latents_are_one_of_four_ways() -> None:
    for text in ("cash:folder", "cache:", "disk", "memory:x"):
        with pytest.raises(UserError, match="it must be one of auto, online, memory, or cache:FOLDER"):
            load_config(None, [f"data.latents={text}"])
    assert load_config(None, ["data.latents=cache:a/b"]).data.latents == "cache:a/b"


def test_shards_are_cut_by_size_and_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards.divide([], 10) == []
    assert shards.divide([5, 5, 5], 10) == [range(3)]
    assert shards.divide([5, 5, 5], 10, least=2) == [range(1), range(1, 2), range(2, 3)]
    monkeypatch.setattr(shards, "LARGEST", 100)
    assert shards.divide([5, 5, 25, 1, 1], 10) == [range(2), range(2, 3), range(3, 5)]
    monkeypatch.setattr(shards, "MOST", 2)
    assert shards.divide([1] * 5, 10) == [range(2), range(2, 4), range(4, 5)]
    assert shards.plain("a\udcff") == "a\\xff" != shards.plain("a\\xff")


def test_an_interrupted_encoding_says_how_to_go_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*words(made, "train.steps=1", "data.latents=memory"), f"run.dir={tmp_path / 'run'}"]
    moments = Codec.moments

    def interrupted(codec: Codec, pixels: torch.Tensor) -> torch.Tensor:
        pieces.append(moments(codec, pixels))
        if len(pieces) > 3:
            raise KeyboardInterrupt
        return pieces[-1]

    for command, more, says in (
        ("train", run, "interrupted; no step was made: type the same command again\n"),
        ("cache", [*words(made), "--out", tmp_path / "cache"], "interrupted; the same command goes on from here\n"),
    ):
        pieces: list[torch.Tensor] = []
        with monkeypatch.context() as patch:
            patch.setattr(Codec, "moments", interrupted)
            assert call(command, *more) == 130
        assert capsys.readouterr().err.endswith(says)
        assert call(command, *more) == 0, "nothing is half-written"
    assert (tmp_path / "run" / "export" / "model_index.json").is_file()


def test_auto_is_memory_where_that_is_less_work_and_fits(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latents(name: str, *more: str) -> str:
        assert call("train", *words(made, *more), f"run.dir={tmp_path / name}") == 0
        return load_config(tmp_path / name / "config.yaml").data.latents

    assert latents("few", "train.steps=1") == "online"
    assert "data.latents=auto: online; 1 step sees fewer frames than the 60 of the data" in capsys.readouterr().out
    assert latents("many", "train.steps=6") == "memory"
    assert "data.latents=auto: memory; its 60 frames are encoded once, 7.7 kB" in capsys.readouterr().out
    monkeypatch.setattr("eqm_video.system.machine.free_memory", lambda: 10_000)
    assert latents("large", "train.steps=6") == "online"
    assert "too much for this memory, so clips are encoded in every step; `eqm-video cache`" in capsys.readouterr().out
    assert latents("many", "train.steps=7", "--resume") == "memory"  # a run goes on as it began
    assert "all files are encoded again at every --resume; `eqm-video cache` keeps" in capsys.readouterr().out
    record = next((tmp_path / "few" / "checkpoints").glob("*/checkpoint.json"))
    old = json.loads(record.read_text())
    del old["config"]["data"]["latents"]  # from before the key was written
    record.write_text(json.dumps(old))
    monkeypatch.undo()
    assert latents("few", "train.steps=6", "--resume") == "online"
    assert "changed since" not in capsys.readouterr().out
