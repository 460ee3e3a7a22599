"""`sample_video.py` in this process, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from eqm_video import cli
from eqm_video.sampling.pipeline import EqMPipeline


def run(*arguments) -> int:
    return cli.main(["sample", *map(str, arguments)])


def npz(out: Path) -> tuple[np.ndarray, list[int]]:
    with np.load(out / "samples.npz") as file:
        return file["arr_0"], file["labels"].tolist()


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # below the progress bar, where there is one
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def count_batches(monkeypatch, stop_after: int | None = None) -> list[int]:
    """The size of every batch that is sampled from now on; after `stop_after` batches the run is interrupted."""
    sizes, call = [], EqMPipeline.sample

    def counted(self, how, labels, **options):
        if len(sizes) == stop_after:
            raise KeyboardInterrupt
        sizes.append(len(labels))
        return call(self, how, labels, **options)

    monkeypatch.setattr(EqMPipeline, "sample", counted)
    return sizes


def settings_of(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())["settings"]
