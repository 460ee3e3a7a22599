"""Two processes on the CPU: the run of one process with the same global batch, and launches that cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import warm
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from joint_gradient import CASES, joint_gradient
from safetensors.torch import load_file
from tiny_run import ROOT, read_metrics, run_here, write_codec, write_videos
from warm import Process

from eqm_video.core.objective import dispersive_loss
from eqm_video.errors import UserError
from eqm_video.training.gather import gather_clips
from eqm_video.training.launcher import check_launch

STEPS = 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recipe")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    return [
        f"data.root={folder / 'videos'}",
        f"codec.name={folder / 'codec'}",
        "data.latents=online",
        *("model.preset=EqM-Nano/4", "data.size=16", "frames=3", "data.frame_interval=2", "data.workers=0"),
        *("gamma=mixture", f"train.steps={STEPS}", "train.batch_size=4", "train.save_every=100", "train.log_every=2"),
        *("train.ema=0.9", "preview.every=6", "preview.samples=3", "sampler.steps=2", "train.label_dropout=0.3"),
        *("held_out.fraction=0.3", "held_out.every=1000", "train.evaluate.every=6", "train.evaluate.n=3"),
        *("train.evaluate.features=random", "train.evaluate.best=mmd", "run.report=false"),
    ]


def environment() -> dict[str, str]:
    # Accelerate sees no second process on a CPU unless it is told to use the CPU.
    return {**os.environ, "ACCELERATE_USE_CPU": "1"}


def two_processes(*arguments: str) -> Process:
    return Process(ROOT / "train_video.py", *arguments, environment=environment(), ranks=2)


def torchrun(*arguments: str) -> subprocess.Popen:
    """The real launcher, whose processes are forks."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["--no-python", warm.python(), str(ROOT / "train_video.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=environment(), **pipes)


def exported(folder: Path, name: str = "export") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "transformer" / "diffusion_pytorch_model.safetensors")


