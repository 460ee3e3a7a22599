"""Measurements kept on disk, a file each: an interrupted study continues with those that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.system import files
from eqm_video.system.reading import MOST_JSON, read_text

Clips = tuple[NDArray[np.uint8], NDArray[np.integer]]  # (N, T, H, W, 3), and the number of each clip's label (N,)


@dataclass(frozen=True)
class Measured:
    """The folder `measured` in a study's folder `out`. With `again` its files are measured anew."""

    out: Path
    again: bool = False

    def file(self, name: str) -> Path:
        """The path of a measurement's record. Its clips lie beside it, as .npz."""
        return self.out / "measured" / f"{name}.json"

    def clips(self, name: str) -> NDArray[np.uint8]:
        """The clips (N, T, H, W, 3) that a measurement kept."""
        with np.load(self.file(name).with_suffix(".npz")) as arrays:
            return arrays["arr_0"]

    def keep(
        self, name: str, wanted: Mapping[str, Any], measure: Callable[[], tuple[Mapping[str, Any], Clips | None]]
    ) -> dict[str, Any]:
        """The record of a measurement: an earlier one with equal settings `wanted`, or else the result of `measure`.

        `measure` returns numbers, and clips to keep beside them or None. UserError for a damaged record.
        """
        file = self.file(name)
        wanted = json.loads(json.dumps(wanted))  # in the form in which it will be read
        record = _read(file) if file.is_file() and not self.again else {}
        if record.get("asked") != wanted:
            numbers, clips = measure()
            if clips is not None:
                media.write_npz(file.with_suffix(".npz"), *clips)
            record = {"asked": wanted, **json.loads(json.dumps(numbers))}
            files.write_record(file, record)
        return record

    def found(self, name: str, wanted: Mapping[str, Any], says: str, measure: Callable[[], Any]) -> Any:
        """A measurement without clips, as by `keep`; `says` is printed before it is made."""

        def work() -> tuple[dict[str, Any], None]:
            print(says, flush=True)
            return {"found": measure()}, None

        return self.keep(name, wanted, work)["found"]


def _read(file: Path) -> dict[str, Any]:
    advice = "; type --again to measure it again"
    try:
        record = json.loads(read_text(file, MOST_JSON, advice=advice))  # has NaN if every clip diverged
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is damaged ({error}){advice}") from error
    if not isinstance(record, dict):
        raise UserError(f"{file} is no record of a measurement{advice}")
    return record
