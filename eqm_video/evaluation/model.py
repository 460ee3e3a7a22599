"""A model as a source of clips: clip k is sampled from the seed of k, on whichever process reads it.

Legend: N clips, B clips of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eqm_video.evaluation.clips import Sampled
from eqm_video.sampling.labels import choose_labels
from eqm_video.sampling.settings import Sampling

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline


def sample_source(
    pipeline: EqMPipeline,
    how: Sampling,
    count: int,
    *,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    model: str = "",
) -> Sampled:
    """`count` samples of a pipeline; labels, frames and size as `eqm-video sample` takes them."""
    how = how.on(pipeline)
    ids = choose_labels(pipeline, labels, count, seed)
    shape = (pipeline.check_frames(frames), *pipeline.check_size(size))
    names = [None if number is None else pipeline.labels.get(number) for number in ids]

    def draw(rows: Sequence[int]) -> np.ndarray:
        result = pipeline.sample(
            how,
            [ids[row] for row in rows],
            seeds=[seed + row for row in rows],
            num_frames=shape[0],
            size=shape[1:],
            output_type="uint8",
        )
        return result.frames

    about = {"model": model, "sampling": how.record(), "seed": seed, "labels": list(labels or ["all"])}
    return Sampled(draw, shape, names, float(pipeline.config.fps), about)
