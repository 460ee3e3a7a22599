"""The closed loop on the exact field that is not told gamma: levels that were wrong at the start are found again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_pipeline
from torch import Tensor

from eqm_video import cli
from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.guidance import HistoryField
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, ClosedLoop, Euler, GradientDescent, Multistep, Route, descend, run
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


class Naive:
    """The form without a filter: gamma from the direction of a velocity alone, mean(x f) = 1 - gamma S^2."""

    start_error = drift = 0.0

    def corrected(self, gamma, variance, decay, point, slope, power, chance):
        scale = 1 + float(DATA.square().mean())
        return ((1 - (point * slope).mean(dim=1, keepdim=True)) / scale).clamp(0, 0.999), variance


def test_the_filter_is_ahead_of_open_loop_and_of_the_form_without_a_filter():
    """Starts at levels of their own, 0.1 to 0.5, that all count as 0.3; RMS to the nearest data point at the end."""
    levels = torch.linspace(0.1, 0.5, 12, dtype=torch.float64)[:, None]
    start, decay = levels * DATA[:12] + (1 - levels) * NOISE, ConstantDecay()
    ends = [
        distance(decay, start, steps=8, told=0.3, loop=loop) for loop in (None, Naive(), ClosedLoop(start_error=0.2))
    ]
    assert ends[2] < ends[0] / 2.5 and ends[2] < ends[1] / 1.4, ends


@pytest.mark.parametrize(
    ("sampler", "warp"), [(Multistep(), None), (NAG(1.0, 0.2), Identity())], ids=["multistep", "nag"]
)
def test_frames_that_start_apart_land_together_whatever_the_batch(sampler, warp):
    data, start, decay = normal(1, 3, 4, 4, 4, seed=3), normal(2, 3, 4, 4, 4, seed=4), LinearDecay()
    apart = torch.tensor([[0.0, 0.3, 0.6], [0.5, 0.0, 0.2]], dtype=torch.float64)
    mixed = apart[..., None, None, None]
    start = mixed * data + (1 - mixed) * start
    field = OracleField(data, decay, frame_wise=True)
    how = {"steps": 6, "decay": decay, "warp": warp, "loop": ClosedLoop()}
    whole = run(field, start, sampler, start_gamma=apart, **how)
    near = 1e-6 if warp is None else 0.2  # the last look-ahead of nag is no step to the data
    torch.testing.assert_close(whole.latents, data.expand_as(start), rtol=0, atol=near)
    alone = run(field, start[1:], sampler, start_gamma=apart[1:], **how)
    torch.testing.assert_close(whole.latents[1:], alone.latents, rtol=0, atol=1e-9)
    levels, corrections = whole.levels
    assert levels.shape == (6, 2, 3) and torch.equal(levels[0] - corrections[0], apart)
    assert bool((levels.diff(dim=0) > 0).all())
    left = torch.arange(6, 1, -1)[:, None, None]  # ahead or behind, a frame shares what it has to go among its steps
    torch.testing.assert_close((levels - corrections)[1:], levels[:-1] + (1 - levels[:-1]) / left)


def test_guidance_does_not_mislead_it():
    """The levels are read from the labelled field, history guidance and composition included."""
    pipe, latents = tiny_pipeline(), normal(2, 3, 4, 8, 8).float()
    known = torch.tensor([[True, False, False]] * 2)
    plain = pipe.field(["up", "left"], guidance_scale=1.0)(latents)
    guided = pipe.field(["up", "left"], guidance_scale=3.0)
    for field in (guided, HistoryField(guided, known, latents, 2.0)):
        gradient, sight = field.observed(latents)
        assert torch.equal(gradient, field(latents)) and not torch.equal(gradient, plain)
        torch.testing.assert_close(sight.plain, plain)
    both = pipe.composed_field([("up", 1.0), ("left", 1.0)], 2, plain_sum=True).observed(latents)
    torch.testing.assert_close(both[0], both[1].plain)


def test_a_call_takes_it_with_known_frames_turns_and_a_tolerance():
    pipe, clips = tiny_pipeline(), np.zeros((1, 3, 16, 16, 3), np.uint8)
    how = {"steps": 5, "sampler": "multistep", "closed_loop": "field", "seeds": [3], "output_type": "latent"}
    known = pipe(["up"], clips=clips, known=[0], frame_schedule="pyramid", guidance_scale=2.0, **how)
    moved = known.levels[0].isfinite().sum(dim=0)
    assert moved.tolist() == known.frame_nfe.tolist() == [[0, 5, 5]]
    rested = pipe(["up"], tolerance=1e6, per_frame=True, **how)
    assert rested.frame_nfe.tolist() == [[1, 1, 1]] and rested.levels.shape == (2, 1, 1, 3)
    again = pipe(["up"], **{**how, "closed_loop": ClosedLoop()})
    assert torch.equal(again.frames, pipe(["up"], **how).frames)
    with pytest.raises(UserError, match=r"take multistep \(--sampler multistep\), or gd or nag with a warp"):
        pipe(["up"], **{**how, "sampler": "nag"})


def test_samples_json_has_the_levels(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "export")
    words = ["sample", str(tmp_path / "export"), "--sampler", "multistep", "--steps", "3", "--closed-loop", "field"]
    words += ["--num-samples", "2", "--format", "png", "--out"]
    assert cli.main([*words, str(tmp_path / "clips"), "--batch-size", "1"]) == 0
    record = json.loads((tmp_path / "clips" / "samples.json").read_text())
    assert record["settings"]["closed_loop"] == {"kind": "field", "drift": 0.1, "start_error": 0.02, "bias": 0.05}
    levels = record["levels"]
    assert np.shape(levels["gamma"]) == np.shape(levels["correction"]) == (3, 3) and levels["evaluations"] == [3.0] * 3
    assert 0 <= levels["gamma"][0][0] < levels["gamma"][2][0] < 1
    assert cli.main([*words, str(tmp_path / "long"), "--length", "5", "--overlap", "1"]) == 0
    assert len(json.loads((tmp_path / "long" / "samples.json").read_text())["levels"]["correction"]) == 2
