"""The nearest neighbour of every query among clips that arrive in chunks, so that the clips need not fit in memory.

Legend: N queries, M clips of a chunk, V values of a flattened clip. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**24  # float32 values of one temporary tensor: 64 MiB


class NearestClips:
    """For queries (N, ...) uint8: the clip with the smallest root mean squared difference so far.

    `indices` (N,) int64 are its numbers, -1 while there is none; `clips` (N, ...) its pixels; `rms` (N,) how far it is.
    """

    def __init__(self, queries: Tensor) -> None:
        _check(queries, "queries")
        self.queries = queries
        self.clips = torch.zeros_like(queries)
        self.indices = torch.full((len(queries),), -1)
        self._squares = torch.full((len(queries),), torch.inf, dtype=torch.float64)

    def update(self, clips: Tensor, indices: Tensor, allowed: Tensor | None = None) -> None:
        """Look at more clips (M, ...), numbered `indices` (M,); query n may be paired with m where allowed[n, m].

        |a - b|² = |a|² + |b|² - 2<a, b> is one matrix product, in float32 around mid grey: good to 1e-3 in the mean
        square, and used to choose only. `rms` is computed anew.
        """
        _check(clips, "clips")
        if clips.shape[1:] != self.queries.shape[1:] or len(indices) != len(clips):
            raise ValueError(f"{len(indices)} clips of {tuple(self.queries.shape[1:])} expected, got {clips.shape}")
        rows = max(1, CHUNK // clips[0].numel())
        for first in range(0, len(clips), rows):
            part = slice(first, first + rows)
            one, one_norm = _centred(clips[part])
            for start in range(0, len(self.queries), rows):
                query = slice(start, start + rows)
                other, other_norm = _centred(self.queries[query])
                squares = other_norm[:, None] + one_norm - 2 * (other @ one.T).double()
                if allowed is not None:
                    squares.masked_fill_(~allowed[query, part], torch.inf)
                best, which = squares.min(1)
                better = (best < self._squares[query]).nonzero()[:, 0]
                self._squares[start + better] = best[better]
                self.indices[start + better] = indices[part][which[better]]
                self.clips[start + better] = clips[part][which[better]]

    @property
    def rms(self) -> Tensor:
        """Root mean squared pixel differences (N,), float64, of 0 to 255; infinite where there is no clip."""
        pairs = zip(self.queries, self.clips, strict=True)
        values = torch.stack([(a.double() - b.double()).square().mean().sqrt() for a, b in pairs])
        return values.masked_fill(self.indices < 0, torch.inf)


def _centred(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Flattened around mid grey, float32 (N, V), and squared norms, float64 (N,)."""
    flat = clips.flatten(1).float() - 127.5
    return flat, torch.stack([row.double().square().sum() for row in flat])


def _check(clips: Tensor, what: str) -> None:
    if clips.dtype != torch.uint8 or clips.ndim < 2 or clips.numel() == 0:
        raise ValueError(f"{what} must be uint8 (N, ...) and not empty, got {clips.dtype} {tuple(clips.shape)}")
