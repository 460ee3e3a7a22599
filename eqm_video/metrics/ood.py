"""Out-of-distribution scores of clips under a model, and their power to separate two sets.

Scores are measured at the latents themselves, without noise. Higher means more out of distribution; this sign follows
from the definitions, not from results:

* gradient_norm: a frame's RMS of f. The target (noise - clean)·c(gamma) is 0 at data, where c(1) = 0, and only there.
* energy: the model's own g; for a model without an energy g = x·f, the paper's energy. Descent lowers g, so data have
  low values: x·f is 0 at data, where f = 0, and near gain·d at noise of d dimensions, where f is gain·(noise - clean).
  Unlike the norm, x·f grows with |x| and may be negative.

A distance to the data would not be a third score: near data f is c'(1)·(clean - x), so norm and distance rank clips
alike.

Legend: B clips, T frames, N clips of the first set, M of the second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqm_video.core.energy import frame_energies

SCORES = ("gradient_norm", "energy")


def frame_scores(field: Callable[[Tensor], Tensor], latents: Tensor, energy: str) -> dict[str, Tensor]:
    """Both scores of every frame, (B, T) float32 or wider; a clip's score is the mean over its frames.

    Args:
        field: latents -> gradient of the same shape; with an explicit energy also `energies(latents)` -> (B, T).
        latents: (B, T, C, H, W), of data (gamma = 1).
        energy: the model's kind: "implicit" scores x·f with the gradient f, "dot" and "l2" the field's own g.
    """
    gradient = field(latents).detach()
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    own = frame_energies(latents, gradient, "dot") if energy == "implicit" else field.energies(latents)
    return {"gradient_norm": wide.square().mean(dim=(2, 3, 4)).sqrt(), "energy": own.detach()}


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve: P(out > in) + P(out = in) / 2 over all pairs of in (N,) and out (M,), exactly.

    The Mann-Whitney statistic over N·M: 1 where every out-score is higher, 0.5 by chance. Computed by sorting.

    Raises:
        ValueError: not two vectors, an empty one, or values that are NaN.
    """
    for name, scores in (("in_scores", in_scores), ("out_scores", out_scores)):
        if scores.ndim != 1 or scores.numel() == 0 or bool(scores.isnan().any()):
            raise ValueError(f"{name} must be (N,) with at least one value and no NaN, got {tuple(scores.shape)}")
    dtype = torch.promote_types(in_scores.dtype, out_scores.dtype)
    ordered, out = in_scores.to(dtype).sort().values, out_scores.to(dtype)
    lower, not_higher = (torch.searchsorted(ordered, out, right=right).sum() for right in (False, True))
    return (int(lower) + int(not_higher)) / (2 * in_scores.numel() * out_scores.numel())


def auroc_error(area: float, in_count: int, out_count: int) -> float:
    """Standard error of an AUROC from its value and the numbers of clips (Hanley and McNeil, 1982).

    Exact for exponential scores and independent clips; 0 if the scores of the sets do not overlap.
    """
    if not 0 <= area <= 1 or in_count < 1 or out_count < 1:
        raise ValueError(
            f"area {area} of {in_count} and {out_count} clips; give an area in [0, 1] and counts of at least 1"
        )
    two_out, two_in = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (out_count - 1) * (two_out - area**2) + (in_count - 1) * (two_in - area**2)
    return (max(0.0, variance) / (in_count * out_count)) ** 0.5


def largest_jump(scores: Tensor) -> Tensor:
    """The frame (B,), 1 to T - 1, at which frame scores (B, T) differ most from those of the frame before.

    Raises ValueError unless scores are (B, T) with at least 2 frames.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be (B, T) with at least 2 frames, got {tuple(scores.shape)}")
    return scores.diff(dim=1).abs().argmax(dim=1) + 1
