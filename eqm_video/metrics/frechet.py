"""The Fréchet distance between two Gaussians, and random projections to reduce the dimension first.

Legend: N, M points, D dimensions of a point, V values of a flattened clip, B redraws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics
from eqm_video.system.devices import double

ROWS = 4096  # points whose float64 copy is in memory at a time
WIDE = 1024  # dimensions from which on a single distance takes seconds, and fewer redraws are made
FEW = 20  # redraws of so wide features


def random_projection(values: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """A Gaussian matrix (V, D), float32, entries of variance 1/D: E |x P|² = |x|², so distances are kept on average.

    Raises:
        ValueError: a size below 1.
    """
    if values < 1 or dimensions < 1:
        raise ValueError(f"a projection of {values} values to {dimensions} dimensions; give at least 1 of each")
    return torch.randn(values, dimensions, generator=generator, device=generator.device).div_(dimensions**0.5)


class Moments:
    """Mean and covariance of points that arrive in parts, in float64, around the first part's mean.

    Parts may come in any number of batches, and the moments of several processes are added by `merge`: the result
    differs in the last digits only.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(0)

    def update(self, features: Tensor) -> None:
        """Add points (N, D). ValueError for another shape, another D, or values that are not finite."""
        if features.ndim != 2 or features.shape[1] < 1 or (self.count and features.shape[1] != len(self.mean)):
            raise ValueError(f"features must be (N, D), of the D of earlier parts, got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features hold infinite or NaN values")
        for part in features.split(ROWS):
            if len(part):
                part = double(part)
                centred = part - part.mean(0)
                self._add(len(part), part.mean(0), centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the points of other moments."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def gaussian(self, ddof: int = 1) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D), divided by N - ddof. ValueError for fewer than 2 points."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 points, got {self.count}")
        return self.mean, self.scatter / (self.count - ddof)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub and LeVeque (1983): the scatter of a union is that of its parts and of their means."""
        if not self.count:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total, apart = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(apart, apart) * (self.count * count / total)
        self.mean, self.count = self.mean + apart * (count / total), total


def gaussian_of(features: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64. N <= D makes the covariance singular.

    `ddof` 1 divides by N - 1, which has no bias, and 0 by N.

    Raises:
        ValueError: not (N, D) with N >= 2, or values that are not finite.
    """
    if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(f"features must be (N, D) with at least 2 points, got {tuple(features.shape)}")
    moments = Moments()
    moments.update(features)
    return moments.gaussian(ddof)


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


def frechet_of_sets(left: Tensor, right: Tensor, ddof: int = 1) -> float:
    """The squared Fréchet distance between the Gaussians of features (N, D) and (M, D).

    No covariance is formed where both sets have fewer points than dimensions: the trace of the root of the product is
    the sum of the singular values of X Yᵀ, (N, M), for the centred X and Y.
    """
    if max(len(left), len(right)) >= left.shape[1]:
        return frechet_distance(*gaussian_of(left, ddof), *gaussian_of(right, ddof))
    if min(len(left), len(right)) < 2 or not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError("give at least 2 points of each set, all of them finite")
    x, y = double(left), double(right)
    apart = (x.mean(0) - y.mean(0)).square().sum()
    x, y = (x - x.mean(0)) / (len(x) - ddof) ** 0.5, (y - y.mean(0)) / (len(y) - ddof) ** 0.5
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, float(apart + x.square().sum() + y.square().sum() - 2 * overlap))


class Frechet(Metric, name="frechet", title="Fréchet distance"):
    """Fréchet distance of Gaussians: FVD with the feature i3d, FID with inception.

    It falls with the number of clips, on both sides, so that values at different n do not compare; with N <= D the
    covariances are singular, and the value says little.
    """

    needs = frozenset({"features"})
    part = "features"

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The squared distance."""
        return frechet_of_sets(getattr(samples, self.part), getattr(real, self.part), settings.ddof)

    def redraws(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> Tensor:
        """Distances (B,) of redrawn sets; of wide features fewer."""
        features = getattr(samples, self.part)
        wide = features.shape[1] > WIDE and max(len(samples), len(real)) >= WIDE
        return super().redraws(samples, real, settings, min(count, FEW) if wide else count, generator)

    def warning(self, samples: Measured, real: Measured) -> str | None:
        """A sentence where a covariance is singular."""
        fewest, dimensions = min(len(samples), len(real)), getattr(samples, self.part).shape[1]
        if fewest > dimensions:
            return None
        return (
            f"{fewest} clips give singular covariances in {dimensions} dimensions: the {self.title} is biased upwards, "
            "and compares only with values of as many clips; mmd has no such bias"
        )
