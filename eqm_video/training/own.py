"""`eqm-video train own FOLDER`: the recipe for somebody's own videos, picked by the device and the size of the set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eqm_video.data.layout import find_lists, list_files
from eqm_video.training.config import HeldOutConfig
from eqm_video.wording import counted

FEW = 100  # videos: a smaller set is memorised long before the steps of a large one are done
HOLDABLE = 20  # videos: of fewer than that none is held out
GPU, CPU = "own_videos", "own_videos_cpu"
STEPS = {(GPU, True): 20_000, (GPU, False): 100_000, (CPU, True): 4000, (CPU, False): 12_000}  # (recipe, few videos)


@dataclass(frozen=True)
class Choice:
    """A recipe by name, the values that are changed in it (the user's own last), and the reasons in words."""

    recipe: str
    overrides: list[str]
    said: str


def choose(folder: Path, changes: Sequence[str] = (), on_gpu: bool | None = None) -> Choice:
    """The recipe for the videos in a folder; UserError where there are none. Files are counted, not opened.

    changes: the user's own overrides, which come last and replace those that are picked here. on_gpu: whether there is
    a GPU; None looks for one.
    """
    count = len(list_files("videos", folder).names)
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() if on_gpu is None else on_gpu
    recipe, few = (GPU if on_gpu else CPU), count < FEW
    picked = {"data.root": str(folder), "run.dir": f"runs/{folder.resolve().name}"}
    picked["train.steps"] = str(STEPS[recipe, few])
    picked["data.latents"] = "auto"  # in memory where the frames fit and are encoded less often that way
    theirs = dict(word.split("=", 1) for word in changes if "=" in word)
    withheld = "nothing held out"
    if any(f"held_out.{source}" in theirs for source in HeldOutConfig.SOURCES):
        withheld = "held out as you say"
    elif find_lists(folder) is not None:
        picked |= {"data.split": "train", "held_out.split": "test"}
        withheld = "the test list held out"
    elif count >= HOLDABLE:
        picked["held_out.fraction"] = "0.1"
        withheld = "a tenth of them held out"
    overrides = [f"{key}={value}" for key, value in picked.items() if key not in theirs]
    steps = theirs.get("train.steps", picked["train.steps"])
    steps = "1 step" if steps == "1" else f"{int(steps):,} steps" if steps.isdecimal() else f"{steps} steps"
    said = (
        f"{counted(count, 'video')} and {'a GPU' if on_gpu else 'no GPU'}: recipe {recipe}, {steps}, {withheld}; "
        "the same as\n"
        f"  eqm-video train --config {recipe} {shlex.join([*overrides, *changes])}"
    )
    return Choice(recipe, [*overrides, *changes], said)
