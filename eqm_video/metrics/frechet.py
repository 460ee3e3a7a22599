"""The Fréchet distance between two Gaussians, and random projections to reduce the dimension first.

Legend: N points, D dimensions of a point, V values of a flattened clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.system.devices import double


def random_projection(values: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """A Gaussian matrix (V, D), float32, entries of variance 1/D: E |x P|² = |x|², so distances are kept on average.

    Raises:
        ValueError: a size below 1.
    """
    if values < 1 or dimensions < 1:
        raise ValueError(f"a projection of {values} values to {dimensions} dimensions; give at least 1 of each")
    return torch.randn(values, dimensions, generator=generator, device=generator.device).div_(dimensions**0.5)


def gaussian_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64. N <= D makes the covariance singular.

    Raises:
        ValueError: not (N, D) with N >= 2, or values that are not finite.
    """
    if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(f"features must be (N, D) with at least 2 points, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features hold infinite or NaN values; they must be finite")
    features = double(features)
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The squared Fréchet (2-Wasserstein) distance between Gaussians, of means (D,) and covariances (D, D).

        |m_a - m_b|² + tr(A) + tr(B) - 2 tr((A^½ B A^½)^½)          (Dowson and Landau, 1982)

    The last trace is the sum of the roots of a symmetric matrix's eigenvalues, in float64, so it needs no complex
    numbers and no general matrix root. Eigenvalues that rounding made negative count as 0.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    size = mean_a.numel()
    shapes = [tuple(moment.shape) for moment in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != [(size,), (size, size)] * 2 or size == 0:
        raise ValueError(
            f"give means (D,) and covariances (D, D) of equal D, in the order mean, cov, mean, cov; got {shapes}"
        )
    mean_a, cov_a, mean_b, cov_b = (double(moment) for moment in (mean_a, cov_a, mean_b, cov_b))
    if not all(moment.isfinite().all() for moment in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("means or covariances hold infinite or NaN values; they must be finite")
    values, vectors = torch.linalg.eigh((cov_a + cov_a.T) / 2)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = root @ cov_b @ root
    overlap = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, float(distance))
