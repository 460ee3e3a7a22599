"""The label and the caption of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eqm_video.names import as_label
from eqm_video.randomness import fold

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline


def choose_labels(pipeline: EqMPipeline, wanted: Sequence[str] | None, count: int, seed: int) -> list[int | None]:
    """A label for each of `count` samples, as a number (None: unlabelled).

    wanted: the words of --labels. Names and numbers are taken in turn; "random" draws from (seed, sample); None and
    "all" are all labels in turn; "none" is no label.
    """
    total, known = pipeline.transformer.null_label, pipeline.labels
    word = wanted[0] if wanted and len(wanted) == 1 and as_label(wanted[0]) not in known.values() else None
    if word == "none" or (total == 0 and (wanted is None or word in ("all", "random"))):
        return [None] * count
    every = sorted(known) or list(range(total))  # a number without a name was never trained
    if word == "random":
        return [every[fold("label", seed + index) % len(every)] for index in range(count)]
    pool = every if wanted is None or word == "all" else pipeline.label_ids(wanted)
    return [pool[index % len(pool)] for index in range(count)]


def clip_labels(pipeline: EqMPipeline, labels: Sequence[str | int | None], count: int) -> list[int | None]:
    """A label for each of `count` samples: `labels` of the clips that they start from, in turn (None: unlabelled)."""
    ids = [None if label is None else pipeline.label_ids([label])[0] for label in labels]
    return [ids[index % len(ids)] for index in range(count)]


def names(pipeline: EqMPipeline, labels: Sequence[int | None]) -> list[str] | None:
    """Captions of the samples; None where no sample has a label."""
    return None if all(label is None for label in labels) else captions(pipeline.labels, labels)


def captions(known: Mapping[int, str], labels: Sequence[int | None]) -> list[str]:
    """A caption for each sample: the name of its label up to the first comma, or all of it if names share this part."""
    first = {label: name.split(",")[0] for label, name in known.items()}
    counts: dict[str, int] = {}
    for word in first.values():
        counts[word] = counts.get(word, 0) + 1
    short = {label: word if counts[word] == 1 else known[label] for label, word in first.items()}
    return ["unlabelled" if label is None else short.get(label, str(label)) for label in labels]
