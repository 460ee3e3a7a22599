"""The style of all figures: a quiet frame, a palette that colour-blind readers can tell apart, pictures as PNG.

matplotlib is imported when a figure is made. Widths and heights are in inches. A
figure 6 inches wide is saved 900 pixels wide, and its text stays readable at 600.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqm_video.errors import UserError
from eqm_video.output.media import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without their yellow, which is too pale on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # so that colour is never the only difference
GREY = "#777777"  # for reference lines: chance, data, a budget
DPI = 150
RECOLOURED = {  # colours of a figure on white, and on a page of any colour
    "stroke: #000000": "stroke: currentColor",
    "fill: #000000": "fill: currentColor",
    "stroke: #dddddd": "stroke: currentColor; stroke-opacity: 0.15",
    "fill: #ffffff": "fill: none",
}


def figure(width: float = 6.0, height: float = 3.6) -> Figure:
    """An empty figure of `width` x `height` inches. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib, which is not installed: type pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def axes(figure: Figure, rows: int = 1, columns: int = 1, place: int = 1, **settings: Any) -> Axes:
    """Axes number `place` (from 1) of a grid in the figure, in the style of all figures.

    `settings` are matplotlib's: xlabel, ylabel, title, xscale, yscale, xlim, ylim ... A logarithmic axis has
    `ticks_1_2_5`.
    """
    axes = figure.add_subplot(rows, columns, place, **settings)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            ticks_1_2_5(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def style(index: int) -> dict[str, str]:
    """Colour and marker of series number `index`, for `axes.plot(..., **style(k))`; they repeat after seven."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def band(axes: Axes, estimates: Mapping[Any, Mapping[str, float]], **look: Any) -> None:
    """Draw a line of estimates over their keys, which are numbers, and their intervals as a band; nothing for {}."""
    if not estimates:
        return
    at = [float(place) for place in estimates]
    axes.plot(at, [each["mean"] for each in estimates.values()], **look)
    low, high = ([each[key] for each in estimates.values()] for key in ("low", "high"))
    axes.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)


def words(text: str) -> str:
    """A name from outside for a figure: matplotlib reads $...$ as mathematics, and hides labels that begin with _."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def legend(axes: Axes, *, beside: bool = False, below: bool = False, **settings: Any) -> None:
    """A legend without a frame: on the axes, to the right of them, or below, where the figure grows by its lines."""
    if below:
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.set_figheight(axes.figure.get_figheight() + 0.19 * len(labels))
        axes.figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=9)
        return
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
    if axes.get_legend_handles_labels()[0]:  # a plot may be empty: every row may have diverged
        axes.legend(**{"framealpha": 0.85, "edgecolor": "none", "fontsize": 9, **place, **settings})


def ticks_1_2_5(axis: Axis) -> None:
    """Plain numbers 1, 2 and 5 times powers of ten on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def pixels(figure: Figure) -> np.ndarray:
    """The figure as a picture (H, W, 3) of uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page: no background, and black drawn in the page's text colour.

    The page may be light or dark: grid lines are translucent, and legends have no background.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eqm-video"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    drawn = drawn[drawn.index("<svg") :].replace("<text", '<text fill="currentColor"')
    for old, new in RECOLOURED.items():
        drawn = drawn.replace(old, new)
    prefix = f"f{zlib.crc32(drawn.encode()):08x}-"  # the ids of several figures of a page must differ
    return re.sub(r'\bid="|url\(#|xlink:href="#', lambda match: match[0] + prefix, drawn)


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG; returns the path."""
    write_png(path, pixels(figure))
    return Path(path)
