"""The clips that the tasks are measured on: endless moving shapes that are in no training video, with their positions.

The clips are rendered, so that every later frame is known, however far ahead, and the error of a prediction is a number
of pixels. Positions are measured in the same way in truth and prediction. The baselines need no network: the truth
after the codec, the last known position, and straight lines.

Legend: N clips, L frames of the truth, T of a prediction, k known frames; positions (x, y) in pixels on the torus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqm_video.data.moving_shapes import DIRECTIONS, SHAPES, distance, label_names, render_clip, track
from eqm_video.errors import UserError
from eqm_video.sampling.folders import SHIPPED_FOLDER
from eqm_video.sampling.option_groups import Rendered
from eqm_video.sampling.pipeline import EqMPipeline

SERIES = 70_000  # first part of the seeds, unlike those of `write_moving_shapes`
AROUND = 16  # frames that a video of the recipe `shipped` has beyond a clip
NEAR = 2.0  # pixels: a smaller error counts as right; a shape moves a little less in a frame


@dataclass(frozen=True)
class Truth:
    """Endless clips uint8 (N, L, H, W, 3), the label of each, and the shapes among them."""

    clips: NDArray[np.uint8]
    names: list[str]
    shapes: tuple[str, ...]

    @classmethod
    def render(cls, names: Sequence[str], length: int, size: int, seed: int = 0, *, centred: bool = False) -> Truth:
        """Clip k shows `names[k]`, such as `DiscRight`, for `length` frames; it depends on (seed, k) alone.

        Shapes start anywhere. `centred` ones are those of `render_clip`, cut out of a longer clip where chance says, as
        training cuts them.
        """
        more = AROUND if centred else 0
        chosen = [next((shape for shape in SHAPES if name.startswith(shape)), "") for name in names]
        rngs = [np.random.default_rng([SERIES, seed, k]) for k in range(len(names))]
        clips = []
        for name, shape, rng in zip(names, chosen, rngs, strict=True):
            kind = {"endless": True, "centred": centred}
            clip = render_clip(shape, name.removeprefix(shape), frames=length + more, size=size, rng=rng, **kind)
            first = int(rng.integers(more + 1))
            clips.append(clip[first : first + length])
        return cls(np.stack(clips), list(names), tuple(shape for shape in SHAPES if shape in chosen))

    @property
    def size(self) -> int:
        """The side of the square clips in pixels."""
        return self.clips.shape[2]

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """Positions (N, L, 2) of the shapes, measured as in predictions."""
        return tracks(self.clips)

    @cached_property
    def speeds(self) -> NDArray[np.float64]:
        """Pixels that each clip's shape moves in a frame (N,)."""
        return forward(self.places, self.names, self.size)

    def first(self, count: int) -> Truth:
        """The first `count` clips."""
        return Truth(self.clips[:count], self.names[:count], self.shapes)


def is_centred(study: Rendered, pipeline: EqMPipeline) -> bool:
    """Whether a model is measured with clips that pass near the middle, which are all that the shipped one has seen."""
    return study.centred or Path(pipeline.config.get("_name_or_path", "")) == SHIPPED_FOLDER


def said_centred(settings: Mapping[str, Any]) -> str:
    """A sentence below a table: true clips pass near the middle. Empty where they start anywhere."""
    return " True clips pass near the middle, as those that the model learned." if settings.get("centred") else ""


def names_of(pipeline: EqMPipeline, count: int) -> list[str]:
    """Labels of `count` clips, the model's in turn; UserError if it was not trained on moving shapes."""
    names = list(pipeline.labels.values())
    if not names or not set(names) <= set(label_names()):
        raise UserError(
            "the tasks are measured on moving shapes with labels such as DiscRight; this model has "
            f"{', '.join(names[:3]) or 'no labels'}: train one from configs/gamma"
        )
    height, width = pipeline.check_size()
    if height != width or pipeline.check_frames() < 4:
        raise UserError(
            f"endless shapes are square clips of at least 4 frames; this model has {pipeline.check_frames()} of "
            f"{height}x{width}"
        )
    return [names[k % len(names)] for k in range(count)]


def tracks(clips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Positions (N, T, 2) in clips (N, T, H, W, 3) on their torus."""
    return np.stack([track(clip, endless=True) for clip in clips])


def forward(places: NDArray, names: Sequence[str], size: int) -> NDArray[np.float64]:
    """Speeds (N,) in pixels a frame in the direction of each label: slopes of the unwrapped positions (N, T, 2)."""
    moments = np.arange(places.shape[1]) - (places.shape[1] - 1) / 2
    slopes = np.einsum("t,ntc->nc", moments, np.unwrap(places, axis=1, period=size)) / (moments**2).sum()
    units = np.array([next(unit for way, unit in DIRECTIONS.items() if name.endswith(way)) for name in names])
    return (slopes * units).sum(axis=1)


# Errors and baselines -----------------------------------------------------------------------------------------------


def describe(errors: NDArray[np.float64]) -> dict[str, object]:
    """Statistics of errors (N, T') in pixels: over all, and for each frame.

    mean, median; error: the standard error of the mean over clips; near: share within `NEAR` pixels.
    """
    by_clip = errors.mean(axis=1)
    return {
        "mean": float(errors.mean()),
        "median": float(np.median(errors)),
        "error": float(by_clip.std(ddof=1) / len(by_clip) ** 0.5) if len(by_clip) > 1 else 0.0,
        "near": float((errors < NEAR).mean()),
        "mean by frame": errors.mean(axis=0).tolist(),
        "median by frame": np.median(errors, axis=0).tolist(),
        "near by frame": (errors < NEAR).mean(axis=0).tolist(),
    }


def straight(places: NDArray, known: Sequence[int], frames: int, size: int) -> NDArray[np.float64]:
    """Positions (N, T, 2) on straight lines through the known positions (N, k, 2) at frames `known`.

    Lines take the shortest way on the torus. Between known frames they interpolate; outside they follow the line that
    fits all known positions best.
    """
    at, every = np.asarray(known), np.arange(frames)
    lines = np.unwrap(places, axis=1, period=size)
    moments = at - at.mean()
    slopes = np.einsum("k,nkc->nc", moments, lines) / max((moments**2).sum(), 1e-6)
    fitted = lines.mean(axis=1)[:, None] + slopes[:, None] * (every - at.mean())[None, :, None]
    inside = np.stack([[np.interp(every, at, line[:, axis]) for axis in (0, 1)] for line in lines]).transpose(0, 2, 1)
    outside = (every < at[0]) | (every > at[-1])
    return np.where(outside[None, :, None], fitted, inside) % size


def held(places: NDArray, known: Sequence[int], frames: int) -> NDArray[np.float64]:
    """Positions (N, T, 2) that repeat the last known position (N, k, 2); before the first known frame, the first."""
    last = np.searchsorted(np.asarray(known), np.arange(frames), side="right") - 1
    return places[:, last.clip(min=0)]


def errors_of(places: NDArray, truth: Truth, frames: Sequence[int], start: int = 0) -> NDArray[np.float64]:
    """Distances (N, T') in pixels of positions (N, T, 2) from the truth at `frames`. places[:, 0] is frame `start`."""
    at = np.asarray(frames)
    return distance(places[:, at - start], truth.places[:, at], truth.size)
