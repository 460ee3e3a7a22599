"""The page's pictures as HTML: films, charts, the frames to choose from. Colours follow the page, light or dark.

All text from outside is escaped. T frames, H W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from eqm_video.output.html import parts
from eqm_video.output.overlays import draw_gamma_bars
from eqm_video.page.served import Chart

WIDE, HIGH = 480, 190  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 26  # margins of a chart
LEGEND = 4  # curves up to which each is named; more are shades from first to last
SMALL = 96  # pixels up to which pictures are enlarged without blurring


_parts = parts("page/parts.html")
refusal, note = _parts.refusal, _parts.note  # the sentence about something that cannot be done, and a line of text


def progress(done: float, says: str) -> Markup:
    """A bar, and a line below it."""
    return _parts.progress(round(100 * min(max(done, 0.0), 1.0)), says)


def strip(frames: np.ndarray, gamma: np.ndarray | None = None) -> Markup:
    """Clips (B, T, H, W, 3) as rows of frames, each with the bar of its gamma (B, T) below, if it is known."""
    if gamma is not None:
        frames = draw_gamma_bars(frames, gamma)
    return _parts.strip([[_data(frame) for frame in clip] for clip in frames], _crisp(frames.shape[3]))


def film(gif: str, files: Sequence[tuple[str, str]], caption: str, width: int) -> Markup:
    """A film that plays, at the address `gif`, with links to download `files`, (address, name) each."""
    return _parts.film(gif, files, caption, _crisp(width))


def brush(frames: np.ndarray, available: Collection[int], known: Collection[int]) -> Markup:
    """The frames (T, H, W, 3) to choose from, as buttons; frames that are not `available` are to be made."""
    shown = [_data(frame) if index in available else None for index, frame in enumerate(frames)]
    return _parts.brush(shown, known, _crisp(frames.shape[2]))


def chart(drawn: Chart) -> Markup:
    """A chart as inline SVG with its title. A few curves have names, many have shades from the first to the last."""
    points = [(x, y) for curve in drawn.curves for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y = min(0.0, *(y for _, y in points), 0.0)
    high_y = drawn.most if drawn.most is not None else max(1e-9, *(y for _, y in points), 1e-9)
    named = len(drawn.curves) <= LEGEND

    def place(x: float, y: float) -> str:
        across = (x - low_x) / ((high_x - low_x) or 1.0)
        up = (min(max(y, low_y), high_y) - low_y) / (high_y - low_y)
        return f"{LEFT + across * (WIDE - LEFT - RIGHT):.1f},{HIGH - BOTTOM - up * (HIGH - TOP - BOTTOM):.1f}"

    lines = []
    for number, curve in enumerate(drawn.curves):
        places = (place(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y))
        lines.append((" ".join(places), _colour(number, len(drawn.curves), named), curve.name))
    shades = None if named else (_colour(0, 2, False), _colour(1, 2, False))
    box = (LEFT, WIDE - RIGHT, TOP, HIGH - BOTTOM, WIDE, HIGH)
    return _parts.chart(drawn, lines, (low_x, high_x, low_y, high_y), box, shades)


def _colour(number: int, many: int, named: bool) -> str:
    """A colour that light and dark grounds both carry: orange and blue for a few curves, shades between for many."""
    if named:
        return ("#e69f00", "#3d94d1", "#2ba57f", "#c774a6")[number % 4]
    part = number / max(1, many - 1)
    first, last = (230, 159, 0), (61, 120, 209)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(first, last, strict=True))


def _data(frame: np.ndarray) -> str:
    """A picture (H, W, 3) as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _crisp(width: int) -> str:
    return " eqm-crisp" if width <= SMALL else ""
