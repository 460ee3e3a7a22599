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


@pytest.mark.parametrize("chunk", [1, 400, 2**24])
@pytest.mark.parametrize("apart", [False, True])
def test_the_second_nearest_is_of_another_source(chunk, apart, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    queries, pool = clips(9, 0), clips(20, 1)
    sources = torch.tensor([0, 3, 0, 0, 1, 1, 2, 2, 2, 2, 0, 5, 5, 4, 1, 1, 1, 3, 3, 2])
    pool[13], pool[4] = queries[2], queries[5]
    pool[5] = pool[4]  # two copies in one source
    pool[6], pool[11] = queries[7], queries[7]  # two copies in two sources
    differences = (queries[:, None].double() - pool[None].double()).square().flatten(2).mean(2).sqrt()
    allowed = torch.arange(9)[:, None] % 3 != torch.arange(20) % 3
    if apart:
        differences.masked_fill_(~allowed, torch.inf)
    search = NearestClips(queries)
    for part in torch.randperm(20, generator=torch.Generator().manual_seed(3)).split(6):
        search.update(pool[part], part, allowed[:, part] if apart else None, sources[part])
    of_sources = torch.stack([differences[:, sources == one].min(1).values for one in range(6)], 1)
    two = of_sources.topk(2, largest=False).values
    assert torch.allclose(search.rms, two[:, 0], rtol=1e-12) and torch.allclose(
        search.second_rms, two[:, 1], rtol=1e-12
    )
    told_apart = two[:, 0] < two[:, 1]
    assert torch.equal(sources[search.indices][told_apart], of_sources.argmin(1)[told_apart])
    expected = two[:, 0] / two[:, 1]
    expected[two[:, 1] == 0] = 1
    assert torch.allclose(search.ratio, expected, rtol=1e-12)
    assert apart or (search.ratio[2] == 0 and search.ratio[5] == 0 and search.ratio[7] == 1)


def test_without_another_source_there_is_no_second():
    search = NearestClips(clips(2, 0))
    search.update(clips(3, 1), torch.arange(3), sources=torch.zeros(3, dtype=torch.long))
    assert bool(search.rms.isfinite().all()) and bool(search.second_rms.isinf().all() & search.ratio.isnan().all())
    search.update(clips(1, 2), torch.tensor([3]), sources=torch.tensor([1]))
    assert bool((search.second_rms >= search.rms).all()) and bool((search.ratio <= 1).all())


def test_without_sources_every_clip_is_its_own():
    search, pool = NearestClips(clips(4, 0)), clips(6, 1)
    for number in range(6):
        search.update(pool[number : number + 1], torch.tensor([10 + number]))
    differences = (clips(4, 0)[:, None].double() - pool[None].double()).square().flatten(2).mean(2).sqrt()
    assert torch.allclose(search.second_rms, differences.sort(1).values[:, 1], rtol=1e-12)


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
    with pytest.raises(ValueError, match="expected"):
        search.update(clips(2, 1), torch.arange(2), sources=torch.arange(3))
