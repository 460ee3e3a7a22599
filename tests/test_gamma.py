"""Decays at published points and draws of gamma."""

from __future__ import annotations

import math

import pytest
import torch
from reference_network import expected

from eqm_video.core.decay import DECAYS, ConstantDecay, LinearDecay, PiecewiseDecay, TruncatedDecay, check_decay
from eqm_video.core.gamma import (
    GAMMA_DRAWS,
    MODES,
    ContextGamma,
    MixtureGamma,
    PerFrameGamma,
    SharedGamma,
    draw_gamma,
    gamma_modes,
)
from eqm_video.randomness import generator


def draws(rule, frames: int, count: int = 400) -> torch.Tensor:
    return draw_gamma(rule, frames, [generator("test", index) for index in range(count)])


def test_truncated_decay_has_the_published_values():
    gamma = torch.tensor([0, 0.2, 0.5, 0.8, 0.9, 1], dtype=torch.float64)
    values = TruncatedDecay(a=0.8, gain=4.0)(gamma)
    torch.testing.assert_close(values, torch.tensor([4, 4, 4, 4, 2, 0], dtype=torch.float64), rtol=0, atol=1e-14)


def test_truncated_decay_equals_the_reference():
    data = expected()
    torch.testing.assert_close(TruncatedDecay()(data["c_gamma_grid"]), data["c_gamma"], rtol=1e-9, atol=1e-12)


def test_linear_and_constant_decays():
    gamma = torch.tensor([0, 0.25, 1], dtype=torch.float64)
    assert LinearDecay(gain=4)(gamma).tolist() == [4, 3, 0]
    assert ConstantDecay(gain=2)(gamma).tolist() == [2, 2, 2]


def test_piecewise_decay_joins_its_three_points_by_lines():
    gamma = torch.tensor([0, 0.3, 0.6, 0.8, 1], dtype=torch.float64)
    values = PiecewiseDecay(a=0.6, b=3.0, gain=2.0)(gamma)
    torch.testing.assert_close(values, torch.tensor([6, 4, 2, 1, 0], dtype=torch.float64), rtol=0, atol=1e-14)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(PiecewiseDecay(a=0.8, b=1.0)(grid), TruncatedDecay(a=0.8)(grid))


@pytest.mark.parametrize("decay", [LinearDecay(), TruncatedDecay(), PiecewiseDecay()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_data_are_at_rest_under_every_equilibrium_decay(decay, dtype):
    values = decay(torch.ones(2, 3, dtype=dtype))
    assert values.dtype == dtype
    assert values.shape == (2, 3)
    assert (values == 0).all()
    assert check_decay(decay) is decay


def test_check_decay_takes_any_callable_that_vanishes_at_data():
    check_decay(lambda gamma: torch.cos(gamma * math.pi / 2))  # 6e-17 at 1
    check_decay(lambda gamma: (1 - gamma.float()) ** 2)


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (ConstantDecay(), "at gamma 1"),
        (lambda gamma: torch.ones_like(gamma), "at gamma 1"),
        (lambda gamma: 0.5 - gamma, "at gamma 0.505"),
        (lambda gamma: (1 - gamma) / gamma, "inf at gamma 0"),
        (lambda gamma: 0 * gamma, "0 everywhere"),
        (lambda gamma: (1 - gamma).sum(), "shape"),
        (lambda gamma: 0.0, "shape"),
        (0.8, "callable"),
    ],
)
def test_check_decay_refuses(decay, words):
    with pytest.raises(ValueError, match=words):
        check_decay(decay)


def test_only_the_constant_decay_is_exempt_and_only_when_allowed():
    check_decay(ConstantDecay(), allow_constant=True)
    with pytest.raises(ValueError, match="at gamma 1"):
        check_decay(lambda gamma: torch.ones_like(gamma), allow_constant=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TruncatedDecay(a=1.0),
        lambda: TruncatedDecay(a=-0.1),
        lambda: TruncatedDecay(a="0.8"),
        lambda: TruncatedDecay(gain=0),
        lambda: LinearDecay(gain=math.nan),
        lambda: PiecewiseDecay(a=0.0),
        lambda: PiecewiseDecay(b=-1.0),
        lambda: ConstantDecay(gain=True),
        lambda: MixtureGamma(shared=0.9),
        lambda: MixtureGamma(shared=1.5, context=-0.5, per_frame=0.0),
        lambda: ContextGamma(patterns=("prefixes",)),
        lambda: ContextGamma(patterns=()),
        lambda: SharedGamma().draw(0, generator(1)),
        lambda: draw_gamma(SharedGamma(), 4, []),
        lambda: ContextGamma(("ends",)).draw(2, generator(1)),
    ],
)
def test_wrong_values_are_refused(make):
    with pytest.raises(ValueError, match=r"must|needs|give|sum to"):
        make()


def test_tables_name_the_classes():
    assert DECAYS["truncated"](a=0.5, gain=1.0) == TruncatedDecay(0.5, 1.0)
    assert set(DECAYS) == {"linear", "truncated", "piecewise", "constant"}
    assert set(GAMMA_DRAWS) == {"shared", "per_frame", "context", "mixture"}
    assert ContextGamma(patterns=["ends"]) == ContextGamma(patterns=("ends",))  # as YAML gives it


def test_shared_gammas_are_equal_in_a_clip_and_uniform_over_clips():
    gamma = draws(SharedGamma(), 5, count=2000)
    assert gamma.dtype == torch.float32
    assert (gamma == gamma[:, :1]).all()
    quantiles = gamma[:, 0].sort().values
    assert (quantiles - torch.linspace(0, 1, 2000)).abs().max() < 0.04  # Kolmogorov-Smirnov: 1.8 / sqrt(n)


