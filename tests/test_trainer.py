"""The trainer: losses and gradients against closed forms, resume, signals, held-out loss."""

from __future__ import annotations

import math
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_run import MemoryClips, encode, equal, read_metrics, tiny_network, tiny_trainer, weights

from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.energy import ENERGIES, checkpoint_block
from eqm_video.core.gamma import ContextGamma, MixtureGamma
from eqm_video.core.objective import EqMObjective
from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer
from eqm_video.randomness import generator
from eqm_video.training.batches import BatchPlan
from eqm_video.training.checkpoint import step_of
from eqm_video.training.held_out import HeldOut
from eqm_video.training.trainer import Hook, StopSignals

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


# ------------------------------------------------------------------------------------------------------ batches


def test_an_epoch_meets_every_item_once_and_epochs_differ() -> None:
    plan = BatchPlan(size=10, batch_size=4, seed=1)
    walk = [index for step in range(5) for _, index, _ in plan.requests(step, 0)]
    assert sorted(walk[:10]) == sorted(walk[10:]) == list(range(10))
    assert walk[:10] != walk[10:]


def test_requests_depend_on_seed_and_step_alone_and_windows_differ() -> None:
    plan = BatchPlan(size=10, batch_size=4, seed=1)
    assert plan.requests(7, 0) == BatchPlan(size=10, batch_size=4, seed=1).requests(7, 0)
    assert plan.requests(7, 0) != BatchPlan(size=10, batch_size=4, seed=2).requests(7, 0)
    seeds = [seed for step in range(20) for *_, seed in plan.requests(step, 0)]
    assert len(set(seeds)) == len(seeds)


def test_processes_and_accumulation_share_out_the_same_global_batch() -> None:
    whole = BatchPlan(size=10, batch_size=8, seed=1).requests(3, 0)
    parts = {}
    for rank in range(2):
        plan = BatchPlan(size=10, batch_size=8, seed=1, accumulation=2, rank=rank, world=2)
        for micro in range(2):
            parts |= dict(zip(plan.positions(micro), plan.requests(3, micro), strict=True))
    assert [parts[position] for position in range(8)] == whole


def test_indivisible_batch_says_what_divides_it() -> None:
    with pytest.raises(UserError, match=r"batch_size=6 .* 2 x 2 = 4"):
        BatchPlan(size=10, batch_size=6, seed=0, accumulation=2, world=2)


# ----------------------------------------------------------------------------------------------------- the loop


def test_training_learns_and_logs(tmp_path) -> None:
    torch.manual_seed(0)
    network = EqMTransformer(in_channels=2, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_labels=2)
    options = {"steps": 300, "log_every": 75, "save_every": 1000, "lr": 3e-3, "label_dropout": 0.0}
    trainer = tiny_trainer(tmp_path, network, clips=MemoryClips(size=1), **options)
    assert trainer.run()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [75, 150, 225, 300]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    for line in lines:
        assert line["lr"] == 3e-3 and line["clips_per_second"] > 0 and math.isfinite(line["grad_norm"])
        assert set(line["loss_by_gamma"]) <= {f"{k / 10:.1f}" for k in range(10)}
        mean = sum(line["loss_by_gamma"].values()) / len(line["loss_by_gamma"])
        assert abs(mean - line["loss"]) < 0.5 * line["loss"]
    assert lines[0]["seconds"] < lines[1]["seconds"]


def raw_gradient(network, latents, labels, times) -> torch.Tensor:
    """The gradient of the energies of `model.energy`, from their definition."""
    latents = latents.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        sample = network(latents, labels, times=times).sample
        if network.config.energy == "implicit":
            return sample
        energy = (latents * sample).sum() if network.config.energy == "dot" else sample.square().sum() / 2
        return torch.autograd.grad(energy, latents, create_graph=True)[0]


@pytest.mark.parametrize("energy", ENERGIES)
def test_one_step_is_the_objective_written_out(tmp_path, energy) -> None:
    """The whole step from its definition: draws, target, loss, clipping, AdamW; nothing of the trainer is called."""
    network, seed = tiny_network(energy=energy), 5
    reference = tiny_network(energy=energy)
    trainer = tiny_trainer(tmp_path, network, steps=1, seed=seed, clip_norm=0.5, label_dropout=0.5)
    trainer.run()
    clips, decay, losses = MemoryClips(), TruncatedDecay(a=0.8, gain=4.0), []
    for position, request in enumerate(BatchPlan(size=6, batch_size=4, seed=seed).requests(0, 0)):
        batch = clips.collate([clips[request[1:]]])
        small, large = generator(seed, "gamma", 1, position), generator(seed, "noise", 1, position)
        label = batch["labels"].clone()
        if torch.rand((), generator=small) < 0.5:
            label[:] = network.null_label
        gamma = torch.rand(1, generator=small)
        clean = encode(batch, None)
        noise = torch.randn(clean.shape[1:], generator=large)[None]
        target = (noise - clean) * decay(gamma)
        sample = raw_gradient(reference, gamma * clean + (1 - gamma) * noise, label, batch["times"] * 8)
        losses.append((sample - target).square().mean())
    torch.stack(losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0).step()
    assert read_metrics(tmp_path)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, value in weights(reference).items():
        assert torch.allclose(value, weights(network)[name], atol=2e-6), name


