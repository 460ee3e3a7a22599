"""`evaluate` and `compare-results`: protocols with a hash, and numbers that no order, batch or process changes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import warm
from PIL import Image
from tiny_models import tiny_pipeline
from tiny_run import write_codec

from eqm_video import cli
from eqm_video.codec import Codec
from eqm_video.data.moving_shapes import write_moving_shapes
from eqm_video.data.transforms import crop_clip
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Altered, Arrays, jpeg, open_real, open_samples, through
from eqm_video.evaluation.export import LAYOUTS
from eqm_video.evaluation.protocol import PRESETS, Protocol, check_same, differences, digest_of
from eqm_video.evaluation.run import Evaluation
from eqm_video.features.feature import Input
from eqm_video.features.registry import open_feature
from eqm_video.metrics.metric import Statistics
from eqm_video.metrics.registry import metrics
from eqm_video.output import media
from eqm_video.studies.evaluate import is_model

SIZE, FRAMES = 16, 6
QUICK = ("--features", "random", "--redraws", "20", "--permutations", "50")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """8 labels, 3 videos of 12 frames each."""
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_moving_shapes(folder, videos=3, held_out=1, frames=12, size=SIZE, fps=8)
    return folder


@pytest.fixture(scope="module")
def samples(data, tmp_path_factory) -> Path:
    """10 clips as an archive: noisy copies of real ones."""
    real = open_real(data, Protocol(), (FRAMES, SIZE, SIZE), 8, None)
    clips = real.read(range(10)).numpy().astype(int)
    noise = np.random.default_rng(0).integers(-90, 91, clips.shape)
    path = tmp_path_factory.mktemp("samples") / "clips.npz"
    media.write_npz(path, (clips + noise).clip(0, 255).astype(np.uint8), np.zeros(10, np.int64))
    return path


@pytest.fixture(autouse=True)
def alone(fresh_accelerator):
    """Every command starts without the state of another."""


def run(name: str, *arguments) -> int:
    return cli.main([name, *map(str, arguments)])


def result(folder: Path) -> dict:
    return json.loads((folder / "evaluate.json").read_text())


def fails(capsys, name: str, *arguments) -> str:
    capsys.readouterr()
    assert run(name, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_record_has_the_protocol_and_its_hash_the_numbers_and_what_is_around_them(data, samples, tmp_path, capsys):
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = (samples, "--data", data, "--out", out, "--cache", cache, *QUICK, "--metrics", "mmd", "frechet", "motion")
    assert run("evaluate", *words) == 0
    said, record = capsys.readouterr().out, result(out)
    assert record["protocol_hash"] == digest_of(record["protocol"]) and record["protocol_hash"] in said
    protocol = record["protocol"]
    assert protocol["count"] == 10 and protocol["real_count"] == 24 and protocol["size"] == [SIZE, SIZE]
    assert protocol["feature"] == {"name": "random", "weights": open_feature("random", Input()).digest}
    assert record["changed"] == ["feature"] and "other feature" in said and "untrained network" in said
    mmd = record["metrics"]["mmd"]
    assert mmd["n"] == {"samples": 10, "real": 24} and mmd["interval"][0] < mmd["value"] < mmd["interval"][1]
    assert 0 < mmd["p_value"] <= 1 and mmd["floor"]["n"]["samples"] == 10 and mmd["title"] == "MMD (random)"
    assert mmd["floor"]["value"] < mmd["floor"]["samples_at_this_n"]
    assert "singular covariances in 448 dimensions" in record["metrics"]["frechet"]["warning"]
    assert record["metrics"]["motion"]["real"]["value"] < record["metrics"]["motion"]["value"]
    assert record["data"]["files"] == 24 and record["feature"]["verified"] is False
    assert "drawn at random, not trained" in said and "unverified" not in said
    assert not record["data"]["from_cache"] and len(list(cache.iterdir())) == 1

    assert run("evaluate", *words) == 0  # the real set is not measured again
    again = result(out)
    assert again["data"]["from_cache"] and again["metrics"] == record["metrics"]
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert run("evaluate", *words) == 0
    assert not result(out)["data"]["from_cache"] and result(out)["metrics"] == record["metrics"]


def test_samples_of_several_sizes_come_to_the_size_that_is_given(data, samples, tmp_path, capsys):
    archive = open_samples(samples, Protocol(size=(8, 12)), None)
    whole = np.load(samples)["arr_0"]
    assert archive.shape == (FRAMES, 8, 12) and archive.about["resized from"] == "16x16"
    assert np.array_equal(archive.read([3])[0].numpy(), crop_clip(whole[3], (8, 12)))

    folder = tmp_path / "mixed"
    for name, clip in {"a": whole[0], "b": crop_clip(whole[1], (24, 24))}.items():
        media.write_mp4((folder / name).with_suffix(".mp4"), clip, fps=8)
    words = (folder, "--data", data, "--out", tmp_path / "out", *QUICK, "--metrics", "motion")
    assert "16x16, 24x24 pixels: type --size" in fails(capsys, "evaluate", *words)
    assert run("evaluate", *words, "--size", "16") == 0
    assert "are resized and cropped to 16x16" in capsys.readouterr().err
    assert result(tmp_path / "out")["samples"]["resized from"] == "16x16, 24x24"


def test_the_model_that_ships_with_the_package_is_sampled(tmp_path, monkeypatch):
    assert is_model("demo") and not is_model("demo.npz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert not is_model("demo")  # a folder of that name comes first


def evaluation(**settings) -> Evaluation:
    every = metrics()
    chosen = [every[name] for name in ("mmd", "frechet", "kid", "precision", "recall", "copies", "motion", "sfid")]
    plain = {"protocol": Protocol(feature="random"), "redraws": 20, "permutations": 50, "batch_size": 5}
    return Evaluation(metrics=chosen, feature=open_feature("random", Input()), device=CPU, **{**plain, **settings})


def test_numbers_depend_neither_on_the_order_nor_on_the_batch(data, samples):
    real = open_real(data, Protocol(), (FRAMES, SIZE, SIZE), 8, None)
    clips = open_samples(samples, Protocol(), None)
    first = evaluation().run(clips, real)["metrics"]
    order = np.random.default_rng(1).permutation(len(clips))
    turned = Arrays(clips.pixels[order], [None] * len(clips))
    for other, close in ((evaluation().run(turned, real), 1e-5), (evaluation(batch_size=3).run(clips, real), 1e-5)):
        for name, expected in first.items():
            value = other["metrics"][name]
            scale = max(abs(expected["value"]), 1e-6)
            assert abs(value["value"] - expected["value"]) <= close * scale + 1e-8, name
            assert value["interval"] == pytest.approx(expected["interval"], rel=1e-3, abs=1e-6), name


def measure_in_part(rank: int, count: int, folder: str, data: Path, samples: Path) -> None:
    """One of several processes, each with a cache of its own: it measures its share, and the first writes the numbers.

    A single process keeps the real set where the second of several ones looks.
    """
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{count}", rank=rank, world_size=count)
    real = open_real(data, Protocol(), (FRAMES, SIZE, SIZE), 8, None)
    cache = Path(folder, f"cache_{1 if count == 1 else rank}")
    record = evaluation(cache=cache).run(open_samples(samples, Protocol(), None), real)
    if rank == 0:
        Path(folder, f"{count}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def test_numbers_of_two_and_three_processes_are_those_of_one(data, samples, tmp_path):
    for count in (1, 2, 3):
        words = (count, str(tmp_path), data, samples)
        torch.multiprocessing.start_processes(measure_in_part, words, nprocs=count, start_method="fork")
    first, *others = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2, 3))
    # Two processes: the second alone has the set, and both measure. Three: the first has it, and the third has not.
    assert [record["data"].pop("from_cache") for record in (first, *others)] == [False, False, True]
    assert all(other == first for other in others)


def test_several_processes_of_a_launcher_write_one_record(data, samples, tmp_path):
    words = ["evaluate", str(samples), "--data", str(data), *QUICK, "--metrics", "motion", "--device", "cpu"]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = warm.run("-m", "eqm_video", *words, environment={**os.environ, "ACCELERATE_USE_CPU": "1"}, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("protocol " + result(tmp_path / "out")["protocol_hash"]) == 1


def test_a_model_is_sampled_and_its_codec_is_a_floor(data, tmp_path, capsys):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    words = ("--data", data, "--out", tmp_path / "out", "--cache", tmp_path / "cache", *QUICK, "--metrics", "mmd")
    assert run("evaluate", model, *words, "--num-samples", "5", "--steps", "2", "--batch-size", "2") == 0
    record = result(tmp_path / "out")
    assert record["samples"]["count"] == 5 and record["samples"]["sampling"]["steps"] == 2
    assert record["metrics"]["mmd"]["codec"]["value"] > record["metrics"]["mmd"]["floor"]["value"]
    assert "codec" in capsys.readouterr().out


def test_results_of_other_protocols_or_data_are_not_compared(data, samples, tmp_path, capsys):
    words = (samples, "--cache", tmp_path / "cache", *QUICK, "--metrics", "mmd")
    for name, more in (("a", ()), ("b", ()), ("c", ("--window", "first"))):
        assert run("evaluate", *words, "--data", data, "--out", tmp_path / name, *more) == 0
    capsys.readouterr()
    assert run("compare-results", tmp_path / "a", tmp_path / "b" / "evaluate.json") == 0
    assert "overlap" in capsys.readouterr().out
    error = fails(capsys, "compare-results", tmp_path / "a", tmp_path / "c")
    assert "window is 'random' in" in error and "window" in error and "'first' in" in error
    other = json.loads((tmp_path / "b" / "evaluate.json").read_text())
    other["protocol"]["seed"] = 7
    (tmp_path / "d.json").write_text(json.dumps(other))
    assert "was changed: its protocol no longer has the hash" in fails(
        capsys, "compare-results", tmp_path / "a", tmp_path / "d.json"
    )
    write_moving_shapes(tmp_path / "fewer", videos=2, held_out=1, frames=12, size=SIZE, fps=8)
    more = ("--data", tmp_path / "fewer", "--real", "16", "--out", tmp_path / "e")
    assert run("evaluate", *words, *more) == 0
    assert run("evaluate", *words, "--data", data, "--real", "16", "--out", tmp_path / "f") == 0
    assert "other data do not compare" in fails(capsys, "compare-results", tmp_path / "e", tmp_path / "f")
    assert "two results or more" in fails(capsys, "compare-results", tmp_path / "a")
    assert "there is no" in fails(capsys, "compare-results", tmp_path / "a", tmp_path / "nothing")
    assert run("compare-results", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both") == 0
    kept = json.loads((tmp_path / "both" / "compare_results.json").read_text())
    assert kept["metrics"]["mmd"]["overlap"] is True


def test_every_choice_is_in_the_hash():
    feature = {"name": "random", "weights": "0"}
    plain = Protocol().resolved(feature)
    seen = {digest_of(plain), digest_of(Protocol().resolved({"name": "random", "weights": "1"}))}
    changes = {
        "count": 9,
        "real_count": 9,
        "frames": 9,
        "stride": 9,
        "split": "test",
        "fold": 2,
        "order": "sorted",
        "seed": 9,
        "window": "first",
        "size": (9, 9),
        "crop": "other",
        "colour": "other",
        "jpeg": 75,
        "fit": "crop",
        "antialias": False,
        "window_frames": 9,
        "statistics": Statistics(ddof=0),
    }
    assert changes.keys() == Protocol.__dataclass_fields__.keys() - {"feature"}
    for name, value in changes.items():
        other = replace(Protocol(), **{name: value}).resolved(feature)
        assert len(differences(plain, other)) == 1 and differences(plain, other)[0][0].startswith(name)
        seen.add(digest_of(other))
    assert len(seen) == 2 + len(changes)
    with pytest.raises(UserError, match=r"statistics\.ddof is 1 in a and 0 in b"):
        check_same(plain, replace(Protocol(), statistics=Statistics(ddof=0)).resolved(feature), ("a", "b"))


def test_presets_name_their_sources_and_are_all_different(capsys):
    feature = {"name": "i3d", "weights": "0"}
    hashes = {
        digest_of({**preset.protocol.resolved(feature), "name": preset.protocol.feature}) for preset in PRESETS.values()
    }
    assert len(hashes) == len(PRESETS) == 7
    for name, preset in PRESETS.items():
        assert preset.sources.keys() <= Protocol.__dataclass_fields__.keys() and preset.says and preset.metrics
        other = {key for key, value in vars(preset.protocol).items() if value != vars(Protocol())[key]}
        assert other <= preset.sources.keys(), (name, other - preset.sources.keys())  # no choice without its source
    assert run("evaluate", "--list") == 0
    said = capsys.readouterr().out
    assert "statistics: biased 1, scale 100; oooolga/JEDi" in said and "statistics: ddof 0; universome" in said
    assert all(f"\n  {name}: " in said for name in [*PRESETS, *metrics(), "transnet", "i3d", "random"])


def test_real_clips_are_those_of_the_protocol(data):
    shape = (FRAMES, SIZE, SIZE)
    shuffled = open_real(data, Protocol(real_count=6), shape, 8, None)
    assert len(shuffled) == 6 and len(set(shuffled.sources)) == 6
    same = open_real(data, Protocol(real_count=6), shape, 8, None)
    assert shuffled.windows == same.windows != open_real(data, Protocol(real_count=6, seed=1), shape, 8, None).windows
    ordered = open_real(data, Protocol(order="sorted", window="first"), shape, 8, None)
    assert list(ordered.names) == sorted(ordered.names) and {start for _, start in ordered.windows} == {0}
    assert len(open_real(data, Protocol(window="every"), shape, 8, None)) == 48
    assert len(open_real(data, Protocol(split="test"), shape, 8, None)) == 8
    assert open_real(data, Protocol(stride=2), shape, 8, None).data.frame_interval == 2
    assert open_real(data, Protocol(), shape, 4, None).data.frame_interval == 2
    with pytest.raises(UserError, match="has 24 clips for this protocol, which asks for 99"):
        open_real(data, Protocol(real_count=99), shape, 8, None)


def test_samples_are_folders_of_videos_or_pictures_too(data, samples, tmp_path, capsys):
    assert open_samples(data, Protocol(frames=4), None).shape == (4, SIZE, SIZE)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (20, 12), (index, 0, 0)).save(folder / f"{index}.png")
    pictures = open_samples(folder, Protocol(count=4), None)
    assert len(pictures) == 4 and pictures.shape == (1, 12, 20) and int(pictures.read([3])[0, 0, 0, 0, 0]) == 3
    Image.new("RGB", (30, 12)).save(folder / "9.png")
    with pytest.raises(UserError, match="samples of 12x20, 12x30 pixels: type --size"):
        open_samples(folder, Protocol(), None)
    with pytest.raises(UserError, match="holds 10 clips, and the protocol asks for 11"):
        open_samples(samples, Protocol(count=11), None)
    with pytest.raises(UserError, match="holds clips of 6 frames, and the protocol asks for 16"):
        open_samples(samples, Protocol(frames=16), None)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read as clips"):
        open_samples(damaged, Protocol(), None)


def test_pairs_are_compared_one_by_one(data, tmp_path, capsys):
    pytest.importorskip("torchmetrics", reason="needs the extra [evaluate]")
    words = ("--data", data, "--out", tmp_path / "out", "--metrics", "psnr", "ssim", "--frames", "4")
    assert run("evaluate", data, *words, "--paired") == 0
    record = result(tmp_path / "out")
    assert record["metrics"]["psnr"]["value"] == 100 and record["metrics"]["ssim"]["value"] == pytest.approx(1)
    assert "add --paired where clip k" in fails(capsys, "evaluate", data, *words)
    assert "there are 3 samples and 24 real clips" in fails(
        capsys, "evaluate", data, *words, "--paired", "--num-samples", "3"
    )


def test_alterations(tmp_path):
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    source = Arrays(clips.numpy(), [None, None])
    lossy = Altered(source, jpeg(75)).read([1])
    assert lossy.shape == (1, 3, 16, 16, 3) and not torch.equal(lossy[0], clips[1])
    codec = Codec.load(write_codec(tmp_path / "codec"))
    assert Altered(source, through(codec)).read([0, 1]).shape == clips.shape


@pytest.fixture
def six(monkeypatch):
    """The tools' metrics for clips of 3 and 6 frames, which they could have."""
    for name, tool in LAYOUTS.items():
        more = {frames: f"fvd2048_{frames}f" for frames in (3, 6)}
        monkeypatch.setitem(LAYOUTS, name, replace(tool, metrics={**tool.metrics, **more}))


