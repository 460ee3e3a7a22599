"""Samplers, measures and training on a device other than the CPU: no tensors of two devices, few waits, no float64.

The device is faked: CPU numbers that are called cuda:0 (see on_fake_cuda.py), in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

from eqm_video.metrics.nearest import NearestClips
from eqm_video.samplers import Dopri5, run
from eqm_video.system import devices
from eqm_video.system.devices import double, send, widest

TESTS = Path(__file__).resolve().parent
TOOL = TESTS.parent.parent / "shared" / "tools" / "fake_cuda"
TRAINING = """
import copy, pathlib, sys
from fakecuda import *
patch_generators()
torch.Tensor.pin_memory = lambda self, *unused: self  # the tool has no pinned memory
from tiny_run import MemoryClips, tiny_network, tiny_trainer
from eqm_video.core.gamma import MixtureGamma
from eqm_video.core.objective import EqMObjective
from eqm_video.core.decay import TruncatedDecay
from eqm_video.errors import UserError
from eqm_video.training.optim import OPTIMIZERS, step_unless

now, lags = 0, []  # the step at hand; how many steps after its record an event is waited for

class Event:
    def record(self): self.step = now
    def query(self): return True
    def synchronize(self): lags.append(now - self.step)

torch.cuda.Event = Event

class Device:
    device, num_processes, process_index, scaler = CUDA, 1, 0, None
    is_main_process = is_local_main_process = True
    def prepare(self, *parts): return parts
    def backward(self, loss): loss.backward()
    def clip_grad_norm_(self, parameters, limit): return torch.nn.utils.clip_grad_norm_(parameters, limit)

def encode(batch, generators):
    return batch["moments"][:, :, :2].to(CUDA, non_blocking=True)

def waits():
    # The tool counts every copy to the CPU. One that does not block is waited for at its event.
    copies = sum(n for place, n in WHERE["sync copy cuda->cpu"].items() if "non_blocking=True" in place)
    return sum(LOG.values()) - LOG["H2D non_blocking"] - copies + len(lags)

def make(number, **options):
    network = tiny_network()
    network.to(CUDA)
    objective = EqMObjective(TruncatedDecay(a=0.8, gain=4.0), dispersion_weight=0.5)
    return tiny_trainer(pathlib.Path(sys.argv[1], str(number)), network, accelerator=Device(), steps=4, encode=encode,
                        gamma=MixtureGamma(), objective=objective, **options)

def step(trainer, batches, spoil=False):
    global now
    now += 1
    trainer.meter.mark()
    trainer._forward_backward(now, batches)
    if spoil:
        next(trainer.network.blocks.parameters()).grad.inner.view(-1)[0] = float("nan")
    trainer._judge(now, [])
    trainer._update(now)

def contents(trainer):
    optimizer = trainer.optimizer
    parts = getattr(optimizer, "parts", [optimizer])
    state = [value for part in parts for entry in part.state.values() for value in entry.values()]
    return [value.inner.clone() for value in (*trainer.network.parameters(), *trainer.ema.average.values(), *state)]

def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

mixed = {"images": 4, "batch_size": 8, "accumulation": 2}
for number, options in enumerate([{}, {"accumulation": 2}, mixed, {"optimizer": "muon"}]):
    with cuda():
        trainer = make(number, **options)
        batches, now = trainer.batches.between(0, 4), 0
        for _ in range(4):
            before = waits()
            step(trainer, batches)
            print("WAITS", number, now, waits() - before)
    report(str(options))
print("LAGS", *lags)

for name in ("adamw", "muon"):
    with cuda():
        trainer, now = make(name, optimizer=name), 0
        batches = trainer.batches.between(0, 4)
        step(trainer, batches)
        step(trainer, batches)
        before = contents(trainer)
        step(trainer, batches, spoil=True)
        masked = same(before, contents(trainer)) and trainer.step == 3
        try:
            step(trainer, batches)
        except UserError as error:
            told = "step 3 is not finite" in str(error) and same(before, contents(trainer))
            print("REFUSED", name, masked, told, trainer.step, trainer.ema.updates)

        networks = [tiny_network().to(CUDA) for _ in range(2)]
        for masking, network in enumerate(networks):
            optimizer = OPTIMIZERS[name](network, lr=1e-2, weight_decay=0.1)
            for parameter in network.parameters():
                parameter.grad = torch.sin(100 * parameter.detach())
            if masking:
                with step_unless(optimizer, torch.zeros((), device=CUDA)):
                    optimizer.step()
            else:
                optimizer.step()
        first, second = ([p.detach().inner for p in network.parameters()] for network in networks)
        print("SAME", name, same(first, second))