def assert_close(folder: Path, expected: Path) -> None:
    ours, theirs = exported(folder), exported(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-5), name


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run_here(*recipe, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_the_run_of_one(recipe, alone, tmp_path) -> None:
    folder = tmp_path / "run"
    output, errors = two_processes(*recipe, f"run.dir={folder}", "train.accumulation=2").communicate(timeout=120)
    # Judged by its files: gloo sometimes aborts a process at its very end, after everything has been written.
    assert (folder / "export").is_dir(), errors
    assert "2 processes x 2 accumulated x 1" in output
    assert_close(folder, alone)
    for line, twin in zip(read_metrics(folder), read_metrics(alone), strict=True):
        assert line["loss"] == pytest.approx(twin["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(twin["grad_norm"], rel=1e-3)
        assert line["loss_by_gamma"] == pytest.approx(twin["loss_by_gamma"], rel=1e-3)
        assert ("evaluate" in line) == ("evaluate" in twin) == (line["step"] % 6 == 0)
        if "evaluate" in line:
            assert line["evaluate"]["mmd"] == pytest.approx(twin["evaluate"]["mmd"], rel=1e-3)
            assert line["best_step"] == twin["best_step"]
    assert exported(folder, "export_best").keys() == exported(folder).keys()
    previews = [path.name for path in sorted((folder / "previews").iterdir())]
    assert previews == ["step_00000006.gif", "step_00000012.gif"]


def test_dispersion_and_an_explicit_energy_know_no_processes(recipe, tmp_path) -> None:
    """Clips are spread over the whole batch, wherever they are; the gradient by the latents is taken inside DDP."""
    more = [*recipe, "objective.dispersion_weight=0.5", "model.energy=dot", "preview.every=0"]
    single, pair = tmp_path / "single", tmp_path / "pair"
    both = two_processes(*more, f"run.dir={pair}")
    alone = run_here(*more, f"run.dir={single}")
    _, errors = both.communicate(timeout=120)
    assert alone.returncode == 0, alone.stderr
    assert (pair / "export").is_dir(), errors
    assert_close(pair, single)
    for line, twin in zip(read_metrics(pair), read_metrics(single), strict=True):
        assert line["loss"] == pytest.approx(twin["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(twin["grad_norm"], rel=1e-3)


def test_clips_and_images_have_the_gradient_of_one_process(tmp_path) -> None:
    """Images first, without temporal layers and communication; then the clips, and all of it is averaged."""
    pair = Process(ROOT / "tests" / "joint_gradient.py", tmp_path, environment=environment(), ranks=2)
    wanted = {}
    for energy, _ in CASES:
        AcceleratorState._reset_state(reset_partial_state=True)
        wanted[energy] = joint_gradient(tmp_path / "alone" / energy, energy)
    _, errors = pair.communicate(timeout=120)
    for energy, expected in wanted.items():
        for rank in range(2):
            assert (tmp_path / energy / f"gradient{rank}.pt").is_file(), errors
            found = torch.load(tmp_path / energy / f"gradient{rank}.pt", weights_only=True)
            assert found.keys() == expected.keys() and any(".temporal" in name for name in found)
            for name in found:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6, msg=f"{energy} {name}")


def test_two_processes_train_the_joint_run_of_one(recipe, tmp_path) -> None:
    """Buckets and images, from the command to the export."""
    more = [*recipe, "data.buckets=3x2,5x1", "data.image_fraction=0.5", "preview.every=0", "train.steps=6"]
    single, pair = tmp_path / "single", tmp_path / "pair"
    both = two_processes(*more, f"run.dir={pair}")
    alone = run_here(*more, f"run.dir={single}")
    output, errors = both.communicate(timeout=120)
    assert alone.returncode == 0, alone.stderr
    assert (pair / "export").is_dir(), errors
    assert "4 samples (2 clips, 2 images) a step = 2 processes x 1 accumulated x 2" in output
    assert_close(pair, single)
    for line, twin in zip(read_metrics(pair), read_metrics(single), strict=True):
        for key in ("loss", "loss_by_mode", "loss_by_gamma"):
            assert line[key] == pytest.approx(twin[key], rel=1e-3), key


@pytest.mark.parametrize("processes", [2, 3])
def test_gathered_clips_have_the_gradient_of_the_whole_batch(processes) -> None:
    """Processes one after the other, and their average, as DDP takes it; nothing is rounded."""
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    clips = torch.randn(2 * processes, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = dispersive_loss(clips @ weight)
    (expected,) = torch.autograd.grad(whole, weight)
    gradients = []
    for rank in range(processes):
        parts = [part @ weight for part in clips.chunk(processes)]
        gather = lambda own, parts=parts: torch.cat([part.detach() for part in parts])  # noqa: E731
        process = SimpleNamespace(num_processes=processes, process_index=rank, gather=gather)
        loss = dispersive_loss(gather_clips(parts[rank], process))
        assert loss.item() == whole.item()
        gradients.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), expected, rtol=1e-12, atol=1e-15)


def test_a_signal_to_one_process_stops_both_and_one_process_goes_on(recipe, alone, tmp_path) -> None:
    folder = tmp_path / "run"
    long = ["train.steps=100000", "preview.every=0"]
    launcher = torchrun(*recipe, *long, f"run.dir={folder}")
    deadline = time.monotonic() + 90
    while not (folder / "metrics.jsonl").is_file():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.001)
    worker = next(p for p in psutil.Process(launcher.pid).children() if "train_video.py" in " ".join(p.cmdline()))
    worker.terminate()
    output, errors = launcher.communicate(timeout=60)
    assert "type the same command with --resume" in output, errors
    checkpoints = list((folder / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    stopped = int(checkpoints[0].name[5:])
    steps = max(STEPS, stopped)
    done = run_here(*recipe, f"run.dir={folder}", "--resume", f"train.steps={steps}", "preview.every=0")
    assert done.returncode == 0, done.stderr
    assert "2 processes so far, by 1 now" in done.stdout
    if steps == STEPS:
        assert_close(folder, alone)


def test_launches_that_would_train_alone_are_refused(monkeypatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    accelerator = Accelerator(cpu=True)
    check_launch(accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun without ACCELERATE_USE_CPU
    with pytest.raises(UserError, match="started 2 processes, but Accelerate sees 1"):
        check_launch(accelerator)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=1 torchrun --standalone --nproc_per_node 2"):
        check_launch(accelerator)


def test_accelerate_launch_on_the_cpu_with_two_processes_is_refused_in_truth(recipe, tmp_path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    words = [
        *launch,
        "--no_python",
        warm.python(),
        str(ROOT / "train_video.py"),
        *recipe,
        f"run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "starts a single one" in done.stderr and "torchrun --standalone" in done.stderr
    assert not (tmp_path / "run").exists()
