"""The exact field of finite data, against independent integration, and descents along it.

The oracle does not know gamma, and infers it from the latents: for one data point, 1 - gamma of a descent deviates from
the closed form for known gamma, mostly by the chance of the noise's length. Measured at D = 1024: at most 0.04 for one
clip and 0.004 for the mean of 32; the tests allow 0.06 and 0.01.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, PiecewiseDecay, TruncatedDecay
from eqm_video.core.gamma import PerFrameGamma, SharedGamma
from eqm_video.core.gamma import draw_gamma as draw
from eqm_video.core.objective import EqMObjective, frame_loss, interpolate
from eqm_video.randomness import generator
from eqm_video.samplers import NAG, GradientDescent, descend


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_midpoints(data: Tensor, point: Tensor, decay, count: int = 20000) -> tuple[Tensor, Tensor]:
    """Field (D,) and posterior (M,) at one point, by a plain sum over gammas: no substitution and no window."""
    gamma = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = (point - gamma[:, None, None] * data) / (1 - gamma)[:, None, None]  # (G, M, D)
    log_weight = -data.shape[1] * torch.log(1 - gamma)[:, None] - noise.square().sum(2) / 2
    weight = torch.exp(log_weight - log_weight.max())
    target = (noise - data) * decay(gamma)[:, None, None]
    return (weight[:, :, None] * target).sum((0, 1)) / weight.sum(), weight.sum(0) / weight.sum()


@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(), PiecewiseDecay(a=0.5, b=3.0), ConstantDecay()])
@pytest.mark.parametrize("size", [1, 2, 16, 512])
def test_the_field_equals_a_plain_integral(decay, size):
    data = normal(3, size, seed=1)
    gamma = torch.tensor([0.0, 0.3, 0.6, 0.8, 0.9])[:, None]
    points = gamma * data[[0, 1, 2, 0, 1]] + (1 - gamma) * normal(5, size, seed=2)
    field = OracleField(data, decay)
    found, posterior = field(points), field.posterior(points)
    assert found.shape == points.shape
    for index in range(5):
        exact, chosen = by_midpoints(data, points[index], decay, count=2000 if size == 512 else 20000)
        # the plain sum cuts gamma at 1 - 1/40000: at D = 1 a part of the mass lies beyond
        tolerance = 2e-3 if size == 1 else 2e-4
        torch.testing.assert_close(found[index], exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(posterior[index], chosen, rtol=tolerance, atol=tolerance)


def test_frame_wise_field_equals_a_plain_integral_over_two_gammas():
    data, point, decay = normal(3, 2, 1, 1, 2, seed=3), normal(1, 2, 1, 1, 2, seed=4), TruncatedDecay()
    gamma = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    flat, at = data.flatten(2), point[0].flatten(1)  # (M, T, D), (T, D)
    noise = (at - gamma[:, None, None, None] * flat) / (1 - gamma)[:, None, None, None]  # (G, M, T, D)
    weight = (1 - gamma)[:, None, None] ** -2 * torch.exp(-noise.square().sum(3) / 2)  # (G, M, T)
    joint = weight[:, None, :, 0] * weight[None, :, :, 1]  # (G of frame 0, G of frame 1, M)
    joint = joint / joint.sum()
    target = (noise - flat) * decay(gamma)[:, None, None, None]
    exact = torch.stack(
        [torch.einsum("abm,amd->d", joint, target[:, :, 0]), torch.einsum("abm,bmd->d", joint, target[:, :, 1])]
    )
    field = OracleField(data, decay, frame_wise=True)
    torch.testing.assert_close(field(point)[0].flatten(1), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(field.posterior(point)[0], joint.sum((0, 1)), rtol=1e-4, atol=1e-4)
    shared = OracleField(data, decay)(point)[0].flatten(1)
    assert (shared - exact).abs().max() > 0.01  # one gamma for the clip is another field


@pytest.mark.parametrize(("rule", "frame_wise"), [(SharedGamma(), False), (PerFrameGamma(), True)])
def test_no_field_beats_the_oracle_on_the_objective(rule, frame_wise):
    """The posterior mean has the least squared error, and its residual is orthogonal to any function of the latents."""
    count, objective = 4000, EqMObjective(TruncatedDecay())
    data = normal(3, 2, 1, 1, 3, seed=5)
    clean, noise = data[torch.arange(count) % 3], normal(count, 2, 1, 1, 3, seed=6)
    gamma = draw(rule, 2, [generator("objective", index) for index in range(count)]).double()
    noisy, target = interpolate(clean, noise, gamma), objective.target(clean, noise, gamma)
    exact = OracleField(data, TruncatedDecay(), frame_wise)(noisy)
    for probe in (noisy, exact, noisy.tanh(), noisy.flip(1)):
        products = ((target - exact) * probe).flatten(1).sum(1)
        assert abs(products.mean()) < 4 * products.std() / count**0.5
    best = objective.loss(exact, clean, noise, gamma).mean()
    other = OracleField(data, TruncatedDecay(), not frame_wise)(noisy)
    for worse in (0.9 * exact, 1.1 * exact, other):
        assert frame_loss(worse, target).mean() > best


@pytest.mark.parametrize("frame_wise", [False, True])
def test_data_are_at_rest(frame_wise):
    data = normal(4, 3, 2, 2, 2)
    field = OracleField(data, TruncatedDecay(), frame_wise)
    assert field(data).abs().max() < 1e-6
    torch.testing.assert_close(field.posterior(data), torch.eye(4, dtype=torch.float64))
    # just beside a data point the pull is linear, of strength gain / (1 - a) = 20 for known gamma
    near = data + 1e-4 * normal(*data.shape, seed=1)
    slope = (field(near) * (near - data)).sum() / (near - data).square().sum()
    assert slope == pytest.approx(20, rel=0.25)


def test_one_point_follows_the_closed_form_within_the_stated_tolerance():
    clean, noise = normal(1, 1024, seed=7), normal(32, 1024, seed=8)
    line = noise - clean
    seen = []
    descend(
        OracleField(clean, TruncatedDecay()),
        noise,
        GradientDescent(0.006),
        steps=75,
        callback=lambda step, latents, gradient: seen.append(((latents - clean) * line).sum(1) / line.square().sum(1)),
    )
    distance, exact = 1.0, []
    for _ in range(75):
        distance = distance - 0.024 if distance > 0.2 else distance * (1 - 0.12)
        exact.append(distance)
    deviation = torch.stack(seen) - torch.tensor(exact, dtype=torch.float64)[:, None]
    assert deviation.abs().max() < 0.06
    assert deviation.mean(dim=1).abs().max() < 0.01


@pytest.mark.parametrize("frame_wise", [False, True])
@pytest.mark.parametrize("rule", [GradientDescent(0.02), NAG(0.02, 0.35)])
def test_descent_from_noise_ends_at_a_data_point(rule, frame_wise):
    data, start = normal(5, 2, 2, 3, 3), normal(12, 2, 2, 3, 3, seed=1)
    result = descend(OracleField(data, TruncatedDecay(), frame_wise), start, rule, steps=120)
    distance = (result.latents[:, None] - data).abs().amax((2, 3, 4, 5))  # (B, M)
    assert distance.amin(1).max() < 1e-3
    assert len(distance.argmin(1).unique()) > 2  # and not always at the same one


@pytest.mark.parametrize("name", ["continuation", "in-betweening", "first frame"])
def test_known_frames_decide_which_clip_the_others_become(name):
    known_frames = {"continuation": [0, 1], "in-betweening": [0, 3], "first frame": [0]}[name]
    data = normal(5, 4, 1, 3, 3)
    known = torch.zeros(5, 4, dtype=torch.bool)
    known[:, known_frames] = True
    start = torch.where(known[:, :, None, None, None], data, normal(*data.shape, seed=1))
    field = OracleField(data, TruncatedDecay(), frame_wise=True)
    result = descend(field, start, NAG(0.02, 0.35), steps=120, known=known)
    torch.testing.assert_close(result.latents, data, rtol=0, atol=1e-3)
    assert torch.equal(result.latents[known], data[known])
    free = descend(
        field, start.where(~known[:, :, None, None, None], normal(*data.shape, seed=2)), NAG(0.02), steps=120
    )
    ends = (free.latents[:, None] - data).abs().amax((2, 3, 4, 5)).argmin(1)
    assert ends.tolist() != list(range(5))  # without them the clips end elsewhere


def test_clips_that_share_the_known_frames_share_the_odds():
    data = normal(3, 2, 1, 4, 4)
    data[1, 0] = data[0, 0]
    start = torch.stack([data[0, 0], normal(1, 4, 4, seed=1)])[None]
    odds = OracleField(data, TruncatedDecay(), frame_wise=True).posterior(start)[0]
    assert odds[2] < 1e-12
    assert 1e-6 < odds[0] < 1 - 1e-6


def test_stopping_along_the_oracle_saves_evaluations_and_still_arrives():
    data, start = normal(4, 2, 1, 4, 4), normal(6, 2, 1, 4, 4, seed=1)
    start[0] = data[2] + 1e-3 * normal(2, 1, 4, 4, seed=2)
    field = OracleField(data, TruncatedDecay(), frame_wise=True)
    result = descend(field, start, NAG(0.02, 0.35), steps=300, tolerance=0.01)
    assert result.nfe[0] < 15
    assert 20 < result.nfe[1:].min() < result.nfe.max() < 100
    # 0.01 / 20 is the distance at which the gradient has that size
    assert ((result.latents[:, None] - data).square().mean((2, 3, 4, 5)).sqrt().amin(1) < 1e-3).all()


# ------------------------------------------------------------------------------------------------- where gamma is known


def test_the_field_at_a_known_gamma_equals_its_definition():
    """Each data clip i explains the latents by one noise eps_i, of density exp(-|eps_i|^2 / 2)."""
    data, points, decay = normal(3, 4, seed=1), normal(6, 4, seed=2), TruncatedDecay()
    for gamma in (0.0, 0.3, 0.9):
        noise = (points[:, None] - gamma * data) / (1 - gamma)
        weight = torch.exp(-noise.square().sum(2) / 2)
        weight = weight / weight.sum(dim=1, keepdim=True)
        exact = (weight[:, :, None] * (noise - data)).sum(1) * decay(torch.tensor(gamma, dtype=torch.float64))
        field = OracleField(data, decay).at_gamma(gamma)
        torch.testing.assert_close(field.posterior(points), weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(field(points), exact, rtol=1e-9, atol=1e-9)


def test_the_blind_field_is_the_mean_of_those_at_known_gammas():
    """f(y) = E[f(y, gamma) | y]: two codes for one thing, quadrature and softmax."""
    data, points, decay = normal(3, 4, seed=1), normal(5, 4, seed=2), TruncatedDecay()
    field, grid = OracleField(data, decay), (torch.arange(4000).double() + 0.5) / 4000
    noise = (points[:, None, None] - grid[:, None, None] * data) / (1 - grid)[:, None, None]  # (B, G, M, D)
    evidence = (1 - grid) ** -4 * torch.exp(-noise.square().sum(3) / 2).sum(2)  # (B, G)
    for index in range(5):
        known = field.at_gamma(grid)(points[index].expand(4000, 4))  # a gamma for each row
        mean = (evidence[index, :, None] * known).sum(0) / evidence[index].sum()
        torch.testing.assert_close(field(points[index : index + 1])[0], mean, rtol=1e-4, atol=1e-4)


def test_at_a_known_gamma_no_field_beats_the_conditional_field():
    count, objective = 4000, EqMObjective(ConstantDecay())
    data = normal(3, 2, 1, 1, 3, seed=5)
    clean, noise = data[torch.arange(count) % 3], normal(count, 2, 1, 1, 3, seed=6)
    gamma = draw(PerFrameGamma(), 2, [generator("objective", index) for index in range(count)]).double()
    noisy, target = interpolate(clean, noise, gamma), objective.target(clean, noise, gamma)
    oracle = OracleField(data, ConstantDecay())
    exact = oracle.at_gamma(gamma)(noisy)
    for probe in (noisy, exact, noisy.tanh(), noisy.flip(1)):
        products = ((target - exact) * probe).flatten(1).sum(1)
        assert abs(products.mean()) < 4 * products.std() / count**0.5
    best = objective.loss(exact, clean, noise, gamma).mean()
    for worse in (0.9 * exact, 1.1 * exact, oracle.at_gamma(gamma.mean(dim=1))(noisy), oracle(noisy)):
        assert frame_loss(worse, target).mean() > best


def test_euler_steps_along_the_flow_end_at_a_data_point():
    """The last step, from gamma = 1 - 1/N to 1, lands on the posterior mean; for one point the path is straight."""
    data, start = normal(5, 2, 2, 3, 3), normal(12, 2, 2, 3, 3, seed=1)
    flow = OracleField(data, ConstantDecay())
    ends = start
    for step in range(50):
        ends = ends - flow.at_gamma(step / 50)(ends) / 50
    distance = (ends[:, None] - data).abs().amax((2, 3, 4, 5))
    assert distance.amin(1).max() < 1e-6
    assert len(distance.argmin(1).unique()) > 2
    one = OracleField(data[:1], ConstantDecay())
    middle = 0.3 * data[:1] + 0.7 * start
    torch.testing.assert_close(one.at_gamma(0.3)(middle), start - data[:1], rtol=1e-9, atol=1e-9)


def test_at_gamma_1_data_rest_in_an_equilibrium_and_move_on_in_a_flow():
    data = normal(4, 3, 2, 2, 2)
    assert (OracleField(data, TruncatedDecay()).at_gamma(1)(data) == 0).all()
    flow = OracleField(data, ConstantDecay(gain=2.0)).at_gamma(1.0)
    torch.testing.assert_close(flow(data), -2 * data, rtol=0, atol=0)
    torch.testing.assert_close(flow(data + 0.01), -2 * data, rtol=0, atol=0)  # of the nearest
    assert torch.equal(flow.posterior(data), torch.eye(4).double())


def test_clean_frames_decide_which_clip_the_others_are():
    data = normal(4, 3, 1, 2, 2)
    latents = normal(4, 3, 1, 2, 2, seed=1)
    latents[:, 1] = data[:, 1]
    gamma = torch.tensor([0.2, 1.0, 0.0]).expand(4, 3)
    field = OracleField(data, TruncatedDecay()).at_gamma(gamma)
    assert torch.equal(field.posterior(latents), torch.eye(4).double())
    found = field(latents)
    assert (found[:, 1] == 0).all()
    torch.testing.assert_close(found[:, 0], 4 * (latents[:, 0] - data[:, 0]) / 0.8)
    torch.testing.assert_close(found[:, 2], 4 * (latents[:, 2] - data[:, 2]))


def test_known_gammas_go_with_their_clips(monkeypatch):
    data, points = normal(3, 2, 2, 2, 2), normal(7, 2, 2, 2, 2, seed=1)
    oracle = OracleField(data, TruncatedDecay())
    for gamma in (torch.linspace(0, 1, 7), torch.linspace(0, 1, 14).reshape(7, 2)):
        whole = oracle.at_gamma(gamma)(points)
        with monkeypatch.context() as patch:
            patch.setattr("eqm_video.analysis.exact_field.CHUNK_CPU", 1)
            torch.testing.assert_close(oracle.at_gamma(gamma)(points), whole, rtol=1e-12, atol=1e-12)
        chosen = torch.tensor([5, 2])
        part = oracle.at_gamma(gamma).select(chosen)(points[chosen])
        torch.testing.assert_close(part, whole[chosen], rtol=1e-12, atol=1e-12)
        alone = oracle.at_gamma(gamma[3:4])(points[3:4])
        torch.testing.assert_close(alone, whole[3:4], rtol=1e-12, atol=1e-12)
    same = oracle.at_gamma(torch.full((7, 2), 0.4))(points)
    torch.testing.assert_close(oracle.at_gamma(0.4)(points), same, rtol=1e-6, atol=1e-6)  # 0.4 is a float32 there
    assert oracle.at_gamma(0.4).select(torch.tensor([1]))(points.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("gamma", "points", "words"),
    [
        (1.1, 4, r"gamma is 1.1; it must lie in \[0, 1\]"),
        (-0.1, 4, "must lie in"),
        (float("nan"), 4, "must lie in"),
        (torch.zeros(4, 3), 4, r"gamma has shape \(4, 3\); it must be one number or \(B,\) or \(B, 2\)"),
        (torch.zeros(4, 2, 1), 4, "gamma has shape"),
        (torch.zeros(3), 4, "for 3 clips, the latents are 4"),
    ],
)
def test_wrong_gammas_are_refused(gamma, points, words):
    with pytest.raises(ValueError, match=words):
        OracleField(torch.zeros(5, 2, 1, 1, 1), TruncatedDecay()).at_gamma(gamma)(torch.zeros(points, 2, 1, 1, 1))


def test_the_result_does_not_depend_on_the_batch_or_its_chunks(monkeypatch):
    data, points = normal(3, 2, 2, 2, 2), normal(7, 2, 2, 2, 2, seed=1)
    field = OracleField(data, TruncatedDecay(), frame_wise=True)
    whole = field(points)
    monkeypatch.setattr("eqm_video.analysis.exact_field.CHUNK_CPU", 1)
    torch.testing.assert_close(field(points), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.select(torch.tensor([4]))(points[4:5]), whole[4:5], rtol=1e-12, atol=1e-12)
    assert field(points.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OracleField(torch.zeros(3), TruncatedDecay()), "data must be"),
        (lambda: OracleField(torch.zeros(0, 4), TruncatedDecay()), "data must be"),
        (lambda: OracleField(torch.full((2, 4), torch.nan), TruncatedDecay()), "NaN"),
        (lambda: OracleField(torch.zeros(2, 4), TruncatedDecay(), frame_wise=True), "frame_wise=True needs"),
        (lambda: OracleField(torch.zeros(2, 4), lambda gamma: gamma), "at gamma 1"),
        (lambda: OracleField(torch.zeros(2, 4), TruncatedDecay())(torch.zeros(2, 5)), "differ"),
    ],
)
def test_wrong_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
