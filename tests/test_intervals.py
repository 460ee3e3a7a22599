"""Error bars over training runs and clips: coverage, pairing, adjusted p-values."""

from __future__ import annotations

import pytest
import torch

from eqm_video.metrics.intervals import compare, estimate, holm


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_interval_is_as_wide_as_its_runs_and_clips_say() -> None:
    clips = estimate(normal(1, 400))  # one run: over the clips alone
    assert (clips.high - clips.low) / 2 == pytest.approx(1.96 / 400**0.5, rel=0.1)
    runs = estimate(normal(40, 1).expand(40, 300))  # every run is the same on all its clips
    assert (runs.high - runs.low) / 2 == pytest.approx(1.96 * float(normal(40, 1).std(correction=0)) / 40**0.5, rel=0.1)
    assert (runs.runs, runs.clips) == (40, 300)
    assert estimate(torch.full((3, 8), 0.25)) == estimate(torch.full((3, 8), 0.25), seed=1)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    def values(seed: int) -> torch.Tensor:  # effects of runs, of clips, and of both
        return normal(8, 1, seed=seed) / 2 + normal(1, 30, seed=1000 + seed) + normal(8, 30, seed=2000 + seed)

    found = [estimate(values(seed)) for seed in range(60)]
    covered = sum(one.low <= 0 <= one.high for one in found)
    assert 50 <= covered <= 60  # 57 expected
    naive = [values(seed).flatten()[None] for seed in range(60)]  # as if all 240 values were independent
    assert sum(one.low <= 0 <= one.high for one in map(estimate, naive)) < 45


def test_differences_are_paired() -> None:
    clips, runs = 3 * normal(1, 50), 3 * normal(4, 1, seed=1)
    better = clips + runs + 0.5 + 0.1 * normal(4, 50, seed=2)
    found = compare(better, clips + runs)
    assert found.mean == pytest.approx(0.5, abs=0.03) and 0.4 < found.low < found.high < 0.6
    assert found.signs == found.runs == 4 and found.p < 0.01
    assert compare(clips + runs, better).mean == -found.mean
    same = compare(normal(3, 50, seed=3), normal(3, 50, seed=4))
    assert same.low < 0 < same.high and same.p > 0.1
    assert compare(clips, clips).p == 1.0 and compare(clips, clips).signs == 0


def test_p_values_are_adjusted_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_values_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(runs, clips\)"):
        estimate(torch.zeros(3))
    with pytest.raises(ValueError, match="not of the same runs and clips"):
        compare(torch.zeros(3, 4), torch.zeros(3, 5))


def test_few_values_of_one_sign_are_no_proof() -> None:
    for count, least in ((1, 1.0), (2, 0.5), (4, 0.125)):
        values = torch.arange(1.0, count + 1)[None]
        assert compare(values, torch.zeros(1, count)).p == least
