"""The report of the study `ood`: a table, AUROC as dots, the sets, and scores frame by frame.

Legend: N clips, T frames; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eqm_video.output import media, plots

TITLES = {"gradient_norm": "gradient's RMS", "energy": "energy"}
MODES = {"none": "without label", "given": "with label"}
SHOWN = 6  # clips of a set in the picture of the sets


def table(numbers: Mapping[str, Any]) -> str:
    """AUROC of every set for the screen, a column for each score and label mode, then how often cuts were found."""
    columns = [(mode, key) for key in TITLES for mode in numbers["auroc"]]
    names = list(dict.fromkeys(name for by_score in numbers["auroc"].values() for name in by_score["energy"]))
    names.append(names.pop(names.index("average")))
    lines = [_row("AUROC by", *(TITLES[key] for _, key in columns)), _row("", *(MODES[mode] for mode, _ in columns))]
    for name in names:
        cells = [numbers["auroc"][mode][key].get(name) for mode, key in columns]
        lines.append(_row(name, *(f"{cell['auroc']:.2f}" if cell else "" for cell in cells)))
    if numbers["breaks"]:
        lines += _breaks(numbers["breaks"], columns)
    if numbers["left out, files too short"]:
        lines.append(f"left out, because the files are too short: {', '.join(numbers['left out, files too short'])}")
    return "\n".join(lines)


def draw_areas(areas: Mapping[str, Any], out: Path) -> None:
    """Draw the AUROC of each set as a dot with its standard error, a panel for each score; chance is a line."""
    names = list(dict.fromkeys(name for by_score in areas.values() for name in by_score["energy"] if name != "average"))
    places = {name: len(names) - k for k, name in enumerate(names)}
    figure = plots.figure(6.4, 1.5 + 0.24 * len(names))
    for panel, (key, title) in enumerate(TITLES.items()):
        axes = plots.axes(figure, 1, 2, panel + 1, title=title, xlabel="AUROC", xlim=(-0.04, 1.04))
        axes.axvline(0.5, color=plots.GREY, linewidth=1)
        for index, (mode, by_score) in enumerate(areas.items()):
            cells = {name: cell for name, cell in by_score[key].items() if name in places}
            axes.errorbar(
                [cell["auroc"] for cell in cells.values()],
                [places[name] + 0.14 * (len(areas) - 1) * (1 - 2 * index) for name in cells],
                xerr=[cell["error"] for cell in cells.values()],
                label=MODES[mode],
                linestyle="none",
                markersize=5,
                linewidth=1,
                **plots.style(index),
            )
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks(list(places.values()), list(places) if panel == 0 else [""] * len(places))
        axes.set_ylim(0.4, len(names) + 0.6)
    if len(areas) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    plots.save(figure, out)


def draw_examples(sets: Mapping[str, np.ndarray], out: Path) -> None:
    """Draw the first pictures of every set of images, or a filmstrip of its first clip."""
    frames = next(iter(sets.values())).shape[1]
    tiles, captions = [], []
    for name, pixels in sets.items():
        shown = pixels[:1] if frames > 1 else pixels[np.arange(SHOWN) % len(pixels)]
        tiles += list(media.filmstrips(shown))
        captions += [name] * len(shown)
    scale = max(1, round((64 if frames > 1 else 96) / tiles[0].shape[1]))
    columns = 2 if frames > 1 else SHOWN
    media.write_png(out, media.grid(np.stack(tiles), captions, columns, scale)[0])


def draw_frames(scores: Mapping[str, Mapping[str, Mapping[str, Tensor]]], out: Path, cuts: Sequence[str]) -> None:
    """Draw frame scores of clips with a cut and of intact clips: median and middle half, with the cut marked."""
    figure = plots.figure(6.4, 3.2)
    mode = next(iter(scores))
    for panel, (key, title) in enumerate(TITLES.items()):
        axes = plots.axes(figure, 1, 2, panel + 1, title=title, xlabel="frame")
        for index, name in enumerate(name for name in ("held-out clips", *cuts) if name in scores[mode]):
            values = scores[mode][name][key].double().numpy()
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
            style = plots.style(index)
            axes.fill_between(range(len(middle)), low, high, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(middle, label=name, markersize=4, **style)
        axes.axvline(values.shape[1] // 2 - 0.5, color=plots.GREY, linestyle="--", linewidth=1)
        axes.set_xticks(range(0, values.shape[1], max(1, values.shape[1] // 8)))
        axes.set_ylabel("score of a frame" if panel == 0 else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, out)


def _breaks(breaks: Mapping[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    """Lines on how often the scores find the cut; the same frame of intact clips is the comparison."""
    first, lines = next(iter(breaks.values())), []
    for kind, text in (("jump", "largest jump"), ("peak", "highest score")):
        lines += ["", f"{text} at the cut before frame {first['frame']} (chance {first['chance'][kind]:.0%})"]
        for name in first[kind]:
            lines.append(_row(f"  {name}", *(f"{breaks[mode][kind][name][key]:.0%}" for mode, key in columns)))
    return lines


def _row(text: str, *values: str) -> str:
    return f"{text:22}" + "".join(f"{value:>16}" for value in values)
