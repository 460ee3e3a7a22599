"""Which label each sample gets, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eqm_video.names import as_label
from eqm_video.randomness import fold
from eqm_video.sampling.pipeline import EqMPipeline


def choose_labels(pipeline: EqMPipeline, wanted: Sequence[str] | None, count: int, seed: int) -> list[int | None]:
    """One label for each sample (None: unlabelled): those that are wanted in turn, or drawn from (seed, sample)."""
    total, known = pipeline.transformer.null_label, pipeline.labels
    word = wanted[0] if wanted and len(wanted) == 1 and as_label(wanted[0]) not in known.values() else None
    if word == "none" or (total == 0 and (wanted is None or word in ("all", "random"))):
        return [None] * count
    every = sorted(known) or list(range(total))  # a number without a name was never trained
    if word == "random":
        return [every[fold("label", seed + index) % len(every)] for index in range(count)]
    pool = every if wanted is None or word == "all" else pipeline.label_ids(wanted)
    return [pool[index % len(pool)] for index in range(count)]


def clip_labels(pipeline: EqMPipeline, given: Sequence[str | int | None], count: int) -> list[int | None]:
    """One label for each sample: those of the clips that they start from, in turn (None: unlabelled)."""
    found = [None if label is None else pipeline.label_ids([label])[0] for label in given]
    return [found[index % len(found)] for index in range(count)]


def names(pipeline: EqMPipeline, labels: Sequence[int | None]) -> list[str] | None:
    """Captions of the samples; None where no sample has a label."""
    return None if all(label is None for label in labels) else captions(pipeline.labels, labels)


def captions(known: Mapping[int, str], labels: Sequence[int | None]) -> list[str]:
    """What samples are called: of "tench, Tinca tinca" the first word, unless another label begins with it too."""
    first = {label: name.split(",")[0] for label, name in known.items()}
    counts: dict[str, int] = {}
    for word in first.values():
        counts[word] = counts.get(word, 0) + 1
    short = {label: word if counts[word] == 1 else known[label] for label, word in first.items()}
    return ["unlabelled" if one is None else short.get(one, str(one)) for one in labels]
