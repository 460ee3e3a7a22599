"""Warps: EqF's formulas, and one field's trajectory on another field's steps, on the exact field."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, PiecewiseDecay, TruncatedDecay, gamma_path
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, Adam, Dopri5, Euler, GradientDescent, Heun, Multistep, run
from eqm_video.samplers.levels import path
from eqm_video.samplers.warp import DecayWarp, Identity, LogSNR, Shift, read_warp, warp_text
from eqm_video.sampling.settings import Sampling

SHAPE = (3, 2, 2, 2, 2)  # B, T, C, H, W
WARPS = [Identity(), Shift(3.0), Shift(0.5), LogSNR(9.0, -8.0), DecayWarp(), DecayWarp(LinearDecay(), 0.05)]
every_warp = pytest.mark.parametrize("warp", WARPS, ids=warp_text)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DATA, START = 2 * normal(5, *SHAPE[1:], seed=1), normal(*SHAPE, seed=2)


def told(decay, gammas: Tensor):
    """The exact field of a decay, told these gammas step by step; a callable for `run` without any warp."""

    class Told(OracleField):
        def at_step(self, step):
            return OracleField.at_gamma(self, float(gammas[step]))

    return Told(DATA, decay)


def states(field, sampler, steps: int, **how) -> Tensor:
    kept = []
    run(field, START, sampler, steps=steps, callback=lambda step, latents, _: kept.append(latents.clone()), **how)
    return torch.stack(kept)


@every_warp
@pytest.mark.parametrize("start", [0.0, 0.37])
def test_levels_rise_from_the_start_to_1(warp, start):
    gammas = path(warp, 9, start)
    assert gammas[0] == start
    assert gammas[-1] == 1
    assert bool((gammas.diff() > 0).all())


@pytest.mark.parametrize(
    ("warp", "w"),
    [
        (Identity(), lambda k: torch.ones_like(k)),
        (Shift(3.0), lambda k: (3 - k * 2).square() / 3),
        (Shift(0.5), lambda k: (0.5 + k * 0.5).square() / 0.5),
        (LogSNR(9.0, -8.0), lambda k: 8.5 * k * (1 - k)),
        (DecayWarp(LinearDecay(2.0)), lambda k: k * 2 * torch.log(torch.tensor(100.0, dtype=torch.float64)) / 2),
    ],
    ids=["identity", "shift 3", "shift 0.5", "logsnr", "decay"],
)
def test_the_speed_along_gamma_is_the_formula_of_equilibrium_forcing(warp, w):
    """-dk/ds in the middle of a fine step, k = 1 - gamma, against w(k)."""
    steps = 4000
    k = 1 - path(warp, steps)
    middle, speed = (k[1:] + k[:-1]) / 2, -k.diff() * steps
    inside = slice(steps // 10, steps * 9 // 10)
    torch.testing.assert_close(speed[inside], w(middle[inside]), rtol=3e-3, atol=0)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_the_time_shift_is_stable_diffusion_3_s(start):
    """k(u) = r u / (1 + (r - 1) u) at equal steps of u, from wherever a frame starts."""
    k = 1 - path(Shift(3.0), 8, start)
    u = k / (3 - 2 * k)
    torch.testing.assert_close(u.diff(), u.diff()[:1].expand(8), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [GradientDescent(0.02), NAG(0.02, 0.35)], ids=["gd", "nag"])
@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(3.0), PiecewiseDecay()], ids=repr)
def test_a_velocity_on_the_warp_of_a_decay_walks_as_the_field_of_that_decay(rule, decay):
    """EqF under warp=decay(c) is EqM's own descent, state by state, until the last step (which ends at 1)."""
    steps = 30
    gammas = gamma_path(decay, 0.02, steps)
    own = states(told(decay, gammas), rule, steps)
    warped = states(OracleField(DATA, ConstantDecay()), rule, steps, decay=ConstantDecay(), warp=DecayWarp(decay, 0.02))
    torch.testing.assert_close(warped[:-1], own[:-1], rtol=0, atol=1e-9)
    assert (own[0] - START).abs().max() > 0.05  # it does move


