"""The Fréchet distance along long videos (FVD over time).

Legend: N, M clips, W windows of each sample, V of each real video, D dimensions of a feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqm_video.metrics.frechet import frechet_of_sets
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics


class OverTime(Metric, name="over-time", title="Fréchet distance over time"):
    """Fréchet distance of each window of a long video from all real windows: the mean, and a curve.

    All windows of the real videos are one reference, so that the curve is flat for videos that stay as good as they
    begin (`fvd_over_time` of Equilibrium Forcing, reference "global_pooled").
    """

    needs = frozenset({"windows"})

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The mean over the windows."""
        return float(self.curve(samples, real, settings).mean())

    def curve(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """Distances (W,)."""
        pooled = real.windows.flatten(0, 1)
        values = [frechet_of_sets(window, pooled, settings.ddof) for window in samples.windows.unbind(1)]
        return torch.tensor(values, dtype=torch.float64)

    def extras(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> dict[str, Any]:
        """The curve."""
        return {"by_window": self.curve(samples, real, settings).tolist()}

    def warning(self, samples: Measured, real: Measured) -> str | None:
        """A sentence where a covariance is singular."""
        dimensions = samples.windows.shape[2]
        if len(samples) > dimensions:
            return None
        return (
            f"{len(samples)} clips give singular covariances in {dimensions} dimensions: compare curves of one n only"
        )
