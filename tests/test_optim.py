"""Optimizers: parameter groups, the Newton-Schulz iteration of Muon, schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_run import tiny_network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eqm_video.models.transformer import EqMTransformer
from eqm_video.training import optim
from eqm_video.training.optim import OPTIMIZERS, MatrixMuon, Muon, Schedule, adamw, orthogonalize, set_lr


def test_warm_up_rises_to_the_full_rate() -> None:
    schedule = Schedule(lr=1.0, steps=100, warmup=10)
    assert [schedule(step) for step in (1, 5, 10, 11, 100)] == [0.1, 0.5, 1.0, 1.0, 1.0]


def test_cosine_and_linear_end_at_the_floor() -> None:
    for kind in ("cosine", "linear"):
        schedule = Schedule(lr=2.0, steps=110, warmup=10, kind=kind, floor=0.1)
        assert schedule(10) == 2.0
        assert math.isclose(schedule(60), 2.0 * 0.55)
        assert math.isclose(schedule(110), 0.2)
        assert math.isclose(schedule(500), 0.2)  # never rises again
        rates = [schedule(step) for step in range(10, 111)]
        assert rates == sorted(rates, reverse=True)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="constant, linear or cosine"):
        Schedule(lr=1.0, steps=10, kind="step")(5)


def test_weight_decay_acts_on_matrices_only() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        network[1].bias.fill_(1)
        network[0].bias.fill_(1)
    before = network[0].weight.detach().clone()
    optimizer = adamw(network, lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(network[0].weight, before * 0.95)
    assert all((vector == 1).all() for vector in (network[0].bias, network[1].weight, network[1].bias))


def test_frozen_parameters_are_left_out_and_the_rate_reaches_every_group() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    optimizer = adamw(network, lr=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_muon_takes_the_matrices_of_the_blocks_and_one_rate_reaches_both_parts() -> None:
    network = tiny_network()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    optimizer = OPTIMIZERS["muon"](network, lr=0.1)
    assert isinstance(optimizer, Muon)
    hidden, rest = ({names[id(p)] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert hidden | rest == set(names.values()) and not hidden & rest
    assert all(name.startswith("blocks.") and name.endswith("weight") and "modulation" not in name for name in hidden)
    assert {"label_embed.weight", "head.linear.weight", "patch_embed.weight"} <= rest
    set_lr(optimizer, 0.25)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.25}
    optimizer.load_state_dict(optimizer.state_dict())
    set_lr(optimizer, 0.5)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.5}


class Calls(TorchDispatchMode):
    """Counts the operations that reach a device, and remembers their dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.dtypes = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        result = function(*args, **(kwargs or {}))
        self.dtypes |= {
            one.dtype for one in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(one)
        }
        return result


def matrices(seed: int = 0) -> list[nn.Parameter]:
    """Wide, tall and square ones, two shapes twice."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 16), (16, 6), (8, 8), (6, 16), (8, 8)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def theirs(parameters: list[nn.Parameter], **settings: float) -> torch.optim.Optimizer:
    """`torch.optim.Muon` with the same settings."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    return torch.optim.Muon([{"params": parameters}], adjust_lr_fn="match_rms_adamw", **settings)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.optim.Muon` compute in float32, as ours does on a CPU."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone())


def test_muon_is_the_formula_of_torch_in_float32(exact: None) -> None:
    ours, reference = matrices(), matrices()
    mine = MatrixMuon([{"params": ours}], lr=0.02, weight_decay=0.1)
    other = theirs(reference, lr=0.02, weight_decay=0.1)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(reference, step)
        mine.step()
        other.step()
    for one, two in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ours_first", [False, True])
