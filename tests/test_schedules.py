"""Step schedules: factors on the step size, against the closed form of gradient descent on a quadratic."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import TruncatedDecay
from eqm_video.samplers import NAG, SCHEDULES, GradientDescent, descend, step_factors


def test_factors_have_their_formulas():
    assert step_factors(None, 3) == step_factors("constant", 3) == [1.0, 1.0, 1.0]
    assert step_factors("linear", 4) == [1.0, 0.75, 0.5, 0.25]
    assert step_factors("cosine", 4) == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2], abs=1e-15)
    assert step_factors(lambda step, steps: step * steps, 3) == [0.0, 3.0, 6.0]
    assert all(step_factors(name, 0) == [] for name in SCHEDULES)
    for name in ("linear", "cosine"):
        assert sum(step_factors(name, 500)) == pytest.approx(250, rel=0.01)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", lambda step, steps: 2.0 if step % 2 else 0.0])
def test_gradient_descent_follows_its_schedule(schedule):
    """Each step multiplies the distance by 1 - eta * factor * curvature."""
    start = torch.tensor([[1.0, -2.0, 3.0]]).double()
    curvature = torch.tensor([0.5, 1.0, 2.0]).double()
    result = descend(lambda latents: curvature * latents, start, GradientDescent(0.2), steps=7, schedule=schedule)
    shrink = torch.stack([1 - 0.2 * factor * curvature for factor in step_factors(schedule, 7)]).prod(dim=0)
    torch.testing.assert_close(result.latents, start * shrink, rtol=1e-13, atol=0)
    assert result.nfe.tolist() == [7]  # a step of size 0 is evaluated too


def test_a_constant_schedule_changes_no_bit_and_a_factor_of_0_none_of_the_latents():
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = descend(lambda latents: latents, start, NAG(0.1), steps=5)
    same = descend(lambda latents: latents, start, NAG(0.1), steps=5, schedule="constant")
    assert torch.equal(plain.latents, same.latents)
    still = descend(lambda latents: latents, start, NAG(0.1), steps=5, schedule=lambda step, steps: 0)
    assert torch.equal(still.latents, start)
    # the look-ahead is the last displacement, as made: after a step of size 0 there is none
    points = []
    descend(
        lambda latents: points.append(latents) or latents,
        start,
        NAG(0.1, 0.5),
        steps=3,
        schedule=lambda step, steps: float(step != 1),
    )
    moved = start - 0.1 * start
    torch.testing.assert_close(points[1], moved + 0.5 * (moved - start))
    torch.testing.assert_close(points[2], moved)


def test_a_falling_schedule_bears_a_step_that_a_constant_one_does_not():
    """eta * lambda / (1 - a) = 2.4 > 2 is unstable at the data; the falling step crosses the limit and settles."""
    data = torch.randn(1, 1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.randn(1, 1, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    oracle, rule = OracleField(data, TruncatedDecay(a=0.8, gain=4.0)), GradientDescent(0.12)
    ends = {}
    for schedule in ("constant", "linear", "cosine"):
        latents = descend(oracle, start, rule, steps=60, schedule=schedule).latents
        ends[schedule] = float((latents - data).square().mean().sqrt())
    assert ends["linear"] < 1e-3
    assert ends["cosine"] < 1e-3
    assert ends["constant"] > 0.05


@dataclass(frozen=True)
class Stepless:
    """A rule without a step size."""

    def start(self, latents):
        return {}

    def point(self, latents, state):
        return latents

    def update(self, latents, gradient, state, generators=None):
        return latents - gradient, state


def test_wrong_schedules_are_refused():
    def attempt(schedule, rule=None):
        rule = rule or GradientDescent(0.1)
        return descend(lambda latents: latents, torch.ones(1, 2), rule, steps=3, schedule=schedule)

    for wrong in ("cosin", 0.5, ["linear"]):
        with pytest.raises(ValueError, match="must be one of constant, linear, cosine, or a callable"):
            attempt(wrong)
    for wrong in (-0.5, float("nan"), float("inf"), None, "1", True):
        with pytest.raises(ValueError, match="at step 1; a factor must be a finite number >= 0"):
            attempt(lambda step, steps, wrong=wrong: wrong if step else 1.0)
    with pytest.raises(ValueError, match=r"Stepless.* has no step_size to put on a schedule"):
        attempt("linear", Stepless())
    assert torch.equal(attempt("constant", Stepless()).latents, torch.zeros(1, 2))
