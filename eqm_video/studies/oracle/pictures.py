"""The film of `eqm-video oracle`: the frames of some clips side by side while they descend from noise.

Legend: S states of a descent, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eqm_video.output import media
from eqm_video.output.overlays import RESTING, draw_gamma_bars

FPS, HOLD = 6.25, 4  # pictures a second, and pictures for which the start stands still
PICTURES = 16  # of the descents, at most: noise makes a GIF large
LEVELS, CLEAR = 4, 0.8  # a channel's levels in frames of a gamma below CLEAR, for the same reason
ROUNDS = 3  # how often the finished clips play
TILE = 64  # a frame's width in pixels, about
SETTLED = 0.995  # gamma at which nothing changes any more for the eye
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)
MARGIN, GAP, LABEL, TEXT = 8, 4, 172, 13


@dataclass(frozen=True)
class Strip:
    """One descent: states (S, T, H, W, 3), each frame's gamma (S, T), known frames (T,), and the clip at its end."""

    task: str
    says: str
    states: NDArray[np.uint8]
    gammas: NDArray[np.float64]
    known: NDArray[np.bool_]
    end: str


def draw_film(path: Path, strips: Sequence[Strip]) -> None:
    """Every strip a row: the task, the frames with the bars of their gammas, and the same frames as a playing clip."""
    order = moments(strips)
    first = len(order) - ROUNDS * strips[0].states.shape[1]  # the finished clip plays from its first frame
    pictures = [draw_moment(strips, step, place - first) for place, step in enumerate(order)]
    media.write_gif(path, np.stack(pictures), FPS)


def moments(strips: Sequence[Strip]) -> list[int]:
    """The step that each picture shows: the start for a while, steps until all have settled, then the end."""
    last = len(strips[0].states) - 1
    moving = np.stack([(one.gammas < SETTLED).any(axis=1) for one in strips]).any(axis=0)
    settled = min(last, int(np.flatnonzero(moving).max(initial=0)) + 1)
    stride = max(1, -(-settled // PICTURES))
    return [0] * HOLD + list(range(0, settled, stride)) + [last] * (ROUNDS * strips[0].states.shape[1])


def draw_moment(strips: Sequence[Strip], step: int, tick: int) -> NDArray[np.uint8]:
    """One picture of the film, (H, W, 3): all strips after `step` steps, the clips playing frame `tick` mod T."""
    rows = [draw_row(one, step, tick) for one in strips]
    head = 2 * MARGIN + TEXT
    canvas = Image.new("RGB", (rows[0].shape[1], head + sum(len(row) for row in rows) + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    pen.text((MARGIN, MARGIN), f"step {step}", INK, font)
    pen.text((LABEL, MARGIN), "the frames of a clip, and how far each has come", GREY, font)
    pen.text((canvas.width - MARGIN, MARGIN), "the clip", GREY, font, anchor="ra")
    top = head
    for row in rows:
        canvas.paste(Image.fromarray(row), (0, top))
        top += len(row)
    return np.asarray(canvas)


def draw_row(one: Strip, step: int, tick: int) -> NDArray[np.uint8]:
    """One strip after `step` steps, (H, W, 3)."""
    frames, size = one.states.shape[1:3]
    scale = max(1, round(TILE / size))
    pixels = np.where(one.gammas[step, :, None, None, None] < CLEAR, posterised(one.states[step]), one.states[step])
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    barred = draw_gamma_bars(pixels[None], one.gammas[None, step], rest=SETTLED)[0]
    height, width = barred.shape[1:3]
    film = LABEL + frames * (width + GAP)
    canvas = Image.new("RGB", (film + 2 * GAP + width + MARGIN, height + 3 * GAP), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    end = f"ends: {one.end}" if step == len(one.states) - 1 else ""
    for line, (text, ink) in enumerate(((one.task, INK), (one.says, GREY), (end, INK))):
        pen.text((MARGIN, GAP + line * (TEXT + 5)), text, ink, font)
    for index, picture in enumerate(barred):
        left = LABEL + index * (width + GAP)
        canvas.paste(Image.fromarray(picture), (left, GAP))
        if one.known[index]:
            pen.rectangle((left - 2, GAP - 2, left + width + 1, GAP + scale * size + 1), outline=RESTING, width=3)
    canvas.paste(Image.fromarray(pixels[tick % frames]), (film + 2 * GAP, GAP))
    return np.asarray(canvas)


def posterised(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nearest of a few levels in each channel."""
    width = 255 / (LEVELS - 1)
    return np.rint(np.rint(pixels / width) * width).astype(np.uint8)
