"""The multistep rule and the levels it steps by: closed forms, order 2 on the exact field, and frames that start apart.

A `Sharp` field is the exact field told the gamma of every frame, as a callable that counts what it is told.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_pipeline, tiny_transformer
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, PiecewiseDecay, ScaledDecay, TruncatedDecay
from eqm_video.core.objective import interpolate
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, Euler, Multistep, Route, descend, frame_moves, run
from eqm_video.samplers.levels import Levels
from eqm_video.samplers.warp import Identity
from eqm_video.sampling.arguments import own_walk
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.adaptive import own_settings
from eqm_video.training.config import load_config

SHAPE = (3, 2, 2, 2, 2)  # B, T, C, H, W
DECAYS = [ConstantDecay(), ConstantDecay(4.0), TruncatedDecay(), LinearDecay(), PiecewiseDecay(a=0.5, b=3.0)]
every_decay = pytest.mark.parametrize("decay", DECAYS, ids=repr)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DATA, START = 2 * normal(5, *SHAPE[1:], seed=1), normal(*SHAPE, seed=2)


def state_at(sampler, decay, steps: int) -> Tensor:
    """State of a descent along the exact field at gamma = 0.9: later every sampler has found its clip."""
    kept = {}
    run(
        OracleField(DATA, decay),
        START,
        sampler,
        steps=steps,
        decay=decay,
        callback=lambda step, latents, _: kept.update({step + 1: latents.clone()}),
    )
    return kept[steps * 9 // 10]


@every_decay
def test_the_rule_is_of_order_2_on_the_exact_field(decay):
    """Twice the steps, a quarter of the error, whatever the decay: measured 3.9 to 4.2."""
    fine = state_at(Multistep(), decay, 640)
    coarse = [float((state_at(Multistep(), decay, steps) - fine).square().mean().sqrt()) for steps in (40, 80)]
    assert 3.5 < coarse[0] / coarse[1] < 4.6
    assert coarse[0] < 4e-3


def test_few_steps_are_nearer_than_euler_s():
    """Against a fine solution of the exact flow: at 10, 20 and 40 evaluations, by a growing factor."""
    fine = state_at(Multistep(), ConstantDecay(), 640)
    for steps, factor in ((10, 1.5), (20, 3), (40, 6)):
        two, one = (
            float((state_at(sampler, ConstantDecay(), steps) - fine).square().mean().sqrt())
            for sampler in (Multistep(), Euler())
        )
        assert two < one / factor


@every_decay
def test_every_decay_gives_the_path_of_the_velocity(decay):
    """Told its gamma, the exact field of each decay is c(gamma) times one velocity, so the latents agree."""
    velocity = run(OracleField(DATA, ConstantDecay()), START, Multistep(), steps=7, decay=ConstantDecay()).latents
    found = run(OracleField(DATA, decay), START, Multistep(), steps=7, decay=decay).latents
    torch.testing.assert_close(found, velocity, rtol=0, atol=1e-12)
    doubled = lambda latents: 2 * OracleField(DATA, decay)(latents)  # noqa: E731
    torch.testing.assert_close(
        run(doubled, START, Multistep(), steps=7, decay=ScaledDecay(decay, 2.0)).latents,
        run(lambda latents: OracleField(DATA, decay)(latents), START, Multistep(), steps=7, decay=decay).latents,
    )


def test_the_steps_are_those_of_adams_and_bashforth():
    """By hand, for the velocity x - 1 in four steps of 1/4, of which the first and the last are Euler's."""
    x = [torch.full((1, 1, 1, 1, 1), 3.0, dtype=torch.float64)]
    v = [x[0] - 1]
    for weights in ((1.0, 0.0), (1.5, -0.5), (1.5, -0.5), (1.0, 0.0)):
        x.append(x[-1] - 0.25 * (weights[0] * v[-1] + (weights[1] * v[-2] if len(v) > 1 else 0)))
        v.append(x[-1] - 1)
    result = run(lambda latents: latents - 1, x[0], Multistep(), steps=4, decay=ConstantDecay())
    torch.testing.assert_close(result.latents, x[-1], rtol=0, atol=1e-15)
    one = run(lambda latents: latents - 1, x[0], Multistep(), steps=1, decay=ConstantDecay())
    torch.testing.assert_close(one.latents, x[0] - v[0], rtol=0, atol=1e-15)  # a single step is Euler's whole way


