"""The table and the pictures of `compose`: shares of samples with the right attributes, and clips side by side.

Legend: N samples, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.output import media, plots
from eqm_video.output.grids import PAPER
from eqm_video.output.tables import aligned

KINDS = ("alone", "shape alone", "direction alone", "composed", "mean", "plain sum")
SHARES = {
    "shape_accuracy": "shape is right",
    "direction_accuracy": "direction is right",
    "both_accuracy": "both are right",
}


@dataclass(frozen=True)
class Samples:
    """Samples of a variant of a composition: clips (N, T, H, W, 3), judged by the label `target` (None: not judged).

    diverged: the number of clips that diverged; these are grey.
    """

    kind: str
    name: str
    target: str | None
    clips: np.ndarray
    diverged: int


def is_alone(samples: Samples) -> bool:
    """Whether a variant is a single term."""
    return samples.kind.endswith("alone")


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean shares over the judged rows of each kind."""
    result = {}
    for kind in KINDS:
        judged = [row for row in rows if row["kind"] == kind and row["target"] is not None]
        if judged:
            result[kind] = {key: float(np.mean([row[key] for row in judged])) for key in SHARES}
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All judged rows and the means of each kind as Markdown tables; a sentence if no row was judged."""
    judged = [row for row in rows if row["target"] is not None]
    if not judged:
        return "samples are not judged: the terms name no shape and direction"
    lines = [["composition", "kind", "diverged", *_heads(judged)]]
    lines += [[row["composition"], row["kind"], str(row["diverged"]), *_shares(row)] for row in judged]
    return f"{aligned(lines, left=2)}\n\n{mean_table(rows)}"


def mean_table(rows: Sequence[dict[str, Any]]) -> str:
    """The means of each kind as a Markdown table; a row at least must be judged."""
    judged = [row for row in rows if row["target"] is not None]
    title = f"mean, {judged[0]['samples']} samples of each"
    return aligned([[title, *_heads(judged)], *([kind, *_shares(mean)] for kind, mean in means(rows).items())])


def _heads(judged: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{title} (chance {100 * judged[0][key.replace('accuracy', 'chance')]:g} %)" for key, title in SHARES.items()
    ]


def _shares(row: dict[str, Any]) -> list[str]:
    return [f"{100 * row[key]:.0f} %" for key in SHARES]


def draw_grid(path: Path, every: Sequence[Samples], fps: float, columns: int) -> None:
    """Draw a row for each composition, with some samples of every variant under captions."""
    rows: list[list[Samples]] = []
    for samples in every:
        if rows and (not is_alone(samples) or is_alone(rows[-1][-1])):
            rows[-1].append(samples)
        else:
            rows.append([samples])
    scale = max(1, 64 // every[0].clips.shape[3])
    pictures = []
    for row in rows:
        clips = np.concatenate([samples.clips[:columns] for samples in row])
        captions = [
            samples.name if is_alone(samples) else f"{samples.name}: {samples.kind}"
            for samples in row
            for _ in samples.clips[:columns]
        ]
        pictures.append(media.grid(clips, captions, columns=len(clips), scale=scale))
    width = max(picture.shape[2] for picture in pictures)
    padded = [
        np.pad(clips, ((0, 0), (0, 0), (0, width - clips.shape[2]), (0, 0)), constant_values=PAPER)
        for clips in pictures
    ]
    media.write_gif(path, np.concatenate(padded, axis=1), fps)


def draw_shares(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw shares of samples with the right shape, the right direction, and both; a row at least must be judged."""
    shares = means(rows)
    figure = plots.figure(6.4, 3.6)
    axes = plots.axes(figure, ylabel="share of samples", ylim=(0, 1.02), title="Attributes in composed samples")
    for place, key in enumerate(SHARES):
        chance = next(row[key.replace("accuracy", "chance")] for row in rows if row["target"] is not None)
        for index, (kind, values) in enumerate(shares.items()):
            left = place + (index - (len(shares) - 1) / 2) * 0.17
            colour = plots.PALETTE[index]
            axes.bar(left, values[key], width=0.15, color=colour, alpha=0.55, label=kind if place == 0 else None)
            single = [row[key] for row in rows if row["kind"] == kind and row["target"] is not None]
            axes.plot(
                left + np.linspace(-0.05, 0.05, len(single)), single, plots.MARKERS[index], color=colour, markersize=3
            )
        axes.plot(
            [place - 0.45, place + 0.45],
            [chance, chance],
            "--",
            color=plots.GREY,
            label="chance" if not place else None,
        )
    axes.set_xticks(range(len(SHARES)), list(SHARES.values()))
    axes.grid(axis="x", visible=False)
    plots.legend(axes, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    plots.save(figure, path)