def test_both_sets_are_written_for_other_tools(data, samples, tmp_path, capsys, six):
    words = (samples, "--data", data, "--out", tmp_path / "out", "--export-for", "stylegan-v", "--real", "3")
    assert run("evaluate", *words) == 0
    folder = tmp_path / "out" / "stylegan-v"
    assert [len(list((folder / side).iterdir())) for side in ("fake", "real")] == [10, 3]
    frame = np.asarray(Image.open(folder / "fake" / "000002" / "000005.png"))
    assert np.array_equal(frame, np.load(samples)["arr_0"][2, 5])
    said = capsys.readouterr().out
    assert "src/scripts/calc_metrics_for_dataset.py" in said and "--metrics fvd2048_6f --resolution 128 " in said
    assert "is there already" in fails(capsys, "evaluate", *words)
    assert run("evaluate", *words, "--size", "16x8") == 2
    assert "at most 1024 pixels, and these have 16x8: type --size" in capsys.readouterr().err
    assert "16 or 128 or 3 or 6 frames, and these have 5" in fails(capsys, "evaluate", *words, "--frames", "5")


def test_lattes_script_gets_real_clips_that_it_thins_itself(data, samples, tmp_path, capsys, six):
    """It takes every third frame, wants 3 T frames in a folder, and its frames are JPEG of quality 75."""
    words = (samples, "--data", data, "--export-for", "latte", "--frames", "3", "--num-samples", "2", "--real", "4")
    protocol = ("--protocol", "latte", "--metrics", "frechet")
    assert run("evaluate", *words, *protocol, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "latte"
    counts = {
        side: [len(list(clip.iterdir())) for clip in sorted((folder / side).iterdir())] for side in ("fake", "real")
    }
    assert counts == {"fake": [3, 3], "real": [9] * 4}
    said = capsys.readouterr().out
    assert said.startswith("python tools/calc_metrics_for_dataset.py ") and "--metrics fvd2048_3f " in said
    real = open_real(data, replace(PRESETS["latte"].protocol, real_count=4), (3, SIZE, SIZE), 8, None)
    expected = Altered(Arrays(real.read([1]).numpy(), [None]), jpeg(75)).read([0])[0]
    frames = [np.asarray(Image.open(folder / "real" / "000001" / f"{3 * k:06d}.jpg")) for k in range(3)]
    assert np.array_equal(np.stack(frames), expected)
    assert "takes every 3rd frame of the real clips, and this protocol every 1" in fails(
        capsys, "evaluate", *words, "--out", tmp_path / "other"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--metrics", "fvd"), "is a number of the feature i3d, and the feature is random"),
        (("--metrics", "nothing"), "there is no such metric"),
        (("--features", "nothing"), "there is no such feature"),
        (("--metrics", "is"), "the feature random has no logits"),
        (("--metrics", "over-time"), "needs clips of two windows of 16 frames"),
        (("--metrics", "accuracy"), "needs labels"),
        (("--protocol", "stylegan-v", "--frames", "6"), "holds 10 clips, and the protocol asks for 2048"),
    ],
)
def test_mistakes_are_explained(more, said, data, samples, tmp_path, capsys):
    words = list(QUICK)
    if more[0] in ("--features", "--protocol"):
        words = words[2:] if more[0] == "--features" else [*words, "--metrics", "frechet"]
    assert said in fails(
        capsys, "evaluate", samples, "--data", data, "--out", tmp_path / "out", "--cache", tmp_path / "c", *words, *more
    )


