"""Pictures of recorded descents: curves, a strip of states, a film.

Legend: E evaluations, S states, B clips, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eqm_video.output import media, plots
from eqm_video.output.grids import PAPER
from eqm_video.output.overlays import draw_gamma_bars
from eqm_video.studies.descent.trace import Trace

WIDTH = 640  # pixels: the approximate width of a film
PICTURES = 36  # pictures in a film, at most
FPS, HOLD = 8.0, 12  # pictures per second, and pictures for which the end of a film is repeated


def draw_curves(path: Path, traces: Sequence[Trace]) -> None:
    """Draw gradient, energy and gamma over the evaluations: the mean, and the middle 80 % of all frames."""
    figure = plots.figure(6.0, 7.2)
    measures = " / ".join(dict.fromkeys(trace.measure for trace in traces))
    rms = plots.axes(figure, 3, 1, 1, ylabel="gradient, RMS of a frame", yscale="log")
    energy = plots.axes(figure, 3, 1, 2, ylabel=f"{measures}, per value")
    gamma = plots.axes(figure, 3, 1, 3, ylabel="gamma of a frame", xlabel="evaluations of the field")
    for index, trace in enumerate(traces):
        ends = np.asarray(trace.states) * trace.settings["nfe"] / trace.settings["steps"]
        _band(rms, np.arange(len(trace.rms)), trace.rms, index, trace.name)
        _band(energy, np.arange(len(trace.energy)), trace.energy, index, trace.name)
        if trace.gamma is not None:
            _band(gamma, ends, trace.gamma, index, trace.name)
        for axes, name in ((rms, "rms"), (energy, "energy"), (gamma, "gamma")):
            if name in trace.expected:
                label = "closed form, one data point" if index == 0 else None
                axes.plot(trace.expected[name], "--", color=plots.GREY, linewidth=1, label=label)
    low = min(float(trace.rms.flatten(1).mean(1).min()) for trace in traces)
    rms.set_ylim(bottom=low / 3)  # the closed form falls to 0
    rms.set_title("Descents from noise: mean and middle 80 % of the frames", fontsize=11)
    plots.legend(rms)
    plots.save(figure, path)


def _band(axes: Any, places: np.ndarray, values: Tensor, index: int, label: str) -> None:
    """Draw the mean of values (E, B, T) over clips and frames, and a band from the 10th to the 90th percentile."""
    flat = values.double().flatten(1).numpy()
    colour = plots.PALETTE[index]
    low, high = np.quantile(flat, [0.1, 0.9], axis=1)
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(places, flat.mean(1), color=colour, label=label)


def draw_strip(path: Path, traces: Sequence[Trace], shown: Sequence[int], columns: int, labels: Sequence[str]) -> None:
    """Draw a table of pictures: a row for each shown clip of each model, a column for each of `columns` states.

    A clip shows its first and its last frame. `labels` has a caption for every clip.
    """
    rows = len(shown) * len(traces)
    frames = [0] if traces[0].pixels.shape[2] == 1 else [0, traces[0].pixels.shape[2] - 1]
    figure = plots.figure(1.1 * columns * (0.6 if len(frames) == 1 else 1) + 0.8, 0.62 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        clip, trace = shown[row // len(traces)], traces[row % len(traces)]
        # States lie closer together at the start, where the clips change most.
        chosen = [round((k / (columns - 1)) ** 1.5 * (len(trace.states) - 1)) for k in range(columns)]
        for axes, place in zip(grid[row], chosen, strict=True):
            picture = trace.pixels[place, clip][frames]
            gap = np.full((picture.shape[1], max(1, picture.shape[2] // 16), 3), PAPER, np.uint8)
            parts = [part for frame in picture for part in (frame, gap)][:-1]
            axes.imshow(np.concatenate(parts, axis=1), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{trace.states[place] / trace.settings['steps']:.0%}", fontsize=9)
        name = f"{trace.name}\n{labels[clip]}" if len(traces) > 1 else labels[clip]
        grid[row][0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle("share of the steps" + (" (first and last frame)" if len(frames) > 1 else ""), fontsize=9)
    plots.save(figure, path)


def draw_film(path: Path, traces: Sequence[Trace], shown: Sequence[int], labels: Sequence[str]) -> None:
    """Draw a film of the shown clips while they descend: frames side by side, each above a bar of its gamma.

    There are no bars if the gamma of a model is unknown.
    """
    count = min(PICTURES, max(len(trace.states) for trace in traces))
    barred = all(trace.gamma is not None for trace in traces)
    clips, captions = [], []
    for clip in shown:
        for trace in traces:
            places = [round(k * (len(trace.states) - 1) / max(1, count - 1)) for k in range(count)]
            places += [len(trace.states) - 1] * HOLD
            pixels = trace.pixels[places, clip]  # (S,T,H,W,3)
            scale = max(1, WIDTH // (pixels.shape[1] * pixels.shape[3]))
            pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
            if barred:
                pixels = draw_gamma_bars(pixels, trace.gamma[places, clip].numpy())
            clips.append(media.filmstrips(pixels)[:, 0])
            captions.append(f"{trace.name}: {labels[clip]}" if len(traces) > 1 else labels[clip])
    media.write_gif(path, media.grid(np.stack(clips), captions, columns=1), FPS)
