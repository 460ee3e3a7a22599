"""A small model whose labels are those of moving shapes."""

from __future__ import annotations

from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video.data.moving_shapes import DIRECTIONS

FRAMES, SIZE = 4, 16


def pipeline(**options):
    network = tiny_transformer(num_labels=8, conditioned_on_gamma="told" in options and options.pop("told"))
    labels = [shape + direction for shape in ("Disc", "Square") for direction in DIRECTIONS]
    return tiny_pipeline(network, **{"id2label": labels, "frames": FRAMES, "fps": 8.0, "size": SIZE, **options})
