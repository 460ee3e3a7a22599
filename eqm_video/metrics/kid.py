"""The kernel distance of Inception features (KID) and of video features (KVD)."""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics
from eqm_video.metrics.mmd import MMD, mmd
from eqm_video.randomness import generator as make_generator

DEGREE, COEF = 3, 1.0


class KID(Metric, name="kid", title="KID"):
    """Kernel distance: the mean unbiased MMD of random subsets, kernel (<x, y>/D + 1)³.

    Binkowski et al. (2018), arXiv 1801.01401. With Inception features it is KID, with video features KVD. Sets that are
    not larger than `subset_size` are compared whole, once.
    """

    needs = frozenset({"features"})

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The mean over `subsets` subsets of `subset_size` clips, drawn from a fixed seed."""
        size, total = min(settings.subset_size, len(samples), len(real)), 0.0
        if max(len(samples), len(real)) <= settings.subset_size:
            return mmd(samples.features, real.features, DEGREE, COEF)
        draw = make_generator("kid subsets")
        for _ in range(settings.subsets):
            rows = [torch.randperm(len(side), generator=draw)[:size] for side in (samples, real)]
            total += mmd(samples.features[rows[0]], real.features[rows[1]], DEGREE, COEF)
        return total / settings.subsets

    def redraws(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> Tensor:
        """Redraws of the MMD of the whole sets, of which the mean over subsets is an estimate."""
        whole = Statistics(degree=DEGREE, coef=COEF)
        return MMD().redraws(samples, real, whole, count, generator)
