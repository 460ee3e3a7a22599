"""Frames that come to rest one by one: counts, stillness, and a proof with the field of a gamma for each frame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import TruncatedDecay
from eqm_video.randomness import generator
from eqm_video.samplers import NAG, Adam, GradientDescent, Langevin, descend

DECAY = TruncatedDecay(a=0.8, gain=4.0)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Itself:
    """The gradient x of a quadratic about 0, which records its points of evaluation."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        self.points.append(latents)
        return latents


class SelectableItself(Itself):
    def select(self, indices: Tensor) -> SelectableItself:
        return self


def sizes(*rows: tuple[float, ...]) -> Tensor:
    """Clips whose frames hold one number each: (B, T, 1, 2, 2)."""
    return torch.tensor(rows).double()[:, :, None, None, None] * torch.ones(1, 1, 1, 2, 2).double()


@pytest.mark.parametrize("kind", [Itself, SelectableItself])
def test_each_frame_rests_at_its_own_evaluation(kind):
    """eta = 1/2 halves a frame at each step: 1, 1/2, 1/4 < 0.3 rests at the third evaluation, after two updates."""
    field, start = kind(), sizes((1.0, 8.0, 0.1), (64.0, 64.0, 1.0), (0.2, 0.2, 0.2))
    known = torch.tensor([[False] * 3, [True, False, False], [False] * 3])
    options = {"steps": 100, "tolerance": 0.3, "known": known}
    result = descend(field, start, GradientDescent(0.5), per_frame=True, **options)
    assert result.frame_nfe.tolist() == [[3, 6, 1], [0, 9, 3], [1, 1, 1]]
    assert result.nfe.tolist() == [6, 9, 1]
    assert torch.equal(result.latents, sizes((0.25, 0.25, 0.1), (64.0, 0.25, 0.25), (0.2, 0.2, 0.2)))
    batches = [len(point) for point in field.points]
    assert batches == ([3] + [2] * 5 + [1] * 3 if kind is SelectableItself else [3] * 9)
    if kind is Itself:  # the field sees frames at rest where they rest, in stopped clips too
        for call, point in enumerate(field.points):
            assert torch.equal(point[result.frame_nfe <= call], result.latents[result.frame_nfe <= call])
    # by clips, all frames go on until the last of them is at rest
    whole = descend(kind(), start, GradientDescent(0.5), **options)
    assert whole.frame_nfe.tolist() == [[6, 6, 6], [0, 9, 9], [1, 1, 1]]
    assert whole.nfe.tolist() == [6, 9, 1]
    assert torch.equal(whole.latents[0], sizes((1 / 32, 0.25, 0.1 / 32))[0])


def test_without_stopping_every_unknown_frame_takes_every_evaluation():
    known = torch.tensor([[False, True], [True, True]])
    result = descend(Itself(), sizes((1.0, 2.0), (3.0, 4.0)), GradientDescent(0.5), steps=7, known=known)
    assert result.frame_nfe.tolist() == [[7, 0], [0, 0]]
    assert result.frame_nfe.dtype == torch.int64
    assert result.nfe.tolist() == [7, 0]


@pytest.mark.parametrize(
    "rule", [GradientDescent(0.3), NAG(0.3, 0.5), Adam(0.2, beta1=0.9, beta2=0.9), Langevin(0.3, temperature=1e-4)]
)
@pytest.mark.parametrize("kind", [Itself, SelectableItself])
def test_a_frame_at_rest_does_not_move_a_bit_and_shows_no_gradient(rule, kind):
    start, seen = gaussian(3, 4, 2, 3, 3) * torch.tensor([0.3, 1.0, 3.0, 9.0])[None, :, None, None, None], []
    result = descend(
        kind(),
        start,
        rule,
        steps=60,
        tolerance=0.2,
        per_frame=True,
        callback=lambda *arguments: seen.append(arguments),
        generators=[generator("rest", clip) for clip in range(3)],
    )
    counts = result.frame_nfe
    assert counts.min() >= 1
    assert len(counts.unique()) > 3
    for step, latents, slope in seen:
        at_rest = counts <= step + 1  # the evaluation that finds a frame at rest is its last
        if step + 1 == 60:
            at_rest &= counts < 60
        assert torch.equal(latents[at_rest], result.latents[at_rest])
        assert (slope[at_rest] == 0).all()
        assert (slope[~at_rest].flatten(1).square().mean(dim=1).sqrt() >= 0.2).all()
    assert torch.equal(result.nfe, counts.amax(dim=1))
    other = descend(
        (SelectableItself if kind is Itself else Itself)(),
        start,
        rule,
        steps=60,
        tolerance=0.2,
        per_frame=True,
        generators=[generator("rest", clip) for clip in range(3)],
    )
    assert torch.equal(other.latents, result.latents)
    assert torch.equal(other.frame_nfe, counts)


