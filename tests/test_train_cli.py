"""`train_video.py` from the outside: dry runs, whole small runs, and every wrong input as one sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import ROOT, main, read_metrics, recipe, run_command, tiny_network, write_videos

from eqm_video.core.energy import Field
from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.training.checkpoint import Checkpoints
from eqm_video.training.config import load_config, to_yaml
from eqm_video.training.run import Run
from eqm_video.training.trainer import Trainer


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("WANDB_API_KEY", "WANDB_KEY", "ENTITY", "PROJECT", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# ------------------------------------------------------------------------------------------------------ dry runs


@pytest.mark.parametrize(
    ("name", "parameters", "flops"),
    # Parameters of the paper's table 1; SiT's networks take 23.0 and 118.6 G multiply-adds at 256 pixels, here times 2.
    [("imagenet_b2", 130e6, 46.0e9), ("imagenet_xl2", 675e6, 237.2e9)],
)
def test_dry_run_of_the_image_recipes(name, parameters, flops, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(ROOT / "configs" / f"{name}.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr()
    *resolved, last = said.out.splitlines()
    cost = json.loads(last)
    assert f"{cost['flops'] / 1e9:.1f} GFLOP" in said.err and " M parameters; a clip's forward pass: " in said.err
    assert cost["parameters"] == pytest.approx(parameters, rel=0.01)
    assert cost["flops"] == pytest.approx(flops, rel=0.01)
    assert yaml.safe_load("\n".join(resolved))["model"]["preset"].startswith("EqM-")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_no_data_and_frames_work_alone(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    costs = {}
    for frames in (1, 16):
        assert main(["--dry-run", "--config", str(ROOT / "configs" / "own_videos.yaml"), f"frames={frames}"]) == 0
        captured = capsys.readouterr()
        *resolved, last = captured.out.splitlines()
        assert yaml.safe_load("\n".join(resolved))["data"]["frames"] == frames
        assert "counted here with 101" in captured.err and "no recipe is named" not in captured.err
        assert ", 100,000 steps: " in captured.err
        costs[frames] = json.loads(last)
    assert costs[1]["parameters"] == costs[16]["parameters"]
    assert costs[16]["flops"] > 16 * costs[1]["flops"]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_the_derivative_of_an_explicit_energy(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    costs = {}
    for energy in ("implicit", "dot", "l2"):
        assert main(["--dry-run", "--config", str(ROOT / "configs" / "demo.yaml"), f"model.energy={energy}"]) == 0
        costs[energy] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert costs["dot"] == costs["l2"] and costs["dot"]["parameters"] == costs["implicit"]["parameters"]
    # Backwards through a layer of matrices by its input costs what the layer costs.
    assert 1.9 < costs["dot"]["flops"] / costs["implicit"]["flops"] < 2.1


def test_dry_run_counts_a_clip_of_every_bucket(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    costs = []
    for more in (["frames=4", "data.buckets=4x3,9x1:0.5,4x1"], ["frames=4"], ["frames=9"]):
        assert main(["--dry-run", "--config", str(ROOT / "configs" / "demo.yaml"), *more]) == 0
        costs.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    buckets, four, nine = costs
    assert buckets.pop("flops_of_buckets") == {"4x3": four["flops"], "9x1": nine["flops"], "4x1": four["flops"]}
    assert buckets == four and nine["flops"] > 2 * four["flops"]


def test_dry_run_reads_a_local_codecs_shape_or_says_that_it_cannot(made, capsys) -> None:
    assert main(["--dry-run", f"codec.name={made / 'codec'}", "data.size=64", "model.num_labels=3"]) == 0
    assert main(["--dry-run", "codec.name=nowhere"]) == 2
    assert "not known without a download" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"block_out_channels": 3, "latent_channels": 4}', '{"_class_name": "x"}']
)
def test_dry_run_with_a_damaged_codec_configuration_is_a_sentence(text, tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["--dry-run", f"codec.name={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path) in error and error.count("\n") == 1


def test_dry_run_asks_the_hub_for_an_unknown_codecs_configuration(made, capsys, monkeypatch) -> None:
    def download(name: str, file: str, subfolder: str | None, revision: str | None) -> str:
        if name == "some/other":
            raise OSError("no network")
        if subfolder is None:
            raise EntryNotFoundError("404")
        return str(made / "codec" / "config.json")

    monkeypatch.setattr("eqm_video.codec.hf_hub_download", download)
    assert main(["--dry-run", "codec.name=some/autoencoder", "data.size=64", "model.num_labels=3"]) == 0
    assert main(["--dry-run", "codec.name=some/other"]) == 2
    assert "codec.name='some/other' is not known without a download" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ whole small runs


def test_a_run_leaves_everything_that_it_promises(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    words = [*recipe(made, run), "run.report=true"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "eqm-video sample" in said and f"report: {run / 'report.html'}" in said
    present = {path.name for path in run.iterdir()}
    assert present >= {"config.yaml", "metrics.jsonl", "data_report.json", "checkpoints", "previews", "export"}
    assert "report.html" in present
    assert load_config(run / "config.yaml") == load_config(None, words)
    assert [line["step"] for line in read_metrics(run)] == [2, 4]
    with Image.open(run / "previews" / "step_00000004.gif") as grid:
        assert grid.n_frames == 3
    pipeline = EqMPipeline.from_pretrained(run / "export")
    assert pipeline.labels == {0: "left", 1: "right"}
    assert pipeline.config.fps == 4.0 and pipeline.config.frames == 3 and pipeline.config.size == 16
    assert pipeline.config.decay == {"kind": "truncated", "a": 0.8, "gain": 4.0}
    assert pipeline.config.sampler["kind"] == "nag" and pipeline.config.sampler["steps"] == 2
    checkpoint = run / "checkpoints" / "step_00000004"
    twin = EqMPipeline.from_checkpoint(checkpoint)
    for pipe in (pipeline, twin):
        pipe.set_progress_bar_config(disable=True)
    frames = [pipe(["right"], seeds=[3], output_type="uint8").frames for pipe in (pipeline, twin)]
    assert frames[0].shape == (1, 3, 16, 16, 3) and (frames[0] == frames[1]).all()
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    assert record["step"] == 4 and record["world_size"] == 1 and record["versions"]["torch"] == torch.__version__


def test_images_train_and_start_a_video_run(made, tmp_path, capsys) -> None:
    images = tmp_path / "images"
    assert main([*recipe(made, images, "images"), "model.temporal=false"]) == 0
    with Image.open(images / "previews" / "step_00000004.png") as grid:
        assert grid.width > 32 and grid.height > 3 * 16
    AcceleratorState._reset_state(reset_partial_state=True)
    videos = tmp_path / "videos"
    start = f"train.init_from={images / 'export'}"
    assert main([*recipe(made, videos), start, "train.lr=1e-12", "train.ema=0", "preview.every=0"]) == 0
    said = capsys.readouterr().out
    assert "temporal layers start anew" in said and "has 3 labels, this run 2" in said
    image, video = (EqMPipeline.from_pretrained(run / "export").transformer for run in (images, videos))
    ours, theirs = video.state_dict(), image.state_dict()
    for name, tensor in theirs.items():
        if name == "label_embed.weight":
            assert torch.allclose(ours[name][-1], tensor[-1], atol=1e-6)
        else:
            assert torch.allclose(ours[name], tensor, atol=1e-6), name
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, tmp_path / "third"), start, "model.preset=EqM-Nano/1"]) == 2
    assert "another architecture: patch_size 2 there, 1 here" in capsys.readouterr().err
    tiny_network().save_pretrained(tmp_path / "temporal")
    wrong = [*recipe(made, tmp_path / "third", "images"), "model.temporal=false"]
    assert main([*wrong, f"train.init_from={tmp_path / 'temporal'}"]) == 2
    assert "temporal True there, False here" in capsys.readouterr().err


def test_explicit_energies_train_from_the_recipe_to_the_samples(made, tmp_path, capsys) -> None:
    """`dot` from new weights; `l2` from a trained network alone, whatever energy that had."""
    dot, l2 = tmp_path / "dot", tmp_path / "l2"
    assert main([*recipe(made, dot), "model.energy=dot", "train.gradient_checkpointing=true", "train.lr=1e-3"]) == 0
    assert (dot / "previews" / "step_00000004.gif").is_file()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, l2), "model.energy=l2"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "add train.init_from=ITS_RUN" in errors[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    start = ["model.energy=l2", f"train.init_from={dot}"]
    assert main([*recipe(made, l2), *start]) == 0
    assert "has the energy 'dot', this run trains 'l2'" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, l2), *start, "--resume", "train.steps=5"]) == 0
    for run, energy, step in ((dot, "dot", 4), (l2, "l2", 5)):
        for pipeline in (
            EqMPipeline.from_pretrained(run / "export"),
            EqMPipeline.from_checkpoint(run / "checkpoints" / f"step_{step:08d}"),
        ):
            assert pipeline.transformer.config.energy == energy
            pipeline.set_progress_bar_config(disable=True)
            start, seen = pipeline.start_noise([3]), []
            pipeline(["right"], seeds=[3], callback=lambda step, _, gradient, seen=seen: seen.append(gradient))
            output = Field(pipeline.transformer)(start, torch.tensor([1]), times=torch.tensor([[0.0, 2.0, 4.0]]))
            assert torch.allclose(seen[0], output.sample.detach(), rtol=1e-4, atol=1e-7) and seen[0].any()


def test_runs_from_before_energies_are_implicit_and_go_on(made, tmp_path) -> None:
    """Records without the newer keys mean what was the case then."""
    straight, old = tmp_path / "straight", tmp_path / "old"
    more = ["preview.every=0", "train.save_every=2"]
    assert main([*recipe(made, straight), *more]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, old), *more, "train.steps=2"]) == 0
    checkpoint = old / "checkpoints" / "step_00000002"
    for file, place in ((checkpoint / "checkpoint.json", ("config", "model")), (checkpoint / "ema/config.json", ())):
        tree = json.loads(file.read_text())
        node = tree
        for key in place:
            node = node[key]
        assert node.pop("energy") == "implicit"
        if file.name == "checkpoint.json":  # such a record has neither hashes nor the identity of the data
            assert tree.pop("files") and tree["data"].pop("identity")
        file.write_text(json.dumps(tree))
    for words in (["--resume", f"run.dir={old}", "train.steps=4"], ["--resume", *recipe(made, old), *more]):
        branch = tmp_path / f"branch{len(words)}"
        shutil.copytree(old, branch)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([*words, f"run.dir={branch}"]) == 0
        ours, theirs = (EqMPipeline.from_pretrained(run / "export").transformer for run in (branch, straight))
        assert ours.config.energy == "implicit"
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_starting_from_a_run_and_from_damaged_weights(made, tmp_path, capsys) -> None:
    first, damaged = tmp_path / "first", tmp_path / "damaged"
    assert main([*recipe(made, first), "preview.every=0"]) == 0
    shutil.copytree(first / "export", damaged)
    weights = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    start = ["train.lr=1e-12", "train.ema=0", "preview.every=0"]

    def begin(name: str, source: Path) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        return main([*recipe(made, tmp_path / name), *start, f"train.init_from={source}"])

    assert begin("second", first) == 0
    ours, theirs = (EqMPipeline.from_pretrained(run / "export").transformer for run in (tmp_path / "second", first))
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name
    capsys.readouterr()
    tensors = load_file(weights)
    for damage in ("lacking", "truncated", "gone"):
        if damage == "lacking":
            save_file({name: tensor for name, tensor in tensors.items() if name != "label_embed.weight"}, weights)
        elif damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            weights.unlink()
        assert begin(damage, damaged) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and str(damaged / "transformer") in errors[0], damage


def test_previews_take_the_precision_of_the_run(made, tmp_path, monkeypatch) -> None:
    seen, forward = [], EqMTransformer.forward

    def watched(self, *arguments, **options):
        if not torch.is_grad_enabled():
            seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(EqMTransformer, "forward", watched)
    assert main([*recipe(made, tmp_path / "run"), "train.mixed_precision=bf16"]) == 0
    assert seen and all(seen)
    assert (tmp_path / "run" / "previews" / "step_00000004.gif").is_file()


def test_held_out_split_flat_folder_and_one_frame(made, tmp_path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for video in sorted((made / "videos" / "left").iterdir()):
        (flat / video.name).write_bytes(video.read_bytes())
    run = tmp_path / "run"
    assert main([*recipe(made, run), f"data.root={flat}", "frames=1", "train.log_every=1"]) == 0
    assert EqMPipeline.from_pretrained(run / "export").labels == {}
    assert (run / "previews" / "step_00000004.png").is_file()
    lists = tmp_path / "ucf"
    write_videos(lists, size=16)
    (lists / "splits").mkdir()
    (lists / "splits" / "classInd.txt").write_text("1 left\n2 right\n")
    train = [f"{label}/{k}.mp4" for label in ("left", "right") for k in (0, 1)]
    (lists / "splits" / "trainlist01.txt").write_text("".join(f"{name} {1 + (name[0] == 'r')}\n" for name in train))
    (lists / "splits" / "testlist01.txt").write_text("left/2.mp4\nright/2.mp4\n")
    AcceleratorState._reset_state(reset_partial_state=True)
    second = [*recipe(made, tmp_path / "second"), f"data.root={lists}", "data.split=train", "held_out.split=test"]
    assert main([*second, "held_out.every=2", "preview.every=0"]) == 0
    held_out = [line["held_out"] for line in read_metrics(tmp_path / "second")]
    assert len(held_out) == 2 and set(held_out[0]) == {"0.1", "0.3", "0.5", "0.7", "0.9", "mean"}
    record = json.loads((tmp_path / "second" / "checkpoints" / "step_00000004" / "checkpoint.json").read_text())
    identity = record["data"].pop("identity")
    assert record["data"] == {"size": 4, "labels": ["left", "right"]} and sorted(identity["files"]) == sorted(train)


def test_trackers_offline(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PROJECT", "named-by-the-reference")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    arguments = [*recipe(made, run), "track.to=wandb,tensorboard", "track.name=mine"]
    assert main(arguments) == 0
    offline = next((run / "wandb").glob("offline-run-*"))
    assert list((offline / "files" / "media" / "videos").glob("preview_4_*.gif"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert "named-by-the-reference" in (offline / next(offline.glob("run-*.wandb")).name).read_bytes().decode("latin-1")
    events = EventAccumulator(str(next((run / "eqm-video").glob("events*")).parent))
    events.Reload()
    assert "preview" in events.Tags()["images"] and "loss" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    first = (run / "wandb_id").read_text()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*arguments, "--resume", "train.steps=6"]) == 0
    assert (run / "wandb_id").read_text() == first
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6]
    shutil.rmtree(run / "checkpoints" / "step_00000006")  # steps 5 and 6 are made again, as after a crash
    shutil.rmtree(run / "export")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*arguments, "--resume", "train.steps=7"]) == 0
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6, 7]
    events = EventAccumulator(str(next((run / "eqm-video").glob("events*")).parent))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 7]


# ------------------------------------------------------------------------------------- what must not be lost


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), UserError("cannot write"), ValueError("odd")]
)
def test_a_preview_that_cannot_be_written_ends_nothing(made, tmp_path, capsys, monkeypatch, error) -> None:
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("eqm_video.output.media.write_gif", full)
    assert main([*recipe(made, tmp_path / "run"), "preview.every=2"]) == 0
    said = capsys.readouterr().err
    assert "warning: no preview of step 2: " in said and "warning: no preview of step 4: " in said
    assert (tmp_path / "run" / "export").is_dir()


def test_a_signal_in_a_preview_stops_it_at_once(made, tmp_path, capsys, monkeypatch) -> None:
    """The checkpoint is there, and no further step is taken."""
    pulse, calls = Run.pulse, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return pulse(self, *arguments)

    monkeypatch.setattr(Run, "pulse", interrupted)
    run = tmp_path / "run"
    words = [*recipe(made, run), "preview.every=1", "train.save_every=100", "sampler.steps=3000"]
    assert main(words) == 0
    assert "stopped after step 1; type the same command with --resume" in capsys.readouterr().out
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000001"] and len(calls) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_folder_that_vanishes_costs_no_step(made, tmp_path, capsys, monkeypatch, workers) -> None:
    monkeypatch.setenv("EQM_VIDEO_PATIENCE", "0.02")
    data, run = shutil.copytree(made / "videos", tmp_path / "data"), tmp_path / "run"
    update = Trainer._update

    def vanish(self, step: int) -> None:
        update(self, step)
        if step == 5:
            data.rename(tmp_path / "away")

    monkeypatch.setattr(Trainer, "_update", vanish)
    words = [*recipe(made, run), f"data.root={data}", f"data.workers={workers}", "preview.every=0", "train.steps=30"]
    assert main([*words, "train.save_every=100"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    step = Checkpoints(run / "checkpoints").newest().name
    assert f"the data folder {data} has been away for" in error and step in error and "--resume" in error
    assert int(step[5:]) >= 5
    for process in multiprocessing.active_children():  # which the interpreter would wait for at its end
        process.join(10)
        assert process.exitcode is not None, "a worker outlives the run"


def test_replaced_files_of_equal_number_are_named_and_refused(made, tmp_path, capsys) -> None:
    data, run = shutil.copytree(made / "videos", tmp_path / "data"), tmp_path / "run"
    words = [*recipe(made, run), f"data.root={data}", "preview.every=0"]
    assert main(words) == 0
    shutil.copy(data / "left" / "1.mp4", data / "left" / "0.mp4")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*words, "--resume", "train.steps=6"]) == 2
    assert "other files than then (changed: left/0.mp4); resume with the same data" in capsys.readouterr().err
    shutil.copy(made / "videos" / "left" / "0.mp4", data / "left" / "0.mp4")
    moved = data.rename(tmp_path / "elsewhere")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*words, f"data.root={moved}", "--resume", "train.steps=6"]) == 0


def test_damaged_checkpoints_from_the_command_line(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    words = [*recipe(made, run), "preview.every=0", "train.schedule=cosine"]
    assert main(words) == 0
    file = run / "checkpoints" / "step_00000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)

    def again(*more: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        status, told = main([*words, *more]), capsys.readouterr()
        return status, told.out + told.err

    capsys.readouterr()
    status, told = again("--resume", "train.steps=6")
    assert status == 2 and "model.safetensors is damaged" in told and "--resume --from-older" in told
    assert again("--from-older")[0] == 2
    status, told = again("--resume", "--from-older", "train.steps=6")
    assert status == 0 and "passed over the damaged checkpoint step_00000004: model.safetensors" in told
    assert "set aside as" in told and "the learning rate of step 3 would have been 1.46e-05 and is 5e-05" in told
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[0] == "damaged-step_00000004"
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6]


# ---------------------------------------------------------------------------------------------------- wrong input


def test_wrong_input_is_one_sentence(made, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "1.avi").write_text("this is text")
    (tmp_path / "broken" / "a" / "2.mp4").write_bytes(b"")
    (tmp_path / "file").write_text("")
    cases = [
        ([f"data.root={tmp_path / 'none'}"], "none"),
        ([f"data.root={tmp_path / 'empty'}"], "empty"),
        ([f"data.root={tmp_path / 'broken'}"], "none of the 2 videos"),
        (["data.root=null"], "data.root is not set"),
        (["frames=50"], "shorter than a clip"),
        (["data.size=20"], "data.size=20 is not divisible by 8 = 4 (codec downsampling) x 2 (patch size)"),
        ([f"run.dir={tmp_path / 'file' / 'run'}"], "cannot write to run.dir"),
        (["train.stesp=3"], "did you mean 'train.steps'"),
        (["model.preset=EqM-Nano/3"], "unknown preset 'EqM-Nano/3'"),
        (["model.num_labels=1"], "the data have 2 labels"),
        (["train.batch_size=3", "train.accumulation=3", "train.mixed_precision=fp16"], "needs a GPU"),
        (["held_out.split=test"], "split"),
        ([f"train.init_from={tmp_path / 'empty'}"], "no export, checkpoint or network folder"),
        (["track.to=wandb"], "wandb login"),
        (["--resume", str(tmp_path / "empty")], "no whole checkpoint"),
        ([f"codec.name={tmp_path / 'empty'}"], "codec"),
    ]
    for number, (arguments, sentence) in enumerate(cases):
        AcceleratorState._reset_state(reset_partial_state=True)
        status = main([*recipe(made, tmp_path / f"run{number}"), *arguments])
        errors = capsys.readouterr().err.strip().splitlines()
        found = [line for line in errors if line.startswith("error: ")]
        assert status == 2 and len(found) == 1 and sentence in found[0], (arguments, errors)


def test_resuming_another_run_names_what_differs(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    arguments = [*recipe(made, run), "preview.every=0"]
    assert main(arguments) == 0
    (run / "checkpoints" / ".incomplete-step_00000006").mkdir()  # perhaps another process is writing it just now
    before = sorted(path.name for path in run.rglob("*"))

    def refused(*more: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([*arguments, *more]) == 2
        return capsys.readouterr().err

    assert "already holds a run with step_00000004" in refused()
    error = refused("--resume", "model.preset=EqM-Nano/1", "train.seed=5", "train.batch_size=4")
    assert "model.preset (EqM-Nano/2 there, EqM-Nano/1 here)" in error, error
    assert "train.seed (0 there, 5 here)" in error and "train.batch_size" in error and "train.init_from=" in error
    write_videos(tmp_path / "more", size=20, each=4)
    assert "already holds step_00000004" in refused("--resume", str(run / "checkpoints" / "step_00000002"))
    assert sorted(path.name for path in run.rglob("*")) == before
    assert "6 items with 2 labels" in refused("--resume", f"data.root={tmp_path / 'more'}")
    AcceleratorState._reset_state(reset_partial_state=True)
    branch = tmp_path / "branch"
    more = ["--resume", str(run / "checkpoints" / "step_00000002"), f"run.dir={branch}", "train.lr=5e-5"]
    assert main([*arguments, *more]) == 0
    output = capsys.readouterr().out
    assert "train.lr (0.0001 there, 5e-05 here)" in output and "after step 2" in output
    assert (branch / "export").is_dir()


def test_resume_without_a_checkpoint_starts_from_scratch_and_says_so(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load_config()))  # killed before its first checkpoint
    (run / ".lock").touch()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["--resume", *recipe(made, run), "preview.every=0"]) == 0
    assert "starting from scratch" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(run)] == [2, 4]


def test_a_second_start_on_a_live_run_is_refused_and_changes_nothing(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".incomplete-step_00000002").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    program = (
        "import sys, pathlib\nfrom eqm_video.training.lock import lock_run\n"
        "with lock_run(pathlib.Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, str(run)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as live:
        assert live.stdout.readline() == "locked\n"
        for more in ([], ["--resume"]):
            AcceleratorState._reset_state(reset_partial_state=True)
            assert main([*recipe(made, run), *more]) == 2
            assert f"another process is training in run.dir={run}" in capsys.readouterr().err
        live.stdin.close()
    assert read_metrics(run) == [{"step": 1}]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [".incomplete-step_00000002"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_wherever_it_is_met(made, tmp_path, capsys) -> None:
    run = tmp_path / "metrics.jsonl"  # a log cannot end a run, and its lines are kept
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    assert main([*recipe(made, run), "preview.every=0"]) == 0
    assert capsys.readouterr().err.count("cannot write") == 1
    (run / "metrics.jsonl").unlink()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, run), "preview.every=0", "--resume", "train.steps=6"]) == 0
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6]
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path / "export"
    run.mkdir()
    (run / "export").write_text("a file is in the way")
    assert main([*recipe(made, run), "preview.every=0"]) == 2
    assert f"run.dir={run} holds export" in capsys.readouterr().err


def test_files_of_others_in_a_run_outlive_it(made, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert main(recipe(made, run)) == 0
    theirs = ["export/README.md", "export/vae/notes", "checkpoints/mine", "previews/mine.gif", "notes.txt", "parts/a"]
    for name in theirs:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"mine {name}")
        os.utime(run / name, ns=(10**18, 10**18))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, run), "--resume", "train.steps=6"]) == 0
    for name in theirs:
        assert (run / name).read_text() == f"mine {name}" and (run / name).stat().st_mtime_ns == 10**18
    AcceleratorState._reset_state(reset_partial_state=True)
    before = (run / "metrics.jsonl").read_bytes()
    (run / "config.yaml").write_text("mine: 1\n")
    assert main([*recipe(made, run), "--resume", "train.steps=8"]) == 2
    assert f"run.dir={run} holds config.yaml, which eqm-video did not write" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == "mine: 1\n" and (run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_fails_before_it_writes_leaves_no_folder(made, tmp_path) -> None:
    assert main([*recipe(made, tmp_path / "runs" / "a"), f"data.root={tmp_path / 'nowhere'}"]) == 2
    assert not (tmp_path / "runs").exists()


def test_the_thin_entry(tmp_path) -> None:
    assert len((ROOT / "train_video.py").read_text().splitlines()) < 15
    done = run_command("--config", "configs/none.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read the recipe configs/none.yaml") and "Traceback" not in done.stderr


def test_a_preview_that_a_kill_took_is_made_up_by_resuming(made, tmp_path) -> None:
    run = tmp_path / "run"
    assert main(recipe(made, run)) == 0
    picture = run / "previews" / "step_00000004.gif"
    before = picture.read_bytes()
    picture.unlink()  # as a kill between a checkpoint and its preview
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*recipe(made, run), "--resume"]) == 0
    assert picture.read_bytes() == before
