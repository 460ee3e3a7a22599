"""Recipes have names, in a checkout and in an installed package alike."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eqm_video.cli import main
from eqm_video.errors import UserError
from eqm_video.training import recipes
from eqm_video.training.config import Config, load_config


def test_every_recipe_of_the_repository_has_a_name(root: Path) -> None:
    files = {path.relative_to(root / "configs").with_suffix("").as_posix() for path in root.glob("configs/**/*.yaml")}
    assert set(recipes.names(launch_files=True)) == files
    assert set(recipes.names()) == {name for name in files if not name.startswith("accelerate/")}
    assert recipes.names()[0] == "actions" and "/" in recipes.names()[-1]


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load_config("own_videos")
    assert shipped != Config() and shipped == load_config("configs/own_videos.yaml") == load_config("own_videos.yaml")
    Path("own_videos.yaml").write_text("train: {steps: 7}")
    assert load_config("own_videos.yaml").train.steps == 7 and load_config("own_videos") == shipped
    Path("own_videos").mkdir()  # a folder is no recipe
    assert load_config("own_videos") == shipped


@pytest.mark.parametrize("given", ["own_vidoes", "configs/own_vidoes", "ablation/base"])
def test_a_name_that_is_none_is_one_sentence(given: str) -> None:
    near = "ablations/base" if "/base" in given else "own_videos"
    with pytest.raises(UserError, match=rf"^{given} is no file, and .*: did you mean {near}\? type `eqm-video"):
        load_config(given)


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{said}" for name in recipes.names(launch_files=True))
    assert max(map(len, said.splitlines())) <= 120
    assert main(["recipes", "own_videos"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "mine.yaml") == load_config("own_videos")
    assert main(["recipes", "accelerate/multi_node"]) == 0 and "num_machines" in capsys.readouterr().out
    assert main(["recipes", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing is no file, and no recipe of that name")


def test_the_wheel_holds_all_that_is_used(root: Path, tmp_path: Path) -> None:
    """Built, unpacked elsewhere and used there: recipes with and without a base, the codec, the marker of types."""
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    package = tmp_path / "site" / "eqm_video"
    assert (package / "py.typed").is_file() and (package / "assets/codec/config.json").is_file()
    shipped = {path.relative_to(package / "configs") for path in package.glob("configs/**/*.yaml")}
    assert shipped == {path.relative_to(root / "configs") for path in root.glob("configs/**/*.yaml")}
    outside = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "from eqm_video.cli import main; [main(['train', name, '--dry-run']) for name in ('demo', 'gamma/mixture')]"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=outside)
    assert done.stdout.count("preset: EqM-Nano/4") == 2, done.stderr
