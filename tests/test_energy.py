"""Explicit energies: their values, and a field that is their true gradient in every mode that autograd has."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eqm_video.core.energy import Field, checkpoint_block, frame_energies
from eqm_video.errors import UserError
from eqm_video.models.transformer import EqMTransformer
from eqm_video.samplers import GradientDescent, descend
from eqm_video.training.build import check_start

EXPLICIT = ("dot", "l2")
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": nullcontext}


class Linear(nn.Module):
    """f(x) = M x over all numbers of a clip: both energies are quadratic, and frames depend on each other."""

    def __init__(self, energy: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(energy=energy)
        matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.matrix = nn.Parameter(matrix + 6 * torch.eye(12, dtype=torch.float64))

    def forward(self, latents: Tensor, labels: Tensor | None = None, *, times: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(sample=(latents.flatten(1) @ self.matrix.T).view_as(latents))


def clips(count: int = 2, frames: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, frames, 2, 4, 4, generator=random, dtype=torch.float64).to(dtype)


def network(energy: str, **options: object) -> EqMTransformer:
    return tiny_network(energy=energy, **options).double()


def slopes(value: Callable[[Tensor], Tensor], point: Tensor, directions: int = 12) -> tuple[Tensor, Tensor]:
    """Central differences of a number along some unit directions, and the directions."""
    random = torch.Generator().manual_seed(9)
    chosen = torch.randn(directions, *point.shape, generator=random, dtype=point.dtype)
    chosen = chosen / chosen.flatten(1).norm(dim=1).view(-1, *[1] * point.ndim)
    step = 1e-5
    return torch.stack([(value(point + step * one) - value(point - step * one)) / (2 * step) for one in chosen]), chosen


# ------------------------------------------------------------------------------------------------------ values


def test_frame_energies_by_their_definition() -> None:
    latents, sample = clips(seed=1), clips(seed=2)
    for clip in range(2):
        for frame in range(3):
            x, f = latents[clip, frame].flatten(), sample[clip, frame].flatten()
            assert frame_energies(latents, sample, "dot")[clip, frame] == pytest.approx(float(x @ f))
            assert frame_energies(latents, sample, "l2")[clip, frame] == pytest.approx(float(f @ f) / 2)


def test_half_precision_is_summed_in_float32_under_autocast_too() -> None:
    sample = torch.full((1, 1, 1, 64, 64), 7.0, dtype=torch.float16)  # the sum of squares overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy = frame_energies(sample, sample, "l2")
    assert energy.dtype == torch.float32 and energy.item() == 4096 * 24.5


def test_wrong_energies_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'implicit'; only 'dot' and 'l2'"):
        frame_energies(clips(), clips(), "implicit")
    with pytest.raises(ValueError, match="shapes differ"):
        frame_energies(clips(), clips(frames=2), "dot")
    with pytest.raises(ValueError, match="'implicit'"):
        Field(network("implicit")).energies(clips())
    with pytest.raises(ValueError, match=r"energy 'l3' is not one of implicit, dot, l2"):
        tiny_network(energy="l3")
    with pytest.raises(ValueError, match=r"'l3'; it must be one of"):
        Field(Linear("l3"))


def test_any_network_has_any_energy_by_name() -> None:
    for own in ("implicit", *EXPLICIT):
        field, latents = Field(network(own)), clips().requires_grad_()
        raw = field.network(latents).sample
        for kind in EXPLICIT:
            energy = field.energies(latents, energy=kind)
            assert torch.equal(energy, frame_energies(latents, raw, kind)) and not energy.requires_grad
        if own != "implicit":
            assert torch.equal(field.energies(latents), field.energies(latents, energy=own))
            torch.testing.assert_close(field(latents).energy, field.energies(latents), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- the true gradient


def test_an_implicit_field_is_the_network_itself() -> None:
    for one, latents in ((network("implicit"), clips()), (SimpleNamespace(), None)):
        if latents is None:  # a callable without a configuration is implicit too
            assert Field(one).energy == "implicit"
            continue
        output, raw = Field(one)(latents), one(latents)
        assert torch.equal(output.sample, raw.sample) and torch.equal(output.hidden, raw.hidden)
        assert output.energy is None


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_quadratic_in_closed_form(mode: str) -> None:
    latents = clips(frames=3)[:, :, :1, :2, :2]
    flat = latents.flatten(1)
    for kind in EXPLICIT:
        one = Linear(kind)
        matrix = one.matrix.detach()
        curvature = matrix + matrix.T if kind == "dot" else matrix.T @ matrix
        with MODES[mode]():
            output = Field(one)(latents)
        torch.testing.assert_close(output.sample.detach().flatten(1), flat @ curvature, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(output.energy.sum(dim=1).detach(), (flat * (flat @ curvature)).sum(1) / 2)


@pytest.mark.parametrize("kind", EXPLICIT)
def test_descent_lowers_a_quadratic_as_its_curvature_says(kind: str) -> None:
    one, latents = Linear(kind), clips()[:, :, :1, :2, :2]
    field, seen = Field(one), []
    matrix = one.matrix.detach()
    curvature = matrix + matrix.T if kind == "dot" else matrix.T @ matrix
    step_size = 1 / torch.linalg.eigvalsh(curvature)[-1].item()
    with torch.no_grad():
        result = descend(
            lambda point: field(point).sample,
            latents,
            GradientDescent(step_size),
            steps=6,
            callback=lambda step, now, _: seen.append(field.energies(now).sum(dim=1)),
        )
    shrink = torch.linalg.matrix_power(torch.eye(12, dtype=torch.float64) - step_size * curvature, 6)
    torch.testing.assert_close(result.latents.flatten(1), latents.flatten(1) @ shrink)
    assert (torch.stack(seen).diff(dim=0) < 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", EXPLICIT)
def test_the_sampled_gradient_is_that_of_the_energies_and_not_f(kind: str, mode: str) -> None:
    one, latents, labels = network(kind), clips(), torch.tensor([0, 1])
    times = torch.tensor([[0.0, 1.0, 2.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    field = Field(one)
    with MODES[mode]():
        sample = field(latents, labels, times=times).sample.detach()
    found, directions = slopes(lambda point: field.energies(point, labels, times=times).sum(), latents)
    torch.testing.assert_close((directions * sample).flatten(1).sum(1), found, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        raw = one(latents, labels, times=times).sample
    assert (sample - raw).norm() > 0.1 * raw.norm()


@pytest.mark.parametrize("kind", EXPLICIT)
def test_sampling_changes_nothing_of_the_caller(kind: str) -> None:
    one, latents = network(kind), clips()
    for parameter in one.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = latents.clone()
    for mode in MODES.values():
        with mode():
            enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            output = Field(one)(latents, torch.tensor([0, 2]))
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == enabled
        if mode is not nullcontext:
            parts = (output.sample, output.hidden, output.energy)
            assert not any(part.requires_grad or part.is_inference() for part in parts)
    assert torch.equal(latents, before) and not latents.requires_grad and latents.grad is None
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in one.parameters())
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize("kind", EXPLICIT)
def test_tensors_made_in_inference_mode_work(kind: str) -> None:
    one = network(kind)
    labels, times = torch.tensor([0, 1]), torch.arange(3.0).expand(2, -1)
    expected = Field(one)(clips(), labels, times=times).sample.detach()
    with torch.inference_mode():
        made = [clips(), labels.clone(), times.clone()]
        sample = Field(one)(made[0], made[1], times=made[2]).sample
    assert torch.equal(sample, expected)


@pytest.mark.parametrize("kind", EXPLICIT)
@pytest.mark.parametrize("mode", MODES)
def test_a_field_that_autograd_cannot_reach_raises_and_never_falls_back(kind: str, mode: str) -> None:
    class Cut(Linear):
        @torch.no_grad()
        def forward(self, *arguments: object, **options: object) -> SimpleNamespace:
            return super().forward(*arguments, **options)

    class Blind(Linear):
        def forward(self, latents: Tensor, *arguments: object, **options: object) -> SimpleNamespace:
            return super().forward(torch.ones_like(latents), *arguments, **options)

    latents = clips()[:, :, :1, :2, :2]
    for broken in (Cut, Blind):  # x.f(x) has a gradient even then, and it is f
        with MODES[mode](), pytest.raises(RuntimeError, match="autograd cannot follow"):
            Field(broken(kind))(latents)


def test_gamma_is_passed_only_to_a_conditioned_network() -> None:
    gamma = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.2, 0.2]], dtype=torch.float64)
    for kind in ("implicit", *EXPLICIT):
        told, silent = (Field(network(kind, conditioned_on_gamma=asks)) for asks in (True, False))
        first, second = (told(clips(), gamma=one).sample for one in (gamma, gamma / 2))
        assert not torch.allclose(first, second)
        assert torch.equal(silent(clips(), gamma=gamma).sample, silent(clips()).sample)
        with pytest.raises(ValueError, match="conditioned on gamma"):
            told(clips())


# ------------------------------------------------------------------------------------------------- training it


@pytest.mark.parametrize("kind", EXPLICIT)
def test_the_loss_of_the_gradient_reaches_every_weight(kind: str) -> None:
    """Its derivative by the weights, which is a second one of f, against differences of the loss."""
    one, latents, target = network(kind), clips(), clips(seed=5)
    field = Field(one)

    def loss() -> Tensor:
        return (field(latents, torch.tensor([0, 1])).sample - target).square().mean()

    loss().backward()
    for name, parameter in one.named_parameters():
        if name == "gamma_embed.mlp.0.weight":  # half of its inputs are the sine of 0
            continue
        place = parameter.grad.abs().argmax()
        values = parameter.data.view(-1)
        original, results = values[place].item(), []
        for step in (1e-5, -1e-5):
            values[place] = original + step
            results.append(loss().item())
        values[place] = original
        assert parameter.grad.view(-1)[place].item() == pytest.approx((results[0] - results[1]) / 2e-5, rel=1e-4), name


@pytest.mark.parametrize("kind", EXPLICIT)
def test_the_field_can_be_differentiated_by_the_latents_of_the_caller(kind: str) -> None:
    """Curvature: the derivative of the field along a direction is symmetric, as a Hessian is."""
    field, latents = Field(network(kind)), clips().requires_grad_()
    sample = field(latents).sample
    one, other = clips(seed=3), clips(seed=4)
    (forth,) = torch.autograd.grad(sample, latents, one, retain_graph=True)
    (back,) = torch.autograd.grad(sample, latents, other)
    assert (forth * other).sum().item() == pytest.approx((back * one).sum().item(), rel=1e-9)
    found, directions = slopes(lambda point: (field(point).sample.detach() * one).sum(), latents.detach(), 3)
    torch.testing.assert_close((directions * forth).flatten(1).sum(1), found, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", EXPLICIT)
def test_bfloat16_autocast_trains_and_samples_close_to_float32(kind: str) -> None:
    latents, target = clips(dtype=torch.float32), clips(seed=5, dtype=torch.float32)

    def evaluate(precision: str) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        one = tiny_network(energy=kind)
        field = Field(one)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                sampled = [field(latents).sample for _ in range(3)]  # autocast remembers the weights' copies
            output = field(latents)
        assert output.energy.dtype == torch.float32 and output.sample.dtype == torch.float32
        (output.sample - target).square().mean().backward()
        return output.sample.detach(), sampled, [parameter.grad for parameter in one.parameters()]

    exact, sampled, gradients = evaluate("no")
    torch.testing.assert_close(sampled[2], exact)
    rough, sampled, rough_gradients = evaluate("bf16")
    assert all((one - exact).norm() < 0.03 * exact.norm() for one in [rough, *sampled])
    assert not torch.equal(rough, exact)
    total = torch.cat([one.flatten() for one in gradients])
    difference = torch.cat([one.flatten() for one in rough_gradients]) - total
    assert difference.isfinite().all() and difference.norm() < 0.05 * total.norm()


@pytest.mark.parametrize("kind", EXPLICIT)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    def gradients(checkpointed: bool) -> tuple[Tensor, list[Tensor]]:
        one = network(kind)
        if checkpointed:
            one.enable_gradient_checkpointing(checkpoint_block)
        output = Field(one)(clips(), torch.tensor([0, 1]))
        (output.sample.square().mean() + output.hidden.square().mean()).backward()
        return output.sample.detach(), [parameter.grad for parameter in one.parameters()]

    (sample, plain), (again, checkpointed) = gradients(False), gradients(True)
    torch.testing.assert_close(again, sample, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["implicit", *EXPLICIT])
def test_wrapped_for_several_processes_it_finds_its_parameters(kind: str, frames: int) -> None:
    """With one frame the temporal layers are idle, and DDP looks through the output for what took part."""
    gradients = []
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrapped in (False, True):
            one = network(kind)
            wrap = DistributedDataParallel(Field(one), find_unused_parameters=frames == 1) if wrapped else Field(one)
            for step in range(2):
                wrap(clips(frames=frames, seed=step)).sample.square().mean().backward()
            gradients.append([parameter.grad for parameter in one.parameters() if parameter.grad is not None])
    finally:
        torch.distributed.destroy_process_group()
    for plain, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_new_weights_let_dot_learn_and_l2_not(tmp_path: Path) -> None:
    """At initialization f = 0. The gradient of x.f(x) is linear in the head, that of |f|^2 / 2 quadratic."""
    sizes = {"in_channels": 2, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_labels": 2}
    moved = {}
    for kind in EXPLICIT:
        one = EqMTransformer(**sizes, energy=kind).double()
        (Field(one)(clips()).sample - clips(seed=5)).square().mean().backward()
        moved[kind] = {name for name, parameter in one.named_parameters() if parameter.grad.any()}
    assert moved["dot"] == {"head.linear.weight", "head.linear.bias"}
    assert moved["l2"] == set()
    with pytest.raises(UserError, match=r"model.energy=l2 .*train.init_from=.*model.energy=dot"):
        check_start(EqMTransformer(**sizes, energy="l2"))
    for fine in (EqMTransformer(**sizes, energy="dot"), EqMTransformer(**sizes), tiny_network(energy="l2")):
        check_start(fine)


# ------------------------------------------------------------------------------------------- on the way to disk


def test_the_energy_travels_with_the_network_and_old_ones_are_implicit(tmp_path: Path) -> None:
    tiny_network(energy="l2").save_pretrained(tmp_path)
    again = EqMTransformer.from_pretrained(tmp_path)
    assert again.config.energy == "l2" and Field(again).energy == "l2"
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["energy"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert Field(EqMTransformer.from_pretrained(tmp_path)).energy == "implicit"
