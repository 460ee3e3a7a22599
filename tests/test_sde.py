"""The stochastic sampler of the flow baseline, on data whose distribution is normal: its field has a closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from eqm_video.randomness import generator, normal
from eqm_video.samplers import SDE, Euler, Heun, run

MEAN, SPREAD = 0.7, 0.3  # of the data
BOTH = pytest.mark.parametrize("diffusion", ["sigma", "sbdm"])
METHODS = pytest.mark.parametrize("method", ["heun", "euler"])


class NormalFlow:
    """E[noise - clean | x, gamma] for clean ~ N(MEAN, SPREAD^2): x has mean gamma MEAN and variance V(gamma)."""

    def __init__(self, gamma: float | None = None, told: list[float] | None = None) -> None:
        self.gamma, self.told = gamma, [] if told is None else told

    def at_gamma(self, gamma: float) -> NormalFlow:
        self.told.append(gamma)
        return NormalFlow(gamma, self.told)

    @staticmethod
    def variance(gamma: float) -> float:
        return gamma**2 * SPREAD**2 + (1 - gamma) ** 2

    def __call__(self, latents: Tensor) -> Tensor:
        slope = ((1 - self.gamma) - self.gamma * SPREAD**2) / self.variance(self.gamma)
        return slope * (latents - self.gamma * MEAN) - MEAN


def sources(count: int) -> list[torch.Generator]:
    return [generator("sde", clip) for clip in range(count)]


def noise(*shape: int) -> Tensor:
    return normal(shape[1:], [generator("start", clip) for clip in range(shape[0])], dtype=torch.float64)


@METHODS
@BOTH
def test_normal_data_come_out_with_their_mean_and_variance(method, diffusion):
    """And so do all the densities on the way: N(gamma MEAN, V(gamma))."""
    start, path = noise(4, 1, 1, 64, 64), []
    options = {"generators": sources(4), "callback": lambda step, latents, slope: path.append(latents)}
    sampler = SDE(method, diffusion, last_step=0.01)
    run(NormalFlow(), start, sampler, steps=100, **options)
    count = start.numel()
    for step in (24, 49, 74, 99):
        gamma = (step + 1) / 100
        spread = NormalFlow.variance(gamma) ** 0.5
        # four standard errors of the Monte Carlo, and what the steps of 0.01 leave
        slack = 0.04 if method == "euler" else 0.02
        assert abs(float(path[step].mean()) - gamma * MEAN) < spread * (4 / count**0.5 + slack)
        assert abs(float(path[step].std()) / spread - 1) < 4 / (2 * count) ** 0.5 + slack
    # the noise is renewed on the way: the ends are not the ODE's, which keeps the order of the starts
    ends = run(NormalFlow(), start, Heun(), steps=100).latents
    linked, mixed = (torch.corrcoef(torch.stack([start.flatten(), one.flatten()]))[0, 1] for one in (ends, path[-1]))
    assert linked > 0.999
    assert mixed < 0.6


@METHODS
@BOTH
def test_one_step_has_the_formula_of_the_score(method, diffusion):
    """drift = velocity + w score, with the score of the normal density itself: -(x - gamma MEAN) / V(gamma)."""
    gamma, h, norm = 0.9, 0.05, 0.8
    start = noise(2, 1, 1, 3, 3)
    sampler = SDE(method, diffusion, norm=norm, last_step=1 - gamma - h)  # two steps: one of 0.05, and the last
    seen = []
    options = {"start_gamma": gamma, "steps": 2, "callback": lambda step, latents, slope: seen.append((latents, slope))}
    run(NormalFlow(), start, sampler, generators=sources(2), **options)

    def drift(latents, now):
        score = -(latents - now * MEAN) / NormalFlow.variance(now)
        return -NormalFlow(now)(latents) + weight(now) * score

    def weight(now):
        return norm * (1 - now) / (1 if diffusion == "sigma" else now)

    push = math.sqrt(2 * weight(gamma) * h) * normal((1, 1, 3, 3), sources(2), dtype=torch.float64)
    if method == "euler":
        exact = start + h * drift(start, gamma) + push
        slope = NormalFlow(gamma)(start)
    else:
        pushed = start + push
        ahead = pushed + h * drift(pushed, gamma)
        exact = pushed + h * (drift(pushed, gamma) + drift(ahead, gamma + h)) / 2
        slope = (NormalFlow(gamma)(pushed) + NormalFlow(gamma + h)(ahead)) / 2
    torch.testing.assert_close(seen[0][0], exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0][1], slope, rtol=0, atol=1e-12)
    last = sampler.last_step
    torch.testing.assert_close(seen[1][0], exact + last * drift(exact, 1 - last), rtol=0, atol=1e-12)
    if diffusion == "sbdm":  # at norm 1, the reversal of dx = -x / gamma ds + sqrt(2 w) dW
        score, w = -(start - gamma * MEAN) / NormalFlow.variance(gamma), (1 - gamma) / gamma
        torch.testing.assert_close(-NormalFlow(gamma)(start) + w * score, start / gamma + 2 * w * score)


@METHODS
@BOTH
def test_without_noise_it_is_the_ordinary_equation(method, diffusion):
    start, paths = noise(2, 1, 1, 3, 3), ([], [])
    for sampler, path in zip(
        (SDE(method, diffusion, norm=0.0, last_step=1 / 20), Euler() if method == "euler" else Heun()),
        paths,
        strict=True,
    ):
        run(NormalFlow(), start, sampler, steps=20, callback=lambda step, latents, slope, to=path: to.append(latents))
    same = 20 if method == "euler" else 19  # the last step of the SDE is Euler's
    torch.testing.assert_close(paths[0][:same], paths[1][:same], rtol=0, atol=1e-12)
    assert (paths[0][-1] - paths[1][-1]).abs().max() < 0.05


@METHODS
@pytest.mark.parametrize("start_gamma", [0.0, 0.5])
def test_steps_and_evaluations(method, start_gamma):
    field, steps = NormalFlow(), []
    options = {"start_gamma": start_gamma, "steps": 5, "generators": sources(2)}
    sampler = SDE(method, last_step=0.1)
    result = run(field, noise(2, 7), sampler, callback=lambda step, latents, slope: steps.append(step), **options)
    ends = torch.linspace(start_gamma, 0.9, 5, dtype=torch.float64).tolist()
    pairs = [gamma for pair in pairwise(ends) for gamma in pair]
    assert field.told == pytest.approx(ends if method == "euler" else [*pairs, 0.9], abs=1e-12)
    assert result.nfe.tolist() == [len(field.told)] * 2
    assert steps == list(range(5))


@BOTH
def test_a_single_step_is_the_mean_drift_of_the_whole_way(diffusion):
    """At gamma = 0 the velocity is MEAN - x and w score = -norm x (sigma), -norm x / 4 (sbdm: 4 h for gamma)."""
    start = noise(2, 7)
    result = run(NormalFlow(), start, SDE("heun", diffusion, norm=0.5), steps=1)  # and draws no noise
    exact = start + (MEAN - start) - (0.5 if diffusion == "sigma" else 0.125) * start
    torch.testing.assert_close(result.latents, exact, rtol=0, atol=1e-12)
    assert result.nfe.tolist() == [1, 1]


@pytest.mark.parametrize("steps", [4, 10, 50, 250])
@METHODS
def test_sbdm_stays_finite_at_pure_noise(steps, method):
    """(1 - gamma) / gamma is infinite at gamma = 0; the cut keeps the variance near V(gamma) at any step."""
    path = []
    options = {"generators": sources(2), "callback": lambda step, latents, slope: path.append(latents)}
    run(NormalFlow(), noise(2, 1, 1, 40, 40), SDE(method, "sbdm"), steps=steps, **options)
    assert max(float(latents.std()) for latents in path) < 1.25
    assert 0.2 < float(path[-1].std()) < 0.5


def test_sampling_needs_generators_and_says_so():
    with pytest.raises(ValueError, match=r"SDE\(.* draws noise: give generators"):
        run(NormalFlow(), noise(2, 7), SDE(), steps=3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"method": "rk4"}, "SDE: method is 'rk4'; it must be one of heun, euler"),
        ({"diffusion": "linear"}, "SDE: diffusion is 'linear'; it must be one of sigma, sbdm"),
        ({"norm": -1.0}, "SDE: norm is -1.0"),
        ({"norm": math.nan}, "SDE: norm is nan"),
        ({"last_step": 0.0}, "SDE: last_step is 0.0"),
        ({"last_step": 1}, "SDE: last_step is 1"),
    ],
)
def test_wrong_numbers_are_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        SDE(**numbers)


def test_the_start_lies_before_the_last_step():
    with pytest.raises(ValueError, match=r"start_gamma is 0.97; it must be a number in \[0, 0.96\)"):
        run(NormalFlow(), noise(2, 7), SDE(), steps=3, start_gamma=0.97, generators=sources(2))
