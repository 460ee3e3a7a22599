"""The pictures of `eqm-video plane`: fields, walks and data in the plane.

Legend: M data points, B walks, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.output import media, plots
from eqm_video.studies.plane import worlds as plane
from eqm_video.system import waits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF_WIDTH, HALF_HEIGHT = 3.2, 2.4  # of the shown part of the plane
SHOWN = 24  # walks in the pictures
MOMENTS = (0.2, 0.9)  # gammas at which plane.png shows the flow
LEVELS = (0, 0.1, 0.25, 0.5, 1, 1.5, 2, 4, 8)  # contours of the gradient's size
PATH, DATA, ARROW = plots.PALETTE[1], "#F0E442", "#44546a"
QUIVER = {"pivot": "middle", "color": ARROW, "scale": 19, "width": 0.007, "headwidth": 3.6, "headlength": 4}
NAMES = {"flow": "flow matching", "equilibrium": "Equilibrium Matching"}
FPS, HOLD = 12.5, 12  # pictures per second of the film, and pictures for which its turning points are repeated


@dataclass(frozen=True)
class Scene:
    """The content of the pictures: data (M, 2), the flow and the equilibrium, and their walks (2N + 1, B, 2).

    methods and walks have a flow and an equilibrium for each kind, "exact" and "trained".
    """

    points: Tensor
    methods: dict[str, list[plane.Method]]
    walks: dict[str, list[Tensor]]
    steps: int

    def gamma(self, step: int) -> float:
        """The gamma that the flow's clock shows after `step` steps."""
        return min(step / self.steps, 1.0)


# The picture --------------------------------------------------------------------------------------------------------


def draw_picture(path: Path, scene: Scene) -> None:
    """Draw exact and trained fields, of the flow at two gammas and of the equilibrium; below, distances over steps."""
    figure = plots.figure(7.5, 6.3)
    grid = figure.add_gridspec(3, 3, height_ratios=(1.22, 1, 1.15))  # the first row has titles
    for row, (kind, (flow, equilibrium)) in enumerate(scene.methods.items()):
        shown = [(flow, scene.walks[kind][0], round(gamma * scene.steps)) for gamma in MOMENTS]
        shown.append((equilibrium, scene.walks[kind][1], scene.steps))
        for column, (method, walk, step) in enumerate(shown):
            axes = figure.add_subplot(grid[row, column])
            image = draw_field(axes, method, scene.gamma(step))
            draw_walks(axes, walk[: step + 1])
            draw_data(axes, scene.points)
            if row == 0:
                when = "one field" if method is equilibrium else f"γ = {scene.gamma(step):g}"
                axes.set_title(f"{NAMES[method.name]}\n{when}, after {step} steps", fontsize=10)
            if column == 0:
                axes.set_ylabel(f"{kind} field", fontsize=11)
    colours = figure.colorbar(image, ax=figure.axes[:6], shrink=0.9, aspect=28, pad=0.02, format="%g")
    colours.set_label("size of the gradient, |f| / gain", fontsize=10)
    draw_distances(figure.add_subplot(grid[2, :]), scene)
    plots.save(figure, path)


def draw_field(axes: Axes, method: plane.Method, gamma: float) -> Any:
    """Draw the gradient's size as colour (white: rest), its descent as arrows; returns the image for a colour bar."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    shades = ListedColormap(colormaps["Blues"](np.linspace(0, 0.75, len(LEVELS))))
    gamma = gamma if method.needs_clock else 0.0
    places, slope = sampled(method, gamma, 97, 73)
    image = axes.contourf(*places, np.hypot(*slope), LEVELS, colors=shades.colors, extend="max")
    places, slope = sampled(method, gamma, 13, 10, edge=0.25)
    axes.quiver(*places, *arrows(slope), **QUIVER)
    axes.set(xlim=(-HALF_WIDTH, HALF_WIDTH), ylim=(-HALF_HEIGHT, HALF_HEIGHT), aspect="equal", xticks=[], yticks=[])
    return image


@lru_cache(maxsize=16)  # an equilibrium's field is drawn many times
def sampled(
    method: plane.Method, gamma: float, columns: int, rows: int, edge: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Places (2, rows, columns) on the shown part of the plane without its `edge`, and f / gain there."""
    x, y = np.meshgrid(
        np.linspace(edge - HALF_WIDTH, HALF_WIDTH - edge, columns),
        np.linspace(edge - HALF_HEIGHT, HALF_HEIGHT - edge, rows),
    )
    places = torch.from_numpy(np.stack([x, y], axis=-1).reshape(-1, 2)).float()
    with torch.no_grad():
        values = method.at(gamma)(places) / method.decay.gain
    return np.stack([x, y]), values.double().numpy().T.reshape(2, rows, columns)


