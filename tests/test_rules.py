"""Adam and Langevin, against torch's own optimizer and the closed form of the discretised chain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eqm_video.randomness import generator, normal
from eqm_video.samplers import Adam, GradientDescent, Langevin, descend

SHAPE = (3, 2, 2, 2, 2)  # B, T, C, H, W


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------- Adam


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.0, 0.99), (0.9, 0.999), (0.35, 0.5)])
@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_adam_is_torchs(betas, epsilon):
    centre, curvature = gaussian(*SHAPE, seed=1), gaussian(*SHAPE, seed=2).square() + 0.1
    parameter = torch.nn.Parameter(gaussian(*SHAPE))
    optimizer = torch.optim.Adam([parameter], lr=0.03, betas=betas, eps=epsilon)
    path = []
    rule = Adam(0.03, *betas, epsilon)
    options = {"steps": 40, "callback": lambda step, latents, slope: path.append(latents)}
    descend(lambda latents: curvature * (latents - centre), gaussian(*SHAPE), rule, **options)
    for latents in path:
        parameter.grad = curvature * (parameter.detach() - centre)
        optimizer.step()
        torch.testing.assert_close(latents, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_adam_without_memory_steps_by_the_sign():
    start = torch.tensor([[3.0, -2.0, 1e-3, 0.0]], dtype=torch.float64)
    result = descend(lambda latents: 100 * latents, start, Adam(0.5, epsilon=1e-12), steps=1)
    expected = torch.tensor([[2.5, -1.5, 1e-3 - 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(result.latents, expected, rtol=0, atol=1e-10)
    # the strength of the field does not matter, and a falling schedule brings it to rest within the last step
    for gain in (0.01, 1.0, 100.0):
        path = []
        options = {
            "steps": 20,
            "schedule": "linear",
            "callback": lambda step, latents, slope, to=path: to.append(latents),
        }
        descend(lambda latents, gain=gain: gain * latents, start, Adam(0.5), **options)
        assert path[-1].abs().max() <= 0.5 / 20 + 1e-6
        torch.testing.assert_close(path[0][0, :2], torch.tensor([2.5, -1.5]).double(), rtol=0, atol=1e-5)


def test_adam_counts_its_updates_when_clips_leave():
    """Clips stop one after the other; the last one's bias correction goes on as if it were alone."""
    start = torch.ones(SHAPE).double() * torch.tensor([0.2, 1.0, 3.0]).double()[:, None, None, None, None]
    rule, options = Adam(0.05, beta1=0.5, beta2=0.9), {"steps": 200, "tolerance": 0.1}
    together = descend(lambda latents: latents, start, rule, **options)
    assert len(together.nfe.unique()) == 3
    for clip in range(3):
        alone = descend(lambda latents: latents, start[clip : clip + 1], rule, **options)
        assert torch.equal(alone.latents[0], together.latents[clip])


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"beta1": 1.0}, r"Adam: beta1 is 1.0; it must be a number in \[0, 1\)"),
        ({"beta2": -0.1}, "Adam: beta2 is -0.1"),
        ({"beta2": "0.9"}, "Adam: beta2 is '0.9'"),
        ({"epsilon": 0.0}, "Adam: epsilon is 0.0"),
        ({"epsilon": math.inf}, "Adam: epsilon is inf"),
    ],
)
def test_adam_refuses_wrong_numbers(numbers, words):
    with pytest.raises(ValueError, match=words):
        Adam(0.1, **numbers)


# ------------------------------------------------------------------------------------------------------- Langevin


def test_langevin_at_temperature_0_is_gradient_descent_bit_for_bit():
    start, curvature = gaussian(*SHAPE), gaussian(*SHAPE, seed=1).square()
    cold = descend(lambda latents: curvature * latents, start, Langevin(0.1, 0.0), steps=9)  # and takes no generators
    plain = descend(lambda latents: curvature * latents, start, GradientDescent(0.1), steps=9)
    assert torch.equal(cold.latents, plain.latents)
    assert not torch.equal(cold.latents, start)


def test_one_langevin_step_has_its_formula():
    start, rule = gaussian(*SHAPE), Langevin(0.1, temperature=0.3)
    result = descend(
        lambda latents: 2 * latents, start, rule, steps=1, generators=[generator(clip) for clip in range(3)]
    )
    noise = normal(SHAPE[1:], [generator(clip) for clip in range(3)], dtype=torch.float64)
    exact = start - 0.1 * 2 * start + (2 * 0.1 * 0.3) ** 0.5 * noise
    torch.testing.assert_close(result.latents, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pull", [0.5, 1.0, 1.5])
def test_langevin_has_the_stationary_variance_of_its_chain(pull):
    """x <- (1 - p) x + sqrt(2 eta T) n, p = eta k: variance 2 T / (k (2 - p)), and lag-1 correlation 1 - p."""
    curvature, temperature, shape = 5.0, 0.7, (4, 1, 1, 64, 64)
    rule, path = Langevin(pull / curvature, temperature), []
    sources = [generator("stationary", clip) for clip in range(4)]
    options = {"steps": 40, "generators": sources, "callback": lambda step, latents, slope: path.append(latents)}
    descend(lambda latents: curvature * (latents - 2.0), torch.zeros(shape).double(), rule, **options)
    last, before = (latents - 2.0 for latents in (path[-1], path[-2]))
    count = last.numel()
    exact = 2 * temperature / (curvature * (2 - pull))
    assert abs(float(last.square().mean()) / exact - 1) < 4 * (2 / count) ** 0.5
    assert abs(float(last.mean())) < 4 * (exact / count) ** 0.5
    assert abs(float((last * before).mean()) / exact - (1 - pull)) < 6 / count**0.5


def test_a_schedule_cools_the_noise_with_the_step():
    start, seen = torch.zeros(1, 1, 1, 64, 64), []
    options = {"schedule": "linear", "steps": 4, "callback": lambda step, latents, slope: seen.append(latents)}
    descend(torch.zeros_like, start, Langevin(0.5, 1.0), generators=[generator(0)], **options)
    sizes = torch.stack([one - other for one, other in zip(seen, [start, *seen[:-1]], strict=True)]).std(
        dim=(1, 2, 3, 4, 5)
    )
    torch.testing.assert_close(sizes, torch.tensor([1.0, 0.75, 0.5, 0.25]).sqrt(), rtol=0.05, atol=0)


def test_langevin_needs_generators_and_says_so():
    with pytest.raises(ValueError, match=r"Langevin\(step_size=0.1, temperature=0.2\) draws noise: give generators"):
        descend(lambda latents: latents, gaussian(*SHAPE), Langevin(0.1, 0.2), steps=1)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, True])
def test_langevin_refuses_wrong_temperatures(value):
    with pytest.raises(ValueError, match="Langevin: temperature is"):
        Langevin(0.1, temperature=value)
