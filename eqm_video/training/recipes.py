"""The recipes that ship with the package, by name: `own_videos`, `ablations/base`.

They lie in `configs` at the top of the repository, and in `eqm_video/configs` of an installed package, whose build
copies them there.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from eqm_video.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
LAUNCH = "accelerate"  # the folder of launch files for Accelerate, which are no recipes


def folder() -> Path:
    """The folder of the recipes that ship with the package."""
    return next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())


def names(launch_files: bool = False) -> list[str]:
    """Names of all recipes, those without a folder first; with `launch_files` those for Accelerate as well."""
    top = folder()
    paths = [path.relative_to(top).with_suffix("") for path in top.glob("**/*.yaml")]
    kept = [path for path in paths if launch_files or path.parts[0] != LAUNCH]
    return [path.as_posix() for path in sorted(kept, key=lambda path: (len(path.parts), path.as_posix()))]


def find(name_or_path: str | Path, launch_files: bool = False) -> Path:
    """The file of a recipe: a path, or the name of one that ships with the package; a file of that path comes first.

    `configs/own_videos.yaml` is `own_videos` where there is no such file. UserError where there is neither.
    """
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError:  # a name that is too long: reading it says so
        return path
    name = str(name_or_path).removeprefix("configs/").removesuffix(".yaml")
    known = names(launch_files)
    if name in known:
        return folder() / f"{name}.yaml"
    if path.exists() or path.suffix == ".yaml":  # reading it says what is wrong with it
        return path
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"{name_or_path} is no file, and no recipe of that name ships with the package: {hint}type `eqm-video recipes` "
        "for their names"
    )


def heading(path: Path) -> str:
    """The purpose of a recipe: the first sentence of the comment at its head, without the full stop."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
    return comment.partition(". ")[0].rstrip(".")


def check_root(root: str | None) -> None:
    """UserError if data.root, which no recipe that ships with the package can know, is not set."""
    if not root:
        raise UserError(
            "data.root is not set: add data.root=FOLDER, the folder of your videos or images (a recipe is picked for "
            "your videos by: eqm-video train own FOLDER)"
        )


def check_base(rank: int | None, init_from: str | None) -> None:
    """UserError if adapters are to be trained (a rank), and train.init_from, their network, is not set."""
    if rank is not None and init_from is None:
        raise UserError(
            f"lora.rank={rank} trains adapters of a trained network: add train.init_from=MODEL, a run or an export, or "
            "take lora.rank out"
        )