@pytest.mark.parametrize("energy", ["implicit", "dot"])
def test_accumulation_gives_the_same_step(tmp_path, energy) -> None:
    first, second = tiny_network(energy=energy), tiny_network(energy=energy)
    tiny_trainer(tmp_path / "a", first, gamma=MixtureGamma()).run()
    tiny_trainer(tmp_path / "b", second, gamma=MixtureGamma(), accumulation=4).run()
    for name, value in weights(first).items():
        assert torch.allclose(value, weights(second)[name], atol=1e-5), name
    one, other = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert one[-1]["loss"] == pytest.approx(other[-1]["loss"], rel=1e-4)
    assert one[-1]["grad_norm"] == pytest.approx(other[-1]["grad_norm"], rel=1e-3)


def test_gradient_checkpointing_changes_nothing(tmp_path) -> None:
    plain, checkpointed = tiny_network(), tiny_network()
    checkpointed.enable_gradient_checkpointing()
    tiny_trainer(tmp_path / "a", plain).run()
    tiny_trainer(tmp_path / "b", checkpointed).run()
    assert equal(weights(plain), weights(checkpointed))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradient_checkpointing_changes_nothing_of_an_explicit_energy(tmp_path, precision) -> None:
    plain, checkpointed = tiny_network(energy="dot"), tiny_network(energy="dot")
    checkpointed.enable_gradient_checkpointing(checkpoint_block)
    for folder, network in (("a", plain), ("b", checkpointed)):
        tiny_trainer(tmp_path / folder, network, accelerator=Accelerator(cpu=True, mixed_precision=precision)).run()
    assert equal(weights(plain), weights(checkpointed))


@pytest.mark.parametrize("energy", ENERGIES)
def test_bf16_runs_and_keeps_float32_weights(tmp_path, energy) -> None:
    network = tiny_network(energy=energy)
    trainer = tiny_trainer(tmp_path, network, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    trainer.run()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path))


def test_compiled_blocks_train_alike(tmp_path) -> None:
    plain, compiled = tiny_network(), tiny_network()
    for block in compiled.blocks:
        block.compile(backend="eager")
    tiny_trainer(tmp_path / "a", plain).run()
    tiny_trainer(tmp_path / "b", compiled).run()
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(compiled)[name], atol=1e-5), name


def test_one_frame_trains_a_temporal_network_and_leaves_its_temporal_layers(tmp_path) -> None:
    network = tiny_network()
    before = weights(network)
    tiny_trainer(tmp_path, network, clips=MemoryClips(frames=1)).run()
    after = weights(network)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if ".temporal" in name}


def test_unlabelled_clips_and_full_dropout_train_the_null_label_only(tmp_path) -> None:
    class Unlabelled(MemoryClips):
        def collate(self, clips):
            batch = super().collate(clips)
            return {**batch, "labels": torch.full_like(batch["labels"], -1)}

    for folder, options in (("a", {"clips": Unlabelled(), "label_dropout": 0.0}), ("b", {"label_dropout": 1.0})):
        network = tiny_network()
        before = network.label_embed.weight.detach().clone()
        tiny_trainer(tmp_path / folder, network, **options).run()
        changed = (network.label_embed.weight != before).any(dim=1).tolist()
        assert changed == [False, False, True]


def test_clean_frames_have_their_own_bin(tmp_path) -> None:
    tiny_trainer(tmp_path, gamma=ContextGamma(("prefix",)), steps=2).run()
    assert "1.0" in read_metrics(tmp_path)[0]["loss_by_gamma"]


def test_dispersion_enters_the_loss(tmp_path) -> None:
    plain, spread = tiny_network(), tiny_network()
    tiny_trainer(tmp_path / "a", plain, steps=1).run()
    objective = EqMObjective(TruncatedDecay(a=0.8, gain=4.0), dispersion_weight=0.5)
    tiny_trainer(tmp_path / "b", spread, steps=1, objective=objective).run()
    assert read_metrics(tmp_path / "a")[0]["loss"] > read_metrics(tmp_path / "b")[0]["loss"]
    assert not equal(weights(plain), weights(spread))


