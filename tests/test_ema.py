"""Averaged weights: the recursion, its warm-up, and its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eqm_video.training.ema import Ema


def moved(network: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by)
    return network


def test_average_follows_the_definition_with_warm_up() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.5)
    expected = network.weight.detach().clone()
    for updates in range(20):
        moved(network, 1.0)
        decay = min(0.5, (1 + updates) / (10 + updates))
        assert ema.current_decay() == decay
        ema.update(network)
        expected = decay * expected + (1 - decay) * network.weight.detach()
    assert torch.allclose(ema.average["weight"], expected, rtol=1e-5)
    assert ema.updates == 20


def test_the_average_is_the_evaluated_network_and_apart_from_the_trained_one() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.9)
    before = network.weight.detach().clone()
    ema.update(moved(network, 1.0))
    assert ema.average["weight"] is ema.network.weight
    assert not ema.network.weight.requires_grad and not ema.network.training
    assert torch.allclose(network.weight, before + 1)
    assert torch.allclose(ema.network.weight, before + 0.9)  # first decay is 1/10


def test_average_is_float32_for_a_half_precision_network() -> None:
    network = nn.Linear(3, 2).to(torch.bfloat16)
    ema = Ema(network, 0.9)
    ema.update(moved(network, 0.5))
    assert ema.average["weight"].dtype == torch.float32
    assert network.weight.dtype == torch.bfloat16


def test_load_continues_exactly() -> None:
    network = nn.Linear(3, 2)
    straight, first = Ema(network, 0.99), Ema(network, 0.99)
    for step in range(10):
        straight.update(moved(network, 0.1))
        if step < 5:
            first.update(network)
        elif step == 5:
            resumed = Ema(nn.Linear(3, 2), 0.99)
            resumed.load({name: tensor.clone() for name, tensor in first.average.items()}, first.updates)
            resumed.update(network)
        else:
            resumed.update(network)
    assert torch.equal(straight.average["weight"], resumed.average["weight"])


def test_other_parameters_are_refused() -> None:
    ema = Ema(nn.Linear(3, 2), 0.9)
    with pytest.raises(ValueError, match="names changed"):
        ema.update(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="lacks 1 parameters, bias"):
        ema.load({"weight": torch.zeros(2, 3)}, 1)


def test_all_averages_are_moved_by_one_kernel() -> None:
    """A launch for each of thousands of weights would take longer than the arithmetic."""

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    counts = []
    for depth in (1, 6):
        network, seen = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth))), []
        ema = Ema(network, 0.9)
        with Operations():
            ema.update(network)
        counts.append([name for name in seen if "detach" not in name])
    assert counts[0] == counts[1] and len(counts[0]) == 1 and "_foreach_lerp_" in counts[0][0]
