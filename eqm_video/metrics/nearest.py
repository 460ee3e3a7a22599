"""The nearest neighbour of every query among clips that arrive in chunks, and the criterion for copies.

The clips need not fit in memory.

Legend: N queries, M clips of a chunk, V values of a flattened clip. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.system.devices import double, widest

CHUNK = 2**24  # float32 values of a temporary tensor: 64 MiB
COPY = 1 / 3  # of the distance to the nearest real clip of another file: below it, a sample is a copy


def are_copies(nearest: Tensor, second: Tensor) -> Tensor:
    """Copies among samples, (N,) bool, from their distances (N,) to the nearest real clip and to another file's.

    A sample is a copy if it is three times nearer to one real clip than to those of any other file (Yoon et al. 2023,
    "Diffusion probabilistic models generalize when they fail to memorize"; Gu et al. 2025, "On memorization in
    diffusion models", arXiv 2310.02664). The second clip is of another file because windows of one file resemble each
    other. False where there is no second file (an infinite distance).
    """
    return second.isfinite() & (nearest < COPY * second)


class NearestClips:
    """The nearest clip to each query (N, ...) uint8 so far, by root mean squared difference, and a runner-up.

    `indices` (N,) int64 are the numbers of the nearest clips, -1 before the first `update`; `clips` (N, ...) are their
    pixels and `rms` (N,) their distances. `second_rms` (N,) is the distance of the nearest clip of another source. All
    results are on the queries' device, and chunks are moved to it. Raises ValueError for queries that are not uint8.
    """

    def __init__(self, queries: Tensor) -> None:
        _check(queries, "queries")
        self.queries = queries
        self.clips, self._seconds = torch.zeros_like(queries), torch.zeros_like(queries)
        device = queries.device
        self.indices = torch.full((len(queries),), -1, device=device)
        self._sources = torch.full((len(queries),), -1, device=device)  # sources of the nearest clips
        # Mean squared differences to the nearest clip and to the runner-up.
        self._squares = torch.full((2, len(queries)), torch.inf, dtype=widest(device), device=device)

    def update(
        self, clips: Tensor, indices: Tensor, allowed: Tensor | None = None, sources: Tensor | None = None
    ) -> None:
        """Compare the queries with more clips (M, ...), numbered `indices` (M,); `allowed` (N, M) bool excludes pairs.

        `sources` (M,) int64 >= 0 group clips that resemble each other, such as the windows of a file: the runner-up is
        of another source than the nearest clip. None: every clip is a source of its own.

        |a - b|² = |a|² + |b|² - 2<a, b> is a matrix product, in float32 around mid grey. It is good to 1e-3 in the mean
        square, and only selects; `rms` and `second_rms` are computed exactly. Raises ValueError for other shapes.
        """
        _check(clips, "clips")
        sources = indices if sources is None else sources
        if clips.shape[1:] != self.queries.shape[1:] or not len(indices) == len(sources) == len(clips):
            raise ValueError(f"{len(indices)} clips of {tuple(self.queries.shape[1:])} expected, got {clips.shape}")
        device = self.queries.device
        clips, indices, sources = clips.to(device), indices.to(device), sources.to(device)
        allowed = None if allowed is None else allowed.to(device)
        rows = max(1, CHUNK // clips[0].numel())
        for first in range(0, len(clips), rows):
            part = slice(first, first + rows)
            flat, norm = _centred(clips[part])
            for start in range(0, len(self.queries), rows):
                query = slice(start, start + rows)
                other, other_norm = _centred(self.queries[query])
                squares = other_norm[:, None] + norm - 2 * (other @ flat.T).to(norm.dtype)
                if allowed is not None:
                    squares.masked_fill_(~allowed[query, part], torch.inf)
                for source in sources[part].unique():
                    of_source = (sources[part] == source).nonzero()[:, 0]
                    best, best_row = squares[:, of_source].min(1)
                    self._merge(query, best, source, clips[part], indices[part], of_source[best_row])

    def _merge(
        self, query: slice, best: Tensor, source: Tensor, clips: Tensor, indices: Tensor, best_row: Tensor
    ) -> None:
        """Make the best clip of a source the nearest, the runner-up, or neither, for each query of a slice."""
        first, second = self._squares[:, query]
        nearer, another = best < first, self._sources[query] != source
        dethroned = (nearer & another).nonzero()[:, 0] + query.start  # the nearest so far are now second
        self._seconds[dethroned], self._squares[1, dethroned] = self.clips[dethroned], self._squares[0, dethroned]
        rows = (~nearer & another & (best < second)).nonzero()[:, 0]
        self._seconds[query.start + rows], self._squares[1, query.start + rows] = clips[best_row[rows]], best[rows]
        rows = nearer.nonzero()[:, 0]
        places = query.start + rows
        self.clips[places], self._squares[0, places] = clips[best_row[rows]], best[rows]
        self.indices[places], self._sources[places] = indices[best_row[rows]], source

    @property
    def rms(self) -> Tensor:
        """Root mean squared pixel difference (N,) to the nearest clip, float64, 0 to 255; infinite before a clip."""
        return self._distance(self.clips, self._squares[0])

    @property
    def second_rms(self) -> Tensor:
        """Root mean squared pixel difference (N,) to the runner-up, of another source; infinite if there is none."""
        return self._distance(self._seconds, self._squares[1])

    @property
    def ratio(self) -> Tensor:
        """The ratio rms / second_rms (N,): near 0 for a copy, 1 halfway between two sources, NaN without a second.

        If two sources both equal the query (0 / 0), the ratio is 1.
        """
        first, second = self.rms, self.second_rms
        return torch.where(second > 0, first / second, 1.0).clamp(max=1).masked_fill(second.isinf(), torch.nan)

    def _distance(self, clips: Tensor, squares: Tensor) -> Tensor:
        pairs = zip(self.queries, clips, strict=True)
        values = torch.stack([(double(a) - double(b)).square().mean().sqrt() for a, b in pairs])
        return values.masked_fill(squares.isinf().to(values.device), torch.inf)


def _centred(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Clips flattened around mid grey, float32 (N, V), and squared norms (N,), as exact as the device allows."""
    flat = clips.flatten(1).float() - 127.5
    return flat, torch.stack([row.to(widest(row.device)).square().sum() for row in flat])


def _check(clips: Tensor, name: str) -> None:
    if clips.dtype != torch.uint8 or clips.ndim < 2 or clips.numel() == 0:
        raise ValueError(f"{name} must be uint8 (N, ...) and not empty, got {clips.dtype} {tuple(clips.shape)}")
