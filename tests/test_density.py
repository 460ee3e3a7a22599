"""Densities of gamma: closed forms, clean frames that stay clean, and recipes that name them."""

from __future__ import annotations

import pytest
import torch

from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.density import DENSITIES, Beta, DecayDensity, LogitNormal, Uniform
from eqm_video.core.gamma import GAMMA_DRAWS, SharedGamma, draw_gamma
from eqm_video.core.objective import EqMObjective, objective_name
from eqm_video.errors import UserError
from eqm_video.randomness import generator
from eqm_video.training.config import Config, load_config, parse_config
from eqm_video.training.strict_yaml import to_tree

EVEN = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000  # a stratified sample of the uniform density


@pytest.mark.parametrize("kind", DENSITIES)
def test_gammas_rise_with_the_uniform_number_and_stay_below_1(kind):
    density = DENSITIES[kind]()
    numbers = torch.tensor([0.0, 1e-7, 0.3, 0.7, 1 - 2.0**-24])
    found = density(numbers)
    assert found.dtype == torch.float32
    assert bool((found.diff() > 0).all())
    assert float(found[0]) >= 0 and float(found[-1]) < 1


@pytest.mark.parametrize(
    ("density", "mean", "square"),
    [
        (Uniform(), 1 / 2, 1 / 3),
        (Beta(1.5, 1.0), 0.6, 1.5 / 3.5),
        (Beta(0.5, 2.0), 0.2, 0.5 * 1.5 / (2.5 * 3.5)),
        (LogitNormal(0.0, 1e-6), 0.5, 0.25),
        (DecayDensity(LinearDecay(7.0)), 1 / 4, 1 / 10),  # p = 3 (1 - gamma)^2
        (DecayDensity(ConstantDecay()), 1 / 2, 1 / 3),
        # p ~ 1 up to a = 0.8, then ((1 - gamma) / 0.2)^2: mass 0.8 + 0.2 / 3
        (DecayDensity(TruncatedDecay()), (0.32 + 0.2 / 3 * 0.85) / (0.8 + 0.2 / 3), None),
    ],
)
def test_moments_are_those_of_the_density(density, mean, square):
    found = density(EVEN)
    assert float(found.mean()) == pytest.approx(mean, abs=2e-4)
    if square is not None:
        assert float(found.square().mean()) == pytest.approx(square, abs=2e-4)


def test_logits_of_the_logit_normal_are_normal():
    logits = torch.logit(LogitNormal(0.7, 1.3)(EVEN))
    assert float(logits.mean()) == pytest.approx(0.7, abs=1e-3)
    assert float(logits.std()) == pytest.approx(1.3, abs=2e-3)


def test_the_velocity_drawn_by_a_decay_has_the_loss_of_its_equilibrium_field():
    """E_uniform |c v' - c v|^2 = E[c^2] E_density |v' - v|^2, for a wrong velocity v' = v + gamma."""
    decay = TruncatedDecay(0.6, 3.0)
    clean, noise = (torch.randn(20000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    losses = []
    for gamma, c in ((EVEN, decay), (DecayDensity(decay)(EVEN), ConstantDecay())):
        gamma = gamma[:, None]
        wrong = (noise - clean + gamma[..., None, None, None]) * c(gamma)[..., None, None, None]
        losses.append(float(EqMObjective(c).loss(wrong, clean, noise, gamma).mean()))
    scale = float(decay(EVEN).square().mean())
    assert losses[0] == pytest.approx(scale * losses[1], rel=1e-4)


@pytest.mark.parametrize("draw", GAMMA_DRAWS)
def test_a_draw_is_its_uniform_one_put_through_the_density_and_clean_frames_stay_clean(draw):
    sources = lambda: [generator("density", clip) for clip in range(60)]  # noqa: E731
    plain = draw_gamma(GAMMA_DRAWS[draw](), 4, sources())
    bent = draw_gamma(GAMMA_DRAWS[draw](density=Beta(2.0, 1.0)), 4, sources())
    clean = plain == 1
    assert torch.equal(bent == 1, clean)
    torch.testing.assert_close(bent[~clean], plain[~clean].sqrt(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wrong", "says"), [(lambda: Beta(0), "a is 0"), (lambda: LogitNormal(0, -1), "std is -1")])
def test_wrong_numbers_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


def test_recipes_name_densities_of_every_draw():
    config = load_config(None, ["gamma=mixture", "gamma.density.kind=logit_normal", "gamma.density.mean=0.5"])
    assert config.gamma.density == LogitNormal(0.5, 1.0)
    whole = load_config(None, ["gamma={kind: shared, density: {kind: decay, decay: {kind: truncated, a: 0.7}}}"])
    assert whole.gamma == SharedGamma(DecayDensity(TruncatedDecay(0.7)))
    assert parse_config(to_tree(whole)) == whole
    assert load_config(None, ["gamma.density=beta"]).gamma.density == Beta()
    assert Config().gamma.density == Uniform()
    with pytest.raises(UserError, match=r"gamma.density.kind: 'bta' is not one of uniform, .*did you mean 'beta'"):
        load_config(None, ["gamma.density=bta"])
    with pytest.raises(UserError, match="kind 'beta' does not know it, it has a, b"):
        load_config(None, ["gamma.density={kind: beta, c: 1}"])
    with pytest.raises(UserError, match=r"gamma.density: Beta: a is -1"):
        load_config(None, ["gamma.density={kind: beta, a: -1}"])


def test_objectives_have_names_and_keep_to_them():
    forcing = load_config(None, ["objective=forcing"])
    assert (forcing.objective_name, forcing.objective.decay) == ("forcing", ConstantDecay(1.0))
    assert load_config(None, ["objective=flow", "model.conditioned_on_gamma=true"]).objective_name == "flow"
    assert Config().objective_name == "eqm" == objective_name(LinearDecay(), conditioned=True)
    assert load_config(None, ["objective=forcing", "objective=eqm"]).objective == Config().objective
    with pytest.raises(UserError, match=r"name is forcing, but .*conditioned_on_gamma=true is flow: add objective.dec"):
        load_config(None, ["objective=forcing", "model.conditioned_on_gamma=true"])
    with pytest.raises(UserError, match=r"objective.name is flow, but .*TruncatedDecay.* is eqm"):
        load_config(None, ["objective.name=flow"])
