"""Nearest clips in chunks against the plain search over all pairs."""

from __future__ import annotations

import pytest
import torch

from eqm_video.metrics import nearest as module
from eqm_video.metrics.nearest import NearestClips


def clips(count: int, seed: int) -> torch.Tensor:
    shape = (count, 2, 4, 5, 3)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1, 400, 2**24])
@pytest.mark.parametrize("apart", [False, True])
def test_equals_the_plain_search(chunk, apart, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    queries, pool = clips(7, 0), clips(20, 1)
    pool[13] = queries[2]
    differences = (queries[:, None].double() - pool[None].double()).square().flatten(2).mean(2).sqrt()
    allowed = torch.arange(7)[:, None] % 3 != torch.arange(20) % 3
    if apart:
        differences.masked_fill_(~allowed, torch.inf)
    search = NearestClips(queries)
    for part in torch.arange(20).split(6):
        search.update(pool[part], 100 + part, allowed[:, part] if apart else None)
    best, which = differences.min(1)
    assert torch.equal(search.indices, 100 + which)
    assert torch.equal(search.clips, pool[which])
    assert torch.allclose(search.rms, best, rtol=1e-12)
    assert apart or search.rms[2] == 0


def test_without_a_clip_that_is_allowed_there_is_none():
    search = NearestClips(clips(2, 0))
    search.update(clips(3, 1), torch.arange(3), torch.tensor([[False] * 3, [False, True, False]]))
    assert search.indices.tolist() == [-1, 1]
    assert search.rms[0] == torch.inf and search.rms[1] < 255


def test_errors():
    with pytest.raises(ValueError, match="uint8"):
        NearestClips(torch.zeros(2, 3))
    search = NearestClips(clips(2, 0))
    with pytest.raises(ValueError, match="expected"):
        search.update(clips(2, 1)[:, :1], torch.arange(2))
    with pytest.raises(ValueError, match="expected"):
        search.update(clips(2, 1), torch.arange(3))
