"""Which files of a set are held out: a share of them, chosen by their names and a seed alone.

A file is held out, or not, whatever other files there are: adding some moves none of the others. There are two
exceptions. A class keeps at least one file to train on. Where chance chooses no file at all, the one that came nearest
is held out.
"""

from __future__ import annotations

from collections.abc import Sequence

from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.randomness import fold


def choose_held_out(names: Sequence[str], label_ids: Sequence[int], fraction: float, seed: int) -> list[bool]:
    """Whether each file is held out, about `fraction` of them (above 0, below 1). UserError where none can be."""
    draws = [fold("held out file", seed, as_label(name)) / 2**63 for name in names]
    held = [draw < fraction for draw in draws]
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(label_ids):
        classes.setdefault(label, []).append(index)
    for members in classes.values():
        if all(held[index] for index in members):
            held[max(members, key=lambda index: draws[index])] = False
    if not any(held):
        spare = [index for members in classes.values() if len(members) > 1 for index in members]
        if not spare:
            raise UserError(
                f"held_out.fraction={fraction:g}: of {len(names)} files none can be held out, every class keeps one; "
                "add files, or type held_out.fraction=null"
            )
        held[min(spare, key=lambda index: draws[index])] = True
    return held
