"""Shared fixtures: where real data lies, when it does, and one thread so that small machines stay predictable."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm

# The process that hands out the tests reads this file, too: what is heavy is imported in the fixtures that use it.

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files of minutes. They begin first, so that no core is left with one of them at the end.
LONG = (
    *("sharding", "train_cli", "distributed", "notebook", "device", "benchmarks", "resume", "faults", "starts"),
    *("cache", "evaluating", "tasks", "forcing", "frame_tasks", "lost_or_stuck", "report", "sample_cli", "site"),
)


def pytest_xdist_setupnodes(specs: list) -> None:
    """One server of warm processes for all workers, which are forks of it themselves.

    A process without one, as with `-n 0`, starts its own at need.
    """
    warm.start()
    for spec in specs:
        if spec.popen and spec.python is None:
            spec.python = shlex.quote(warm.python())


def pytest_collection(session: pytest.Session) -> None:
    """One thread wherever tests run."""
    if not session.config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: a test that waits for processes leaves its core to another."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of real videos and photos beside the checkout; tests that need it are skipped where it is missing."""
    folder = SHARED / "real"
    if not folder.is_dir():
        pytest.skip("needs real videos in ../shared/real, which this checkout does not have beside it")
    return folder


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: a test that trains begins and ends without it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A codec, videos, images."""
    import numpy as np
    from PIL import Image
    from tiny_run import write_codec, write_videos

    folder = tmp_path_factory.mktemp("made")
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=20)
    for label in ("cat", "dog", "emu"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.png")
    return folder