def test_muon_continues_from_the_state_of_torch_and_torch_from_its(exact: None, ours_first: bool) -> None:
    first, second = matrices(), matrices()
    mine, other = MatrixMuon([{"params": first}], lr=0.02, weight_decay=0.0), theirs(second, lr=0.02, weight_decay=0.0)
    pairs = [(first, mine), (second, other)]
    (values, source), (continued, target) = pairs if ours_first else pairs[::-1]
    give_gradients(values, 1)
    source.step()
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    with torch.no_grad():
        for old, new in zip(values, continued, strict=True):
            new.copy_(old)
    for parameters, optimizer in pairs:
        give_gradients(parameters, 2)
        optimizer.step()
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_muon_computes_in_float32_on_a_cpu_and_in_bfloat16_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = matrices()
    give_gradients(parameters, 0)
    with Calls() as calls:
        MatrixMuon([{"params": parameters}], lr=0.02, weight_decay=0.1).step()
    assert calls.dtypes == {torch.float32}

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.float32

    for has in (True, False):
        monkeypatch.setattr(optim, "has_bf16", lambda device, has=has: has)
        assert optim._precision(OnGpu) == (torch.bfloat16 if has else torch.float32)
    assert optim._precision(torch.zeros(1, dtype=torch.float64)) == torch.float64
    assert optim._precision(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32  # on a CPU


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_a_stack_is_orthogonalized_as_its_matrices_one_by_one(shape: tuple[int, int]) -> None:
    stack = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack[3] = 0
    settings = (5, (3.4445, -4.7750, 2.0315), 1e-7)
    found = orthogonalize(stack, *settings)
    for one, alone in zip(stack, found, strict=True):
        torch.testing.assert_close(orthogonalize(one[None], *settings)[0], alone)
    assert (found[3] == 0).all()
    left, _, right = torch.linalg.svd(stack[0], full_matrices=False)
    values = torch.diagonal(left.mT @ found[0] @ right.mT)
    assert ((values > 0.3) & (values < 1.3)).all()
    torch.testing.assert_close(left @ torch.diag(values) @ right, found[0])  # the singular vectors stay


def test_stacks_are_bounded_and_their_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for most in (1 << 26, 1, 200):
        monkeypatch.setattr(optim, "STACKED", most)
        parameters = matrices()
        give_gradients(parameters, 0)
        stacks = optim._stacks(parameters)
        assert all(len(stack) == 1 or sum(one.numel() for one in stack) <= most for stack in stacks)
        MatrixMuon([{"params": parameters}], lr=0.02, weight_decay=0.1).step()
        results.append(parameters)
    assert len(stacks) == 3
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_the_operations_of_a_muon_step_do_not_grow_with_the_depth() -> None:
    counts = []
    for depth in (2, 12):
        network = EqMTransformer(
            hidden_size=16, depth=depth, num_heads=2, patch_size=2, in_channels=4, num_labels=3, temporal=True
        )
        optimizer = Muon(network, lr=1e-3)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()  # makes its state
        with Calls() as calls:
            optimizer.step()
        counts.append(calls.count)
    assert sum(len(group["params"]) for group in optimizer.parts[0].param_groups) == 72
    assert counts[0] == counts[1] <= 210  # one by one it would be 2,090


def test_matrices_without_a_gradient_stay() -> None:
    parameters = matrices()
    before = [parameter.detach().clone() for parameter in parameters]
    give_gradients(parameters, 0)
    parameters[0].grad = None
    MatrixMuon([{"params": parameters}], lr=0.02, weight_decay=0.1).step()
    assert torch.equal(parameters[0], before[0])
    assert all(not torch.equal(now, old) for now, old in zip(parameters[1:], before[1:], strict=True))


def test_muon_needs_no_muon_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    network = tiny_network()
    optimizer = Muon(network, lr=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(lambda: 3.0) == 3.0


def test_matrix_scale_multiplies_the_rate_of_the_matrices_alone() -> None:
    def moved(scale: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = tiny_network()
        before = {name: one.detach().clone() for name, one in network.named_parameters()}
        optimizer = Muon(network, lr=1.0, matrix_scale=scale)
        assert optimizer.param_groups[0]["lr"] == scale
        set_lr(optimizer, 1e-3)  # of the schedule
        generator = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        return {name: one.detach() - before[name] for name, one in network.named_parameters()}

    plain, scaled = moved(1.0), moved(3.0)
    for name, step in plain.items():
        hidden = name.startswith("blocks.") and name.endswith("weight") and "modulation" not in name
        torch.testing.assert_close(scaled[name], step * (3 if hidden else 1), rtol=1e-3, atol=1e-6)
    assert any(name.startswith("blocks.") and "modulation" not in name and one.any() for name, one in plain.items())
