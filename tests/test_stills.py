"""Procedural stills: reproducible, varied, and with the spectrum that makes them stand in for photographs."""

from __future__ import annotations

import numpy as np

from eqm_video.data.dead_leaves import dead_leaves, fractal_noise, random_colour


def test_same_seed_same_picture() -> None:
    first, second = (dead_leaves(np.random.default_rng(3), 48, 64) for _ in range(2))
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, dead_leaves(np.random.default_rng(4), 48, 64))


def test_spectrum_falls_as_that_of_photographs() -> None:
    rng = np.random.default_rng(0)
    power = 0.0
    for _ in range(16):
        grey = dead_leaves(rng, 64, 64).mean(axis=-1)
        power = power + abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    rings = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    slopes = np.diff(np.log2(rings))
    assert all(-4.0 < slope < -0.8 for slope in slopes), slopes  # photographs: about -2, white noise: 0


def test_colours_cover_the_cube() -> None:
    rng = np.random.default_rng(0)
    colours = np.stack([random_colour(rng) for _ in range(2000)])
    assert colours.min() >= 0 and colours.max() <= 1
    corners = {tuple(corner) for corner in (colours > 0.5).astype(int).tolist()}
    assert len(corners) == 8
    assert np.median(np.ptp(colours, axis=1)) < 0.6  # most are muted


def test_fractal_noise_is_normalized() -> None:
    noise = fractal_noise(np.random.default_rng(0), 32, 48, 1.0)
    assert noise.shape == (32, 48)
    assert abs(noise.mean()) < 1e-9 and abs(noise.std() - 1) < 1e-6