def test_per_frame_gammas_are_independent():
    gamma = draws(PerFrameGamma(), 3, count=2000)
    assert torch.corrcoef(gamma.T).fill_diagonal_(0).abs().max() < 0.08
    assert (gamma.mean(0) - 0.5).abs().max() < 0.03


def test_context_prefix_leaves_a_shared_draw_after_k_clean_frames():
    gamma = draws(ContextGamma(("prefix",)), 5)
    clean = gamma == 1
    lengths = clean.sum(1)
    assert lengths.max() == 4
    assert lengths.bincount(minlength=5).min() > 55  # 80 expected of each: none known is generation
    assert (clean == (torch.arange(5) < lengths[:, None])).all()
    rest = gamma[:, -1:].expand(-1, 5)
    assert (gamma[~clean] == rest[~clean]).all()


def test_context_ends_and_subset():
    clean = draws(ContextGamma(("ends",)), 4) == 1
    assert clean.all(dim=0).tolist() == [True, False, False, True]
    assert clean.any(dim=0).tolist() == [True, False, False, True]
    clean = draws(ContextGamma(("subset",)), 2, count=900) == 1
    counts = (clean * torch.tensor([1, 2])).sum(1).bincount(minlength=4)
    assert counts[3] == 0  # never all
    assert counts[:3].min() > 240  # 300 expected of each: none, the first, the second


def test_context_takes_each_of_its_patterns():
    clean = draws(ContextGamma(("prefix", "ends")), 6) == 1
    assert 130 < clean[:, -1].sum() < 270  # only "ends" keeps the last frame; 200 expected


def test_two_frames_never_take_the_pattern_that_would_leave_none():
    """Patterns that fit share out the draws; from 3 frames on every pattern does, and nothing changes."""
    for patterns in (("prefix", "ends"), ("ends", "prefix", "ends")):
        assert torch.equal(draws(ContextGamma(patterns), 2) == 1, draws(ContextGamma(("prefix",)), 2) == 1)
    assert not (draws(MixtureGamma(), 2) == 1).all(dim=1).any()
    gammas = []
    for index in range(50):
        source = generator("test", index)
        shared, place = torch.rand(1, generator=source), int(torch.randint(0, 2, (1,), generator=source))
        clean = torch.zeros(5, dtype=torch.bool)
        clean[[0, -1]] = place == 1
        if place == 0:
            clean[: int(torch.randint(0, 5, (1,), generator=source))] = True
        gammas.append(torch.where(clean, 1.0, shared))
    assert torch.equal(torch.stack(gammas), draws(ContextGamma(("prefix", "ends")), 5, count=50))


def test_mixture_takes_its_modes_with_their_probabilities():
    gamma = draws(MixtureGamma(shared=0.5, context=0.3, per_frame=0.2, patterns=("prefix",)), 4, count=2000)
    context = (gamma == 1).any(dim=1)
    shared = (gamma == gamma[:, :1]).all(dim=1)
    assert abs(context.float().mean() - 0.3 * 3 / 4) < 0.04  # of the prefixes of 4 frames, one in four is empty
    assert abs(shared.float().mean() - 0.5 - 0.3 / 4) < 0.04
    assert draws(MixtureGamma(shared=0.0, context=0.0, per_frame=1.0), 4).unique().numel() > 1590


def test_a_single_frame_takes_the_same_uniform_draw_in_every_mode():
    kinds = [SharedGamma(), PerFrameGamma(), MixtureGamma(patterns=("ends",))]
    kinds += [ContextGamma((pattern,)) for pattern in ("prefix", "ends", "subset")]
    rows = [draws(kind, 1, count=50) for kind in kinds]
    assert rows[0].shape == (50, 1)
    assert rows[0].max() < 1
    for row in rows[1:]:
        assert torch.equal(row, rows[0])


@pytest.mark.parametrize("kind", list(GAMMA_DRAWS))
def test_a_clip_has_its_gammas_whatever_its_batch(kind):
    rule = GAMMA_DRAWS[kind]()
    batch = draw_gamma(rule, 6, [generator(3, index) for index in range(8)])
    alone = draw_gamma(rule, 6, [generator(3, 5)])
    assert torch.equal(batch[5:6], alone)
    assert batch.unique(dim=0).shape[0] == 8


def test_the_mode_of_a_clip_is_read_from_its_gammas():
    rows = [[0.5, 0.5, 0.5], [1.0, 0.5, 0.5], [0.5, 0.2, 1.0], [0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [0.5, 0.5, 0.4]]
    modes = [MODES[mode] for mode in gamma_modes(torch.tensor(rows))]
    assert modes == ["shared", "context", "context", "per_frame", "shared", "per_frame"]
    assert gamma_modes(torch.rand(4, 1)).tolist() == [0] * 4
    generators = [torch.Generator().manual_seed(seed) for seed in range(400)]
    drawn = gamma_modes(
        draw_gamma(MixtureGamma(shared=0.5, context=0.3, per_frame=0.2, patterns=("prefix",)), 4, generators)
    )
    counts = torch.bincount(drawn, minlength=3) / 400
    # A prefix of no frame at all, one context in four, is a clip of shared gammas.
    assert torch.allclose(counts, torch.tensor([0.5 + 0.075, 0.225, 0.2]), atol=0.06)
