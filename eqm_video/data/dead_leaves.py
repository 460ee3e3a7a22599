"""Procedural still images: licence-free pictures with the statistics of photographs.

A *dead leaves* model (Mandelbrot's; Lee, Mumford & Huang 2001): opaque shapes with power-law sizes fall on each other
until they cover the picture. An autoencoder learns edges, occlusion, textures and smooth shading at every scale from
them, and can then reconstruct photographs. The bundled codec is trained on them.

Legend: H W height and width of the picture in pixels; colours are RGB in [0, 1] until the last line.
"""

from __future__ import annotations

import numpy as np

SUPERSAMPLING = 2  # shapes are drawn this much larger and averaged down, which antialiases their edges


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """An RGB colour (3,) in [0, 1]: mostly wide in brightness and muted in hue, as photographs are; or any colour."""
    if rng.random() < 0.35:
        return rng.uniform(0.0, 1.0, 3)
    brightness = rng.uniform(0.02, 0.98)
    saturation = rng.beta(1.0, 2.5)
    hue = rng.uniform(-1.0, 1.0, 3)
    return np.clip(brightness + 0.7 * saturation * (hue - hue.mean()), 0.0, 1.0)


def fractal_noise(rng: np.random.Generator, height: int, width: int, slope: float) -> np.ndarray:
    """Noise (H, W) of zero mean and unit deviation whose amplitude spectrum falls as frequency^-slope."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * frequency**-slope
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return noise / (noise.std() + 1e-8)


def _texture(rng: np.random.Generator, height: int, width: int, bank: np.ndarray) -> np.ndarray:
    """A coloured surface (H, W, 3): flat, shaded, striped, checked or rough."""
    surface = np.broadcast_to(random_colour(rng), (height, width, 3)).astype(np.float32).copy()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.choice(["flat", "shade", "stripes", "checks", "rough"], p=[0.27, 0.33, 0.07, 0.03, 0.3])
    if kind == "shade":
        ramp = (along - along.min()) / (np.ptp(along) + 1e-6)
        surface += ramp[..., None] * (random_colour(rng) - surface)
    elif kind in ("stripes", "checks"):
        period = rng.uniform(3, 24)
        wave = np.sin(2 * np.pi * along / period)
        if kind == "checks":
            wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
        sharpness = rng.choice([1.0, 6.0])
        mix = 0.5 + 0.5 * np.tanh(sharpness * wave) / np.tanh(sharpness)
        surface += mix[..., None] * (random_colour(rng) - surface)
    elif kind == "rough":
        noise = bank[rng.integers(len(bank))]
        top, left = rng.integers(noise.shape[0] - height + 1), rng.integers(noise.shape[1] - width + 1)
        patch = noise[top : top + height, left : left + width, None]
        surface += rng.uniform(0.02, 0.25) * patch * rng.uniform(0.5, 1.0, 3)
    return surface


def _outline(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random shape (2·size+1, 2·size+1) bool: ellipse, polygon, wavy blob or thin bar."""
    y, x = np.mgrid[-size : size + 1, -size : size + 1].astype(np.float32) / max(size, 1)
    turn = rng.uniform(0, 2 * np.pi)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    kind = rng.choice(["ellipse", "polygon", "blob", "bar"], p=[0.3, 0.35, 0.2, 0.15])
    if kind == "ellipse":
        return (x / rng.uniform(0.4, 1.0)) ** 2 + y**2 < 1.0
    if kind == "bar":
        return (np.abs(x) < rng.uniform(0.03, 0.25)) & (np.abs(y) < rng.uniform(0.5, 1.0))
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    corners = int(rng.integers(3, 9))
    if kind == "polygon":
        sector = np.pi / corners
        return radius * np.cos((angle % (2 * sector)) - sector) < 0.75 * np.cos(sector) + 0.1
    return radius < 0.7 + 0.25 * np.sin(corners * angle + rng.uniform(0, 6.28))


def dead_leaves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a picture, uint8 (H, W, 3).

    Pictures range from a crowded heap of leaves to a single shape on a plain ground, so that simple synthetic clips
    belong to the distribution too.
    """
    full_height, full_width = height * SUPERSAMPLING, width * SUPERSAMPLING
    largest = min(full_height, full_width) // 2
    side = max(full_height, full_width) + 2 * largest + 2
    bank = np.stack([fractal_noise(rng, side, side, slope) for slope in (0.4, 0.8, 1.2)]).astype(np.float32)
    canvas = _texture(rng, full_height, full_width, bank)
    crowd = rng.choice([3, 15, 80, 250], p=[0.15, 0.2, 0.3, 0.35])
    for _ in range(rng.integers(1, crowd + 1)):
        # density of radii ~ r^-3 gives the scale invariance of natural images
        size = int(min(largest, 7 / np.sqrt(rng.uniform(1e-4, 1.0)) * rng.uniform(0.5, 2.0)))
        shape = _outline(rng, size)
        surface = _texture(rng, *shape.shape, bank)
        top, left = rng.integers(-size, full_height - size), rng.integers(-size, full_width - size)
        rows, columns = slice(max(top, 0), top + shape.shape[0]), slice(max(left, 0), left + shape.shape[1])
        region = canvas[rows, columns]
        inner = (slice(max(-top, 0), None), slice(max(-left, 0), None))
        shape = shape[inner][: region.shape[0], : region.shape[1]]
        surface = surface[inner][: region.shape[0], : region.shape[1]]
        region[shape] = surface[shape]
    if rng.random() < 0.5:  # uneven light over the whole picture
        canvas *= 1.0 + 0.15 * fractal_noise(rng, full_height, full_width, 2.0)[..., None]
    picture = canvas.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean(axis=(1, 3))
    if rng.random() < 0.3:  # sensor grain
        picture = picture + rng.uniform(0.0, 0.03) * rng.standard_normal(picture.shape)
    return np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)
