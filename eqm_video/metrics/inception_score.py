"""The Inception Score."""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics
from eqm_video.system.devices import double


def inception_score(logits: Tensor) -> float:
    """exp(mean KL(p(y|x) ‖ p(y))) of logits (N, K), from 1 to K."""
    log_p = double(logits).log_softmax(1)
    p = log_p.exp()
    marginal = p.mean(0).clamp_min(torch.finfo(torch.float64).tiny).log()
    return float((p * (log_p - marginal)).sum(1).mean().exp())


class InceptionScore(Metric, name="is", title="Inception Score"):
    """Inception Score: how sure a classifier is of each clip, and how many classes there are; no real set.

    Salimans et al. (2016). The mean over `splits` parts of the samples, as is common; it rises with the size of a part.
    The real clips' own score, of as many clips, stands beside it.
    """

    needs = frozenset({"logits"})
    reference = False
    better = "higher"

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The mean over the splits."""
        parts = samples.logits.tensor_split(max(1, min(settings.splits, len(samples) // 2)))
        return sum(map(inception_score, parts)) / len(parts)