@pytest.mark.parametrize("rule", [GradientDescent(0.02), NAG(0.02, 0.35)])
def test_frames_of_one_clip_are_each_what_they_are_alone(rule):
    """Frame-wise, the field of one data clip is a product of fields of frames: so must the descents be."""
    data, noise = gaussian(1, 4, 4, 4, 4, seed=1), gaussian(2, 4, 4, 4, 4, seed=2)
    gamma = torch.tensor([[0.0, 0.3, 0.6, 0.9], [0.5, 0.0, 0.97, 0.2]]).double()[:, :, None, None, None]
    start = gamma * data + (1 - gamma) * noise
    options = {"steps": 120, "tolerance": 0.3, "per_frame": True}
    result = descend(OracleField(data, DECAY, frame_wise=True), start, rule, **options)
    # a frame at gamma >= a has an RMS of about 4 sqrt(2) (1 - gamma) / 0.2; more noise takes longer
    for clip in range(2):
        order = gamma[clip].flatten().argsort()
        assert (result.frame_nfe[clip, order].diff() < 0).all()
    for frame in range(4):
        one = slice(frame, frame + 1)
        alone = descend(OracleField(data[:, one], DECAY, frame_wise=True), start[:, one], rule, **options)
        assert torch.equal(alone.frame_nfe[:, 0], result.frame_nfe[:, frame])
        torch.testing.assert_close(alone.latents[:, 0], result.latents[:, frame], rtol=0, atol=1e-11)
    # all came to rest, and near the data: RMS 0.3 is a distance of 0.3 * 0.2 / 4 = 0.015, for NAG of its look-ahead
    assert result.frame_nfe.max() < 120
    assert (result.latents - data).flatten(2).square().mean(dim=2).sqrt().max() < 0.019


def steps_to_rest(gamma: float, eta: float, size: float) -> int:
    """Evaluations until the closed form of gradient descent has size * c(gamma) below 0.3, that one included.

    1 - gamma falls by eta * gain a step until gamma reaches a, then by the factor 1 - eta * gain / (1 - a).
    """
    straight = max(0, math.ceil((DECAY.a - gamma) / (eta * DECAY.gain)))
    rest = 1 - gamma - straight * eta * DECAY.gain
    slope = DECAY.gain / (1 - DECAY.a)
    geometric = math.log(0.3 / (size * slope * rest)) / math.log(1 - eta * slope)
    return straight + max(0, math.ceil(geometric)) + 1


@pytest.mark.parametrize("eta", [0.003, 0.02])
def test_a_frame_rests_at_the_evaluation_of_the_closed_form(eta):
    """Six frames of one clip from six gammas; the oracle does not know gamma, and may be one evaluation off."""
    gamma = torch.tensor([[0.0, 0.35, 0.6, 0.8, 0.93, 0.999]]).double()
    data, noise = gaussian(1, 6, 4, 16, 16, seed=5), gaussian(3, 6, 4, 16, 16, seed=6)
    start = gamma[..., None, None, None] * data + (1 - gamma[..., None, None, None]) * noise
    result = descend(
        OracleField(data, DECAY, frame_wise=True),
        start,
        GradientDescent(eta),
        steps=200,
        tolerance=0.3,
        per_frame=True,
    )
    size = (noise - data).flatten(2).square().mean(dim=2).sqrt()
    expected = [
        [steps_to_rest(float(gamma[0, frame]), eta, float(size[clip, frame])) for frame in range(6)]
        for clip in range(3)
    ]
    difference = result.frame_nfe - torch.tensor(expected)
    assert difference.abs().max() <= 1
    assert (difference == 0).double().mean() > 0.6
    assert expected[0][0] > 1.5 * expected[0][2] and expected[0][-1] == 1
    assert torch.equal(result.nfe, result.frame_nfe[:, 0])  # the clip stops with the frame of the most noise
    # a frame at rest has gone the closed form's way: gain / (1 - a) times its distance is below the tolerance
    away = (result.latents - data).flatten(2).square().mean(dim=2).sqrt()
    assert away.max() < 1.05 * 0.3 / 20


def test_frames_at_rest_still_determine_the_clip_of_the_others():
    """With several data clips frames see each other: those nearly clean decide, rest, and the others follow them."""
    data, noise = gaussian(3, 3, 2, 4, 4, seed=3), gaussian(3, 3, 2, 4, 4, seed=4)
    gamma = torch.tensor([0.95, 0.0, 0.4]).double()[None, :, None, None, None]
    start = gamma * data + (1 - gamma) * noise
    oracle, options = OracleField(data, DECAY, frame_wise=True), {"steps": 200, "tolerance": 0.3}
    one_by_one = descend(oracle, start, GradientDescent(0.02), per_frame=True, **options)
    together = descend(oracle, start, GradientDescent(0.02), **options)
    for result in (one_by_one, together):
        assert (result.latents - data).flatten(2).square().mean(dim=2).sqrt().max() < 0.016
        assert result.nfe.max() < 200
    assert (one_by_one.frame_nfe[:, 0] < one_by_one.frame_nfe[:, 2]).all()
    assert (one_by_one.frame_nfe[:, 2] < one_by_one.frame_nfe[:, 1]).all()
    assert one_by_one.frame_nfe.sum() < 0.7 * together.frame_nfe.sum()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tolerance": None}, "per_frame=True needs a tolerance"),
        ({"per_frame": 1}, "per_frame is 1; it must be True or False"),
        ({"start": torch.ones(3, 4)}, r"needs start with frames \(B, T, ...\), got \(3, 4\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    given = {"start": torch.ones(3, 2, 1, 1, 1), "tolerance": 0.1, "per_frame": True, "steps": 2} | arguments
    with pytest.raises(ValueError, match=words):
        descend(Itself(), given.pop("start"), GradientDescent(), **given)


def test_nan_does_not_rest():
    def broken(latents):
        return torch.where(latents < 0.3, torch.nan, latents)

    with pytest.raises(ValueError, match="the gradient at step 2 of 50"):
        descend(broken, torch.ones(2, 1, 1, 1, 1), GradientDescent(0.5), steps=50, tolerance=0.01, per_frame=True)