def arrows(slope: np.ndarray) -> np.ndarray:
    """Arrows down the gradient, all of equal length except where it nearly vanishes."""
    return -slope / np.maximum(np.hypot(*slope), 0.1)


def draw_walks(axes: Axes, walk: Tensor) -> None:
    """Draw the first walks of (N + 1, B, 2), with dots at their ends."""
    lines = walk[:, :SHOWN].numpy()
    axes.plot(lines[..., 0], lines[..., 1], color=PATH, linewidth=0.9, alpha=0.8)
    axes.plot(*lines[-1].T, "o", color=PATH, markersize=3.5, markeredgecolor="white", markeredgewidth=0.5)


def draw_data(axes: Axes, points: Tensor) -> None:
    """Draw the data points (M, 2) as stars."""
    size, edge = (10, 0.8) if len(points) <= 8 else (5, 0.4)
    axes.plot(*points.numpy().T, "*", color=DATA, markersize=size, markeredgecolor="black", markeredgewidth=edge)


def draw_distances(axes: Axes, scene: Scene) -> None:
    """Draw the median distance to the nearest data point over the steps."""
    for index, name in enumerate(("flow", "equilibrium")):
        for kind, line in (("exact", "-"), ("trained", "--")):
            away = plane.distances(scene.walks[kind][index], scene.points).median(dim=1).values
            axes.plot(away, line, color=plots.PALETTE[1 - index], linewidth=1.8, label=f"{NAMES[name]}, {kind}")
    axes.axvline(scene.steps, color=plots.GREY, linewidth=0.8)
    words = " the flow's clock ends:\n γ is held at 1"
    axes.annotate(words, (scene.steps, 1), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axes.set(xlabel=f"steps of size 1/{scene.steps}", ylabel="median distance\nto the data", xlim=(0, 2 * scene.steps))
    axes.set_ylim(bottom=-0.03)
    axes.spines[["top", "right"]].set_visible(False)
    plots.legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


# The film -----------------------------------------------------------------------------------------------------------


def draw_film(path: Path, scene: Scene) -> None:
    """Draw a film of two rows (exact, trained) and two columns (flow, equilibrium), with two steps a picture."""
    steps = list(range(0, 2 * scene.steps + 1, 2))
    pictures = [draw_moment(scene, step) for step in waits.bar(steps, "drawing the film", unit="picture")]
    end = next(index for index, step in enumerate(steps) if step >= scene.steps)
    order = [0] * HOLD + list(range(end)) + [end] * HOLD + list(range(end, len(steps))) + [len(steps) - 1] * 2 * HOLD
    media.write_gif(path, np.stack([pictures[index] for index in order]), FPS)


def draw_moment(scene: Scene, step: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of the film, after `step` steps."""
    figure = plots.figure(4.4, 3.75)
    clock = f"γ = {scene.gamma(step):.2f}" + (", held" if step > scene.steps else "")
    for row, (kind, pair) in enumerate(scene.methods.items()):
        for column, method in enumerate(pair):
            axes = figure.add_subplot(2, 2, 2 * row + column + 1)
            draw_field(axes, method, scene.gamma(step))
            draw_walks(axes, scene.walks[kind][column][: step + 1])
            draw_data(axes, scene.points)
            if row == 0:
                axes.set_title(f"{NAMES[method.name]}\n{clock if column == 0 else 'one field'}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{kind} field", fontsize=9)
    beyond = f", {step - scene.steps} beyond the flow's end" if step > scene.steps else ""
    figure.suptitle(f"step {step}{beyond}", fontsize=9, x=0.02, ha="left")
    return plots.pixels(figure)
