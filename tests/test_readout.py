"""Estimates of gamma: exact for a field that is certain of its data, right on average for any other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eqm_video.analysis.exact_field import OracleField
from eqm_video.analysis.gamma_estimate import _open_from, calibrate, frame_dot, frame_rms, infer_gamma, saturation
from eqm_video.core.decay import ConstantDecay, LinearDecay, PiecewiseDecay, TruncatedDecay
from eqm_video.core.objective import EqMObjective, interpolate
from eqm_video.output.overlays import MOVING, RESTING, TRACK, bar_height, draw_gamma_bars

FALLING = [LinearDecay(), TruncatedDecay(), TruncatedDecay(a=0.8123), PiecewiseDecay(b=1.4), PiecewiseDecay(b=0.6)]


@pytest.mark.parametrize(("decay", "expected"), list(zip(FALLING, (0.0, 0.8, 0.8123, 0.0, 0.8), strict=True)), ids=repr)
def test_saturation_is_the_gamma_from_which_the_decay_falls(decay, expected):
    assert saturation(decay) == pytest.approx(expected, abs=1e-6)


def test_a_field_that_never_rests_is_refused():
    with pytest.raises(ValueError, match="does not fall towards gamma 1"):
        saturation(ConstantDecay())


@pytest.mark.parametrize("decay", FALLING, ids=repr)
def test_the_size_of_a_known_target_reads_back_its_gamma_or_at_most(decay):
    gamma = torch.linspace(0, 1, 81, dtype=torch.float64).reshape(3, 27)
    read = infer_gamma(decay(gamma) * 1.3, decay, 1.3)
    saturated, knee = decay(gamma) >= _open_from(decay), saturation(decay)
    torch.testing.assert_close(read[~saturated], gamma[~saturated], rtol=0, atol=1e-9)
    assert (read[saturated] >= gamma[saturated] - 1e-9).all()
    assert saturated[gamma < knee].all()  # below, size alone never pretends to know
    full = torch.full((1, 1), 9.0)
    assert float(infer_gamma(full, decay, 1.3)) == pytest.approx(knee, abs=1e-6)


@pytest.mark.parametrize("decay", FALLING, ids=repr)
def test_direction_and_size_of_a_known_target_together_read_every_gamma(decay):
    gamma, scale = torch.linspace(0, 1, 81, dtype=torch.float64)[None], 1.3
    rms, dot = decay(gamma) * scale, decay(gamma) * (1 - gamma * scale**2)
    clear = (gamma <= saturation(decay)) | (decay(gamma) < _open_from(decay))  # between: the dot turns round
    torch.testing.assert_close(infer_gamma(rms, decay, scale, dot=dot)[clear], gamma[clear], rtol=0, atol=2e-3)
    unsure = infer_gamma(0.87 * rms, decay, scale, dot=dot)  # shorter than the target, the dot as it was
    before = gamma < saturation(decay)
    torch.testing.assert_close(unsure[before], gamma[before], rtol=0, atol=2e-3)


def test_one_point_reads_back_its_gamma_within_the_oracles_own_deviation():
    clean, noise = torch.randn(1, 4, 4, 16, 16), torch.randn(6, 4, 4, 16, 16)  # 1024 numbers a frame
    gamma = torch.linspace(0, 1, 24, dtype=torch.float64).reshape(6, 4)
    noisy = interpolate(clean.expand(6, -1, -1, -1, -1).double(), noise.double(), gamma)
    decay, scale = TruncatedDecay(), calibrate(clean)
    gradient = OracleField(clean, decay, frame_wise=True)(noisy)
    rms, dot = frame_rms(gradient), frame_dot(noisy, gradient)
    by_size, by_both = infer_gamma(rms, decay, scale), infer_gamma(rms, decay, scale, dot=dot)
    late = gamma > 0.86
    assert late.sum() >= 3
    assert (by_size - gamma)[late].abs().max() < 0.02
    assert torch.equal(by_size[late], by_both[late])
    assert (by_size >= gamma - 0.02).all()  # "at most"
    # sqrt(2 / 1024) / S^2 is 0.022 for a single frame
    assert (by_both - gamma).abs().max() < 0.08
    assert (by_both - gamma).mean().abs() < 0.02


def test_direction_reads_gamma_where_size_cannot_even_if_the_data_are_uncertain():
    """The mean prediction over many data keeps <latents, target>, however short it is."""
    torch.manual_seed(0)
    data, count = torch.randn(6, 1, 2, 4, 4, dtype=torch.float64), 600
    decay, scale = TruncatedDecay(), calibrate(data)
    gamma = torch.full((count, 1), 0.35, dtype=torch.float64)
    clean, noise = data[torch.arange(count) % 6], torch.randn(count, 1, 2, 4, 4, dtype=torch.float64)
    noisy = interpolate(clean, noise, gamma)
    gradient = OracleField(data, decay)(noisy)
    assert frame_rms(gradient).mean() < 0.99 * frame_rms(EqMObjective(decay).target(clean, noise, gamma)).mean()
    rms, dot = frame_rms(gradient), frame_dot(noisy, gradient)
    assert infer_gamma(rms, decay, scale).mean() > 0.75
    read = infer_gamma(rms, decay, scale, dot=dot)
    assert read.mean() == pytest.approx(0.35, abs=0.04)


def test_scale_is_that_of_noise_minus_data():
    data, noise = 0.7 * torch.randn(64, 2, 4, 8, 8) + 0.3, torch.randn(64, 2, 4, 8, 8)
    assert calibrate(data) == pytest.approx(float((noise - data).square().mean().sqrt()), rel=0.02)
    assert calibrate(torch.zeros(1, 1, 1, 2, 2)) == 1.0
    for wrong in (0.5, math.nan, True):
        with pytest.raises(ValueError, match="measure it with calibrate"):
            infer_gamma(torch.ones(1, 1), TruncatedDecay(), wrong)
    with pytest.raises(ValueError, match="infinite or NaN"):
        calibrate(torch.full((1, 1, 1, 1, 1), math.nan))
    with pytest.raises(ValueError, match="both be"):
        infer_gamma(torch.ones(2, 1), TruncatedDecay(), 1.4, dot=torch.ones(1, 1))


# Bars ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 256])
def test_bars_are_as_long_as_gamma(size):
    gammas = np.array([[0.0, 0.25, 0.5, 0.75], [0.9, 0.995, 1.0, 2.0]])
    clips = np.full((2, 4, size, size, 3), 90, np.uint8)
    drawn = draw_gamma_bars(clips, gammas)
    gap, thick = bar_height(size)
    assert drawn.shape == (2, 4, size + gap + thick, size, 3)
    assert (drawn[:, :, :size] == 90).all() and (drawn[:, :, size : size + gap] == 255).all()
    inset = max(1, size // 64)
    bar = drawn[:, :, size + gap + thick // 2, inset : size - inset].astype(float)
    colours = np.where((gammas >= 0.99)[..., None], np.array(RESTING, float), np.array(MOVING, float))
    red = (np.array(TRACK, float)[0] - bar[..., 0]) / (TRACK[0] - colours[:, :, None, 0])
    assert red.mean(axis=2) == pytest.approx(gammas.clip(0, 1), abs=0.01)


def test_bars_of_wrong_shapes_are_named():
    clips = np.zeros((1, 2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"gammas must be \(B, T\) = \(1, 2\)"):
        draw_gamma_bars(clips, [[0.8]])
    with pytest.raises(ValueError, match="NaN"):
        draw_gamma_bars(clips, [[0.8, math.nan]])
    with pytest.raises(ValueError, match="uint8"):
        draw_gamma_bars(clips / 255, [[0.8, 0.5]])
