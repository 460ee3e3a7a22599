"""Guidance and composition: weighted sums of fields.

Legend: B clips, T frames, C channels, H W height and width.
Classifier-free guidance is f_null + s * (f_label - f_null), the weights 1 - s and s on the two fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def weighted_sum(gradients: Sequence[Tensor], weights: Sequence[float], *, plain_sum: bool = False) -> Tensor:
    """Sum of weight * gradient over gradients of equal shape.

    The weights sum to 1, so that data common to all fields stay in place with the same strength. The paper's
    composition adds two fields as they are (weights 1 and 1): ask for that with `plain_sum=True`.

    Raises:
        ValueError: no gradients, another number of weights, unequal shapes, or weights that do not sum to 1.
    """
    if len(gradients) == 0 or len(gradients) != len(weights):
        raise ValueError(f"{len(gradients)} gradients and {len(weights)} weights; give one weight for each gradient")
    shapes = {tuple(gradient.shape) for gradient in gradients}
    if len(shapes) != 1:
        raise ValueError(f"gradients of different shapes cannot be added: {sorted(shapes)}")
    total, size = sum(weights), sum(abs(weight) for weight in weights)
    if not math.isfinite(total) or (not plain_sum and abs(total - 1) > 1e-6 * max(size, 1.0)):
        raise ValueError(f"weights {list(weights)} sum to {total:g}; they must sum to 1 (or type plain_sum=True)")
    result = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        result = result + weight * gradient
    return result


class GuidedField:
    """A network with its labels and guidance, seen as a gradient: latents -> (B, T, C, H, W).

    One network call an evaluation: on the batch for guidance 1 (labels only) and 0 (null label only), else on the
    doubled batch (labels first, null label second). `forwards` counts these calls, over all selected copies together.

    Args:
        network: callable `network(latents, labels, times=times)` whose result has `.sample`.
        labels: (B,) integers, or None for the null label everywhere.
        guidance_scale: s in f_null + s * (f_label - f_null); any finite number.
        null_label: the label that means "no label".
        times: (B, T) real-valued frame times, or None for the network's default.
        channels: guide only the first `channels` channels, the rest is the labelled field's. 3 reproduces the
            reference's ImageNet sampling; None (all) is right for everything else.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        labels: Tensor | None,
        *,
        guidance_scale: float = 1.0,
        null_label: int,
        times: Tensor | None = None,
        channels: int | None = None,
    ) -> None:
        _check_guidance(labels, guidance_scale, null_label, times, channels)
        self.network = network
        self.labels = labels
        self.guidance_scale = float(guidance_scale)
        self.null_label = null_label
        self.times = times
        self.channels = channels
        self._calls = [0]  # a list, so that selected copies share it

    @property
    def forwards(self) -> int:
        """Network calls so far, of this field and of every field selected from it."""
        return self._calls[0]

    def select(self, indices: Tensor) -> GuidedField:
        """The field of the clips at `indices` (1-D integers): labels and times shrink, the count is shared."""
        chosen = GuidedField(
            self.network,
            None if self.labels is None else self.labels[indices.to(self.labels.device)],
            guidance_scale=self.guidance_scale,
            null_label=self.null_label,
            times=None if self.times is None else self.times[indices.to(self.times.device)],
            channels=self.channels,
        )
        chosen._calls = self._calls
        return chosen

    def __call__(self, latents: Tensor) -> Tensor:
        """The guided field at latents (B, T, C, H, W), of the same shape."""
        self._check_latents(latents)
        batch = latents.shape[0]
        null = torch.full((batch,), self.null_label, dtype=torch.long, device=latents.device)
        labels = null if self.labels is None else self.labels.to(latents.device)
        if self.labels is None or self.guidance_scale == 1:
            return self._evaluate(latents, labels, self.times)
        if self.guidance_scale == 0 and self.channels is None:
            return self._evaluate(latents, null, self.times)
        twice = None if self.times is None else torch.cat([self.times, self.times])
        both = self._evaluate(torch.cat([latents, latents]), torch.cat([labels, null]), twice)
        labelled, unlabelled = both.chunk(2)
        guided = weighted_sum([unlabelled, labelled], [1 - self.guidance_scale, self.guidance_scale])
        if self.channels is None:
            return guided
        return torch.cat([guided[:, :, : self.channels], labelled[:, :, self.channels :]], dim=2)

    def _evaluate(self, latents: Tensor, labels: Tensor, times: Tensor | None) -> Tensor:
        self._calls[0] += 1
        return self.network(latents, labels, times=times).sample

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; they must be (B, T, C, H, W)")
        batch, frames, channels = latents.shape[:3]
        if self.labels is not None and self.labels.shape[0] != batch:
            raise ValueError(f"{batch} clips but {self.labels.shape[0]} labels; give one label for each clip")
        if self.times is not None and tuple(self.times.shape) != (batch, frames):
            raise ValueError(f"times have shape {tuple(self.times.shape)}; they must be (B, T) = {(batch, frames)}")
        if self.channels is not None and self.channels > channels:
            raise ValueError(f"channels={self.channels} are to be guided, but the latents have {channels}")


def _check_guidance(
    labels: Tensor | None, guidance_scale: float, null_label: int, times: Tensor | None, channels: int | None
) -> None:
    if labels is not None and (not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point()):
        raise ValueError(f"labels must be a tensor (B,) of integers or None, got {labels!r}")
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; it must be a number (1 is the labelled field itself)")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; it must be finite")
    if isinstance(null_label, bool) or not isinstance(null_label, int) or null_label < 0:
        raise ValueError(f"null_label is {null_label!r}; it must be an integer >= 0 (the network's number of labels)")
    if times is not None and (not isinstance(times, Tensor) or times.ndim != 2):
        raise ValueError(f"times must be a tensor (B, T) or None, got {times!r}")
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise ValueError(f"channels is {channels!r}; it must be an integer >= 1, or None to guide all channels")
