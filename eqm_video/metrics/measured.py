"""A set of clips as the metrics see it: rows of network outputs and readings, one row for each clip.

Legend: N clips, D dimensions of a feature, K classes, S values of a flattened feature map, W windows of a long video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """N clips, measured.

    features (N, D), logits (N, K), spatial (N, S) and windows (N, W, D) are outputs of a feature network, None
    where it has no such output. pixels (N,) int64: hashes of the clips. readings: numbers read off the pixels, each
    (N, ...), by the name of their metric. labels (N,) int64, -1 without a label, are places in label_names. sources
    (N,) int64: clips of one file have one number. rows (N,): the clip's number in the whole set, by which clips
    that were drawn twice are known.
    """

    sources: Tensor
    rows: Tensor
    labels: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    spatial: Tensor | None = None
    windows: Tensor | None = None
    pixels: Tensor | None = None
    readings: Mapping[str, Tensor] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Tensor, **parts: Tensor | Mapping[str, Tensor] | None) -> Measured:
        """A set of features (N, D), each clip a source of its own and without a label unless `parts` say otherwise."""
        rows = torch.arange(len(features))
        return cls(
            **{"sources": rows, "rows": rows, "labels": torch.full_like(rows, -1), "features": features, **parts}
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> Measured:
        """The clips at `indices` (M,), which may repeat."""
        chosen = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                chosen[entry.name] = value[indices]
        readings = {name: value[indices] for name, value in self.readings.items()}
        return replace(self, **chosen, readings=readings)

    def one_a_source(self) -> Measured:
        """The first clip of each file."""
        sources, which = self.sources.unique(return_inverse=True)
        first = torch.full((len(sources),), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
        return self.take(first.sort().values)

    def thinned(self, count: int) -> Measured:
        """At most `count` of the clips, evenly spaced."""
        count = min(count, len(self))
        return self.take(torch.arange(count) * len(self) // max(1, count))
