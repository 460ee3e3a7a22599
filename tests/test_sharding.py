"""Weights in parts on 1, 2 and 4 processes: the run of one process, kill and resume, other numbers of processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import warm
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from tiny_run import ROOT, equal, read_metrics, write_codec, write_videos

from eqm_video.errors import UserError
from eqm_video.system.record import damage
from eqm_video.training.config import load_config
from eqm_video.training.launcher import check_sharding, plain_processes, read_sharding
from eqm_video.training.sharding import Sharding

PROCESSES = {"alone": 1, "killed": 2, "resumed": 2, "whole": 2, "back": 1, "four": 4, "muon": 2, "muon_alone": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The runs of sharded_runs.py, each a folder with a file NAME.txt of its words."""
    folder = tmp_path_factory.mktemp("sharded")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    recipe = [
        *(f"data.root={folder / 'videos'}", f"codec.name={folder / 'codec'}", "data.latents=online", "data.workers=0"),
        *("model.preset=EqM-Nano/4", "data.size=16", "frames=3", "data.frame_interval=2", "gamma=mixture"),
        *("train.steps=6", "train.batch_size=4", "train.save_every=2", "train.log_every=2", "train.ema=0.9"),
        *("preview.every=4", "preview.samples=3", "sampler.steps=2", "train.label_dropout=0.3"),
        *("held_out.fraction=0.2", "held_out.every=4", "held_out.clips=1", "run.report=false"),
    ]
    done = warm.run(ROOT / "tests" / "sharded_runs.py", folder, *recipe, timeout=400)
    assert done.returncode == 0, done.stderr
    ends = {name: json.loads(list_) for name, list_ in (line.split(maxsplit=1) for line in done.stdout.splitlines())}
    expected = {name: [9 if name == "killed" else 0] * count for name, count in PROCESSES.items()}
    assert ends == expected, "\n".join(
        (folder / f"{name}.txt").read_text() for name in ends if ends[name] != expected[name]
    )
    return folder


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "transformer" / "diffusion_pytorch_model.safetensors")


def farthest(folder: Path, other: Path) -> float:
    """The largest difference of two exported weights."""
    ours, theirs = exported(folder), exported(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_two_processes_in_parts_train_the_run_of_one(runs) -> None:
    assert farthest(runs / "whole", runs / "alone") < 1e-6
    for line, twin in zip(read_metrics(runs / "whole"), read_metrics(runs / "alone"), strict=True):
        assert line.keys() == twin.keys()
        for key in {"loss", "grad_norm", "loss_by_gamma", "loss_by_mode", "held_out"} & line.keys():
            assert line[key] == pytest.approx(twin[key], rel=1e-5), key
    previews = [path.name for path in sorted((runs / "whole" / "previews").iterdir())]
    assert previews == ["step_00000004.gif", "step_00000006.gif"]


def test_a_process_holds_half_and_every_file_is_in_the_record(runs) -> None:
    checkpoint = runs / "whole" / "checkpoints" / "step_00000006"
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    parts = [entry["bytes"] for name, entry in files.items() if name.startswith("parts/")]
    weights = sum(tensor.nbytes for tensor in exported(runs / "whole").values())
    assert len(parts) == 2 and "optimizer.pt" in files and "model.safetensors" not in files
    assert all(part == pytest.approx(3 * weights / 2, rel=0.05) for part in parts)  # weights and AdamW's two moments
    assert files["optimizer.pt"]["bytes"] < weights / 10
    assert damage(checkpoint) is None
    assert not list((runs / "whole" / "checkpoints").glob(".incomplete-*"))


def test_killed_processes_resume_bit_for_bit(runs) -> None:
    assert farthest(runs / "pair", runs / "whole") == 0
    assert "resuming" in (runs / "resumed.txt").read_text() and "after step 4" in (runs / "resumed.txt").read_text()
    last = Path("checkpoints") / "step_00000006"
    files = [path.relative_to(runs / "whole") for path in (runs / "whole" / last).rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:  # the order of tensors in a file is not fixed
        assert equal(load_file(runs / "whole" / file), load_file(runs / "pair" / file)), file


def test_a_run_goes_on_with_another_number_of_processes(runs) -> None:
    """Two processes in parts, then one with all, then two copies of two parts."""
    assert "2 processes so far, by 1 now" in (runs / "back.txt").read_text()
    assert "1 process so far, by 4 now" in (runs / "four.txt").read_text()
    assert farthest(runs / "back", runs / "alone") < 1e-6
    assert farthest(runs / "four", runs / "alone") < 1e-6


def test_muon_compiled_blocks_and_recomputed_activations_go_with_parts(runs) -> None:
    assert farthest(runs / "muon", runs / "muon_alone") < 1e-6
    line, twin = (read_metrics(runs / name)[-1] for name in ("muon", "muon_alone"))
    assert line["loss"] == pytest.approx(twin["loss"], rel=1e-5)


def test_all_processes_agree_that_a_checkpoint_could_not_be_written(runs) -> None:
    """A file stood in the way at step 2: training went on, and wrote the next."""
    assert "cannot write a checkpoint" in (runs / "muon.txt").read_text()
    assert [path.name for path in (runs / "muon" / "checkpoints").glob("step_*")] == ["step_00000003"]


@pytest.mark.parametrize(("file", "world", "expected"), [("fsdp", 8, Sharding()), ("fsdp_hybrid", 16, Sharding(2))])
def test_launch_files_ask_for_parts(monkeypatch, file, world, expected) -> None:
    """By Accelerate's own reading of the file, up to the environment of the processes."""
    words = ["--config_file", str(ROOT / "configs" / "accelerate" / f"{file}.yaml"), "-m", "eqm_video", "train"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.num_processes == world
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert read_sharding() == expected
    with plain_processes():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "more processes"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.gradient_checkpointing=true"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, "Accelerate refuses"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "3"}, "starts 8"),
    ],
)
def test_settings_of_fsdp_that_would_not_be_followed_are_refused(monkeypatch, settings, advice) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "8", **settings}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=advice):
        read_sharding()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["model.energy=dot"], "second derivative"),
        (["model.energy=l2"], "--multi_gpu"),
        (["train.mixed_precision=fp16"], "bf16"),
    ],
)
def test_recipes_that_cannot_be_trained_in_parts_are_refused(words, advice) -> None:
    with pytest.raises(UserError, match=advice):
        check_sharding(load_config(None, words))
