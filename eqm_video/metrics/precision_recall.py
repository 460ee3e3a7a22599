"""Improved precision and recall: how much of each set lies within the other one's neighbourhoods.

Legend: N, M clips, D dimensions of a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import PerClip, Statistics
from eqm_video.system.devices import double

ROWS = 1024  # of a distance matrix at a time


def distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances (N, M) of features (N, D) and (M, D), float64."""
    return torch.cdist(double(left), double(right))


def within(queries: Tensor, points: Tensor, neighbours: int) -> Tensor:
    """True for queries (N, D) nearer to some point (M, D) than that point's k-th nearest neighbour: (N,) bool."""
    k = min(neighbours, len(points) - 1) + 1  # a point is its own nearest neighbour
    radii = torch.cat([distances(part, points).kthvalue(k, dim=1).values for part in points.split(ROWS)])
    return torch.cat([(distances(part, points) <= radii).any(1) for part in queries.split(ROWS)])


class Precision(PerClip, name="precision", title="precision"):
    """Improved precision: the share of samples within the real clips' neighbourhoods.

    Kynkäänniemi et al. (2019), arXiv 1904.06991, k = 3. Both values rise and fall with the number of clips.
    """

    needs = frozenset({"features"})
    better = "higher"
    least = 5

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """1 for samples that lie within, else 0."""
        return within(samples.features, real.features, settings.neighbours)


class Recall(PerClip, name="recall", title="recall"):
    """Improved recall: the share of real clips within the samples' neighbourhoods."""

    of_real = True
    needs = frozenset({"features"})
    better = "higher"
    least = 5

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """1 for real clips that lie within, else 0: as many numbers as real clips."""
        return within(real.features, samples.features, settings.neighbours)
