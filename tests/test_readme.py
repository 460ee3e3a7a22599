"""README and docs keep their word: code runs, the tree names every file, links lead somewhere, commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from eqm_video import cli
from eqm_video.commands import COMMANDS
from eqm_video.sampling import launch as sample
from eqm_video.training import options as train
from eqm_video.training.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = {
    path: path.read_text(encoding="utf8")
    for path in (
        README,
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "data/README.md",
        ROOT / "video_samples/README.md",
    )
}
RECIPES = sorted((ROOT / "configs").glob("*.yaml")) + sorted((ROOT / "configs" / "gamma").glob("*.yaml"))
LONGEST = 190  # lines of README.md


def expand(name: str) -> list[str]:
    """`a_{b,c}.yaml` as its files."""
    parts = [part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"[{}]", name))]
    return ["".join(words) for words in product(*parts)]


def tree() -> set[str]:
    """Every path that the tree in docs/architecture.md names."""
    block = PAGES[ROOT / "docs/architecture.md"].split("## The tree")[1].split("```")[1]
    paths, folder = set(), ""
    for line in block.splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") and len(line.split()) == 1 else ""
            paths |= set() if folder else set(expand(name))
        else:
            paths |= {folder + part for part in expand(name)}
    return paths


def commands() -> list[str]:
    """Every command on the pages: lines of plain code blocks, and commands within a sentence or a table."""
    found = []
    for text in PAGES.values():
        fences = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.S)
        lines = [line for language, block in fences if not language for line in block.splitlines()]
        found += [
            line.split("  #")[0].strip() for line in lines if re.match(r"(accelerate|eqm-video|python|make) ", line)
        ]
        sentences = re.sub(r"```.*?```", "", text, flags=re.S)
        found += re.findall(r"`((?:eqm-video [a-z-]+ |make )[^`]+)`", sentences)
    return list(dict.fromkeys(found))


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def help_of(command: str) -> str:
    """The help text of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([command, "--help-all"])
    return printed.getvalue()


def test_the_readme_is_short() -> None:
    assert len(PAGES[README].splitlines()) <= LONGEST


def test_the_idea_in_code_is_true() -> None:
    """The loss trains, a clean frame has the target 0, and known frames come out bit for bit."""
    torch.manual_seed(0)
    code = re.search(r"## The idea\n\n```python\n(.*?)```", PAGES[README], flags=re.S)[1]
    names: dict = {}
    exec(code, names)
    loss, network = names["loss"], names["network"]
    assert loss.shape == () and bool(loss.isfinite())
    loss.backward()
    assert sum(float(weight.grad.abs().sum()) for weight in network.parameters() if weight.grad is not None) > 0
    clean, known, x = names["clean"], names["known"], names["x"]
    assert torch.equal(x[:, known], clean[:, known]) and bool(x.isfinite().all())
    one = torch.ones(2, 4, 1, 1, 1)
    assert torch.equal(one * clean + (1 - one) * names["noise"], clean)
    assert not ((names["noise"] - clean) * names["decay"](one)).any()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    missing = []
    for link in links:
        place, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf8"))):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_are_called_by_their_subject(page: Path) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    assert re.findall(r"(?<!!)\[[^\]`]*\.(?:md|py|yaml|json|png)\]\([^)]*\)", text) == []


def test_the_pages_show_pictures() -> None:
    shown = {path.name: len(re.findall(r"!\[[^]]*\]\(|<img ", text)) for path, text in PAGES.items()}
    assert shown["landscape.md"] >= 12 and shown["video.md"] >= 7 and "demo/grid.gif" in PAGES[README]


def test_tree_and_files_agree() -> None:
    named = tree()
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []
    named = {str(file.relative_to(ROOT)) for path in named for file in ROOT.glob(path)}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "eqm_video").rglob("*.py")}
    modules = {path for path in modules if not path.endswith(("__init__.py", "__main__.py"))}
    assert modules - named == set()
    assert {str(path.relative_to(ROOT)) for path in RECIPES if path.parent.name == "configs"} - named == set()
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} - named == set()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_load(recipe: Path) -> None:
    load_config(recipe)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 60
    shown = {words.split()[1] for words in commands() if words.startswith("eqm-video ")}
    assert shown >= set(COMMANDS) - {"demo", "train-codec", "train-shipped"}  # make demo, and the cards


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    words = [word for word in shlex.split(command.replace("...", "")) if word]
    if words[0] == "make":
        result = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return
    if words[0] in ("accelerate", "torchrun"):
        assert "-m" in words and words[words.index("-m") + 1] == "eqm_video"
        words = ["eqm-video", *words[words.index("-m") + 2 :]]
    assert words[0] == "eqm-video" and words[1] in COMMANDS
    if words[1] == "train":
        options = train.parse(words[2:])
        load_config(options.config, options.overrides)
    elif words[1] == "sample":
        assert sample.parse(words[2:]).model
    else:
        help_text = help_of(words[1])
        for word in words[2:]:
            assert not word.startswith("--") or word in help_text, f"{word} is no option of {words[1]}"
