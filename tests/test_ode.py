"""Solvers of dx/dgamma = -f: exact on linear fields, of their order on others, and equal to gradient descent."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, TruncatedDecay
from eqm_video.samplers import SDE, DivergenceError, Dopri5, Euler, GradientDescent, Heun, run

SHAPE = (2, 3, 2, 2, 2)  # B, T, C, H, W


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Told:
    """A field -x cos(gamma) of x and gamma: from x at start_gamma it ends at x exp(sin 1 - sin start_gamma)."""

    def __init__(self, told: list | None = None, gamma: float | Tensor | None = None) -> None:
        self.told = [] if told is None else told
        self.gamma = gamma

    def at_gamma(self, gamma: float | Tensor) -> Told:
        self.told.append(gamma)
        return Told(self.told, gamma)

    def at_step(self, step: int) -> Told:
        raise AssertionError("a field that is told gamma is not asked for a step")

    def __call__(self, latents: Tensor) -> Tensor:
        gamma = torch.as_tensor(self.gamma, dtype=latents.dtype)
        return -latents * gamma.cos().reshape(gamma.shape + (1,) * (latents.ndim - gamma.ndim))


class SelectableTold(Told):
    def select(self, indices: Tensor) -> SelectableTold:
        return self


def growth(start_gamma: float = 0.0) -> float:
    return math.exp(math.sin(1) - math.sin(start_gamma))


# --------------------------------------------------------------------------------------------- with gradient descent


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_euler_is_gradient_descent_with_step_size_1_over_n(steps):
    oracle = OracleField(gaussian(3, 1, 2, 4, 4, seed=1), TruncatedDecay(a=0.8, gain=1.0))
    start, paths = gaussian(2, 1, 2, 4, 4), ([], [])

    class Untold:  # the equilibrium field, of which the solvers know no gamma
        def __call__(self, latents):
            return oracle(latents)

    for sampler, path in zip((Euler(), GradientDescent(1 / steps)), paths, strict=True):
        options = {"steps": steps, "callback": lambda *arguments, to=path: to.append(arguments)}
        assert run(Untold(), start, sampler, **options).nfe.tolist() == [steps] * 2
    for (_, latents, slope), (_, latents_descent, slope_descent) in zip(*paths, strict=True):
        torch.testing.assert_close(latents, latents_descent, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope, slope_descent, rtol=0, atol=1e-12)
    assert (paths[0][-1][1] - start).abs().max() > 0.5


# ------------------------------------------------------------------------------------------------- known solutions


@pytest.mark.parametrize("start_gamma", [0.0, 0.4])
def test_fixed_steps_on_a_linear_field(start_gamma):
    """With p = h k, Euler multiplies by 1 - p at each step, Heun by 1 - p + p^2 / 2."""
    start, curvature = gaussian(*SHAPE), gaussian(*SHAPE, seed=1).square() * 3
    pull = (1 - start_gamma) / 9 * curvature
    for solver, factor in ((Euler(), 1 - pull), (Heun(), 1 - pull + pull**2 / 2)):
        field = {"gradient": lambda latents: curvature * (latents - 2.0), "start": start + 2.0}
        result = run(**field, sampler=solver, steps=9, start_gamma=start_gamma)
        torch.testing.assert_close(result.latents, 2.0 + start * factor**9, rtol=1e-12, atol=1e-13)
    exact = 2.0 + start * torch.exp(-(1 - start_gamma) * curvature)
    fine = run(**field, sampler=Dopri5(1e-9, 1e-9), steps=1, start_gamma=start_gamma)
    torch.testing.assert_close(fine.latents, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_the_error_falls_with_the_order(solver, order):
    start = gaussian(2, 5)
    errors = []
    for steps in (20, 40, 80):
        result = run(Told(), start, solver, steps=steps, start_gamma=0.2)
        errors.append(float((result.latents - start * growth(0.2)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_dopri5_keeps_its_tolerance_and_takes_what_it_needs():
    start, nfe, errors = gaussian(2, 5), [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        field = Told()
        result = run(field, start, Dopri5(tolerance, tolerance), steps=3, start_gamma=0.2)
        errors.append(float((result.latents - start * growth(0.2)).abs().max()))
        nfe.append(int(result.nfe.sum()))
        assert nfe[-1] == len(field.told)  # every evaluation is counted
        assert errors[-1] < 10 * tolerance
        assert all(0.2 <= gamma <= 1 for gamma in field.told)  # never beyond the data
    assert nfe == sorted(nfe)
    assert nfe[-1] > 2 * nfe[0]
    assert errors[-1] < 1e-3 * errors[0]


def test_dopri5_evaluates_no_gamma_beyond_the_data_however_slow_the_field_is():
    """Its first trial step is 0.01 |x| / |f|, here 10."""
    told = []

    class Slow:
        def __call__(self, latents):
            return 1e-3 * latents

        def at_gamma(self, gamma):
            told.append(gamma)
            return self

    result = run(Slow(), torch.ones(1, 4).double(), Dopri5(), steps=1)
    torch.testing.assert_close(result.latents, torch.ones(1, 4).double() * math.exp(-1e-3), rtol=0, atol=1e-9)
    assert max(told) == 1


def test_the_straight_path_to_one_data_point_needs_one_step():
    """The flow's field of one data point, at a known gamma, is (x - data) / (1 - gamma): constant along the path."""
    data, start = gaussian(1, 3, 2, 2, 2, seed=1), gaussian(*SHAPE)
    flow = OracleField(data, ConstantDecay(gain=1.0))
    for steps in (1, 4, 25):
        result = run(flow, start, Euler(), steps=steps)
        torch.testing.assert_close(result.latents, data.expand(SHAPE), rtol=0, atol=1e-12)
    halfway = 0.5 * data + 0.5 * start
    result = run(flow, halfway, Euler(), steps=3, start_gamma=0.5)
    torch.testing.assert_close(result.latents, data.expand(SHAPE), rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------- what the field is told


@pytest.mark.parametrize("start_gamma", [0.0, 0.5])
def test_the_field_gets_gamma_at_every_evaluation(start_gamma):
    ends = torch.linspace(start_gamma, 1, 6, dtype=torch.float64).tolist()
    for solver, expected in (
        (Euler(), ends[:-1]),
        (Heun(), [gamma for pair in pairwise(ends) for gamma in pair]),
    ):
        field = Told()
        run(field, gaussian(*SHAPE).float(), solver, steps=5, start_gamma=start_gamma)
        assert field.told == pytest.approx(expected, abs=1e-15)  # in full precision, whatever the latents'
        assert all(type(gamma) is float for gamma in field.told)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dopri5(1e-3, 1e-3)])
