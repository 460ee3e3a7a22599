"""Moving shapes, measured in closed form: the direction and the shape of each clip, and whether they are its label's.

Every clip shows one shape that crosses a plain ground at constant speed (`data/moving_shapes.py`), and its label names
the shape, the direction, or both. No network is needed, so the shares are exact up to the rules of `measure_motion`.

Legend: N clips, T frames, H W height and width in pixels; positions are (x, y) in pixels, y pointing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Reading, Statistics

DIRECTIONS: dict[str, tuple[int, int]] = {"Right": (1, 0), "Left": (-1, 0), "Down": (0, 1), "Up": (0, -1)}
SHAPES = ("Disc", "Square", "Triangle", "Cross")
SUPERSAMPLING = 4


def coverage(
    shape: str, centre: tuple[float, float], radius: float, size: int, *, endless: bool = False
) -> NDArray[np.float32]:
    """The share of each pixel (size, size) that a shape covers, in [0, 1]; on a torus if `endless`.

    `centre` is (x, y) in pixels. All shapes of equal `radius` have the same area, pi·radius². Raises `ValueError` for
    an unknown shape.
    """
    grid = (np.arange(size * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING - 0.5
    x, y = grid[None, :] - centre[0], grid[:, None] - centre[1]
    if endless:
        x, y = (nearest_copy(offset, size) for offset in (x, y))
    area = np.pi * radius**2
    if shape == "Disc":
        inside = x**2 + y**2 < radius**2
    elif shape == "Square":
        inside = np.maximum(abs(x), abs(y)) < np.sqrt(area) / 2
    elif shape == "Triangle":  # upright and equilateral, its centroid on the centre
        side = np.sqrt(area * 4 / np.sqrt(3))
        height = side * np.sqrt(3) / 2
        inside = (y < height / 3) & (abs(x) * np.sqrt(3) < y + 2 * height / 3)
    elif shape == "Cross":  # five equal squares
        arm = np.sqrt(area / 5)
        inside = (np.minimum(abs(x), abs(y)) < arm / 2) & (np.maximum(abs(x), abs(y)) < 1.5 * arm)
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    return inside.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3), dtype=np.float32)


@dataclass(frozen=True)
class Motion:
    """The measured motion of a clip: velocity (x, y) in pixels a frame, best direction, best shape, and its fit.

    `direction` is None without a steady motion; `fit` is the mean overlap (IoU, 0 to 1) with the best shape.
    """

    velocity: tuple[float, float]
    direction: str | None
    shape: str
    fit: float

    @property
    def label(self) -> str | None:
        """The label `shape + direction`; None without a direction."""
        return None if self.direction is None else self.shape + self.direction


def nearest_copy(offset: NDArray, size: int) -> NDArray:
    """An offset on a circle of `size` as one in [-size / 2, size / 2)."""
    return (offset + size / 2) % size - size / 2


def foreground(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The difference of each pixel (T, H, W) from the ground, in [0, 1].

    The ground is the clip's median colour; a shape covers less than half of a picture.
    """
    pixels = clip.astype(np.float32)
    distance = np.linalg.norm(pixels - np.median(pixels, axis=(0, 1, 2)), axis=-1)
    strongest = np.quantile(distance, 0.98)
    return np.clip((distance / max(strongest, 1.0) - 0.25) / 0.5, 0.0, 1.0)


def track(clip: NDArray[np.uint8], *, endless: bool = False) -> NDArray[np.float64]:
    """The position of the shape in each frame of a clip (T, H, W, 3): (T, 2), the (x, y) of its centroid in pixels.

    On a torus (`endless`) it is the circular mean, in [0, H or W).
    """
    return _centroids(foreground(clip), endless)


def distance(positions: NDArray, other: NDArray, size: int | None = None) -> NDArray[np.float64]:
    """The distance between positions (..., 2) in pixels; on a torus of `size` along the shortest way."""
    offset = np.asarray(positions, dtype=np.float64) - other
    return np.linalg.norm(offset if size is None else nearest_copy(offset, size), axis=-1)


