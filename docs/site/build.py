"""Build the site of the documentation: `python docs/site/build.py OUT`.

The pages are those of the repository, with the links that they have there, so nothing is written twice. The reference
of the configuration and the index of the interface are generated. Every link is checked: a broken one fails the build.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
from pathlib import Path

import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from eqm_video.commands import explain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = {  # pages by section, in order; a page that is not named here comes last
    "Start": ["start", "own_videos", "page", "gallery", "troubleshooting"],
    "Guides": ["training", "evaluate", "video", "landscape", "scaling", "reliability", "migration"],
    "Results": ["results", "forcing"],
    "Reference": ["configuration", "api", "architecture", "extending"],
}
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)|<img src=\"([^\"]+)\"")


def stage(folder: Path) -> list[str]:
    """Copy all pages, and the files that they link to, into `folder`; returns the names of the pages in docs/."""
    pages = {Path("index.md"): (ROOT / "README.md").read_text(encoding="utf-8")}
    for path in sorted((ROOT / "docs").glob("*.md")):
        pages[path.relative_to(ROOT)] = path.read_text(encoding="utf-8")
    pages[Path("docs/configuration.md")] = explain.as_markdown(list(explain.every_key()))
    pages[Path("docs/api.md")] = (HERE / "api.md").read_text(encoding="utf-8")
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for match in LINK.finditer(pages[page]):
            target = page.parent / (match[1] or match[3])
            if ":" in str(target):
                continue
            target = Path(*_normal(target.parts))
            if target.suffix == ".md" and target not in pages and target != Path("README.md"):
                pages[target] = (ROOT / target).read_text(encoding="utf-8")
                waiting.append(target)
            elif target.suffix != ".md" and (ROOT / target).is_file():
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / target, folder / target)
    for page, text in pages.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(re.sub(r"\]\(((?:\.\./)*)README\.md", r"](\1index.md", text), encoding="utf-8")
    shutil.copyfile(HERE / "site.css", folder / "site.css")
    return [page.stem for page in pages if page.parent == Path("docs")]


def _normal(parts: tuple[str, ...]) -> list[str]:
    """The parts of a path without `..`."""
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept.pop()
        else:
            kept.append(part)
    return kept


def navigation(names: list[str]) -> list[dict]:
    """The menu: the README first, then the pages by section."""
    placed = [name for part in PARTS.values() for name in part]
    menu: list[dict] = [{"Overview": "index.md"}]
    for part, inside in {**PARTS, "More": [name for name in names if name not in placed]}.items():
        entries = [f"docs/{name}.md" for name in inside if name in names]
        entries += ["data/README.md", "video_samples/README.md"] if part == "Guides" else []
        menu += [{part: entries}] if entries else []
    return menu


def main() -> None:
    """Stage and build; a warning, such as a broken link, is an error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the site")
    out = parser.parse_args().out.resolve()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = stage(folder / "pages")
        settings = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
        settings |= {"docs_dir": "pages", "site_dir": str(out), "nav": navigation(names), "strict": True}
        (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        build(load_config(str(folder / "mkdocs.yml")))
    print(f"open {out / 'index.html'}")


if __name__ == "__main__":
    main()
