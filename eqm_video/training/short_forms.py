"""Short forms among the words of `eqm-video train`: `own FOLDER`, and `--resume` without a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eqm_video.errors import UserError

NEWEST = "newest"  # the meaning of `--resume` without a path


def spell_out(words: Sequence[str]) -> list[str]:
    """The words with `--own=FOLDER` for `own FOLDER`, and with `--resume=newest` for `--resume` without a path.

    A folder that is there may have any name, such as -clips or a=b. UserError for `own` without a folder.
    """
    words = separate_resume(words)
    if words[:1] != ["own"]:
        return words
    if len(words) < 2 or ((words[1].startswith("-") or "=" in words[1]) and not Path(words[1]).is_dir()):
        raise UserError("train own needs the folder of your videos: type eqm-video train own FOLDER")
    return [f"--own={words[1]}", *words[2:]]


def separate_resume(words: Sequence[str]) -> list[str]:
    """The words with `--resume` spelled `--resume=newest` where no path follows.

    No path follows at the end, before an option, and before an override: `--resume train.steps=9` means the newest
    checkpoint, unless there is a file of that name.
    """
    words = list(words)
    for place, word in enumerate(words):
        if len(word) < 3 or not "--resume".startswith(word):
            continue
        following = words[place + 1] if place + 1 < len(words) else None
        option_follows = following is None or (following.startswith("-") and following != "-")
        if option_follows or ("=" in following and not Path(following).exists()):
            words[place] = f"--resume={NEWEST}"
    return words
