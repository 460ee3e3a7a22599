"""Clips unlike the training data, each made from a held-out clip.

Every set changes a single property: a reversed clip has the frames of the clip, in another order. A score that
separates the two depends on that property.

Legend: N clips, T frames, H W pixels; pixels uint8 RGB, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eqm_video.data.moving_shapes import label_names, measure_motion
from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.randomness import fold

MOVING_SHAPES = frozenset(label_names())


def made_sets(clips: Clips, source: Source, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """(sets by name, each of as many clips as `clips`; names of sets for which the files are too short).

    Pictures: a random colour; uniform noise; Gaussian noise with the clips' mean and deviation. Clips of at least four
    frames, too: frozen on the first frame, reversed, shuffled, there and back, with a jump cut, at double speed,
    spliced with another clip; and moving shapes on diagonal paths.
    """
    rng = {name: np.random.default_rng(fold("ood", name, seed)) for name in ("colour", "noise", "order", "drift")}
    pixels, shape = clips.pixels, clips.pixels.shape
    colours = rng["colour"].integers(0, 256, (shape[0], 1, 1, 1, 3), np.uint8)
    centre, deviation = pixels.mean(axis=(0, 1, 2, 3)), pixels.std(axis=(0, 1, 2, 3))
    gaussian = centre + deviation * rng["noise"].standard_normal(shape, np.float32)
    sets = {
        "constant colour": np.broadcast_to(colours, shape).copy(),
        "uniform noise": rng["noise"].integers(0, 256, shape, np.uint8),
        "Gaussian noise": np.rint(gaussian).clip(0, 255).astype(np.uint8),
    }
    frames = shape[1]
    if frames < 4:
        return sets, []
    later = np.arange(frames) + np.where(np.arange(frames) < frames // 2, 0, frames // 2)
    jump, fast = source.read(later), source.read(2 * np.arange(frames))
    sets |= {
        "frozen": np.repeat(pixels[:, :1], frames, axis=1),
        "reversed": pixels[:, ::-1].copy(),
        "shuffled": np.stack([clip[order] for clip, order in zip(pixels, orders(shape, rng["order"]), strict=True)]),
        "there and back": pixels[:, np.minimum(2 * np.arange(frames), 2 * frames - 2 - 2 * np.arange(frames))],
        "jump cut": None if jump is None else jump.pixels,
        "double speed": None if fast is None else fast.pixels,
        "spliced": splice(clips, seed),
    }
    if MOVING_SHAPES.issuperset(clips.labels):
        sets["diagonal"] = diagonal(pixels, rng["drift"])
    left_out = [name for name, made in sets.items() if made is None]
    return {name: made for name, made in sets.items() if made is not None}, left_out


def orders(shape: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """A random order of the frames for each clip, neither forward nor backward."""
    forward, shuffled = np.arange(shape[1]), []
    while len(shuffled) < shape[0]:
        order = rng.permutation(shape[1])
        if (order != forward).any() and (order != forward[::-1]).any():
            shuffled.append(order)
    return shuffled


def splice(clips: Clips, seed: int) -> np.ndarray:
    """The first half of each clip and the second half of its partner: the new clip begins at frame T // 2."""
    spliced, middle = clips.pixels.copy(), clips.pixels.shape[1] // 2
    spliced[:, middle:] = clips.pixels[clips.partners(seed), middle:]
    return spliced


def diagonal(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moving shapes that also move sideways, at equal speed: frames are shifted by whole pixels, with repeated rims.

    On a plain ground the shift shows as motion only. In mid-clip the shape keeps its place.
    """
    frames, height, width = pixels.shape[1:4]
    drifted = np.empty_like(pixels)
    for number, clip in enumerate(pixels):
        velocity = np.array(measure_motion(clip).velocity)
        across = int(abs(velocity[0]) >= abs(velocity[1]))  # 1: shift along y
        speed = abs(velocity).max() * rng.choice([-1.0, 1.0])
        for frame in range(frames):
            shift = round(speed * (frame - (frames - 1) / 2))
            rows, columns = (np.arange(side) - shift * (axis == across) for side, axis in ((height, 1), (width, 0)))
            drifted[number, frame] = clip[frame][rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    return drifted


def other_labels(labels: Sequence[str], seed: int) -> list[str]:
    """A wrong label for each clip, drawn from the other labels. UserError if all clips have the same label."""
    names, rng = sorted(set(labels)), np.random.default_rng(fold("ood", "labels", seed))
    if len(names) < 2:
        raise UserError(f"every clip has the label {names[0]!r}: wrong labels need a second one")
    return [str(rng.choice([name for name in names if name != label])) for label in labels]
