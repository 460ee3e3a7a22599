"""One way in for whatever can be sampled from: an export, a run, a checkpoint, or a network with a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eqm_video.models.loading import NETWORKS, class_in, load_transformer
from eqm_video.sampling.folders import holds_model, newest_of_run, part_dtype
from eqm_video.sampling.pipeline import EqMPipeline, as_codec


def find_model(path: str | Path) -> str:
    """The folder that `load_pipeline` loads for a path: of a run its export or newest checkpoint; a hub id as it is."""
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir() or (folder / "export").is_dir():
        folder = newest_of_run(folder)
    return str(folder if folder.is_dir() else path)


def load_pipeline(path: str | Path, *, codec: str | None = None, torch_dtype: Any = None) -> tuple[EqMPipeline, str]:
    """Load whatever can be sampled from, and say where it was found: (pipeline, folder).

    An export (folder or hub id), a training checkpoint, a training run (its export, else its newest whole checkpoint),
    or, with `codec`, the folder of a network alone. `codec` replaces the codec that the model comes with. torch_dtype:
    as for `EqMPipeline.from_pretrained`.
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