def test_data_must_be_there_where_a_metric_needs_them(samples, tmp_path, capsys):
    assert "real clips are needed, type --data FOLDER" in fails(
        capsys, "evaluate", samples, "--out", tmp_path / "out", *QUICK
    )
    assert run("evaluate", samples, "--out", tmp_path / "out", "--metrics", "flicker", "motion") == 0
    assert result(tmp_path / "out")["feature"] is None


def test_a_set_whose_files_change_inside_is_measured_again(data, samples, tmp_path, capsys):
    """The cache is not taken in by files of the same names, sizes, ends and times."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.bmp")
    words = (folder, "--data", folder, "--cache", tmp_path / "cache", *QUICK, "--metrics", "mmd")
    contents = []
    for name in ("a", "b"):
        assert run("evaluate", *words, "--out", tmp_path / name) == 0
        record = result(tmp_path / name)
        assert not record["data"]["from_cache"]
        contents.append((record["data"]["identity"], record["data"]["content"]))
        file = folder / "3.bmp"
        before, content = file.stat(), bytearray(file.read_bytes())
        content[6000:7000] = bytes(255 - value for value in content[6000:7000])
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents[0][0] == contents[1][0] and contents[0][1] != contents[1][1]
    assert "other data do not compare" in fails(capsys, "compare-results", tmp_path / "a", tmp_path / "b")


def test_samples_that_are_copies_are_counted(data, samples, tmp_path, capsys):
    real = open_real(data, Protocol(order="sorted"), (FRAMES, SIZE, SIZE), 8, None).read(range(4)).numpy()
    clips = np.concatenate([real[:2], np.load(samples)["arr_0"][:3], np.load(samples)["arr_0"][:1]])
    path = tmp_path / "clips.npz"
    media.write_npz(path, clips, np.zeros(len(clips), np.int64))
    words = (path, "--data", data, "--out", tmp_path / "out", "--cache", tmp_path / "cache", *QUICK)
    assert run("evaluate", *words, "--metrics", "motion", "mmd") == 0
    record, said = result(tmp_path / "out"), capsys.readouterr().out
    assert (record["samples"]["copies_among_them"], record["samples"]["real_clips_among_them"]) == (1, 2)
    assert "1 of the 6 samples equal another sample bit for bit" in said
    assert "2 of the 6 samples equal a real clip bit for bit" in said


def test_too_few_clips_and_other_labels_are_said_before_anything_is_measured(
    data, samples, tmp_path, capsys, monkeypatch
):
    words = ("--data", data, "--out", tmp_path / "out", "--cache", tmp_path / "cache", *QUICK)
    monkeypatch.setattr("eqm_video.evaluation.measure.Meter.rows", None)
    error = fails(capsys, "evaluate", samples, *words, "--num-samples", "3", "--metrics", "precision")
    assert "needs 5 clips of each set, and there are 3 samples and 24 real clips" in error
    folder = tmp_path / "labelled"
    for index, clip in enumerate(np.load(samples)["arr_0"][:2]):
        media.write_mp4(folder / "Elsewhere" / f"{index}.mp4", clip, fps=8)
    error = fails(capsys, "evaluate", folder, *words, "--metrics", "accuracy")
    assert "no label of the samples (Elsewhere) is one of the real clips (DiscDown, DiscLeft, DiscRight)" in error
    pictures = tmp_path / "pictures.npz"
    media.write_npz(pictures, np.load(samples)["arr_0"][:, :1], np.zeros(10, np.int64))
    error = fails(capsys, "evaluate", pictures, *words)
    assert "--metrics flicker motion frozen needs clips of 3 frames, and these have 1: type --metrics mmd " in error


def test_samples_of_several_lengths_and_files_that_cannot_be_read_are_said(data, samples, tmp_path, capsys):
    folder, clips = tmp_path / "mixed", np.load(samples)["arr_0"]
    for index, frames in enumerate((6, 4, 5)):
        media.write_mp4(folder / f"{index}.mp4", clips[index][:frames], fps=8)
    (folder / "junk.mp4").write_bytes(b"junk" * 99)
    words = (folder, "--data", data, "--out", tmp_path / "out", *QUICK, "--metrics", "motion")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run("evaluate", *words, "--cache", blocked) == 0
    said, record = capsys.readouterr().err, result(tmp_path / "out")
    assert "samples of 4 to 6 frames: the first 4 of each are taken; type --frames" in said
    assert "holds 1 files that cannot be read" in said and record["samples"]["unreadable"] == 1
    assert record["protocol"]["frames"] == 4 and record["samples"]["frames from"] == [4, 6]
    assert "measures of the real clips are not kept: cannot write" in said


def test_files_of_the_data_that_cannot_be_read_are_said(data, samples, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "DiscUp" / "junk.mp4").write_bytes(b"junk" * 99)
    assert run("evaluate", samples, "--data", folder, "--out", tmp_path / "out", *QUICK, "--metrics", "motion") == 0
    assert "1 files of --data cannot be read" in capsys.readouterr().out