def _centroids(cover: NDArray[np.float32], endless: bool) -> NDArray[np.float64]:
    """The centroids of masses: (T, H, W) -> (T, 2), (x, y) in pixels."""
    sums = cover.sum(axis=1), cover.sum(axis=2)  # along x (T, W) and y (T, H)
    places = []
    for mass in sums:
        cells = np.arange(mass.shape[1])
        if endless:
            circle = np.exp(2j * np.pi * cells / len(cells))
            places.append(np.angle((mass * circle).sum(axis=1)) / (2 * np.pi) * len(cells) % len(cells))
        else:
            places.append((mass * cells).sum(axis=1) / mass.sum(axis=1).clip(min=1e-6))
    return np.stack(places, axis=1).astype(np.float64)


def _fits(clip: NDArray[np.uint8], shapes: Sequence[str], *, endless: bool) -> tuple[Motion, dict[str, float]]:
    """The motion of a clip, and its overlap with every shape; see `measure_motion`."""
    cover = foreground(clip)
    frames, size = cover.shape[0], cover.shape[2]
    mass = cover.sum(axis=(1, 2)).clip(min=1e-6)
    places = _centroids(cover, endless)
    x, y = (np.unwrap(places, axis=0, period=size) if endless else places).T
    moments = np.arange(frames) - (frames - 1) / 2
    spread = max((moments**2).sum(), 1e-6)
    velocity = np.array([(moments * x).sum() / spread, (moments * y).sum() / spread])
    axis = int(abs(velocity[1]) > abs(velocity[0]))
    travelled = abs(velocity[axis]) * max(frames - 1, 0)
    steady = travelled >= 0.1 * size and abs(velocity[axis]) >= 2 * abs(velocity[1 - axis])
    heading = tuple(int(v) for v in np.sign(velocity) * (np.arange(2) == axis))
    direction = next((name for name, unit in DIRECTIONS.items() if unit == heading), None) if steady else None
    fits = {shape: _overlap(cover, shape, places, mass, endless) for shape in shapes}
    best = max(fits, key=fits.__getitem__)
    return Motion((float(velocity[0]), float(velocity[1])), direction, best, fits[best]), fits


def measure_motion(clip: NDArray[np.uint8], shapes: Sequence[str] = SHAPES, *, endless: bool = False) -> Motion:
    """Measure a clip (T, H, W, 3) in closed form; an `endless` clip on its torus, for which it must be square.

    Velocity: the least-squares slope of the foreground's centroid over the frames. Direction: the axis of the larger
    component, provided the centroid travels at least 0.1 of the picture and at least twice as far along that axis as
    across it. Shape: the shape whose rendering at each frame's centroid, with the foreground's area, overlaps most.
    """
    return _fits(clip, shapes, endless=endless)[0]


def score_motion(
    clips: NDArray[np.uint8],
    labels: Sequence[str],
    shapes: Sequence[str] = ("Disc", "Square"),
    *,
    endless: bool = False,
) -> dict[str, float | int | None]:
    """The shares of clips (N, T, H, W, 3) that agree with their labels in direction, shape and both, beside chance.

    A label may name a shape, a direction, or both (`DiscRight`). A share that no label allows to judge is None.
    """
    if len(clips) == 0 or len(clips) != len(labels):
        raise ValueError(f"{len(clips)} clips and {len(labels)} labels; give one label for each clip, at least one")
    right: dict[str, list[bool]] = {"direction": [], "shape": [], "both": []}
    motions = [measure_motion(clip, shapes, endless=endless) for clip in clips]
    for motion, label in zip(motions, labels, strict=True):
        moves, shows = motion.direction is not None and label.endswith(motion.direction), label.startswith(motion.shape)
        names_direction, names_shape = label.endswith(tuple(DIRECTIONS)), label.startswith(tuple(shapes))
        right["direction"] += [moves] * names_direction
        right["shape"] += [shows] * names_shape
        right["both"] += [moves and shows] * (names_direction and names_shape)
    chances = {"direction": 1 / len(DIRECTIONS), "shape": 1 / len(shapes)}
    chances["both"] = chances["direction"] * chances["shape"]
    score: dict[str, float | int | None] = {"samples": len(clips)}
    for name, values in right.items():
        score |= {f"{name}_accuracy": float(np.mean(values)) if values else None, f"{name}_chance": chances[name]}
    return {**score, "shape_overlap": float(np.mean([motion.fit for motion in motions]))}


