"""The nearest neighbour of every query among clips that arrive in chunks, so that the clips need not fit in memory.

Legend: N queries, M clips of a chunk, V values of a flattened clip. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqm_video.system.devices import double, widest

CHUNK = 2**24  # float32 values of one temporary tensor: 64 MiB


class NearestClips:
    """For queries (N, ...) uint8: the clip with the smallest root mean squared difference so far, and a runner-up.

    `indices` (N,) int64 are the nearest clips' numbers, -1 while there is none; `clips` (N, ...) their pixels; `rms`
    (N,) how far they are. `second_rms` (N,) is how far the nearest clip of another source is. Everything lies on the
    queries' device, and chunks are moved there.
    """

    def __init__(self, queries: Tensor) -> None:
        _check(queries, "queries")
        self.queries = queries
        self.clips, self._seconds = torch.zeros_like(queries), torch.zeros_like(queries)
        device = queries.device
        self.indices = torch.full((len(queries),), -1, device=device)
        self._sources = torch.full((len(queries),), -1, device=device)  # of the nearest clips
        # of the nearest, and the second
        self._squares = torch.full((2, len(queries)), torch.inf, dtype=widest(device), device=device)

    def update(
        self, clips: Tensor, indices: Tensor, allowed: Tensor | None = None, sources: Tensor | None = None
    ) -> None:
        """Look at more clips (M, ...), numbered `indices` (M,); query n may be paired with m where allowed[n, m].

        `sources` (M,) int64 >= 0 say what clips belong together, such as the windows of one file, which resemble one
        another: the second-nearest clip is of another source. None: every clip is a source, known by its number.

        |a - b|² = |a|² + |b|² - 2<a, b> is one matrix product, in float32 around mid grey: good to 1e-3 in the mean
        square, and used to choose only. `rms` and `second_rms` are computed anew.
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
            one, one_norm = _centred(clips[part])
            for start in range(0, len(self.queries), rows):
                query = slice(start, start + rows)
                other, other_norm = _centred(self.queries[query])
                squares = other_norm[:, None] + one_norm - 2 * (other @ one.T).to(one_norm.dtype)
                if allowed is not None:
                    squares.masked_fill_(~allowed[query, part], torch.inf)
                for source in sources[part].unique():
                    of_source = (sources[part] == source).nonzero()[:, 0]
                    best, which = squares[:, of_source].min(1)
                    self._merge(query, best, source, clips[part], indices[part], of_source[which])

    def _merge(self, query: slice, best: Tensor, source: Tensor, clips: Tensor, indices: Tensor, which: Tensor) -> None:
        """The best clip of one source, for each query of a slice: it becomes the nearest, the second, or neither."""
        first, second = self._squares[:, query]
        nearer, another = best < first, self._sources[query] != source
        dethroned = (nearer & another).nonzero()[:, 0] + query.start  # the nearest so far are now second
        self._seconds[dethroned], self._squares[1, dethroned] = self.clips[dethroned], self._squares[0, dethroned]
        rows = (~nearer & another & (best < second)).nonzero()[:, 0]
        self._seconds[query.start + rows], self._squares[1, query.start + rows] = clips[which[rows]], best[rows]
        rows = nearer.nonzero()[:, 0]
        places = query.start + rows
        self.clips[places], self._squares[0, places] = clips[which[rows]], best[rows]
        self.indices[places], self._sources[places] = indices[which[rows]], source

    @property
    def rms(self) -> Tensor:
        """Root mean squared pixel differences (N,), float64, of 0 to 255; infinite where there is no clip."""
        return self._distance(self.clips, self._squares[0])

    @property
    def second_rms(self) -> Tensor:
        """The same to the nearest clip of another source than the nearest clip's; infinite where there is none."""
        return self._distance(self._seconds, self._squares[1])

    @property
    def ratio(self) -> Tensor:
        """rms / second_rms (N,), 0 to 1: near 0 for the copy of one source, 1 halfway between two. NaN where no second.

        Two sources that both equal the query (0 / 0) count as 1.
        """
        first, second = self.rms, self.second_rms
        return torch.where(second > 0, first / second, 1.0).clamp(max=1).masked_fill(second.isinf(), torch.nan)

    def _distance(self, clips: Tensor, squares: Tensor) -> Tensor:
        pairs = zip(self.queries, clips, strict=True)
        values = torch.stack([(double(a) - double(b)).square().mean().sqrt() for a, b in pairs])
        return values.masked_fill(squares.isinf().to(values.device), torch.inf)


def _centred(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Flattened around mid grey, float32 (N, V), and squared norms (N,), as exact as the device allows."""
    flat = clips.flatten(1).float() - 127.5
    return flat, torch.stack([row.to(widest(row.device)).square().sum() for row in flat])


def _check(clips: Tensor, what: str) -> None:
    if clips.dtype != torch.uint8 or clips.ndim < 2 or clips.numel() == 0:
        raise ValueError(f"{what} must be uint8 (N, ...) and not empty, got {clips.dtype} {tuple(clips.shape)}")
