"""Means with error bars over training runs and clips, and differences between models that met the same clips.

Legend: S training runs (seeds), N clips, K resamplings.

Every run is measured on the same clips, so a value belongs to a run and to a clip at once, and two values of one clip
are not independent. The bootstrap therefore draws runs and clips by themselves, with replacement, and takes the mean of
the drawn rows and columns (Owen, "The pigeonhole bootstrap", 2007). It knows the spread between runs from S values
alone: with three runs an interval is too narrow where runs differ much, by sqrt(S / (S - 1)) and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.randomness import generator

RESAMPLINGS = 4000  # K
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, of `runs` x `clips` values. With one run the interval is over the clips alone."""

    mean: float
    low: float
    high: float
    runs: int
    clips: int


@dataclass(frozen=True)
class Difference:
    """One model's mean minus another's, of the same runs and clips, with its 95 % interval.

    p: two-sided, the share of resamplings on the other side of 0 (see `compare` for the least). signs: in how many of
    the runs the difference has the sign of the mean.
    """

    mean: float
    low: float
    high: float
    p: float
    signs: int
    runs: int
    clips: int


def estimate(values: Tensor, *, seed: int = 0) -> Estimate:
    """The mean of values (S, N) with a 95 % interval over runs and clips. ValueError for values of another shape."""
    means = _resampled(values, seed)
    low, high = _interval(means)
    return Estimate(float(values.double().mean()), low, high, *values.shape)


def compare(values: Tensor, others: Tensor, *, seed: int = 0) -> Difference:
    """The difference of two models' values (S, N), paired by run and clip. ValueError for shapes that differ.

    p is at least 2^(1 - S N), what a sign test of so few values can reach: 1 for a single one.
    """
    if values.shape != others.shape:
        raise ValueError(f"values {tuple(values.shape)} and {tuple(others.shape)} are not of the same runs and clips")
    gaps = values.double() - others.double()
    means = _resampled(gaps, seed)
    low, high = _interval(means)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum())) / len(means)
    mean = float(gaps.mean())
    signs = int((gaps.mean(dim=1).sign() == (1 if mean > 0 else -1)).sum()) if mean != 0 else 0
    # Resamplings of few values of one sign are all of that sign, but chance gives so many values one sign this often.
    least = max(1 / len(means), 2.0 ** (1 - gaps.numel()))
    return Difference(mean, low, high, min(1.0, max(2 * tail, least)), signs, *values.shape)


def holm(chances: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted for their number (Holm, 1979), in the order given."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted, largest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = largest
    return adjusted


def _resampled(values: Tensor, seed: int) -> Tensor:
    """The means (K,) float64 of resampled runs and clips."""
    if values.ndim != 2 or values.numel() == 0:
        raise ValueError(f"values have the shape {tuple(values.shape)}; they must be (runs, clips), at least one each")
    runs, clips = (
        _counts(count, generator(seed, "bootstrap", name))
        for name, count in zip(("runs", "clips"), values.shape, strict=True)
    )
    return torch.einsum("ks,sn,kn->k", runs, values.double().cpu(), clips) / values.numel()


def _counts(count: int, source: torch.Generator) -> Tensor:
    """Counts of `count` items in `count` draws with replacement, for each resampling: (K, count) float64."""
    drawn = torch.randint(count, (RESAMPLINGS, count), generator=source)
    return torch.zeros(RESAMPLINGS, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(RESAMPLINGS, count, dtype=torch.float64)
    )


def _interval(means: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
