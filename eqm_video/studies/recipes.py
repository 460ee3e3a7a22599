"""Recipes of a folder that differ in a single choice. Each is trained once; a run is reused, or continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.output.outputs import claim_output
from eqm_video.sampling.option_groups import Data, Overridden, Written
from eqm_video.training import launch as training
from eqm_video.training import recipes, resume
from eqm_video.training.config import Config, load_config, to_tree
from eqm_video.training.strict_yaml import flatten

FREE = tuple(key for key in resume.FREE if key != "train.steps")  # keys that may differ in a run that is reused


@dataclass(frozen=True, kw_only=True)
class Trained(Data, Overridden, Written):
    """The options of studies that train recipes: --only, --again, --data and section.key=value."""

    only: tuple[str, ...] | None = option(
        None, metavar="NAME", help="train and measure only these recipes", unset="all"
    )
    again: bool = option(False, help="repeat measurements that are already there")

    @property
    def runs(self) -> Path:
        """The folder of the training runs."""
        return self.out

    @property
    def chosen(self) -> tuple[str, ...] | None:
        """The names after --only, without the overrides among them; None for all recipes."""
        return None if self.only is None else tuple(word for word in self.only if "=" not in word)

    @property
    def all_overrides(self) -> list[str]:
        """All overrides, with those after --only."""
        return [*self.overrides, *(word for word in self.only or () if "=" in word)]


@dataclass(frozen=True)
class Variant:
    """A run of a recipe with other values: the folder of the run, below the study's, and the overrides."""

    folder: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipes:
    """The recipes `group`/..., `first` first. Runs are named as their recipes, in the folder `options.runs`."""

    group: str
    first: str

    @property
    def folder(self) -> Path:
        """The folder of these recipes."""
        return recipes.folder() / self.group

    def names(self) -> list[str]:
        """The names of the recipes, `first` first."""
        return sorted((path.stem for path in self.folder.glob("*.yaml")), key=lambda name: (name != self.first, name))

    def chosen(self, only: Sequence[str] | None) -> list[str]:
        """The names in `only`, or all, in the order of `names`; UserError for an unknown name."""
        names = self.names()
        if unknown := sorted(set(only or ()) - set(names)):
            raise UserError(f"--only {unknown[0]}: the recipes are {', '.join(names)}")
        return [name for name in names if only is None or name in only]

    def config(self, name: str, options: Trained, variant: Variant | None = None) -> Config:
        """The configuration of a recipe, or of a variant of it, with the overrides of the command line."""
        return load_config(self.folder / f"{name}.yaml", self.replaced(name, options, variant))

    def replaced(self, name: str, options: Trained, variant: Variant | None = None) -> list[str]:
        """The overrides of a recipe: the user's, a variant's (which win), data, folder, the export it starts from."""
        own, folder = (variant.words, variant.folder) if variant else ((), name)
        words = [*options.all_overrides, *own, f"data.root={options.data}", f"run.dir={options.runs / folder}"]
        source = self.origin(name)
        return words if source is None else [*words, f"train.init_from={options.runs / source / 'export'}"]

    def origin(self, name: str) -> str | None:
        """The name of the recipe from whose run this recipe starts, or None."""
        source = load_config(self.folder / f"{name}.yaml").train.init_from  # runs/ablations/base/export
        return None if source is None else Path(source).parent.name

    def claim(self, names: Sequence[str], options: Trained) -> None:
        """Claim the folders of all runs, before any of them is trained.

        UserError where files of others are in the way, and for overrides that a recipe does not take.
        """
        for name in names:
            self.config(name, options)
        for name in {*names, *filter(None, map(self.origin, names))}:
            claim_output(options.runs / name, "train", option="the run's folder")

    def train(self, name: str, options: Trained, variant: Variant | None = None) -> None:
        """Train a recipe or a variant, or continue its run, unless it is finished; first the run it starts from."""
        recipe, source, config = self.folder / f"{name}.yaml", self.origin(name), self.config(name, options, variant)
        if (config.run.folder / "export").is_dir():
            check_same(config, recipe)
            return
        if source is not None:
            self.train(source, options)
        print(f"training {variant.folder if variant else name}", flush=True)
        status = training.main(["--config", str(recipe), "--resume", *self.replaced(name, options, variant)])
        if status != 0 or not (config.run.folder / "export").is_dir():
            raise UserError(f"the training of {name} did not finish; type the same command again to continue")


def check_same(config: Config, recipe: Path) -> None:
    """UserError where a finished run was trained with other settings than its recipe has now."""
    then, now = (dict(flatten(to_tree(tree))) for tree in (load_config(config.run.folder / "config.yaml"), config))
    paths = ("train.init_from",)  # the same run, from another working folder
    changed = [
        f"{key} ({then.get(key)} there)"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in paths and not any(f"{key}.".startswith(f"{k}.") for k in FREE)
    ]
    if changed:
        raise UserError(
            f"{config.run.folder} was not trained from {recipe.name} as it is now: {', '.join(changed)}; name another "
            "folder for the runs, or remove that one"
        )
