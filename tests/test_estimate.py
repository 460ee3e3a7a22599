"""Memory and time of a step, counted, against what a process takes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_run import main

from eqm_video.core.energy import Field
from eqm_video.models.presets import build_model
from eqm_video.training.config import load_config
from eqm_video.training.estimate import SPECS, Memory, count_memory, note_memory, seconds_per_step
from eqm_video.training.trainer import Trainer


def saved_bytes(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes that a real forward pass keeps for its backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = Field(network)(torch.zeros(shape), None, times=torch.zeros(shape[:2])).sample.square().mean()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("energy", "every"), [("implicit", 1), ("dot", 1), ("implicit", 2)])
def test_activations_are_what_autograd_keeps(energy, every) -> None:
    options = {"temporal": True, "temporal_every": every, "energy": energy}
    network = build_model("EqM-Nano/2", num_labels=3, in_channels=4, **options)
    words = ["model.preset=EqM-Nano/2", "train.batch_size=4", "train.accumulation=2", f"model.energy={energy}"]
    counted = count_memory(load_config(None, words), network, (6, 4, 16, 16)).activations
    assert counted == pytest.approx(saved_bytes(network, (2, 6, 4, 16, 16)), rel=0.02)


@pytest.fixture(scope="module")
def by_mode() -> dict[str, tuple[Memory, Memory]]:
    """Memory on a CPU and on a GPU, by what is recomputed."""
    with torch.device("meta"):
        network = build_model("EqM-Nano/2", num_labels=3, temporal=True, in_channels=4)
    found = {}
    for mode in ("none", "selective", "block"):
        words = ["model.preset=EqM-Nano/2", "train.batch_size=2", "train.accumulation=1"]
        words += [] if mode == "none" else ["train.gradient_checkpointing=true", f"train.recompute={mode}"]
        count = partial(count_memory, load_config(None, words), network, (6, 4, 16, 16))
        found[mode] = (count(kind="cpu"), count())
    return found


def test_selective_checkpointing_keeps_inputs_and_products(by_mode) -> None:
    found = {mode: on_gpu.activations for mode, (_, on_gpu) in by_mode.items()}
    tokens, width, blocks = 2 * 6 * 64, 128, 4
    # Of a block: two attentions' queries, keys and values, results and projections, and both products of the MLP. One
    # block is recomputed at a time.
    products = 4 * tokens * width * (2 * (3 + 1 + 1) + 4 + 1)
    assert found["selective"] - found["block"] == pytest.approx((blocks - 1) * products, rel=0.05)
    assert found["block"] < found["selective"] < found["none"]


def test_on_a_cpu_the_holes_of_the_heap_count_and_recomputation_leaves_larger_ones(by_mode) -> None:
    for on_cpu, on_gpu in by_mode.values():
        assert on_gpu.heap == 0 and on_gpu.peak == on_gpu.tensors == on_cpu.tensors
        assert on_cpu.peak == on_cpu.tensors + on_cpu.heap
        at_rest = on_cpu.weights + on_cpu.average + on_cpu.optimizer + on_cpu.codec
        assert on_cpu.state == at_rest + on_cpu.gradients
    heaps = [by_mode[mode][0].heap for mode in ("none", "selective", "block")]
    assert heaps == sorted(set(heaps)) and heaps[-1] < by_mode["none"][0].activations


def test_a_run_that_does_not_fit_says_so_before_its_first_step(made, tmp_path, capsys, monkeypatch, fresh_accelerator):
    words = [f"data.root={made / 'videos'}", f"codec.name={made / 'codec'}", "data.size=16", "frames=3"]
    words += ["data.frame_interval=1", "data.workers=0", "model.preset=EqM-Nano/4", "train.steps=1", "preview.every=0"]
    monkeypatch.setattr("eqm_video.training.run.free_memory", lambda device: 5 * 2**20)
    said = []
    monkeypatch.setattr(Trainer, "run", lambda trainer: said.append("".join(capsys.readouterr())))  # as if stopped
    assert main([*words, f"run.dir={tmp_path / 'run'}"]) == 0
    assert said[0].count("it may end for want of memory; ") == 1


def test_state_follows_from_parameters_optimizer_and_parts() -> None:
    with torch.device("meta"):
        network = build_model("EqM-S/2", num_labels=3, temporal=True, in_channels=4)
    shape, bytes_ = (2, 4, 8, 8), 4 * sum(parameter.numel() for parameter in network.parameters())
    adamw, muon, parts = (
        count_memory(load_config(None, ["model.preset=EqM-S/2", "train.batch_size=8", *words]), network, shape, *more)
        for words, more in (([], ()), (["train.optimizer=muon"], ()), ([], (4, 4)))
    )
    assert (adamw.weights, adamw.optimizer, adamw.average) == (bytes_, 2 * bytes_, bytes_)
    assert bytes_ < muon.optimizer < adamw.optimizer
    assert parts.weights == bytes_ // 4 and parts.activations == pytest.approx(adamw.activations / 4, rel=0.05)
    assert note_memory(adamw, SPECS["4090"]) == []
    few = SPECS["4090"].__class__("a small GPU", "cuda", bytes_, 1e12, 1e12)
    assert "fsdp.yaml" in note_memory(adamw, few)[0] and "a small GPU" in note_memory(adamw, few)[0]


def test_time_grows_with_the_batch_and_shrinks_with_devices() -> None:
    one, twice = (load_config(None, [f"train.batch_size={size}", "codec.name=bundled"]) for size in (8, 16))
    seconds = seconds_per_step(one, SPECS["h100"], 10**12, 16)
    assert seconds == pytest.approx(3 * 8e12 / (495e12 * 0.4))
    assert seconds_per_step(twice, SPECS["h100"], 10**12, 16, 2) == pytest.approx(seconds)


def test_a_dry_run_tells_memory_and_time_of_a_named_gpu(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "ucf101_xl2", "--dry-run", "--device-spec", "4090"]) == 0
    said = capsys.readouterr().err
    assert "one 4090, a step: about" in said and "activations" in said and "fsdp.yaml" not in said
    assert main(["--config", "ucf101_xl2", "--device-spec", "4090"]) == 2
    assert "--dry-run --device-spec" in capsys.readouterr().err
