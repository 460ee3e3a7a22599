"""Waits of the host for a GPU in a training step, counted on a device that computes on the CPU: one at most."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHARED

TOOL = SHARED / "tools" / "fake_cuda"
PROGRAM = """
import pathlib, sys
from fakecuda import *
patch_generators()
torch.Tensor.pin_memory = lambda self, *unused: self  # the tool has no pinned memory
from tiny_run import MemoryClips, tiny_network, tiny_trainer
from eqm_video.core.gamma import MixtureGamma
from eqm_video.core.objective import EqMObjective
from eqm_video.core.decay import TruncatedDecay

class Device:
    device, num_processes, process_index, scaler = CUDA, 1, 0, None
    is_main_process = is_local_main_process = True
    def prepare(self, *parts): return parts
    def backward(self, loss): loss.backward()
    def clip_grad_norm_(self, parameters, limit): return torch.nn.utils.clip_grad_norm_(parameters, limit)

def encode(batch, generators):
    return batch["moments"][:, :, :2].to(CUDA, non_blocking=True)

def waits():
    return sum(LOG.values()) - LOG["H2D non_blocking"]

for number, options in enumerate([{}, {"accumulation": 2}, {"images": 4, "batch_size": 8, "accumulation": 2}]):
    with cuda():
        network = tiny_network()
        network.to(CUDA)
        objective = EqMObjective(TruncatedDecay(a=0.8, gain=4.0), dispersion_weight=0.5)
        trainer = tiny_trainer(pathlib.Path(sys.argv[1], str(number)), network, accelerator=Device(), steps=4,
                               encode=encode, gamma=MixtureGamma(), objective=objective, **options)
        batches = trainer.batches.between(0, 4)
        for step in range(1, 5):
            before = waits()
            trainer.meter.mark()
            trainer._forward_backward(step, batches)
            trainer._judge(step, [])
            trainer._update(step)
            print("WAITS", number, step, waits() - before)
    report(str(options))
"""


@pytest.mark.skipif(not TOOL.is_dir(), reason="needs ../shared/tools/fake_cuda, which this checkout does not have")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the device")
def test_a_training_step_waits_once_for_the_device(tmp_path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words = ["bash", str(TOOL / "build.sh"), str(tmp_path)]
    built = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment["FAKE_CUDA_GUARD"] = built.stdout.strip()
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (TOOL, ROOT, Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("WAITS")]
    counts = {(int(number), int(step)): int(count) for number, step, count in lines}
    # The first step of a shape builds tables of positions on the device, once.
    assert len(counts) == 12 and {count for (_, step), count in counts.items() if step > 1} == {1}, done.stdout
