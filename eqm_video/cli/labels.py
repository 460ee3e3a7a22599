"""Which label each sample gets, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence

from eqm_video.pipeline import EqMPipeline
from eqm_video.randomness import fold


def choose_labels(pipeline: EqMPipeline, wanted: Sequence[str] | None, count: int, seed: int) -> list[int | None]:
    """One label for each sample (None: unlabelled): those that are wanted in turn, or drawn from (seed, sample)."""
    total, known = pipeline.transformer.null_label, pipeline.labels.values()
    word = wanted[0] if wanted and len(wanted) == 1 and wanted[0] not in known else None
    if word == "none" or (total == 0 and (wanted is None or word in ("all", "random"))):
        return [None] * count
    if word == "random":
        return [fold("label", seed + index) % total for index in range(count)]
    pool = list(range(total)) if wanted is None or word == "all" else pipeline.label_ids(wanted)
    return [pool[index % len(pool)] for index in range(count)]


def clip_labels(pipeline: EqMPipeline, given: Sequence[str | int | None], count: int) -> list[int | None]:
    """One label for each sample: those of the clips that they start from, in turn (None: unlabelled)."""
    found = [None if label is None else pipeline.label_ids([label])[0] for label in given]
    return [found[index % len(found)] for index in range(count)]


def names(pipeline: EqMPipeline, labels: Sequence[int | None]) -> list[str] | None:
    """Captions of the samples; None where no sample has a label."""
    if all(label is None for label in labels):
        return None
    return ["unlabelled" if one is None else pipeline.labels.get(one, str(one)).split(",")[0] for one in labels]
