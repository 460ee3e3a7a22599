"""The closed loop on the exact field that is not told gamma: levels that were wrong at the start are found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.samplers import ClosedLoop, Euler, GradientDescent, Multistep, Route, descend, run
from eqm_video.samplers.levels import Levels
from eqm_video.samplers.warp import Identity

DECAYS = [ConstantDecay(), TruncatedDecay(), LinearDecay()]
every_decay = pytest.mark.parametrize("decay", DECAYS, ids=repr)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DATA, NOISE = 0.8 * normal(20, 256, seed=1), normal(12, 256, seed=2)


def distance(decay, start: Tensor, *, steps: int, told: float, loop=None, sampler=None, warp=None) -> float:
    """RMS to the nearest data point after a descent that takes its start for one at gamma = `told`."""
    field = OracleField(DATA, decay)
    result = run(
        lambda points: field(points),
        start,
        sampler or Multistep(),
        steps=steps,
        decay=decay,
        start_gamma=told,
        loop=loop,
        warp=warp,
    )
    return float(torch.cdist(result.latents, DATA).amin(dim=1).mean() / 16)


@every_decay
@pytest.mark.parametrize("true", [0.1, 0.3, 0.5])
def test_one_evaluation_after_another_finds_the_level(decay, true):
    """Frames at `true` that count as 0.3, with an error of 0.2: the filter's level after four looks from the spot."""
    start = true * DATA[:12] + (1 - true) * NOISE
    levels = Levels(Route(decay, Identity(), 0.3, ClosedLoop(start_error=0.2)), start, None, 8)
    slope, rows, moving = OracleField(DATA, decay)(start), torch.arange(12), torch.ones(12, 1, dtype=torch.bool)
    for _ in range(4):
        levels.observe(rows, moving, start, slope)
    assert float((levels.at(rows) - true).abs().mean()) < 0.08
    assert bool((levels.variance < 0.04).all())


@pytest.mark.parametrize("decay", DECAYS[:1], ids=repr)
def test_a_start_that_is_noisier_than_told_ends_at_the_data(decay):
    """Starts at 0.2 that count as 0.5: a velocity in open loop stops short of the data, in closed loop it does not."""
    start, loop = 0.2 * DATA[:12] + 0.8 * NOISE, ClosedLoop(start_error=0.2)
    for steps in (4, 8):
        open_, closed = (distance(decay, start, steps=steps, told=0.5, loop=each) for each in (None, loop))
        assert closed < open_ / 4


@every_decay
@pytest.mark.parametrize(
    ("sampler", "warp"), [(Multistep(), None), (GradientDescent(1.0), Identity())], ids=["multistep", "gd"]
)
def test_from_noise_it_is_at_least_as_near_as_open_loop(decay, sampler, warp):
    for steps in (4, 8):
        how = {"steps": steps, "told": 0.0, "sampler": sampler, "warp": warp}
        assert distance(decay, NOISE, loop=ClosedLoop(), **how) < 1.05 * distance(decay, NOISE, **how) + 0.001


def test_known_frames_stay_and_every_frame_takes_the_budget():
    data, start = normal(3, 2, 4, 4, 4, seed=3), normal(3, 2, 4, 4, 4, seed=4)
    known, decay = torch.tensor([[True, False], [True, True], [False, False]]), TruncatedDecay()
    field = OracleField(data[:1], decay, frame_wise=True)
    route = Route(decay, Identity(), torch.tensor([[0.0, 0.3], [0.0, 0.0], [0.0, 0.0]]), ClosedLoop(start_error=0.3))
    result = descend(lambda latents: field(latents), start, Multistep(), steps=7, known=known, route=route)
    assert torch.equal(result.latents[known], start[known])
    assert result.frame_nfe.tolist() == [[0, 7], [0, 0], [7, 7]]
    torch.testing.assert_close(result.latents[2], data[0], rtol=0, atol=1e-2)
    torch.testing.assert_close(result.latents[0, 1], data[0, 1], rtol=0, atol=1e-2)


def test_what_does_not_step_by_levels_is_refused():
    for sampler in (Euler(), GradientDescent(0.1)):
        with pytest.raises(ValueError, match="take multistep, or gd or nag with a warp"):
            run(lambda points: points, NOISE, sampler, steps=2, decay=LinearDecay(), loop=ClosedLoop())
    with pytest.raises(ValueError, match="bias is 0"):
        ClosedLoop(bias=0)
