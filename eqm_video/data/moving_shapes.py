"""Moving shapes: a procedural, labelled, licence-free set of real encoded videos, and a closed-form measure of it.

Every clip shows a single shape that crosses a plain ground at constant speed. Its label is shape × direction, so the
shape and direction of a sampled clip can be measured without a network. In an *endless* set the picture is a torus: a
shape that leaves at one side comes back at the other, and its motion never ends.

`write_moving_shapes` writes MPEG-4 videos in UCF-101's own layout (class folders, `classInd.txt`, `trainlist01.txt`,
`testlist01.txt`), so that training on them uses the same decoding as real data.

Legend: T frames, H W height and width in pixels; positions are (x, y) in pixels, y pointing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqm_video.errors import UserError
from eqm_video.system.files import remove_aside_folders, writing_folder

DIRECTIONS: dict[str, tuple[int, int]] = {"Right": (1, 0), "Left": (-1, 0), "Down": (0, 1), "Up": (0, -1)}
SHAPES = ("Disc", "Square", "Triangle", "Cross")
SUPERSAMPLING = 4
PERIOD = 7  # frames in which an endless shape travels as far as any other in its whole clip


def label_names(shapes: Sequence[str] = SHAPES) -> list[str]:
    """The labels in order: every shape in every direction, for example `DiscRight`."""
    return [shape + direction for shape in shapes for direction in DIRECTIONS]


def attribute_names(shapes: Sequence[str] = SHAPES) -> list[str]:
    """The labels of single attributes in order: every shape, then every direction; `Disc` leaves the direction open."""
    return [*shapes, *DIRECTIONS]


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
        x, y = (_nearest_copy(offset, size) for offset in (x, y))
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


def render_clip(
    shape: str,
    direction: str,
    *,
    frames: int,
    size: int,
    rng: np.random.Generator,
    textured: bool = False,
    endless: bool = False,
    centred: bool = False,
) -> NDArray[np.uint8]:
    """Draw a clip (T, H, W, 3) with random size, speed, start and colours; the shape stays inside the picture.

    The radius is 0.14 to 0.18 of `size`; the shape travels 0.30 to 0.42 of `size` in the clip. An `endless` shape
    starts anywhere and travels that far in every `PERIOD` frames, whatever the number of frames.

    A `centred` shape is larger (0.17 to 0.20), passes near the middle of the picture half-way through the clip, and has
    a ground of nearly constant grey. Its clips differ less, so that a small model learns them soon. Its corners may
    leave the picture.
    """
    radius = rng.uniform(*((0.17, 0.20) if centred else (0.14, 0.18))) * size
    travel = rng.uniform(0.30, 0.40 if centred else 0.42) * size
    step = np.array(DIRECTIONS[direction]) * travel / (PERIOD if endless else max(frames - 1, 1))
    margin = 1.56 * radius  # the farthest corner of any shape, a triangle's
    low = np.full(2, margin) - np.minimum(step * (frames - 1), 0)
    high = size - 1 - np.full(2, margin) - np.maximum(step * (frames - 1), 0)
    if centred:
        aside = rng.uniform(-1, 1, 2) * np.where(step != 0, 0.04, 0.12) * size  # less along its direction than across
        start = (size - 1) / 2 + aside - step * (frames - 1) / 2
    else:
        start = rng.uniform(0, size, 2) if endless else rng.uniform(low, np.maximum(high, low))
    ground = np.full(3, rng.uniform(*((0.38, 0.42) if centred else (0.35, 0.45))))  # grey
    hue = rng.uniform(0.0, 1.0)
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    colour = 0.6 + 0.4 * colour  # brighter than the ground: a codec keeps brightness sharper than hue
    period, angle = rng.uniform(3.0, 6.0), rng.uniform(0, np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    clip = np.empty((frames, size, size, 3), dtype=np.float32)
    for index in range(frames):
        centre = start + step * index
        cover = coverage(shape, (centre[0], centre[1]), radius, size, endless=endless)[..., None]
        surface = np.broadcast_to(colour, (size, size, 3))
        if textured:  # stripes that travel with the shape
            across, down = x - centre[0], y - centre[1]
            if endless:
                across, down = _nearest_copy(across, size), _nearest_copy(down, size)
            along = across * np.cos(angle) + down * np.sin(angle)
            surface = surface * (0.85 + 0.15 * np.sin(2 * np.pi * along / period))[..., None]
        clip[index] = ground + cover * (surface - ground)
    return np.rint(clip * 255).astype(np.uint8)


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


def _nearest_copy(offset: NDArray, size: int) -> NDArray:
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
    return np.linalg.norm(offset if size is None else _nearest_copy(offset, size), axis=-1)


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


def measure_motion(clip: NDArray[np.uint8], shapes: Sequence[str] = SHAPES, *, endless: bool = False) -> Motion:
    """Measure a clip (T, H, W, 3) in closed form; an `endless` clip on its torus, for which it must be square.

    Velocity: the least-squares slope of the foreground's centroid over the frames. Direction: the axis of the larger
    component, provided the centroid travels at least 0.1 of the picture and at least twice as far along that axis as
    across it. Shape: the shape whose rendering at each frame's centroid, with the foreground's area, overlaps most.
    """
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
    return Motion((float(velocity[0]), float(velocity[1])), direction, best, fits[best])


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


def write_moving_shapes(
    root: Path,
    *,
    shapes: Sequence[str] = ("Disc", "Square"),
    videos: int = 40,
    held_out: int = 4,
    frames: int = 12,
    size: int = 32,
    fps: int = 8,
    textured: bool = False,
    attributes: bool = False,
    endless: bool = False,
    centred: bool = False,
    seed: int = 0,
) -> None:
    """Write the set to a new folder `root`: `videos` per label; the last `held_out` of each are the test list.

    A label is a shape with its direction. With `attributes` it is only a shape or only a direction: videos of `Disc`
    move in every direction in turn, videos of `Left` show every shape in turn. A model of such labels never sees the
    label of a disc that moves left, so that the composition of both labels can be measured. `endless`, `centred`: see
    `render_clip`.

    Raises `UserError` if `root` exists already or cannot be made. The folder appears whole or not at all.
    """
    if root.exists():
        raise UserError(f"{root} exists already; name a new folder or remove it")
    remove_aside_folders(root)
    with writing_folder(root) as folder:
        names = attribute_names(shapes) if attributes else label_names(shapes)
        train, test = [], []
        for number, name in enumerate(names, start=1):
            shown = [
                (shape, direction)
                for shape in shapes
                for direction in DIRECTIONS
                if name in ((shape, direction) if attributes else (shape + direction,))
            ]
            (folder / name).mkdir()
            for index in range(1, videos + 1):
                rng = np.random.default_rng([seed, number, index])
                shape, direction = shown[index % len(shown)]
                kind = {"textured": textured, "endless": endless, "centred": centred}
                clip = render_clip(shape, direction, frames=frames, size=size, rng=rng, **kind)
                file = f"{name}/v_{name}_g{index:02d}_c01.avi"
                _write_video(folder / file, clip, fps)
                if index > videos - held_out:
                    test.append(file)
                else:
                    train.append(f"{file} {number}")
        splits = folder / "splits"
        splits.mkdir()
        (splits / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)))
        (splits / "trainlist01.txt").write_text("".join(f"{line}\n" for line in train))
        (splits / "testlist01.txt").write_text("".join(f"{line}\n" for line in test))


def _write_video(path: Path, clip: NDArray[np.uint8], fps: int) -> None:
    """Encode a clip as MPEG-4 in AVI, the format of UCF-101, at nearly lossless quality."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        stream.codec_context.qmin, stream.codec_context.qmax = 1, 2
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
