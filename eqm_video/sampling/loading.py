"""Loading of models to sample from: an export, a training run, a checkpoint, or a network with a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eqm_video.models.loading import NETWORKS, class_in, load_transformer
from eqm_video.sampling.folders import find_model, holds_model, part_dtype
from eqm_video.sampling.pipeline import EqMPipeline, as_codec


def load_pipeline(path: str | Path, *, codec: str | None = None, torch_dtype: Any = None) -> tuple[EqMPipeline, str]:
    """Load a model to sample from: (pipeline, the folder that was loaded).

    path: an export (folder or hub id), a training checkpoint, a training run (its export, else its newest whole
    checkpoint), or, with `codec`, the folder of a network alone. codec: replaces the model's own codec. torch_dtype: as
    for `EqMPipeline.from_pretrained`. UserError where there is no model, or it cannot be read.
    """
    folder = Path(source := find_model(path))
    if holds_model(folder):
        return EqMPipeline.from_checkpoint(folder, codec=codec, torch_dtype=torch_dtype), str(folder)
    replaced = {"vae": as_codec(codec, part_dtype(torch_dtype, "vae")).vae} if codec is not None else {}
    if replaced and class_in(folder / "config.json") in NETWORKS:
        transformer = load_transformer(folder, part_dtype(torch_dtype, "transformer"))
        frames = 16 if transformer.config.temporal else 1
        return EqMPipeline(transformer, **replaced, frames=frames), str(folder)
    return EqMPipeline.from_pretrained(source, torch_dtype=torch_dtype, **replaced), source