@every_decay
def test_the_last_step_ends_at_the_clip_that_the_field_predicts(decay):
    """One data point: every number of steps ends at it, and nothing is divided by c(1) = 0."""
    only = DATA[:1]
    for steps in (1, 2, 3, 12):
        found = run(OracleField(only, decay), START, Multistep(), steps=steps, decay=decay).latents
        torch.testing.assert_close(found, only.expand_as(found), rtol=0, atol=1e-10)


def test_frames_start_apart_and_known_ones_are_at_1():
    """Each frame is told its own gamma: an even share of its own rest of the way at every step."""
    told, decay = [], TruncatedDecay()

    class Watched(OracleField):
        def at_gamma(self, gamma):
            told.append(gamma.clone())
            return super().at_gamma(gamma)

    begin = torch.tensor([[0.0, 0.5], [0.2, 0.0], [0.9, 0.4]], dtype=torch.float64)
    known = torch.tensor([[False, False], [False, True], [False, False]])
    clean = DATA[:1].expand_as(START)
    start = interpolate(clean, START, begin.masked_fill(known, 1.0))
    route = Route(decay, Identity(), begin)
    result = descend(Watched(DATA[:1], decay), start, Multistep(), steps=4, known=known, route=route)
    share = torch.arange(4, dtype=torch.float64)[:, None, None] / 4
    exact = (begin + (1 - begin) * share).masked_fill(known, 1.0)
    torch.testing.assert_close(torch.stack(told), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.latents, clean, rtol=0, atol=1e-10)
    assert torch.equal(result.latents[known], start[known])


def test_frames_that_wait_take_all_their_steps_later():
    """A pyramid: every frame makes its own 4 steps from 0 to 1, told where it stands, the first of them Euler's."""
    told, decay = [], LinearDecay()

    class Watched(OracleField):
        def at_gamma(self, gamma):
            told.append(gamma.clone())
            return super().at_gamma(gamma)

    moves = frame_moves(2, 4, torch.ones(3, 2, dtype=torch.bool))
    result = descend(
        Watched(DATA[:1], decay), START, Multistep(), steps=6, moves=moves, route=Route(decay), callback=None
    )
    steps = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 1], [4, 2], [4, 3]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(told)[:, 0], steps / 4, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.latents, DATA[:1].expand_as(START), rtol=0, atol=1e-10)
    assert result.frame_nfe.tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_tolerance_stops_what_is_at_rest(per_frame):
    """Frames of an equilibrium field that start at the data rest at once; the others take their steps."""
    decay, known_field = TruncatedDecay(), OracleField(DATA[:1], TruncatedDecay(), frame_wise=True)
    start = START.clone()
    start[0], start[1, 0] = DATA[0], DATA[0, 0]
    result = run(
        lambda latents: known_field(latents),
        start,
        Multistep(),
        steps=30,
        decay=decay,
        tolerance=0.05,
        per_frame=per_frame,
    )
    assert result.nfe[0] == 1
    assert result.frame_nfe[1, 0] == (1 if per_frame else result.nfe[1])
    assert (result.latents - DATA[:1]).square().mean().sqrt() < 0.02


def test_levels_add_up_to_1_and_stay_there():
    levels = Levels(Route(LinearDecay(), start_gamma=0.3), START, None, 5)
    rows, walking = torch.arange(3), torch.ones(3, 2, dtype=torch.bool)
    steps = [levels.take(rows, walking) for _ in range(6)]
    assert [bool(step.last.all()) for step in steps] == [False] * 4 + [True, False]
    torch.testing.assert_close(sum(step.size for step in steps), torch.full((3, 2), 0.7, dtype=torch.float64))
    assert bool((levels.at(rows) == 1).all())
    assert bool((steps[-1].eta == 0).all())  # past the end nothing moves, and 0 / c(1) is no number


