"""The Fréchet distance of Gaussians against closed forms, and projections against what they must keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqm_video.metrics.frechet import frechet_distance, gaussian_of, random_projection


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int) -> Tensor:
    root = random(size, size + 2, seed=seed)
    return root @ root.T / size


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed))[0]


def test_equal_gaussians_are_at_distance_zero():
    mean, cov = random(6), covariance(6, 1)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)


def test_shifted_means_count_as_their_squared_distance():
    cov, shift = covariance(5, 2), random(5, seed=3)
    assert frechet_distance(torch.zeros(5), cov, shift, cov) == pytest.approx(float(shift @ shift), rel=1e-12)


def test_one_dimension():
    one = torch.tensor([1.0]), torch.tensor([[4.0]])
    other = torch.tensor([3.0]), torch.tensor([[0.25]])
    assert frechet_distance(*one, *other) == pytest.approx((1 - 3) ** 2 + (2 - 0.5) ** 2)


def test_diagonal_covariances():
    one, other, mean = random(7, seed=4).abs(), random(7, seed=5).abs(), torch.zeros(7)
    expected = float((one - other).square().sum())
    found = frechet_distance(mean, one.square().diag(), mean, other.square().diag())
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_singular_covariance_is_no_obstacle():
    one, other, mean = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), torch.zeros(2)
    assert frechet_distance(mean, one.diag(), mean, other.diag()) == pytest.approx(1.0 + 3.0)
    line = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert frechet_distance(mean, line, mean, line) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_rotation_invariant_and_equal_to_the_unsymmetric_form(seed):
    size = 8
    mean_a, mean_b = random(size, seed=10 + seed), random(size, seed=20 + seed)
    cov_a, cov_b, turn = covariance(size, 30 + seed), covariance(size, 40 + seed), rotation(size, 50 + seed)
    found = frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert found == pytest.approx(frechet_distance(mean_b, cov_b, mean_a, cov_a), rel=1e-10)
    turned = frechet_distance(turn @ mean_a, turn @ cov_a @ turn.T, turn @ mean_b, turn @ cov_b @ turn.T)
    assert found == pytest.approx(turned, rel=1e-10)
    overlap = torch.linalg.eigvals(cov_a @ cov_b).sqrt().real.sum()  # (AB)^½ has the trace of (A^½ B A^½)^½
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_gaussian_of_is_mean_and_unbiased_covariance_in_float64():
    features = random(40, 3).float() + 100
    mean, cov = gaussian_of(features)
    assert mean.dtype == cov.dtype == torch.float64
    assert torch.allclose(mean, features.double().mean(0))
    assert torch.allclose(cov, torch.cov(features.double().T))


def test_projections_keep_squared_distances_on_average():
    point = random(300, seed=6).float()
    ratios = [
        (point @ random_projection(300, 8, torch.Generator().manual_seed(seed))).square().sum() / point.square().sum()
        for seed in range(400)
    ]
    # each ratio has mean 1 and standard deviation sqrt(2/8) = 0.5; 0.1 is four standard errors of the mean of 400
    assert float(torch.stack(ratios).mean()) == pytest.approx(1, abs=0.1)
    first, again, other = (random_projection(5, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == (5, 2)


def test_errors():
    mean, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match="of equal D"):
        frechet_distance(mean, cov, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="order mean, cov"):
        frechet_distance(cov, mean, mean, cov)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(mean, cov, mean * torch.nan, cov)
    with pytest.raises(ValueError, match="at least 2 points"):
        gaussian_of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        gaussian_of(torch.full((4, 3), torch.inf))
    with pytest.raises(ValueError, match="at least 1"):
        random_projection(0, 3, torch.Generator())
