"""The folder that sampling writes: finished batches while it runs, then `samples.npz` and pictures.

    samples.npz      arr_0 uint8 (N, T, H, W, 3), for images (N, H, W, 3); labels int64 (N,), -1 = unlabelled
    samples.json     labels and seeds of the samples, and all settings
    grid.gif         labelled clips side by side (images: grid.png), known frames in an orange border
    clips/000000.gif one file for each of the first clips
    .parts-eqm/      finished batches, and the settings they were made with; gone when samples.npz is there

Files that sampling did not write stay untouched. Batches that earlier versions kept in `parts` are recognised by their
content and moved. A finished sample is never made again, whatever the batch size or the number of processes of the next
run. N samples, T frames, H W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.output.grids import Grid
from eqm_video.output.outputs import OLD_PARTS, PARTS, SAMPLES
from eqm_video.output.overlays import draw_known_borders
from eqm_video.system import files, waits
from eqm_video.system.claims import remove_empty
from eqm_video.system.files import remove_asides

PART = re.compile(r"settings\.json|([a-z]+_)?\d{8,}\.npy")
GRID_CLIPS = 64  # at most this many clips in the grid


@dataclass(frozen=True)
class Look:
    """The way samples are shown. It never changes a sample."""

    formats: tuple[str, ...]  # some of gif, mp4, png
    fps: float  # frames per second of the grid, and of clips without their own rate
    clips: int  # how many clips get a file of their own
    scale: int | None = None  # pixels of the grid for each pixel of a clip; None: enough to read the labels
    columns: int | None = None
    known: tuple[int, ...] = ()  # frames with a border in the grid
    rates: tuple[float, ...] = ()  # frames per second of the clips, in turn; (): `fps` for all

    def rate(self, index: int) -> float:
        """Frames per second of sample number `index`."""
        return self.rates[index % len(self.rates)] if self.rates else self.fps


class SampleFolder:
    """The folder `path` of N samples with `labels` (numbers, -1 = unlabelled) and captions `names`.

    `settings` are plain values. Samples in the folder are continued only if they were made with equal settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], labels: list[int], names: list[str] | None) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.labels = labels
        self.names = names
        self.count = len(labels)
        # The folders that this process makes
        self.made = [folder for folder in (path, *path.parents) if not folder.exists()]
        self.npz, self.json = path / "samples.npz", path / "samples.json"

    @property
    def parts_folder(self) -> Path:
        """The folder of finished batches. It is that of an earlier version until `start` has moved its batches."""
        old, new = self.path / OLD_PARTS, self.path / PARTS
        return old if not new.is_dir() and any(SAMPLES.older_records(self.path)) else new

    @property
    def finished(self) -> bool:
        """Whether all samples are in samples.npz."""
        return self.npz.is_file() and self.json.is_file()

    def check(self) -> None:
        """UserError where the folder holds samples that these settings did not make."""
        if not (self.npz.exists() or self.json.exists() or any(self._parts()) or self._pictures()):
            return  # no samples: at most the settings of a run that failed before its first batch
        hint = f"give another --out, or add --overwrite to delete what is in {self.path}"
        record = next((file for file in (self.json, self.parts_folder / "settings.json") if file.is_file()), None)
        if record is None:
            raise UserError(f"{self.path} holds samples of unknown settings; {hint}")
        try:
            there = json.loads(record.read_text(encoding="utf-8"))
            there = dict(there["settings"] if record == self.json else there)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record} is damaged; {hint}") from error
        there.pop("origin", None)
        differing = [key for key in sorted(there.keys() | self.settings) if there.get(key) != self.settings.get(key)]
        if differing:
            pairs = ((key, _short(there.get(key)), _short(self.settings.get(key))) for key in differing)
            shown = "; ".join(f"{key}: {theirs} there, {ours} here" for key, theirs, ours in pairs)
            raise UserError(f"{self.path} holds samples made with other settings ({shown}); {hint}")

    def clear(self) -> None:
        """Delete the files that sampling wrote here, and nothing else."""
        for file in [file for file, ours in SAMPLES.written(self.path) if ours]:
            file.unlink(missing_ok=True)
        self._remove_parts()
        remove_empty([self.path / "clips"])

    def start(self) -> None:
        """Write the settings before the first batch, and move the batches of earlier versions."""
        if not self.finished:
            if (old := self.parts_folder).name == OLD_PARTS:
                for file in self._pictures():  # they carry no mark; `show` makes them again
                    file.unlink()
                (self.path / PARTS).mkdir()
                for file in _files_of_parts(old):
                    file.rename(self.path / PARTS / file.name)
                remove_asides(old, lambda name: PART.fullmatch(name) is not None)
                remove_empty([old])
            files.write_record(self.parts_folder / "settings.json", self.settings)

    def abandon(self) -> None:
        """Delete the settings, and the folders made for them, if no batch was finished."""
        if not self.finished and not any(self._parts()):
            self._remove_parts()
            remove_empty([self.path / "clips", *self.made])

    def missing(self, batch_size: int, processes: int) -> list[range]:
        """The batches that are still to be made, of at most `batch_size` consecutive samples, even over `processes`."""
        if self.finished:
            return []
        done = np.zeros(self.count, bool)
        for start, samples in self._parts():
            done[start : start + len(samples)] = True
        todo = np.flatnonzero(~done)
        size = max(1, min(batch_size, -(-len(todo) // processes)))
        runs = np.split(todo, np.flatnonzero(np.diff(todo) != 1) + 1)
        return [range(int(run[k]), int(run[k : k + size][-1]) + 1) for run in runs for k in range(0, len(run), size)]

    def write_part(self, start: int, samples: np.ndarray, look: Look, nfe: np.ndarray) -> None:
        """Keep the batch of samples (n, T, H, W, 3) with numbers start, start + 1, ..., and show them as `look` says.

        nfe: (n,) evaluations of the field for each sample.
        """
        with self.open_part(start, samples.shape, look) as file:
            self.keep("nfe", start, nfe)
            for index, clip in enumerate(samples):
                file.write(index, 0, clip)

    @contextmanager
    def open_part(self, start: int, shape: tuple[int, ...], look: Look) -> Iterator[media.NpyFile]:
        """A context that gives the file of samples start, start + 1, ... of `shape` (n, T, H, W, 3), to be filled.

        The batch is finished when the block ends without an error; then its samples are shown as by `write_part`.
        """
        path = self.parts_folder / f"{start:08d}.npy"
        with media.NpyFile(path, shape) as file:
            yield file
        for index, clip in enumerate(np.load(path, mmap_mode="r"), start):
            if index < look.clips:
                self._show(index, clip, look)

    def keep(self, kind: str, start: int, values: np.ndarray) -> None:
        """Keep numbers (n, ...) of a batch's samples under the name `kind`, such as nfe."""
        media.write_npy(self.parts_folder / f"{kind}_{start:08d}.npy", values)

    def kept(self, kind: str) -> np.ndarray | None:
        """The numbers (N, ...) that `keep` stored under `kind`, over all batches; None if there are none."""
        files = [self.parts_folder / f"{kind}_{start:08d}.npy" for start, _ in self._parts()]
        return np.concatenate([np.load(file) for file in files]) if files and files[0].is_file() else None

    def finish(self, record: Mapping[str, Any]) -> None:
        """Join the batches into samples.npz, write samples.json, and delete the batches."""
        if not self.finished:
            pieces = (samples[:, 0] if samples.shape[1] == 1 else samples for _, samples in self._parts())
            media.write_npz(self.npz, pieces, np.asarray(self.labels))
            whole = {**record, "nfe": self.kept("nfe").tolist()}
            files.write_record(self.json, {**whole, "settings": self.settings})
        self._remove_parts()

    def nfe(self) -> np.ndarray | None:
        """Evaluations of the field for every sample (N,); None in samples of earlier versions, which lack them."""
        counts = json.loads(self.json.read_text(encoding="utf-8")).get("nfe")
        return None if counts is None else np.asarray(counts)

    def show(self, look: Look) -> list[Path]:
        """Write the grid, and the files of clips that have none yet; returns the grid's files."""
        samples = media.open_npz(self.npz)
        samples = samples[:, None] if samples.ndim == 4 else samples
        for index in waits.bar(range(min(self.count, look.clips)), "writing clips", unit="clip"):
            self._show(index, samples[index], look)
        clips, names = samples[:GRID_CLIPS], self.names[:GRID_CLIPS] if self.names else None
        scale, files = look.scale or max(1, round(128 / clips.shape[3])), []
        known = np.isin(np.arange(clips.shape[1]), look.known)
        for kind in look.formats:
            file = self.path / f"grid.{kind}"
            if kind == "png" and clips.shape[1] > 1:
                framed = draw_known_borders(clips, known) if look.known else clips
                media.write_png(file, media.grid(media.filmstrips(framed), names, look.columns or 1, scale)[0])
            else:
                border = _border(known) if look.known else None
                media.write(file, Grid(clips, names, look.columns, scale, border), look.fps)
            files.append(file)
        return files

    def _show(self, index: int, clip: np.ndarray, look: Look) -> None:
        for kind in look.formats:
            file = self.path / "clips" / f"{index:06d}.{kind}"
            if not file.exists():
                media.write(file, media.filmstrips(clip[None])[0] if kind == "png" else clip, look.rate(index))

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        for file in sorted(self.parts_folder.glob("[0-9]*.npy")):
            yield int(file.stem), np.load(file, mmap_mode="r")

    def _pictures(self) -> list[Path]:
        return [file for file, ours in SAMPLES.written(self.path) if ours and file.suffix in (".gif", ".mp4", ".png")]

    def _remove_parts(self) -> None:
        folder = self.parts_folder
        for file in _files_of_parts(folder):
            file.unlink()
        remove_empty([folder])


def _files_of_parts(folder: Path) -> list[Path]:
    """The files in the folder of finished batches that have the names of sampling's own."""
    return [file for file in folder.glob("*") if PART.fullmatch(file.name)]


def _border(known: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """The function that draws borders on a grid's frames (N, H, W, 3) at a time. known: (T,) bool."""
    return lambda frames, index: draw_known_borders(frames[:, None], known[index : index + 1])[:, 0]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
