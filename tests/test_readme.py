"""The README keeps its word: the tree names every file, recipes load, and every command is one that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from eqm_video.cli import COMMANDS
from eqm_video.sampling import launch as sample
from eqm_video.training import options as train
from eqm_video.training.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
TREE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
DOCS = {name: (ROOT / "docs" / name).read_text(encoding="utf8") for name in ("landscape.md", "video.md")}
RECIPES = sorted((ROOT / "configs").glob("*.yaml")) + sorted((ROOT / "configs" / "gamma").glob("*.yaml"))


def expand(name: str) -> list[str]:
    """`a_{b,c}.yaml` as its files."""
    parts = [part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"[{}]", name))]
    return ["".join(words) for words in product(*parts)]


def tree() -> set[str]:
    """Every path that the tree in docs/architecture.md names."""
    block = TREE.split("## The tree")[1].split("```")[1]
    paths, folder = set(), ""
    for line in block.splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") and len(line.split()) == 1 else ""
            paths |= set() if folder else set(expand(name))
        else:
            paths |= {folder + one for one in expand(name)}
    return paths


def commands() -> list[str]:
    fences = re.findall(r"```(\w*)\n(.*?)```", README + "".join(DOCS.values()), flags=re.S)
    blocks = [text for language, text in fences if not language]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if re.match(r"(accelerate|python|make) ", line)))


def test_pictures_are_there() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", "".join(DOCS.values()))
    assert len(shown) >= 14 and [name for name in shown if not (ROOT / "docs" / name).is_file()] == []
    shown = re.findall(r'<img src="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', README)
    assert len(shown) >= 10 and [name for one in shown for name in one if name and not (ROOT / name).is_file()] == []


@cache
def help_of(command: str) -> str:
    run = [sys.executable, "-m", "eqm_video", command, "--help"]
    return subprocess.run(run, capture_output=True, text=True, cwd=ROOT).stdout


def test_tree_and_files_agree() -> None:
    named = tree()
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []
    named = {str(file.relative_to(ROOT)) for path in named for file in ROOT.glob(path)}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "eqm_video").rglob("*.py")}
    modules = {path for path in modules if not path.endswith(("__init__.py", "__main__.py"))}
    assert modules - named == set()
    assert {str(path.relative_to(ROOT)) for path in RECIPES if path.parent.name == "configs"} - named == set()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_load(recipe: Path) -> None:
    load_config(recipe)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    words = [word for word in shlex.split(command.replace("...", "")) if word]
    if words[0] == "make":
        result = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif "train_video.py" in words:
        given = words[words.index("train_video.py") + 1 :]
        options = train.parse(given)
        load_config(ROOT / options.config, options.overrides)
    elif "sample_video.py" in words:
        assert sample.parse(words[words.index("sample_video.py") + 1 :]).model
    else:
        assert words[:3] == ["python", "-m", "eqm_video"] and words[3] in COMMANDS
        help_text = help_of(words[3])
        for word in words[4:]:
            assert not word.startswith("--") or word in help_text, f"{word} is no option of {words[3]}"
