"""The choice of held-out files of a set: a share of them, by their names and a seed alone.

The choice for a file does not depend on other files, so adding files changes none of the others. There are two
exceptions. A class keeps at least 1 file to train on. If chance selects no file at all, the file that came nearest is
held out.
"""

from __future__ import annotations

from collections.abc import Sequence

from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.randomness import fold


def choose_held_out(names: Sequence[str], label_ids: Sequence[int], fraction: float, seed: int) -> list[bool]:
    """Choose about `fraction` (above 0, below 1) of the files: True for a held-out file. UserError if none can be."""
    draws = [fold("held out file", seed, as_label(name)) / 2**63 for name in names]
    is_held_out = [draw < fraction for draw in draws]
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(label_ids):
        classes.setdefault(label, []).append(index)
    for members in classes.values():
        if all(is_held_out[index] for index in members):
            is_held_out[max(members, key=lambda index: draws[index])] = False
    if not any(is_held_out):
        spare = [index for members in classes.values() if len(members) > 1 for index in members]
        if not spare:
            raise UserError(
                f"held_out.fraction={fraction:g}: of {len(names)} files none can be held out, every class keeps one; "
                "add files, or type held_out.fraction=null"
            )
        is_held_out[min(spare, key=lambda index: draws[index])] = True
    return is_held_out