@pytest.mark.parametrize("rule", [GradientDescent(1.0), NAG(1.0, 0.35)], ids=["gd", "nag"])
@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(3.0), PiecewiseDecay(), ConstantDecay(4.0)], ids=repr)
def test_the_field_of_a_decay_on_the_identity_walks_as_the_velocity(rule, decay):
    """EqM's field in steps of equal gamma is EqF's: Euler's method on the velocity."""
    one = ConstantDecay()
    velocity = states(OracleField(DATA, one), rule, 9, decay=one, warp=Identity())
    found = states(OracleField(DATA, decay), rule, 9, decay=decay, warp=Identity())
    torch.testing.assert_close(found, velocity, rtol=0, atol=1e-9)
    if isinstance(rule, GradientDescent):
        torch.testing.assert_close(velocity, states(OracleField(DATA, one), Euler(), 9), rtol=0, atol=1e-9)


@every_warp
@pytest.mark.parametrize("sampler", [GradientDescent(1.0), Euler(), Heun(), Multistep()], ids=str)
def test_every_warp_gives_every_decay_the_path_of_the_velocity(warp, sampler):
    """Told gamma, fields differ by c(gamma) alone; every decay's path is the same, and ends at a data point.

    Heun's slope at the end of the last step is a velocity at gamma = 1, which only a constant decay has.
    """
    ends = [
        run(OracleField(DATA, decay), START, sampler, steps=10, decay=decay, warp=warp).latents
        for decay in (ConstantDecay(3.0), TruncatedDecay(), LinearDecay())
    ]
    torch.testing.assert_close(ends[1], ends[2], rtol=0, atol=1e-9)
    if not isinstance(sampler, Heun):
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-9)
    assert float(torch.cdist(ends[1].flatten(1), DATA.flatten(1)).amin(dim=1).max()) < 0.3


def test_known_frames_and_a_start_between_noise_and_data():
    known = torch.tensor([[True, False], [True, True], [False, False]])
    for sampler in (GradientDescent(1.0), Euler(), Multistep()):
        result = run(
            OracleField(DATA[:1], LinearDecay()),
            0.4 * DATA[:1] + 0.6 * START,
            sampler,
            steps=5,
            start_gamma=0.4,
            decay=LinearDecay(),
            warp=Shift(2.0),
            known=known,
        )
        assert torch.equal(result.latents[known], (0.4 * DATA[:1] + 0.6 * START)[known])
        torch.testing.assert_close(result.latents[2], DATA[0], rtol=0, atol=1e-10)


@every_warp
def test_texts_are_read_back(warp):
    assert read_warp(warp_text(warp)) == warp


def test_texts_and_combinations_that_mean_nothing_are_refused():
    assert read_warp("decay:truncated,a=0.7") == DecayWarp(TruncatedDecay(0.7))
    assert Sampling(warp="shift:3").warp == Shift(3.0)
    for text in ("shft:3", "shift:0", "shift:a", "logsnr:1,2", "identity:3", "decay:none", "", "3"):
        with pytest.raises(UserError, match="it must be identity, shift:R, logsnr:MAX,MIN or decay:KIND"):
            Sampling(warp=text)
    for sampler, says in ((Adam(0.1), "takes no steps in gamma"), (Dopri5(), "has its own steps")):
        with pytest.raises(ValueError, match=says):
            run(lambda latents: latents, START, sampler, steps=2, decay=LinearDecay(), warp=Identity())
    with pytest.raises(ValueError, match="give decay= too"):
        run(lambda latents: latents, START, Euler(), steps=2, warp=Identity())
    with pytest.raises(ValueError, match="both say how long steps are"):
        how = {"decay": LinearDecay(), "warp": Identity(), "schedule": "linear"}
        run(lambda latents: latents, START, GradientDescent(), steps=2, **how)
