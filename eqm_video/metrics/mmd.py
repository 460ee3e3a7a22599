"""The maximum mean discrepancy (MMD) with a polynomial kernel, its redraws and its permutation test.

The squared MMD of sets x and y is E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al., 2012). It needs no covariance
and, without the pairs of a clip with itself, has no bias at any number of clips: its mean over real sets is 0 for 64
clips as for 64,000, and single values may be below 0.

Legend: N, M clips, P = N + M clips of both sets, D dimensions, B redraws or permutations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics, redraw
from eqm_video.system.devices import double

MOST = 4096  # clips of a set whose kernel matrix is kept whole, for redraws and permutations
ROWS = 1024  # of the kernel matrix of larger sets, at a time


def kernel(left: Tensor, right: Tensor, degree: int, coef: float) -> Tensor:
    """(<x, y>/D + coef)^degree of features (N, D) and (M, D), as (N, M) float64."""
    return (double(left) @ double(right).T / left.shape[1] + coef) ** degree


def weighted_mmd(matrix: Tensor, left: Tensor, right: Tensor, biased: bool = False) -> Tensor:
    """Squared MMD (B,) of clips taken `left` and `right` (B, P) times, from the kernel matrix (P, P) of both sets.

    A clip that was taken twice is not compared with itself, so that redraws keep the mean that the value has; `biased`
    counts such pairs, and every clip with itself.
    """
    diagonal = matrix.diagonal()
    products, values = left @ matrix, []
    for weights, product in ((left, products), (right, right @ matrix)):
        total, pairs = (product * weights).sum(1), weights.sum(1).square()
        if not biased:
            squares = weights.square()
            total, pairs = total - squares @ diagonal, pairs - squares.sum(1)
        values.append(total / pairs)
    across = (products * right).sum(1) / (left.sum(1) * right.sum(1))
    return values[0] + values[1] - 2 * across


def mmd(left: Tensor, right: Tensor, degree: int = 3, coef: float = 1.0, biased: bool = False) -> float:
    """Squared MMD of features (N, D) and (M, D), in float64, a part of the kernel matrix at a time.

    Raises:
        ValueError: fewer than 2 clips of a set, another D, or values that are not finite.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1] or min(len(left), len(right)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D), 2 at least: {tuple(left.shape)}, {tuple(right.shape)}")
    if not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError("features hold infinite or NaN values")

    def mean(rows: Tensor, columns: Tensor, same: bool) -> float:
        total = sum(float(kernel(part, columns, degree, coef).sum()) for part in rows.split(ROWS))
        pairs = len(rows) * len(columns)
        if same and not biased:
            own = (double(rows).square().sum(1) / rows.shape[1] + coef) ** degree
            total, pairs = total - float(own.sum()), pairs - len(rows)
        return total / pairs

    return mean(left, left, True) + mean(right, right, True) - 2 * mean(left, right, False)


class MMD(Metric, name="mmd", title="MMD"):
    """Squared MMD with a polynomial kernel: unbiased, without a covariance, good from 64 clips on.

    JEDi's statistic (Luo et al., 2025, arXiv 2410.05203): degree 2, coef 0, gamma 1/D. Their code counts each clip
    beside itself (`biased`) and multiplies by 100; the preset jedi does so, and others do not.
    """

    needs = frozenset({"features"})

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The squared MMD times `settings.scale`."""
        left, right = samples.features, real.features
        return settings.scale * mmd(left, right, settings.degree, settings.coef, settings.biased)

    def redraws(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> Tensor:
        """Values (B,) from multiplicities, all from one kernel matrix; of at most `MOST` clips of a set."""
        matrix, sizes = _matrix(samples, real, settings)
        weights = [_multiplicities(side.thinned(MOST).sources, count, generator) for side in (samples, real)]
        left = torch.cat([weights[0], torch.zeros(count, sizes[1], dtype=torch.float64)], 1)
        right = torch.cat([torch.zeros(count, sizes[0], dtype=torch.float64), weights[1]], 1)
        return settings.scale * weighted_mmd(matrix, left, right, settings.biased)

    def extras(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> dict[str, Any]:
        """The p-value: the share of `count` random divisions of all clips into two sets that differ as much.

        (1 + number at least as large) / (1 + count): it is never 0, and is uniform where both sets are of one kind.
        Clips of one file cannot be exchanged for clips of several: of each file a single clip is divided, and
        "p_value_of" says how many they are. For a set of more than `MOST` clips also the number of clips that p-value
        and interval are of; the value is of all.
        """
        kept = {"samples": min(len(samples), MOST), "real": min(len(real), MOST)}
        more: dict[str, Any] = {"interval_and_p_value_of": kept} if max(len(samples), len(real)) > MOST else {}
        if not count:
            return more
        alone = [side.one_a_source() for side in (samples, real)]
        if [len(side) for side in alone] != [len(samples), len(real)]:
            if min(len(side) for side in alone) < self.least:
                return more
            samples, real = alone
            more["p_value_of"] = {"samples": min(len(samples), MOST), "real": min(len(real), MOST)}
        matrix, sizes = _matrix(samples, real, settings)
        order = torch.rand(count, sum(sizes), generator=generator).argsort(1)
        left = double(order < sizes[0])
        null = weighted_mmd(matrix, left, 1 - left, settings.biased)
        first = torch.zeros(1, sum(sizes), dtype=torch.float64)
        first[:, : sizes[0]] = 1
        value = weighted_mmd(matrix, first, 1 - first, settings.biased)
        return {"p_value": float((1 + (null >= value).sum()) / (1 + count)), "permutations": count, **more}


def _multiplicities(sources: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws of each clip (N,) in `count` redraws of the files, as numbers (B, N) float64."""
    size = len(sources)
    if len(sources.unique()) == size:
        drawn = torch.randint(size, (count, size), generator=generator)
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        return torch.zeros(count, size, dtype=torch.float64).scatter_add_(1, drawn, ones)
    return double(torch.stack([redraw(sources, generator).bincount(minlength=size) for _ in range(count)]))


def _matrix(samples: Measured, real: Measured, settings: Statistics) -> tuple[Tensor, tuple[int, int]]:
    """The kernel matrix of both sets, of at most `MOST` clips each, and how many they are."""
    left, right = samples.thinned(MOST).features, real.thinned(MOST).features
    pooled = torch.cat([left, right])
    return kernel(pooled, pooled, settings.degree, settings.coef), (len(left), len(right))