# ----------------------------------------------------------------------------------------------- faults, signals


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, poison) -> None:
    network = tiny_network()
    trainer = tiny_trainer(tmp_path, network, save_every=1000)
    before = []
    original = trainer._clip

    def spoiled() -> torch.Tensor:
        before.append(weights(network))
        if len(before) == 3:
            next(network.parameters()).grad.view(-1)[0] = poison
        return original()

    trainer._clip = spoiled
    with pytest.raises(UserError, match=r"step 3 is not finite.*train\.lr.*bf16.*clip-\d.*step_00000002.*--resume"):
        trainer.run()
    assert equal(before[-1], weights(network))
    assert trainer.ema.updates == 2
    saved = load_file(trainer.checkpoints.newest() / "model.safetensors")  # the last whole step, although none was due
    assert equal(before[-1], {name: saved[name] for name in before[-1]})


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scaler", [None, object()])
def test_latents_that_are_not_finite_stop_before_the_update_and_name_their_clip(tmp_path, poison, scaler) -> None:
    """Under fp16 too, whose scaler would skip the step in silence."""
    met = []

    def broken(batch, generators):
        clean = encode(batch, generators)
        met.append(batch["names"])
        if len(met) == 3:
            clean[2, 1, 0, 0, 0] = poison
        return clean

    network = tiny_network()
    trainer = tiny_trainer(tmp_path, network, encode=broken, save_every=1000)
    original = trainer._judge

    def judge(step: int, names: list[str]) -> bool:
        trainer.accelerator.scaler = scaler  # only for what the loop sees of it
        try:
            return original(step, names)
        finally:
            trainer.accelerator.scaler = None

    trainer._judge = judge
    with pytest.raises(UserError, match=r"latents of these clips of step 3 .*step_00000002.*--resume") as error:
        trainer.run()
    assert f"left out: {met[2][2]}." in str(error.value) and trainer.ema.updates == 2


def test_a_scaled_run_skips_overflows_and_gives_up_after_many(tmp_path, monkeypatch) -> None:
    """fp16 needs a GPU: the scaler is imitated, which is all that the loop sees of it."""
    trainer = tiny_trainer(tmp_path, steps=200)
    trainer.accelerator.scaler = object()
    monkeypatch.setattr(trainer, "_forward_backward", lambda step, batches: ["clip"])
    monkeypatch.setattr(trainer, "_clip", lambda: torch.tensor(math.inf))
    monkeypatch.setattr(type(trainer.optimizer), "step", lambda self, closure=None: None)
    monkeypatch.setattr(type(trainer.optimizer), "step_was_skipped", property(lambda self: True))
    monkeypatch.setattr(trainer, "_write_log", lambda *unused: {})
    with pytest.raises(UserError, match="step 51 is not finite"):
        trainer.run()
    assert trainer.ema.updates == 0


def test_the_average_stays_where_a_fused_optimizer_skips_unseen(tmp_path, monkeypatch) -> None:
    """The scaler calls a fused optimizer's step on overflow too, so `step_was_skipped` is never true."""
    trainer = tiny_trainer(tmp_path, steps=6)
    trainer.accelerator.scaler = object()
    norms = iter([1.0, math.inf, 1.0, math.nan, math.inf, 1.0])
    monkeypatch.setattr(trainer, "_forward_backward", lambda step, batches: ["clip"])
    monkeypatch.setattr(trainer, "_clip", lambda: torch.tensor(next(norms)))
    monkeypatch.setattr(type(trainer.optimizer), "step", lambda self, closure=None: None)
    monkeypatch.setattr(trainer, "_write_log", lambda *unused: {})
    monkeypatch.setattr(trainer, "save", lambda: None)
    trainer.run()
    assert trainer.ema.updates == 3


def test_a_signal_ends_after_the_step_with_a_checkpoint(tmp_path) -> None:
    def interrupted(batch, generators):
        if trainer.step == 2:  # in the middle of step 3
            signal.raise_signal(signal.SIGTERM)
        return encode(batch, generators)

    previews = []
    hook = Hook(1, lambda step, network: previews.append(step))
    trainer = tiny_trainer(tmp_path, encode=interrupted, steps=10, save_every=100, hooks=[hook])
    handler = signal.getsignal(signal.SIGTERM)
    assert trainer.run() is False
    assert trainer.checkpoints.newest().name == "step_00000003"
    assert previews == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_signal_ends_at_once_but_a_repetition_does_not() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a launcher forwards what the terminal has sent already
        assert signals.received
        signals._last = time.monotonic() - 2
        with pytest.raises(SystemExit) as error:
            signal.raise_signal(signal.SIGINT)
        assert error.value.code == 128 + signal.SIGINT


