"""Moving shapes: a procedural, labelled, licence-free set of real encoded videos.

Every clip shows a single shape that crosses a plain ground at constant speed. Its label is shape × direction, so the
shape and direction of a sampled clip can be measured without a network (`metrics/moving_shapes.py`). In an *endless*
set the picture is a torus: a shape that leaves at one side comes back at the other, and its motion never ends.

`write_moving_shapes` writes MPEG-4 videos in UCF-101's own layout (class folders, `classInd.txt`, `trainlist01.txt`,
`testlist01.txt`), so that training on them uses the same decoding as real data.

Legend: T frames, H W height and width in pixels; positions are (x, y) in pixels, y pointing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqm_video.errors import UserError
from eqm_video.metrics.moving_shapes import (
    DIRECTIONS,
    SHAPES,
    Motion,
    coverage,
    distance,
    foreground,
    measure_motion,
    nearest_copy,
    score_motion,
    track,
)
from eqm_video.system.files import remove_aside_folders, writing_folder

__all__ = [  # the measure of the set with the set
    "DIRECTIONS",
    "SHAPES",
    "Motion",
    "attribute_names",
    "coverage",
    "distance",
    "foreground",
    "label_names",
    "measure_motion",
    "render_clip",
    "score_motion",
    "track",
    "write_moving_shapes",
]

PERIOD = 7  # frames in which an endless shape travels as far as any other in its whole clip


def label_names(shapes: Sequence[str] = SHAPES) -> list[str]:
    """The labels in order: every shape in every direction, for example `DiscRight`."""
    return [shape + direction for shape in shapes for direction in DIRECTIONS]


def attribute_names(shapes: Sequence[str] = SHAPES) -> list[str]:
    """The labels of single attributes in order: every shape, then every direction; `Disc` leaves the direction open."""
    return [*shapes, *DIRECTIONS]


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
                across, down = nearest_copy(across, size), nearest_copy(down, size)
            along = across * np.cos(angle) + down * np.sin(angle)
            surface = surface * (0.85 + 0.15 * np.sin(2 * np.pi * along / period))[..., None]
        clip[index] = ground + cover * (surface - ground)
    return np.rint(clip * 255).astype(np.uint8)


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
