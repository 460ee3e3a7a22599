"""The site of the documentation is built from the pages of the repository, and no link of it is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs mkdocs-material (pip install eqm-video[docs])")
pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (pip install eqm-video[docs])")


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, root / "docs/site/build.py", out], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there(site: Path, root: Path) -> None:
    for page in (root / "docs").glob("*.md"):
        assert (site / "docs" / page.stem / "index.html").is_file(), page.name
    assert "Equilibrium Matching" in (site / "index.html").read_text(encoding="utf-8")


def test_generated_pages_have_their_content(site: Path) -> None:
    configuration = (site / "docs/configuration/index.html").read_text(encoding="utf-8")
    assert "data.latents" in configuration and "gamma.density.std" in configuration
    interface = (site / "docs/api/index.html").read_text(encoding="utf-8")
    assert "EqMPipeline" in interface and "TruncatedDecay" in interface and "OracleField" in interface


def test_pages_ask_no_other_host_for_fonts(site: Path) -> None:
    assert "fonts.googleapis" not in (site / "index.html").read_text(encoding="utf-8")
