"""The Python of README and pages runs as it stands there, each page from top to bottom, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline, tiny_transformer

LABELS = ["DiscRight", "DiscLeft", "SquareUp"]
IDEA = 1  # blocks at the top of README without a model, which test_readme.py runs


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the models and the picture that the pages name."""
    monkeypatch.chdir(tmp_path)
    for folder, energy in (("demo", "implicit"), ("runs/dot/export", "dot")):  # a folder comes before the shipped model
        tiny_pipeline(tiny_transformer(energy=energy), id2label=LABELS, frames=3).save_pretrained(folder)
    Image.new("RGB", (40, 30), (200, 90, 30)).save("photo.jpg")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_the_readme_samples(root: Path, models: None) -> None:
    names: dict = {}
    for block in blocks(root / "README.md")[IDEA:]:
        exec(block, names)
    assert [len(names[name]) for name in ("clips", "moving", "rested")] == [2, 1, 1]


def test_the_start_samples(root: Path, models: None) -> None:
    names: dict = {}
    for block in blocks(root / "docs" / "start.md"):
        exec(block, names)
    assert (
        isinstance(names["clips"][0][0], Image.Image) and names["pipeline"].transformer.dtype == names["torch"].bfloat16
    )


def test_the_landscape_reads_energies(root: Path, models: None) -> None:
    names: dict = {}
    for block in blocks(root / "docs" / "landscape.md"):
        exec(block, names)
    assert names["energies"].shape == (1, 3)


def test_a_video_continues(root: Path, models: None) -> None:
    names = {"frames": np.full((1, 3, 16, 16, 3), 90, np.uint8)}
    for block in blocks(root / "docs" / "video.md"):
        exec(block, names)
    assert len(names["result"].frames[0]) == 3