# ------------------------------------------------------------------------------------------- hooks and held-out


def test_hooks_run_when_due_and_at_the_last_step(tmp_path) -> None:
    seen = {"evaluation": [], "hook": [], "never": []}

    def note(name):
        return lambda step, network: seen[name].append(step) or {name: step}

    trainer = tiny_trainer(
        tmp_path,
        steps=7,
        log_every=3,
        evaluations=[Hook(2, note("evaluation"))],
        hooks=[Hook(5, note("hook")), Hook(0, note("never"))],
    )
    trainer.run()
    assert seen == {"evaluation": [2, 4, 6, 7], "hook": [5, 7], "never": []}
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert list(lines) == [2, 3, 4, 6, 7] and lines[4]["evaluation"] == 4 and "evaluation" not in lines[3]


class Process:
    """The part of an accelerator that the held-out loss uses."""

    device, num_processes, process_index = torch.device("cpu"), 1, 0

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


def test_held_out_loss_is_of_the_true_gradient(tmp_path) -> None:
    objective, found = EqMObjective(TruncatedDecay(0.8, 4.0)), {}
    clips = MemoryClips(size=1)
    options = {"clips": 1, "gammas": (0.3,), "seed": 3, "reference_fps": 8.0, "accelerator": Process()}
    for energy in ENERGIES:
        network = tiny_network(energy=energy)
        found[energy] = HeldOut(clips, clips.collate, encode, objective, **options)(1, network)["held_out"]["mean"]
        batch = clips.collate([clips[(0, 0)]])
        clean, noise = encode(batch, None), torch.randn(3, 2, 4, 4, generator=generator(3, "held out", 0, "0.3"))
        sample = raw_gradient(network, 0.3 * clean + 0.7 * noise, batch["labels"], batch["times"] * 8)
        expected = (sample.detach() - 4 * (noise - clean)).square().mean()
        assert found[energy] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(found.values())) == 3


def test_held_out_loss_is_repeatable_and_shared_out(tmp_path) -> None:
    clips, network = MemoryClips(size=7), tiny_network()

    def losses(rank: int, world: int) -> tuple[dict, list]:
        process = Process()
        process.process_index, process.num_processes = rank, world
        process.reduce = lambda sums, reduction: sums
        options = {"clips": 5, "gammas": (0.2, 0.9), "seed": 3, "reference_fps": 8.0, "accelerator": process}
        held_out = HeldOut(clips, clips.collate, encode, EqMObjective(TruncatedDecay(0.8, 4.0)), **options)
        first = held_out(1, network)["held_out"]
        assert first == held_out(2, network)["held_out"]
        return first, held_out.indices

    whole, indices = losses(0, 1)
    assert indices == [0, 1, 2, 4, 5] and set(whole) == {"0.2", "0.9", "mean"}
    parts = [losses(rank, 2)[0] for rank in range(2)]
    for name in whole:
        assert parts[0][name] + parts[1][name] == pytest.approx(whole[name], rel=1e-5)


def test_checkpoints_by_the_clock_change_nothing_but_where_a_run_can_go_on(tmp_path) -> None:
    """For a clock of no time at all every step is late, and every second is saved: processes agree a step later.

    The run that goes on from one ends with the same weights.
    """
    plain = tiny_trainer(tmp_path / "plain", steps=6, save_every=100)
    by_clock = tiny_trainer(tmp_path / "clock", steps=6, save_every=100, save_every_minutes=1e-12)
    assert plain.run() and by_clock.run()
    steps = [step_of(path) for path in by_clock.checkpoints.named()]
    assert steps == [2, 4, 6]
    assert [step_of(path) for path in plain.checkpoints.named()] == [6]
    again = tiny_trainer(tmp_path / "again", steps=6)
    again.resume(by_clock.checkpoints.named()[0])
    assert again.step == steps[0] and again.run()
    assert equal(weights(plain.network), weights(again.network))
    late = tiny_trainer(tmp_path / "late", steps=3, save_every=100, save_every_minutes=1e6)
    assert late.run() and [step_of(path) for path in late.checkpoints.named()] == [3]


def test_the_loss_is_shown_from_the_first_step(tmp_path, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr("tqdm.std.tqdm.set_postfix", lambda bar, given, refresh: shown.append(dict(given)))
    trainer = tiny_trainer(tmp_path, steps=4, log_every=4)
    trainer.run()
    assert len(shown) == 4 and list(shown[0]) == ["loss"] and list(shown[-1]) == ["loss", "clips/s"]
    assert float(shown[-1]["loss"]) == pytest.approx(read_metrics(tmp_path)[-1]["loss"], abs=1e-4)
    assert all(float(one["loss"]) > 0 for one in shown)
