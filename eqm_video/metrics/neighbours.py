"""The nearest real clips of each sample: copies, and classes.

Legend: N clips of the samples, M of the real set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import PerClip, Statistics
from eqm_video.metrics.nearest import are_copies
from eqm_video.metrics.precision_recall import ROWS, distances


class Copies(PerClip, name="copies", title="copies"):
    """Copy rate: the share of samples three times nearer to one real clip than to those of any other file.

    `are_copies` in the feature's distances, which is what it can tell apart. Give the training set as --data.
    The floor is the rate of real clips, which the criterion calls copies too where a data set repeats itself.
    """

    needs = frozenset({"features"})
    least = 1

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """1 for a copy, else 0; 0 where all real clips are of one file."""
        copied = []
        for part in samples.features.split(ROWS):
            apart = distances(part, real.features)
            nearest, which = apart.min(1)
            others = real.sources[None] != real.sources[which][:, None]
            second = apart.masked_fill(~others, torch.inf).min(1).values
            copied.append(are_copies(nearest, second))
        return torch.cat(copied)


class ConditionalAccuracy(PerClip, name="accuracy", title="1-NN accuracy"):
    """Conditional accuracy: the share of labelled samples whose nearest real clip has their label.

    A classifier without training. The floor is what real clips of other files reach, and no sampler can be expected to
    exceed it. Samples without a label are left out.
    """

    needs = frozenset({"features", "labels"})
    better = "higher"
    least = 1

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """1 where the labels agree, else 0, of the samples that have a label."""
        known = real.take((real.labels >= 0).nonzero()[:, 0])
        labelled = samples.take((samples.labels >= 0).nonzero()[:, 0])
        nearest = [distances(part, known.features).argmin(1) for part in labelled.features.split(ROWS)]
        return known.labels[torch.cat(nearest)] == labelled.labels
