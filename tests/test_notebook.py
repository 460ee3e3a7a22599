"""The notebook of the examples runs from the first cell to the last, on a tiny model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import warm

nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of the dev extra")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the dev extra")
pytest.importorskip("ipykernel", reason="needs ipykernel, of the dev extra")


def test_the_quick_start_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(sys, "executable", warm.python())  # of the kernel
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(root / "examples" / "quickstart.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    settings.source = f"steps = 3\nvideos = 2\nfolder = {str(tmp_path / 'quickstart')!r}"
    train = next(cell for cell in notebook.cells if cell.id == "train")
    last = '"train.keep=1",'
    assert last in train.source
    train.source = train.source.replace(last, f'{last} "train.batch_size=4", "train.evaluate.n=4", "sampler.steps=2",')
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    pictures = [output for name in ("sample", "task") for output in code[name] if "image/gif" in output.get("data", {})]
    assert len(pictures) == 2
    assert (tmp_path / "quickstart/run/report.html").is_file() and (tmp_path / "quickstart/run/export").is_dir()