"""
KNOWN_TO_WAIT = ("dopri5", "tolerance")  # each clip, and each update, by itself


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path:
    """The compiled part of the fake device."""
    if not TOOL.is_dir() or shutil.which("g++") is None:
        pytest.skip("needs ../shared/tools/fake_cuda beside the checkout, and g++")
    if torch.version.cuda is not None:
        pytest.skip("needs a build of torch without CUDA, whose own hooks stand where those of the fake device would")
    environment = {**os.environ, "PYTHON": warm.python()}
    command = ["bash", str(TOOL / "build.sh"), str(tmp_path_factory.mktemp("guard"))]
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


def run_there(guard: Path, *words: str) -> list[str]:
    """The lines that a Python program prints in a process that has the fake device."""
    path = os.pathsep.join(map(str, (TOOL, TESTS.parent, TESTS)))
    environment = {**os.environ, "FAKE_CUDA_GUARD": str(guard), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def both(guard) -> list[dict[str, Any]]:
    """Waits of each case, or its error: on the device, and where it has no float64."""
    return json.loads(run_there(guard, str(TESTS / "on_fake_cuda.py"))[-1])


@pytest.fixture(scope="module")
def cases(both) -> dict[str, Any]:
    return both[0]


def test_nothing_mixes_the_tensors_of_two_devices(cases):
    assert len(cases) > 50
    assert {name: result for name, result in cases.items() if isinstance(result, str)} == {}


def test_no_update_waits_for_the_device_without_a_tolerance(cases):
    waits: dict[str, list[int]] = {}
    for name, count in cases.items():
        if "/" in name:
            waits.setdefault(name.partition("/")[0], []).append(count)
    assert len(waits) > 15 and all(len(counts) == 2 for counts in waits.values())
    growing = {name: counts for name, counts in waits.items() if counts[0] != counts[1]}
    assert [name for name in growing if not name.startswith(KNOWN_TO_WAIT)] == [], growing
    assert waits["tolerance"][1] - waits["tolerance"][0] == 2  # one an update


def test_parts_of_a_model_may_wait_off_the_device(cases):
    """`enable_model_cpu_offload`: network and codec visit the device in turn, and the samples stay the same."""
    assert cases["offloaded, the same"] is True and cases["offloaded, now on"] == ["cpu"]


def test_a_training_step_waits_once_and_for_the_step_before(guard, tmp_path):
    lines = [line.split() for line in run_there(guard, "-c", TRAINING, str(tmp_path))]
    counts = {(int(words[1]), int(words[2])): int(words[3]) for words in lines if words[:1] == ["WAITS"]}
    # The first step of a shape builds tables of positions on the device, once.
    assert len(counts) == 16 and {count for (_, step), count in counts.items() if step > 1} == {1}, lines
    assert ["LAGS", *["1"] * 12] in lines  # 4 runs, 3 steps each with a step before
    for name in ("adamw", "muon"):
        assert ["REFUSED", name, "True", "True", "2", "2"] in lines  # left out on the device; then step 2 is the last
        assert ["SAME", name, "True"] in lines


def test_a_device_without_float64_gets_none(both):
    assert len(both[1]) > 20
    assert {name: result for name, result in both[1].items() if isinstance(result, str)} == {}


def test_numbers_are_doubled_where_float64_is(monkeypatch):
    """The CPU plays a device without float64: what is doubled moves (here to itself), what stays there is float32."""
    values = torch.rand(3)
    assert double(values).dtype == torch.float64 and widest("cpu") == widest("cuda") == torch.float64
    assert widest("mps") == widest(torch.device("mps:0")) == torch.float32
    queries = torch.randint(0, 256, (3, 2, 4, 4, 3), dtype=torch.uint8)
    start = torch.randn(2, 3, 2, 2, 2)
    found, ends = [], []
    for without in (set(), {"cpu"}):
        monkeypatch.setattr(devices, "WITHOUT_FLOAT64", without)
        state = NearestClips(queries)
        state.update(queries.flip(0), torch.arange(3))
        found.append((state.indices, state.rms))
        ends.append(run(lambda x: 3 * x, start, Dopri5(1e-4, 1e-4), steps=2).latents)
        assert state._squares.dtype == widest("cpu") and state.rms.dtype == torch.float64
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_sending_leaves_numbers_as_they_are():
    values = torch.arange(4)
    assert send(values, "cpu") is values
    assert send(values, "meta").device.type == "meta"


def test_every_module_leaves_float64_to_devices():
    """`devices.double` and `devices.widest` know which devices have float64; `.double()` does not."""
    mathematics = ("core", "samplers", "analysis", "metrics", "training/tracking")
    package = TESTS.parent / "eqm_video"
    files = [file for name in mathematics for file in (package.glob(f"{name}.py"), (package / name).glob("*.py"))]
    lines = [(file, line) for group in files for file in group for line in file.read_text().splitlines()]
    assert len(lines) > 1000
    asking = [(file.name, line.strip()) for file, line in lines if re.search(r"\.double\(\)", line)]
    # numbers of a decay on a grid that was made on the CPU
    assert [one for one in asking if "decay(" not in one[1] and "values" not in one[1]] == []
