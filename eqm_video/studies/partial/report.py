"""The report of partial denoising: a table, curves over the start, and a clip from every start.

Legend: T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.output import media, plots
from eqm_video.output.grids import PAPER

START = "the start itself"
TITLES = {
    "rms": "RMS to the clip's latents",
    "psnr": "PSNR to the clip (dB)",
    "motion": "share whose motion is kept",
    "shape": "share whose shape is kept",
}
FORMATS = {"rms": "{:.3f}", "psnr": "{:.1f}", "motion": "{:.0%}", "shape": "{:.0%}"}
FRAMES = 4  # frames of a clip in the picture of examples


def table(numbers: Mapping[str, Any]) -> str:
    """The curves as text for the screen, a block for each measure."""
    gammas, measured, lines = numbers["start_gammas"], numbers["measured"], []
    for key in (key for key in TITLES if key in measured[START][0]):
        lines.append(_row(f"{TITLES[key]}, from gamma", *(f"{gamma:g}" for gamma in gammas)))
        for name, rows in measured.items():
            lines.append(_row(f"  {name}", *(FORMATS[key].format(row[key]) for row in rows)))
        references = (f"{name} {FORMATS[key].format(row[key])}" for name, row in numbers["references"].items())
        lines += [f"  ({', '.join(references)})", ""]
    return "\n".join(lines[:-1])


def draw_curves(numbers: Mapping[str, Any], out: Path) -> None:
    """Draw a panel for each measure: curves over the start, with the start itself and other references in grey."""
    measured, references = numbers["measured"], numbers["references"]
    keys = [key for key in TITLES if key in measured[START][0]]
    rows = (len(keys) + 1) // 2
    figure = plots.figure(6.4, 0.8 + 2.6 * rows)
    for place, key in enumerate(keys, start=1):
        axes = plots.axes(figure, rows, 2, place, title=TITLES[key])
        axes.set_xlabel("gamma of the start" if place > len(keys) - 2 else "")
        for index, (name, values) in enumerate(measured.items()):
            look = {"color": plots.GREY, "linestyle": "--"} if name == START else plots.style(index)
            axes.plot(numbers["start_gammas"], [row[key] for row in values], label=name, markersize=5, **look)
        for (name, row), line in zip(references.items(), (":", "-."), strict=True):
            axes.axhline(row[key], color=plots.GREY, linestyle=line, linewidth=1, label=name)
        if key in ("motion", "shape"):
            axes.set_ylim(-0.03, 1.03)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, out)


def draw_examples(clip: np.ndarray, shown: Mapping[tuple[str, float], np.ndarray], out: Path) -> None:
    """Draw a clip (T, H, W, 3), and below it a row for each start: the start, and the result of every variant.

    A few frames of each clip are shown.
    """
    names = sorted(dict.fromkeys(name for name, _ in shown), key=lambda name: name != START)
    gammas = list(dict.fromkeys(gamma for _, gamma in shown))
    frames = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    clips = [clip] + [np.full_like(clip, PAPER)] * (len(names) - 1)
    captions = [
        "held-out clip",
        *(" " * k for k in range(1, len(names))),
    ]  # blank, but different: equal captions would be joined
    for gamma in gammas:
        clips += [shown[name, gamma] for name in names]
        captions += [f"gamma {gamma:g}: {'start' if name == START else name}" for name in names]
    strips = media.filmstrips(np.stack(clips)[:, frames])
    scale = max(1, round(64 / strips.shape[2]))
    media.write_png(out, media.grid(strips, captions, len(names), scale)[0])


def _row(text: str, *values: str) -> str:
    return f"{text:40}" + "".join(f"{value:>9}" for value in values)
