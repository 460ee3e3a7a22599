"""Measures of the quality of sampled clips, for tables over many settings.

For labels of moving shapes there is a measure in closed form: the share of clips that move, and look, as their label
says. With a folder of data there is the Fréchet distance in a few random projections of the pixels, as in `compare`. It
compares means and covariances of pixels, and says little beyond such low-order statistics.

Legend: N samples, M clips of data, T frames, H W pixels, D dimensions; pixels uint8, channels last.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.moving_shapes import SHAPES, label_names, score_motion
from eqm_video.data.source import Source
from eqm_video.errors import UserError
from eqm_video.metrics.frechet import frechet_distance, gaussian_of, random_projection
from eqm_video.randomness import generator
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.request import Request

MOST_DIMENSIONS = 32
MOST_CLIPS = 1024  # clips of the data, at most
NAMES = {  # the measures in plots
    "both_accuracy": "share of clips\nthat show their label",
    "frechet": "Fréchet distance of pixels",
    "gradient_rms": "gradient at the end, RMS",
    "pixels_from_all_steps": "RMS pixels (of 255)\nfrom those of all steps",
}


@dataclass(frozen=True)
class Judge:
    """The measures of some clips: motion if there are `shapes`, a Fréchet distance if there is `data` (M, D)."""

    shapes: tuple[str, ...]
    data: Tensor | None
    projection: Tensor | None
    clips: int  # N, which must exceed D

    @classmethod
    def of(cls, pipeline: EqMPipeline, request: Request, data: Path | None) -> Judge:
        """The judge of the requested samples. It reads the folder `data`, if any, once.

        UserError for too few samples.
        """
        named = set(pipeline.labels.values())
        shapes = tuple(shape for shape in SHAPES if any(name.startswith(shape) for name in named))
        if not set(request.names) <= set(label_names(shapes)):
            shapes = ()
        if data is None:
            return cls(shapes, None, None, len(request.ids))
        if len(request.ids) < 4:
            raise UserError(f"a Fréchet distance of {len(request.ids)} samples says nothing: give --num-samples 64")
        dimensions = min(MOST_DIMENSIONS, len(request.ids) // 2)
        values = math.prod((request.frames, *request.size, 3))
        projection = random_projection(values, dimensions, generator("quality projection", 0))
        fps = float(pipeline.config.fps)
        source = Source(data, frames=request.frames, size=request.size, fps=fps, count=MOST_CLIPS)
        return cls(shapes, _project(source.read().pixels, projection), projection, len(request.ids))

    @property
    def headline(self) -> str | None:
        """The measure to draw: motion if it is measured, else the Fréchet distance, else None."""
        return "both_accuracy" if self.shapes else "frechet" if self.data is not None else None

    @property
    def scale(self) -> dict[str, float | int]:
        """The distance of as many real clips as samples from the other real clips; {} if there are too few."""
        if self.data is None or len(self.data) < 2 * self.clips:
            return {}
        chosen = torch.zeros(len(self.data), dtype=torch.bool)
        chosen[torch.arange(self.clips) * len(self.data) // self.clips] = True
        value = _frechet(self.data[chosen], self.data[~chosen])
        return {"frechet of real clips": value, "frechet dimensions": self.projection.shape[1]}

    def __call__(self, clips: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Measures of clips (N,T,H,W,3): a subset of direction_, shape_, both_accuracy, shape_overlap, frechet."""
        measures: dict[str, float] = {}
        if self.shapes:
            scores = score_motion(clips, names, self.shapes)
            keys = ("direction_accuracy", "shape_accuracy", "both_accuracy", "shape_overlap")
            measures = {key: float(scores[key]) for key in keys}
        if self.data is not None:
            measures["frechet"] = _frechet(_project(clips, self.projection), self.data)
        return measures


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data, for commands that judge their samples."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of real clips, for a Fréchet distance")


def _project(clips: np.ndarray, projection: Tensor) -> Tensor:
    """Pixels (M,T,H,W,3) in [-1, 1], flattened and projected: (M, D)."""
    parts = torch.from_numpy(clips).split(64)
    return torch.cat([(part.flatten(1).float() / 127.5 - 1) @ projection for part in parts])


def _frechet(features: Tensor, other: Tensor) -> float:
    """The Fréchet distance between Gaussians of features (N, D) and (M, D)."""
    return frechet_distance(*gaussian_of(features), *gaussian_of(other))