def test_known_frames_have_gamma_1(solver):
    known = torch.tensor([[True, False, False], [False, False, True]])
    field, start = SelectableTold(), gaussian(*SHAPE)
    result = run(field, start, solver, steps=5, known=known)
    free = run(Told(), start, solver, steps=5)
    tolerance = 1e-2 if isinstance(solver, Dopri5) else 1e-14  # known frames have a say in its step sizes
    torch.testing.assert_close(result.latents[~known], free.latents[~known], rtol=0, atol=tolerance)
    for gamma in field.told:
        marks = known if len(gamma) == 2 else known[:1] if bool(gamma[0, 0] == 1) else known[1:]
        assert gamma.shape == marks.shape
        assert (gamma[marks] == 1).all()
        assert len(gamma[~marks].unique()) == 1
    whole = Told()  # without select it is asked about the whole batch, always
    torch.testing.assert_close(run(whole, start, solver, steps=5, known=known).latents, result.latents, rtol=0, atol=0)
    assert all(gamma.shape == (2, 3) for gamma in whole.told)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dopri5()])
def test_a_field_without_gamma_is_evaluated_at_its_step(solver):
    """Dopri5 is in the step of the reporting point that comes next."""
    steps = []

    class Stepped:
        def __call__(self, latents):
            raise AssertionError("called without a step")

        def at_step(self, step):
            steps.append(step)
            return lambda latents: latents

    run(Stepped(), torch.ones(1, 4), solver, steps=4, start_gamma=0.5)
    assert set(steps) == {0, 1, 2, 3}
    if not isinstance(solver, Dopri5):
        assert steps == sorted(list(range(4)) * (2 if isinstance(solver, Heun) else 1))


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dopri5()])
def test_a_path_may_be_taken_up_where_it_was_left(solver):
    start, path = gaussian(2, 5), []
    whole = run(Told(), start, solver, steps=10, callback=lambda step, latents, slope: path.append(latents))
    rest = run(Told(), path[3], solver, steps=6, start_gamma=0.4)
    tolerance = 1e-4 if isinstance(solver, Dopri5) else 1e-13
    torch.testing.assert_close(rest.latents, whole.latents, rtol=0, atol=tolerance)


def test_dopri5_reports_at_equal_gammas():
    start, seen = gaussian(2, 5), []
    result = run(
        Told(), start, Dopri5(1e-9, 1e-9), steps=8, callback=lambda step, latents, slope: seen.append((latents, slope))
    )
    before = start
    for step, (latents, slope) in enumerate(seen):
        torch.testing.assert_close(latents, start * math.exp(math.sin((step + 1) / 8)), rtol=0, atol=1e-7)
        torch.testing.assert_close(slope, (before - latents) * 8, rtol=0, atol=1e-12)
        before = latents
    assert torch.equal(before, result.latents)


