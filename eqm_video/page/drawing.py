"""The page's pictures as HTML: films, charts, the frames to choose from. Colours follow the page, light or dark.

All text from outside is escaped. T frames, H W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from eqm_video.output.overlays import draw_gamma_bars
from eqm_video.page.served import Chart

WIDE, HIGH = 480, 190  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 26  # margins of a chart
LEGEND = 4  # curves up to which each is named; more are shades from first to last
SMALL = 96  # pixels up to which pictures are enlarged without blurring


def progress(done: float, says: str) -> Markup:
    """A bar, and a line below it."""
    part = round(100 * min(max(done, 0.0), 1.0))
    return Markup(
        '<div class="eqm-progress" role="progressbar" aria-valuenow="{0}" aria-valuemin="0" aria-valuemax="100">'
        '<div style="width:{0}%"></div></div><p class="eqm-says">{1}</p>'
    ).format(part, says)


def refusal(sentence: str) -> Markup:
    """The sentence about something that cannot be done."""
    return Markup('<p class="eqm-refusal" role="alert">{}</p>').format(sentence)


def note(sentence: str) -> Markup:
    """A line of text."""
    return Markup('<p class="eqm-says">{}</p>').format(sentence)


def strip(frames: np.ndarray, gamma: np.ndarray | None = None) -> Markup:
    """Clips (B, T, H, W, 3) as rows of frames, each with the bar of its gamma (B, T) below, if it is known."""
    if gamma is not None:
        frames = draw_gamma_bars(frames, gamma)
    cells = [
        Markup('<img alt="frame {}" src="{}">').format(index, _data(frame))
        for clip in frames
        for index, frame in enumerate(clip)
    ]
    columns = frames.shape[1]
    return Markup('<div class="eqm-strip{}" style="--frames:{}">{}</div>').format(
        _crisp(frames.shape[3]), columns, Markup("").join(cells)
    )


def film(gif: str, files: Sequence[tuple[str, str]], caption: str, width: int) -> Markup:
    """A film that plays, at the address `gif`, with links to download `files`, (address, name) each."""
    links = Markup(" ").join(
        Markup('<a class="eqm-download" href="{0}" download="{1}">{2}</a>').format(
            address, name, name.rpartition(".")[2]
        )
        for address, name in files
    )
    return Markup('<figure class="eqm-film{}"><img alt="{}" src="{}"><figcaption>{} {}</figcaption></figure>').format(
        _crisp(width), caption, gif, caption, links
    )


def brush(frames: np.ndarray, available: Collection[int], known: Collection[int]) -> Markup:
    """The frames (T, H, W, 3) to choose from, as buttons; frames that are not `available` are to be made."""
    cells = []
    for index, frame in enumerate(frames):
        if index in available:
            cell = '<button type="button" data-frame="{0}" aria-pressed="{1}" title="frame {0}"><img alt="frame {0}" '
            cell += 'src="{2}" draggable="false"><span>{0}</span></button>'
            pressed = "true" if index in known else "false"
            cells.append(Markup(cell).format(index, pressed, _data(frame)))
        else:
            cells.append(Markup('<div class="eqm-empty"><div></div><span>{}</span></div>').format(index))
    return Markup('<div class="eqm-brush{}" style="--frames:{}">{}</div>').format(
        _crisp(frames.shape[2]), len(frames), Markup("").join(cells)
    )


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

    parts, names = [], []
    for number, curve in enumerate(drawn.curves):
        colour = _colour(number, len(drawn.curves), named)
        line = " ".join(place(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y))
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="1.6"><title>{}</title></polyline>'
            ).format(line, colour, curve.name)
        )
        if named:
            names.append(Markup('<span><i style="background:{}"></i>{}</span>').format(colour, curve.name))
    axes = Markup("").join(_axes(low_x, high_x, low_y, high_y, drawn.x))
    ends = Markup(
        '<span><i style="background:{}"></i>first frame</span> <span><i style="background:{}"></i>last</span>'
    )
    shades = ends.format(_colour(0, 2, False), _colour(1, 2, False))
    return Markup(
        '<figure class="eqm-chart"><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}'
        '</svg><div class="eqm-legend">{}</div></figure>'
    ).format(
        drawn.title, WIDE, HIGH, drawn.title, axes, Markup("").join(parts), Markup(" ").join(names) if named else shades
    )


def _axes(low_x: float, high_x: float, low_y: float, high_y: float, name: str) -> list[Markup]:
    """The frame of a chart, and the numbers at its ends."""
    bottom, right = HIGH - BOTTOM, WIDE - RIGHT
    text = Markup('<text x="{}" y="{}" text-anchor="{}" fill="currentColor" font-size="13">{}</text>')
    lines = Markup('<path d="M{0},{1}V{2}H{3}" fill="none" stroke="currentColor" stroke-opacity="0.4"/>')
    return [
        lines.format(LEFT, TOP, bottom, right),
        text.format(LEFT - 5, TOP + 8, "end", f"{high_y:.3g}"),
        text.format(LEFT - 5, bottom, "end", f"{low_y:.3g}"),
        text.format(LEFT, HIGH - 9, "middle", f"{low_x:g}"),
        text.format(right, HIGH - 9, "end", f"{high_x:g}"),
        text.format((LEFT + right) / 2, HIGH - 9, "middle", escape(name)),
    ]


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
