"""`sample_video.py`: files, labels, seeds, and an interrupted call that goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from sample_command import count_batches, fails, files, npz, run, settings_of
from tiny_models import save_checkpoint, tiny_pipeline, tiny_transformer

import eqm_video
from eqm_video import cli
from eqm_video.commands import COMMANDS
from eqm_video.options import LARGEST
from eqm_video.sampling import launch as module
from eqm_video.sampling.pipeline import EqMPipeline


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "export"
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_videos(export, tmp_path, capsys):
    assert run(export, "--out", tmp_path, "--num-samples", 5, "--labels", "left", "up", "--seed", 7) == 0
    clips = {f"clips/{k:06d}.gif" for k in range(5)}
    assert files(tmp_path) == {"grid.gif", "samples.npz", "samples.json", *clips}
    samples, labels = npz(tmp_path)
    assert samples.shape == (5, 3, 16, 16, 3) and samples.dtype == np.uint8
    assert labels == [2, 0, 2, 0, 2]
    expected = tiny_pipeline()([2, 0, 2, 0, 2], seeds=range(7, 12), output_type="uint8").frames
    assert (samples == expected).all()
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["labels"] == ["left", "up"] * 2 + ["left"] and record["seeds"] == [7, 8, 9, 10, 11]
    assert record["settings"]["sampler"] == {"kind": "nag", "step_size": 0.05, "mu": 0.3}
    assert (record["settings"]["steps"], record["settings"]["fps"]) == (4, 10.0)
    grid = Image.open(tmp_path / "grid.gif")
    assert grid.size == (2 + 3 * 130, 2 + 2 * (130 + 19))
    said = capsys.readouterr().out
    assert "grid.gif" in said and "samples.npz" in said


def test_images_through_a_bare_override(export, tmp_path):
    assert run(export, "frames=1", "--out", tmp_path, "num_samples=3", "--labels", "none", "--clips", 2) == 0
    assert files(tmp_path) == {"grid.png", "samples.npz", "samples.json", "clips/000000.png", "clips/000001.png"}
    samples, labels = npz(tmp_path)
    assert samples.shape == (3, 16, 16, 3) and labels == [-1, -1, -1]
    assert (np.asarray(Image.open(tmp_path / "clips" / "000001.png")) == samples[1]).all()
    expected = tiny_pipeline()(seeds=range(3), num_frames=1, output_type="uint8").frames
    assert (samples == expected[:, 0]).all()


def test_all_options_reach_the_pipeline(export, tmp_path):
    given = (
        "--steps 3 --sampler gd --step-size 0.02 --guidance-scale 2 --fps 4 --size 8x16 --format mp4,png --columns 1"
    )
    assert run(export, "--out", tmp_path, "--num-samples", 2, "data.frames=2", *given.split()) == 0
    expected = tiny_pipeline()(
        [0, 1],
        seeds=[0, 1],
        steps=3,
        sampler="gd",
        step_size=0.02,
        guidance_scale=2,
        fps=4,
        size=(8, 16),
        num_frames=2,
        output_type="uint8",
    ).frames
    assert (npz(tmp_path)[0] == expected).all()
    clips = {f"clips/{k:06d}.{kind}" for k in range(2) for kind in ("mp4", "png")}
    assert files(tmp_path) == {"grid.mp4", "grid.png", "samples.npz", "samples.json", *clips}
    strip = np.asarray(Image.open(tmp_path / "clips" / "000001.png"))
    assert (strip == np.concatenate(list(expected[1]), axis=1)).all()


def test_labels_balanced_and_random(export, tmp_path):
    assert run(export, "--out", tmp_path / "all", "--num-samples", 7, "--steps", 1) == 0
    assert npz(tmp_path / "all")[1] == [0, 1, 2, 0, 1, 2, 0]
    drawn = {}
    for seed in (0, 1):
        out = tmp_path / f"random{seed}"
        assert run(export, "--out", out, "--labels", "random", "--num-samples", 12, "--steps", 1, "--seed", seed) == 0
        drawn[seed] = npz(out)[1]
    assert set(drawn[0]) == {0, 1, 2}
    assert drawn[1][:-1] == drawn[0][1:]  # a label belongs to its seed, as the noise does
    ids = module.choose_labels(tiny_pipeline(), ["1", "up"], 3, 0)
    assert ids == [1, 0, 1]


def test_an_interrupted_run_goes_on(export, tmp_path, monkeypatch, capsys):
    common = (export, "--num-samples", 7, "--labels", "up", "down")
    assert run(*common, "--out", tmp_path / "whole", "--batch-size", 2) == 0
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        sizes = count_batches(patch, stop_after=2)
        assert run(*common, "--out", out, "--batch-size", 2) == 130
        assert sizes == [2, 2]
    said = capsys.readouterr().err
    assert said.endswith("interrupted; finished batches are kept, and the same command goes on\n")
    assert "samples.npz" not in files(out) and "clips/000003.gif" in files(out)
    assert "steps: 4 there, 5 here" in fails(capsys, *common, "--out", out, "--steps", 5)
    (out / ".parts-eqm" / ".00000004.npy.aside").write_bytes(b"half")
    (out / "clips" / "000001.gif").unlink()
    with monkeypatch.context() as patch:
        sizes = count_batches(patch)
        assert run(*common, "--out", out, "--batch-size", 5) == 0
        assert sizes == [3]
        assert run(*common, "--out", out, "--batch-size", 5) == 0  # finished: nothing to sample
        assert sizes == [3]
    assert files(out) == files(tmp_path / "whole")
    difference = npz(out)[0].astype(int) - npz(tmp_path / "whole")[0]
    assert np.abs(difference).max() <= 1 and npz(out)[1] == npz(tmp_path / "whole")[1]


def test_finished_samples_are_shown_anew_without_sampling(export, tmp_path, monkeypatch):
    common = (export, "--out", tmp_path, "--num-samples", 3, "--steps", 1)
    assert run(*common, "--clips", 0) == 0
    assert files(tmp_path) == {"grid.gif", "samples.npz", "samples.json"}
    sizes = count_batches(monkeypatch)
    assert run(*common, "--format", "gif,png", "--scale", 1) == 0
    assert sizes == [] and "clips/000002.png" in files(tmp_path)
    assert Image.open(tmp_path / "grid.gif").size[0] == 2 + 2 * 18


def test_other_samples_are_not_mixed_in(export, tmp_path, capsys):
    common = ("--out", tmp_path, "--num-samples", 4, "--steps", 1)
    assert run(export, *common) == 0
    before = npz(tmp_path)[0]
    assert "seed: 0 there, 9 here" in fails(capsys, export, *common, "--seed", 9)
    other = tmp_path / "other"
    torch.manual_seed(3)
    changed = tiny_pipeline()
    torch.nn.init.normal_(changed.transformer.head.linear.weight, std=0.2)
    changed.save_pretrained(other)
    assert "model:" in fails(capsys, other, *common)
    assert (npz(tmp_path)[0] == before).all()
    (tmp_path / "mine.txt").write_text("keep")
    assert run(export, "--out", tmp_path, "--num-samples", 2, "--steps", 1, "--seed", 9, "--overwrite") == 0
    assert len(npz(tmp_path)[0]) == 2 and "clips/000002.gif" not in files(tmp_path) and "mine.txt" in files(tmp_path)
    (tmp_path / "samples.json").unlink()
    assert "unknown settings" in fails(capsys, export, *common)
    (tmp_path / "samples.json").write_text("{}")
    assert "damaged" in fails(capsys, export, *common)


def test_many_samples_are_joined_from_many_parts(export, tmp_path, monkeypatch):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, limit[1]))  # the parts must not all be open at once
    try:
        assert run(export, "--out", tmp_path, "frames=1", "--num-samples", 150, "--batch-size", 1, "steps=1") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert len(npz(tmp_path)[0]) == 150
    assert len([name for name in files(tmp_path) if name.startswith("clips/")]) == 64


def test_checkpoint_and_run_folders(export, tmp_path):
    runs = tmp_path / "runs"
    save_checkpoint(runs / "checkpoints" / "step_00000100", tiny_pipeline(), str(export / "vae"))
    for name, model in (("run", runs), ("checkpoint", runs / "checkpoints" / "step_00000100"), ("export", export)):
        assert run(model, "--out", tmp_path / name, "--num-samples", 2) == 0
    assert (npz(tmp_path / "run")[0] == npz(tmp_path / "export")[0]).all()
    assert (npz(tmp_path / "checkpoint")[0] == npz(tmp_path / "export")[0]).all()


def test_codec_override_and_mixed_precision(export, tmp_path):
    common = (
        "--num-samples",
        1,
        "--size",
        16,
        "--frames",
        3,
        "--fps",
        10,
        "--steps",
        4,
        "--step-size",
        0.05,
        "--mu",
        0.3,
    )
    model, codec = export / "transformer", export / "vae"
    assert run(model, "--codec", codec, "--out", tmp_path / "a", *common, "--labels", 0) == 0
    assert run(export, "--out", tmp_path / "b", *common, "--labels", "up") == 0
    assert (npz(tmp_path / "a")[0] == npz(tmp_path / "b")[0]).all()
    assert run(export, "--out", tmp_path / "c", *common, "--labels", "up", "--mixed-precision", "bf16") == 0
    difference = np.abs(npz(tmp_path / "c")[0].astype(int) - npz(tmp_path / "b")[0])
    assert difference.max() > 0 and difference.mean() < 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--labels", "uq"), "unknown label 'uq'; did you mean up"),
        (("--labels", "7"), "label 7 is out of range"),
        (("--size", "18"), "not divisible by 4"),
        (("--sampler", "gd", "--mu", "0.2"), "no mu"),
        (("--mu", "1"), "mu"),
        (("--format", "webm"), "'webm': allowed is gif, mp4, png"),
        (("frames=1", "--format", "gif"), "allowed is png"),
        (("franes=1",), "unknown override 'franes=1'; did you mean frames=1?"),
        (("--device", "cuda:77"), "cuda:77 cannot be used"),
        (("--codec", "nowhere"), "codec 'nowhere' is not a folder"),
    ],
)
def test_wrong_options(export, tmp_path, arguments, says, capsys):
    assert says in fails(capsys, export, "--out", tmp_path, "--num-samples", 1, *arguments)
    assert not (tmp_path / "samples.npz").exists()


def test_a_run_that_failed_leaves_the_folder_free(export, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LARGEST, float, float("inf"))  # no option lets a step pass that is too large for the numbers
    assert "step_size" in fails(capsys, export, "--out", tmp_path, "--step-size", 1e30, "--steps", 40)
    assert not (tmp_path / "samples.npz").exists()
    assert run(export, "--out", tmp_path, "--num-samples", 2, "--step-size", 0.01) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--num-samples", "0"), "--num-samples is 0: it must be a whole number of at least 1"),
        (("frames=0",), "--frames is 0: it must be a whole number of at least 1"),
        (("--fps", "-2"), "--fps is -2: it must be a number of at least 0.01"),
        (("--size", "big"), "--size is big: it must be a size in pixels"),
        (("--guidance-scale", "nan"), "--guidance-scale is nan: it must be a number"),
        (("--step-size", "1e30"), "--step-size is 1e30: it must be auto or a number above 0, and no larger than 1e+09"),
        (("--sampler", "unipc"), "--sampler is unipc: it must be one of gd, nag, "),
    ],
)
def test_wrong_numbers(export, tmp_path, arguments, says, capsys):
    assert says in fails(capsys, export, "--out", tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


def test_wrong_folders(export, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write to" in fails(capsys, export, "--out", tmp_path / "file" / "out")
    assert "is not a folder" in fails(capsys, tmp_path / "nothing", "--out", tmp_path / "out")
    assert "is not a folder" in fails(capsys, tmp_path / "file", "--out", tmp_path / "out")
    assert "no model_index.json" in fails(capsys, tmp_path, "--out", tmp_path / "out")
    tiny_pipeline(tiny_transformer(temporal=False), frames=1).save_pretrained(tmp_path / "images")
    assert "frames=1" in fails(capsys, tmp_path / "images", "--out", tmp_path / "out", "--frames", "4")
    config = tmp_path / "images" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    assert "depth is 3, but the weights beside it have 2 blocks" in fails(
        capsys, tmp_path / "images", "--out", tmp_path / "out"
    )


def test_two_processes_make_the_samples_of_one(root, export, tmp_path):
    common = ("--num-samples", 7, "--labels", "random", "--batch-size", 2)
    assert run(export, "--out", tmp_path / "one", *common) == 0
    for _ in range(2):  # gloo sometimes aborts at exit, after all is written: the files decide
        done = warm.run(root / "sample_video.py", export, "--out", tmp_path / "two", *common, ranks=2)
        if (tmp_path / "two" / "samples.json").exists() and done.returncode == 0:
            break
    assert files(tmp_path / "two") == files(tmp_path / "one"), done.stderr
    two, one = npz(tmp_path / "two"), npz(tmp_path / "one")
    assert np.abs(two[0].astype(int) - one[0]).max() <= 1 and two[1] == one[1]
    settings = [json.loads((tmp_path / name / "samples.json").read_text())["settings"] for name in ("one", "two")]
    assert settings[0] == settings[1]


def test_processes_that_do_not_know_each_other_are_refused(export, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    if torch.cuda.is_available():
        pytest.skip("needs a machine whose launch Accelerate takes for one process")
    assert "ACCELERATE_USE_CPU=1 torchrun" in fails(capsys, export, "--out", tmp_path)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--help-all")
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "--guidance-scale" in said and "--mixed-precision" in said


def test_commands(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["sampel"]) == 2
    assert "did you mean sample?" in capsys.readouterr().err


def test_the_package_exports_lazily():
    assert eqm_video.EqMPipeline is EqMPipeline
    assert "build_model" in dir(eqm_video)
    with pytest.raises(AttributeError, match="nothing"):
        _ = eqm_video.nothing


def test_entries_are_thin(root):
    assert len((root / "sample_video.py").read_text().splitlines()) < 15
    done = warm.run("-m", "eqm_video", "--help")
    assert done.returncode == 0 and "  sample " in done.stdout and "eqm-video COMMAND" in done.stdout
    done = warm.run(root / "sample_video.py", "nowhere", "--out", "x")
    assert done.returncode == 2 and done.stderr.strip().startswith("error: nowhere is not a folder")


# The landscape ------------------------------------------------------------------------------------------------------


def test_clips_stop_by_themselves_and_say_after_how_many_evaluations(export, tmp_path, capsys):
    options = {"steps": 40, "tolerance": 0.58, "per_frame": True}
    words = ("--num-samples", 3, "--steps", 40, "--tolerance", 0.58, "--per-frame")
    assert run(export, "--out", tmp_path, *words) == 0
    nfe = json.loads((tmp_path / "samples.json").read_text())["nfe"]
    expected = tiny_pipeline()([0, 1, 2], seeds=range(3), **options, output_type="uint8")
    assert nfe == expected.nfe.tolist() and min(nfe) < max(nfe) == 40
    assert (npz(tmp_path)[0] == expected.frames).all()
    assert settings_of(tmp_path)["tolerance"] == 0.58 and settings_of(tmp_path)["per_frame"] is True
    assert "evaluations of the field" in capsys.readouterr().out


def test_composition_of_labels(export, tmp_path):
    assert run(export, "--out", tmp_path, "--num-samples", 2, "--compose", "up:2", "left") == 0
    expected = tiny_pipeline()(
        num_samples=2, composition=[("up", 2.0), ("left", 1.0)], seeds=[0, 1], output_type="uint8"
    )
    assert (npz(tmp_path)[0] == expected.frames).all()
    assert npz(tmp_path)[1] == [-1, -1] and settings_of(tmp_path)["labels"] == ["up:2", "left:1"]
    assert json.loads((tmp_path / "samples.json").read_text())["labels"] == ["up+left"] * 2


def test_partial_denoising_starts_from_samples(export, tmp_path, capsys):
    assert run(export, "--out", tmp_path / "first", "--num-samples", 3) == 0
    first = npz(tmp_path / "first")[0]
    words = ("--start-from", tmp_path / "first" / "samples.npz", "--start-gamma", 0.6, "--num-samples", 2)
    assert run(export, "--out", tmp_path / "second", *words, "--seed", 5) == 0
    expected = tiny_pipeline()([0, 1], clips=first[:2], start_gamma=0.6, seeds=[5, 6], output_type="uint8")
    assert (npz(tmp_path / "second")[0] == expected.frames).all()
    assert "start_from" in settings_of(tmp_path / "second")
    assert run(export, "--out", tmp_path / "third", *words[:4], "--num-samples", 4) == 0  # after the last, the first
    expected = tiny_pipeline()(
        [0, 1, 2, 0], clips=first[[0, 1, 2, 0]], start_gamma=0.6, seeds=range(4), output_type="uint8"
    )
    assert (npz(tmp_path / "third")[0] == expected.frames).all()
    assert "add --start-from" in fails(capsys, export, "--out", tmp_path / "x", "--start-gamma", 0.5)
    assert "or --start-gamma" in fails(capsys, export, "--out", tmp_path / "x", *words[:2])
    assert "does not exist" in fails(capsys, export, "--out", tmp_path / "x", "--start-from", "no.npz", *words[2:4])


def test_a_preset_gives_the_settings_that_are_not_given(export, tmp_path):
    assert run(export, "--out", tmp_path, "--num-samples", 1, "--preset", "paper-xl2", "--steps", 2) == 0
    found = settings_of(tmp_path)
    assert found["sampler"] == {"kind": "nag", "step_size": 0.0017, "mu": 0.3}
    assert (found["steps"], found["guidance_scale"]) == (2, 1.5)


@pytest.mark.parametrize("sampler", ["adam", "langevin", "euler", "heun", "dopri5", "sde"])
def test_every_sampler_by_its_name(export, tmp_path, sampler):
    assert run(export, "--out", tmp_path, "--num-samples", 2, "--sampler", sampler, "--steps", 30) == 0
    assert npz(tmp_path)[0].std() > 0 and settings_of(tmp_path)["sampler"]["kind"] == sampler


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--per-frame",), "--per-frame needs --tolerance"),
        (("--plain-sum",), "add --compose"),
        (("--compose", "up", "--labels", "up"), "--compose takes the place of --labels"),
        (("--compose", "sideways"), "unknown label 'sideways'"),
        (("--compose", "up:2", "--match-norm"), "--compose takes the place of --labels and of guidance"),
        (("compose=up:2",), "--compose is an option, not an override"),
        (("--sampler", "heun", "--tolerance", "0.1"), "stopping at a tolerance is for the rules"),
        (("--sampler", "euler", "--step-size", "0.1"), "'euler' has no step_size"),
        (("--guidance-interval", "0.6", "0.2", "--guidance-scale", "2"), "first < last"),
    ],
)
def test_options_that_do_not_go_together(export, tmp_path, arguments, says, capsys):
    assert says in fails(capsys, export, "--out", tmp_path, "--num-samples", 1, *arguments)


@pytest.mark.parametrize("option", [("--match-norm",), ("--guidance-interval", "0.5", "1")])
def test_guidance_options_change_the_samples(export, tmp_path, option):
    words = ("--num-samples", 1, "--labels", "up", "--guidance-scale", 4)
    assert run(export, "--out", tmp_path / "plain", *words) == 0
    assert run(export, "--out", tmp_path / "other", *words, *option) == 0
    assert (npz(tmp_path / "plain")[0] != npz(tmp_path / "other")[0]).any()


def test_what_is_no_archive_of_samples_is_refused(export, tmp_path, capsys):
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "floats.npy", np.zeros((2, 3, 16, 16, 3)))
    np.savez(tmp_path / "none.npz", arr_0=np.zeros((0, 3, 16, 16, 3), np.uint8))
    for name in ("empty.npz", "cut.npz", "floats.npy", "none.npz"):
        said = fails(capsys, export, "--out", tmp_path / "x", "--start-from", tmp_path / name, "--start-gamma", 0.5)
        assert name in said and ("cannot be read" in said or "not uint8" in said)


def test_files_of_others_outlive_sampling_and_overwriting(export, tmp_path, monkeypatch, capsys):
    common = ("--out", tmp_path, "--num-samples", 2, "--steps", 1, "--batch-size", 1)
    theirs = ["parts/chapter1.tex", "parts/settings.json", "clips/mine.gif", ".parts-eqm/mine", "notes.txt", "a/b/c"]
    with monkeypatch.context() as patch:
        count_batches(patch, stop_after=1)
        assert run(export, *common) == 130
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    written = {"grid.gif", "clips/000000.gif", "clips/000001.gif", "samples.npz", "samples.json"}
    for more in ((), ("--format", "png"), ("--seed", 5, "--overwrite")):
        assert run(export, *common, *more) == 0
        assert all((tmp_path / name).read_text() == "mine" for name in theirs)
    assert files(tmp_path) == {*theirs, *written}  # the pictures in the other format were ours
    (tmp_path / "grid.png").write_text("mine")
    for more in ((), ("--format", "png"), ("--overwrite",)):
        assert "holds grid.png" in fails(capsys, export, *common, "--seed", 5, *more)
    assert (tmp_path / "grid.png").read_text() == "mine" and written < files(tmp_path)


def test_parts_of_earlier_versions_are_taken_over(export, tmp_path, monkeypatch, capsys):
    common = (export, "--num-samples", 5, "--labels", "up", "down", "--batch-size", 2)
    assert run(*common, "--out", tmp_path / "whole") == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        count_batches(patch, stop_after=2)
        assert run(*common, "--out", out) == 130
    settings = json.loads((out / ".parts-eqm" / "settings.json").read_text())
    (out / ".parts-eqm").rename(out / "parts")
    del settings["origin"]
    (out / "parts" / "settings.json").write_text(json.dumps(settings))
    (out / "parts" / ".00000004.npy.aside").write_bytes(b"half")
    for index in range(4):
        Image.new("RGB", (4, 4)).save(out / "clips" / f"{index:06d}.gif")  # without the mark
    assert "steps: 4 there, 5 here" in fails(capsys, *common, "--out", out, "--steps", 5)
    assert "parts/settings.json" in files(out)
    sizes = count_batches(monkeypatch)
    assert run(*common, "--out", out) == 0
    assert sizes == [1] and files(out) == files(tmp_path / "whole")
    assert (out / "clips" / "000000.gif").read_bytes() == (tmp_path / "whole" / "clips" / "000000.gif").read_bytes()
    assert run(*common, "--out", out) == 0


def test_what_diverges_leaves_no_folder(export, tmp_path, capsys):
    fails(capsys, export, "--out", tmp_path / "out" / "deep", "--step-size", 1e30, "--steps", 40, "--num-samples", 1)
    assert not (tmp_path / "out").exists()


def test_counts_and_rates_are_said_where_they_matter(export, tmp_path, capsys):
    common = ("--num-samples", 1, "--steps", 1)
    assert run(export, "--out", tmp_path / "a", *common, "--fps", 8.333) == 0
    said = capsys.readouterr().out
    assert "1 clip of 3 frames at 8.333 fps" in said and ", 1 step (" in said and "instead of" not in said
    assert run(export, "--out", tmp_path / "b", *common, "--fps", 8) == 0
    assert "GIFs play at 8.33 fps instead of 8" in capsys.readouterr().out
    assert run(export, "--out", tmp_path / "c", *common, "frames=1") == 0
    assert ": 1 image, 16x16 pixels" in capsys.readouterr().out


def test_wrong_options_are_one_line(export, capsys):
    assert run(export, "--out", "x", "--num-samples", "many") == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["error: --num-samples is many: it must be a whole number of at least 1"]
    assert run(export, "--out", "x", "--num-samples") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(
        "error: argument --num-samples: expected one argument; see eqm-video sample"
    )
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("eqm-video ")


def test_a_folder_whose_name_is_not_utf8(export, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    assert run(export, "--out", out, "--num-samples", 1, "--steps", 1) == 0
    assert "samples.json" in files(out) and "caf\\udce9" in capsys.readouterr().out