def test_what_cannot_be_stepped_is_refused():
    with pytest.raises(ValueError, match=r"divides the field by its decay.*give decay=, such as TruncatedDecay"):
        run(lambda latents: latents, START, Multistep(), steps=2)
    with pytest.raises(ValueError, match=r"start_gamma is 1.0; it must be a number in \[0, 1\)"):
        run(lambda latents: latents, START, Multistep(), steps=2, decay=LinearDecay(), start_gamma=1.0)
    with pytest.raises(ValueError, match="both say how long steps are"):
        run(lambda latents: latents, START, Multistep(), steps=2, decay=LinearDecay(), schedule="linear")
    with pytest.raises(ValueError, match=r"call run\(..., decay=...\)"):
        Multistep().update(START, START, Multistep().start(START))


# ------------------------------------------------------------------------------------------------------- of a model


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_model_of_any_kind_takes_few_steps(conditioned):
    """12 evaluations unless a call says otherwise, with guidance, known frames and frames in turn; told or not."""
    pipe = tiny_pipeline(tiny_transformer(conditioned_on_gamma=conditioned), decay={"kind": "truncated"})
    plain = pipe(["up", "down"], sampler="multistep", seeds=[0, 1], output_type="latent")
    assert plain.nfe.tolist() == [12, 12]
    assert pipe("up", sampler="multistep", steps=5, seeds=[0], output_type="latent").nfe.tolist() == [5]
    given = torch.randn(plain.frames.shape, generator=torch.Generator().manual_seed(1))
    how = {"sampler": "multistep", "steps": 4, "seeds": [0, 1], "guidance_scale": 2.0, "output_type": "latent"}
    kept = pipe(["up", "down"], clips=given, known=[0], start_gamma=0.5, frame_schedule="pyramid", **how)
    assert torch.equal(kept.frames[:, 0], given[:, 0])
    assert kept.frame_nfe[:, 0].tolist() == [0, 0]
    assert bool((kept.frame_nfe[:, 1:] == 4).all())
    twice = pipe(["up", "down"], clips=given, known=[0], start_gamma=0.5, frame_schedule="pyramid", **how)
    assert torch.equal(kept.frames, twice.frames)


def test_a_plain_sum_of_fields_takes_the_same_steps_as_one():
    pipe = tiny_pipeline(decay={"kind": "linear"})
    how = {"sampler": "multistep", "steps": 4, "seeds": [0], "output_type": "latent"}
    one, double = pipe("up", **how).frames, [("up", 1.0), ("up", 1.0)]
    torch.testing.assert_close(pipe(composition=double, plain_sum=True, **how).frames, one, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="weights of this plain sum add up to -1"):
        pipe(composition=[("up", 1.0), ("down", -2.0)], plain_sum=True, **how)


def test_a_model_that_does_not_say_its_decay_is_refused():
    with pytest.raises(UserError, match=r"divides the field by the decay .* take another sampler, such as nag"):
        tiny_pipeline(decay=None)("up", sampler="multistep")
    with pytest.raises(UserError, match="sampler 'multistep' has no step_size: leave it out"):
        tiny_pipeline()("up", sampler="multistep", step_size=0.1)


def test_a_model_that_recommends_it_still_walks_as_the_paper_does():
    """Exports with multistep as their own sampler: nag is the paper's by name alone, and studies of walks run."""
    own = {"kind": "multistep", "steps": 12, "guidance_scale": 1.0}
    pipe = tiny_pipeline(sampler=own)
    assert Sampling().on(pipe).record()["sampler"] == {"kind": "multistep"} and Sampling().on(pipe).steps == 12
    paper = Sampling(sampler="nag").on(pipe)
    assert (paper.sampler, paper.steps) == (NAG(0.003, 0.35), 250)
    assert Sampling(sampler="euler").on(pipe).steps == 12
    assert own_settings(pipe) == [(250, 0.003), (1000, 0.00075)]
    with pytest.raises(UserError, match="'euler' has no step size"):
        own_walk({"kind": "euler", "steps": 4})
    for name in ("own_videos", "own_videos_cpu"):
        sampler = load_config(name).sampler
        assert (sampler.rule, sampler.steps) == (Multistep(), 12)
