"""Clips of the tasks: the truth above each task's predictions, known frames in an orange border.

Legend: N clips, T frames, H W pixels; uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqm_video.output import media
from eqm_video.output.overlays import draw_known_borders

COLUMNS = 6  # clips side by side, at most
Rows = Mapping[str, tuple[NDArray[np.uint8], Sequence[int]]]  # name: clips (N, T, H, W, 3), and their known frames


def draw_clips(path: Path, truth: NDArray[np.uint8] | None, rows: Rows, fps: float) -> Path:
    """Draw a GIF of clips (N, T, H, W, 3), row by row: the truth, unless None, and predictions; returns `path`."""
    parts, labels = [], []
    for name, clips in framed(truth, rows).items():
        parts.append(clips[:COLUMNS])
        labels += [name] * len(clips[:COLUMNS])
    columns = min(COLUMNS, len(parts[0]))
    media.write_gif(path, media.grid(np.concatenate(parts), labels, columns=columns, scale=2), fps)
    return path


def draw_strips(path: Path, truth: NDArray[np.uint8] | None, rows: Rows) -> Path:
    """Draw the first two clips of the truth, unless None, and of predictions as strips of frames; returns `path`."""
    names, parts = [], []
    for name, clips in framed(truth, rows).items():
        strips = media.filmstrips(clips[:2])
        parts.append(strips)
        names += [name] * len(strips)
    media.write_png(path, media.grid(np.concatenate(parts), names, columns=2, scale=2)[0])
    return path


def framed(truth: NDArray[np.uint8] | None, rows: Rows) -> dict[str, NDArray[np.uint8]]:
    """All rows, the truth first unless None, with orange borders around known frames."""
    every = {**({} if truth is None else {"the truth": (truth, ())}), **rows}
    return {
        name: draw_known_borders(clips, np.isin(np.arange(clips.shape[1]), list(known)))
        for name, (clips, known) in every.items()
    }


def without_known(rows: Rows) -> Rows:
    """The rows with grey in place of known frames, for videos that must not be shown."""
    hidden = {name: clips.copy() for name, (clips, _) in rows.items()}
    for name, (_, known) in rows.items():
        hidden[name][:, list(known)] = 128
    return {name: (hidden[name], known) for name, (_, known) in rows.items()}