def _overlap(cover: NDArray, shape: str, places: NDArray, mass: NDArray, endless: bool) -> float:
    """Mean intersection over union of the foreground with a rendered shape of the same centroid and area."""
    scores = []
    for frame, (x, y), area in zip(cover, places, mass, strict=True):
        template = coverage(shape, (x, y), float(np.sqrt(area / np.pi)), frame.shape[1], endless=endless)
        template = template[: frame.shape[0]]
        scores.append(np.minimum(frame, template).sum() / max(np.maximum(frame, template).sum(), 1e-6))
    return float(np.mean(scores))


# Metrics ------------------------------------------------------------------------------------------------------------


class _Shown(Reading):
    """The share of clips that agree with their label, of those whose label can be judged.

    Clips are measured on a torus, so that those with and without borders are measured alike; they must be square. The
    reading of a clip is the number of its direction (-1 without a steady motion) and its overlap with every shape.
    """

    needs = frozenset({"labels"})
    better = "higher"
    least_frames = 2
    says_direction: bool
    says_shape: bool

    def read(self, clips: Tensor) -> Tensor:
        """(N, 1 + shapes) float64. UserError for clips that are not square."""
        if clips.shape[2] != clips.shape[3]:
            raise UserError(
                f"--metrics {self.name} measures moving shapes on a torus, which is square, and the clips have "
                f"{clips.shape[2]}x{clips.shape[3]} pixels: leave it out"
            )
        rows = []
        for clip in clips.cpu().numpy():
            motion, fits = _fits(clip, SHAPES, endless=True)
            direction = -1 if motion.direction is None else list(DIRECTIONS).index(motion.direction)
            rows.append([direction, *fits.values()])
        return torch.tensor(rows, dtype=torch.float64)

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """1 where a clip shows what its label says, else 0, of the samples whose label says it.

        UserError where no label does.
        """
        known = [name for name in SHAPES if any(label.startswith(name) for label in samples.label_names)]
        readings, right = samples.readings[self.name], []
        for number, reading in zip(samples.labels.tolist(), readings, strict=True):
            label = samples.label_names[number] if number >= 0 else ""
            wants = label.endswith(tuple(DIRECTIONS)), label.startswith(tuple(known)) and bool(known)
            if (self.says_direction and not wants[0]) or (self.says_shape and not wants[1]):
                continue
            fits = {name: float(reading[1 + SHAPES.index(name)]) for name in known}
            direction = int(reading[0])
            moves = direction >= 0 and label.endswith(list(DIRECTIONS)[direction])
            shows = bool(fits) and label.startswith(max(fits, key=fits.__getitem__))
            right.append((moves or not self.says_direction) and (shows or not self.says_shape))
        if not right:
            raise UserError(
                f"--metrics {self.name} needs labels of moving shapes, such as DiscRight, and these clips have none: "
                "leave it out"
            )
        return torch.tensor(right)


class Direction(_Shown, name="direction", title="direction shown"):
    """Moving shapes: the share of clips that move in the direction of their label (chance 1/4)."""

    says_direction, says_shape = True, False


class Shape(_Shown, name="shape", title="shape shown"):
    """Moving shapes: the share of clips that show the shape of their label, among the shapes of all labels."""

    says_direction, says_shape = False, True


class Label(_Shown, name="label", title="label shown"):
    """Moving shapes: the share of clips that show both the shape and the direction of their label."""

    says_direction, says_shape = True, True
