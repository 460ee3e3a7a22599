from __future__ import annotations

import math

import pytest
import torch
from tiny_run import tiny_network
from torch import nn

from eqm_video.training.optim import OPTIMIZERS, Muon, Schedule, adamw, set_lr


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
