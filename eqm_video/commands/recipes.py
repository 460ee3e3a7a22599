"""The command `recipes`: the recipes that ship with the package, listed or printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eqm_video import options
from eqm_video.errors import cut
from eqm_video.options import option
from eqm_video.training import recipes


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """List the recipes that ship with the package, or print one of them.

    Every name in the list can be given to `eqm-video train --config NAME`. To change more of a recipe than a few
    values, print it into a file of your own: `eqm-video recipes own_videos > mine.yaml`, then `--config mine.yaml`.
    """

    name: str | None = option(None, positional=True, metavar="RECIPE", help="print this recipe, or accelerate/NAME")


def main(words: Sequence[str]) -> int:
    """List or print; returns the exit status. UserError for a name that is none."""
    chosen = options.parse(RecipesOptions, words, prog="eqm-video recipes")
    if chosen.name is not None:
        print(recipes.find(chosen.name, launch_files=True).read_text(encoding="utf-8"), end="")
        return 0
    known = recipes.names(launch_files=True)
    width = max(map(len, known))
    for name in known:
        heading = recipes.heading(recipes.folder() / f"{name}.yaml")
        print(f"{name:{width}}  {cut(heading, 118 - width)}")
    print("\ntrain: eqm-video train --config NAME data.root=FOLDER run.dir=DIR; see one: eqm-video recipes NAME")
    return 0