# ------------------------------------------------------------------------------------------------ graphs and errors


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dopri5(1e-10, 1e-10)])
def test_gradients_flow_through_a_solution_whose_start_requires_them(solver):
    start = gaussian(2, 5)
    assert not run(Told(), start, solver, steps=200).latents.requires_grad
    start.requires_grad_()
    run(Told(), start, solver, steps=200).latents.sum().backward()
    torch.testing.assert_close(start.grad, torch.ones(2, 5).double() * growth(), rtol=0.005, atol=0)


def test_solutions_that_blow_up_are_divergence():
    """x' = 40 x^2 from 1 is 1 / (1 - 40 gamma): infinite at gamma = 1/40."""

    def explosive(latents):
        return -40 * latents.square()

    with pytest.raises(DivergenceError, match=r"with Euler\(\); use more steps than 100"):
        run(explosive, torch.ones(2, 3), Euler(), steps=100)
    with pytest.raises(DivergenceError, match=r"clip 0.*with Dopri5\(.*use another sampler"):
        run(explosive, torch.ones(2, 3), Dopri5(), steps=1)


@pytest.mark.parametrize("solver", [Euler(), Heun(), SDE()], ids=lambda solver: type(solver).__name__)
def test_latents_that_are_not_finite_end_a_solution_within_sixteen_steps(solver):
    """A solution of a thousand steps ends early, without a wait for the device at every step."""
    steps, generators = [], [torch.Generator(), torch.Generator()]

    def breaks(latents):
        return latents.new_full(latents.shape, math.nan if len(steps) >= 20 else 0.0)

    with pytest.raises(DivergenceError, match="the latents after step 31 of 1000"):  # nan since step 20
        run(
            breaks,
            torch.ones(2, 3, 1, 1, 1),
            solver,
            steps=1000,
            callback=lambda *_: steps.append(1),
            generators=generators,
        )
    assert len(steps) == 31


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, "1e-5", None, True])
def test_dopri5_refuses_wrong_tolerances(name, value):
    with pytest.raises(ValueError, match=f"Dopri5: {name} is"):
        Dopri5(**{name: value})


@pytest.mark.parametrize(("solver", "method"), [(Euler(), "euler"), (Heun(), "heun2")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_steps_are_those_of_the_library_bit_for_bit(solver, method, dtype):
    start = gaussian(*SHAPE).to(dtype)
    grid = torch.linspace(0.2, 1, 8, dtype=torch.float64).to(dtype)
    expected = odeint(lambda _, latents: -latents.sin(), start, grid, method=method)[-1]
    assert torch.equal(run(torch.sin, start, solver, steps=7, start_gamma=0.2).latents, expected)


class Steep:
    """A stiff field of each frame by itself, x(gamma) = x(0) exp(-20 (1 - cos(3 gamma)))."""

    def __init__(self, gamma: float | Tensor | None = None) -> None:
        self.gamma = gamma

    def at_gamma(self, gamma: float | Tensor) -> Steep:
        return Steep(gamma)

    def select(self, indices: Tensor) -> Steep:
        return self

    def __call__(self, latents: Tensor) -> Tensor:
        gamma = torch.as_tensor(self.gamma, dtype=latents.dtype)
        return 60 * (3 * gamma).sin().reshape(gamma.shape + (1,) * (latents.ndim - gamma.ndim)) * latents


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_known_frames_do_not_loosen_the_tolerance_of_dopri5(tolerance):
    """One unknown frame is as exact beside 15 known ones as alone, whichever it is, at about the same cost."""
    start = gaussian(3, 16, 2, 2, 2)
    known = torch.ones(3, 16, dtype=torch.bool)
    frames = [4, 0, 15]
    known[torch.arange(3), torch.tensor(frames)] = False
    solver = Dopri5(tolerance, tolerance)
    beside = run(Steep(), start, solver, steps=1, known=known)
    assert torch.equal(beside.latents[known], start[known])
    for clip, frame in enumerate(frames):
        alone = run(Steep(), start[clip : clip + 1, frame : frame + 1], solver, steps=1)
        torch.testing.assert_close(beside.latents[clip, frame], alone.latents[0, 0], rtol=1e-9, atol=1e-12)
        assert beside.nfe[clip] == alone.nfe[0]
        truth = start[clip, frame] * math.exp(-20 * (1 - math.cos(3)))
        assert (alone.latents[0, 0] - truth).abs().max() < 5 * tolerance
