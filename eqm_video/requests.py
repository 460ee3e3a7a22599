"""What a call to the pipeline asks for: one label and one generator of start noise for each sample."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator

from eqm_video.errors import UserError
from eqm_video.randomness import generator as seeded

Label = str | int | None


def as_list(labels: Any, count: int | None, seeds: Any, generator: Any) -> list[Label]:
    """One label for each sample."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UserError(f"num_samples is {count!r}; it must be a whole number of at least 1")
    if labels is None or isinstance(labels, (str, int)):
        if count is None:
            given = seeds if seeds is not None else generator
            count = len(given) if isinstance(given, Sequence) else 1
        return [labels] * count
    labels = list(labels)
    if not labels or (count is not None and count != len(labels)):
        raise UserError(f"{len(labels)} labels for {count or 'no'} samples; give one label for each sample")
    return labels


def make_generators(count: int, seeds: Sequence[int] | None, generator: Any) -> list[Generator]:
    """One generator of start noise for each sample; a seed's is the same on every machine."""
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator exclude each other: give one of them")
    if isinstance(generator, Generator):
        return [generator] * count
    given = generator if generator is not None else seeds
    if given is None:
        given = torch.randint(2**62, (count,)).tolist()
    if len(given) != count:
        what = "seeds" if generator is None else "generators"
        raise UserError(f"{count} samples but {len(given)} {what}; give one for each sample")
    return [one if isinstance(one, Generator) else seeded("sample", int(one)) for one in given]


def unknown_label(label: str, known: Mapping[str, int], count: int) -> UserError:
    """The error for a label that the model does not know, with the nearest ones."""
    if not known:
        return UserError(f"label {label!r}: this model's labels have no names; give numbers from 0 to {count - 1}")
    near = difflib.get_close_matches(label, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    some = ", ".join(list(known)[:12]) + (f" ... ({len(known)} in all)" if len(known) > 12 else "")
    return UserError(f"unknown label {label!r}; {hint}known labels: {some}")
