"""The command line of `eqm-video train`: its options as a class, and the configuration that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.sampling.option_groups import Dry, Recipe
from eqm_video.training.checkpoint import Checkpoints
from eqm_video.training.config import Config, load_config
from eqm_video.training.own import Choice, choose
from eqm_video.training.resume import find_checkpoint, recorded_config
from eqm_video.training.short_forms import NEWEST, spell_out

EXAMPLE = """examples:
  eqm-video train own FOLDER
  eqm-video train --config ucf101_b2 data.root=data/UCF-101 run.dir=runs/ucf train.steps=100000
  accelerate launch --multi_gpu -m eqm_video train --config ucf101_b2 data.root=data/UCF-101 run.dir=runs/ucf"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Recipe, Dry):
    """Train a video or image model with Equilibrium Matching."""

    epilog: ClassVar[str] = EXAMPLE
    spelled_out: ClassVar[Any] = staticmethod(spell_out)

    own: Path | None = option(
        None, metavar="FOLDER", help="your own videos (also: train own FOLDER): the recipe is picked for them"
    )
    device_spec: Literal["h200", "h100", "a100", "l40s", "4090", "3090"] | None = option(
        None, unset="the device at hand", help="with --dry-run: the GPU whose memory and time are counted"
    )
    resume: str | None = option(
        None,
        metavar="[PATH]",
        help="continue exactly from a checkpoint: PATH, or, without PATH, the newest whole checkpoint of run.dir",
    )
    from_older: bool = option(
        False, help="with --resume: pass over damaged checkpoints, or go back to an older PATH; later ones are renamed"
    )

    def __post_init__(self) -> None:
        if self.from_older and self.resume is None:
            raise UserError("--from-older says where --resume goes on: type --resume --from-older")
        if self.device_spec is not None and not self.dry_run:
            raise UserError("--device-spec counts what a run would take: type --dry-run --device-spec NAME")
        if self.own is not None and self.recipe is not None:
            raise UserError("--own picks the recipe, and --config gives one: type one of them, and data.root=FOLDER")

    @property
    def unnamed(self) -> bool:
        """Whether a training has no network by name: of a recipe, a checkpoint or a value of the section `model`."""
        named = self.dry_run or self.recipe or self.own or self.resume
        return not named and not any(word.startswith("model") for word in self.changes)

    @cached_property
    def choice(self) -> Choice:
        """The recipe that is picked for the videos of --own; its clips are picked later, by `own.with_clips`."""
        return choose(self.own.expanduser(), self.changes)

    def config_of_run(self) -> Config:
        """The configuration: the recipe with its overrides. `--resume` without a recipe uses the checkpoint's."""
        if self.own is not None:
            return self.choice.config()
        config = load_config(self.recipe, self.changes)
        if self.resume is None or self.recipe is not None:
            return config
        if self.resume == NEWEST:
            checkpoint = Checkpoints(config.run.folder / "checkpoints").newest()
        else:
            checkpoint = find_checkpoint(Path(self.resume))
        return config if checkpoint is None else recorded_config(checkpoint, self.changes)


def parse(words: Sequence[str]) -> TrainOptions:
    """The options of a command line; UserError for words that make no sense."""
    return options.parse(TrainOptions, words, prog="eqm-video train")
