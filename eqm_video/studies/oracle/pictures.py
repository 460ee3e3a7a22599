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
from eqm_video.system import waits

FPS, HOLD = 6.25, 4  # pictures per second, and pictures for which the start is repeated
PICTURES = 16  # pictures of the descents, at most: noise makes a GIF large
LEVELS, CLEAR = 4, 0.8  # levels of a channel in frames with a gamma below CLEAR, for the same reason
ROUNDS = 3  # rounds that the finished clips play
TILE = 64  # approximate width of a frame in pixels
SETTLED = 0.995  # gamma from which on no change is visible
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
    """Draw every strip as a row: the task, the frames above bars of their gammas, and the frames as a playing clip."""
    order = moments(strips)
    first = len(order) - ROUNDS * strips[0].states.shape[1]  # the finished clip plays from its first frame
    shown = waits.bar(list(enumerate(order)), "drawing the film", unit="picture")
    pictures = [draw_moment(strips, step, place - first) for place, step in shown]
    media.write_gif(path, np.stack(pictures), FPS)


def moments(strips: Sequence[Strip]) -> list[int]:
    """The step that each picture shows: the start for a while, steps until all frames settle, then the end."""
    last = len(strips[0].states) - 1
    moving = np.stack([(strip.gammas < SETTLED).any(axis=1) for strip in strips]).any(axis=0)
    settled = min(last, int(np.flatnonzero(moving).max(initial=0)) + 1)
    stride = max(1, -(-settled // PICTURES))
    return [0] * HOLD + list(range(0, settled, stride)) + [last] * (ROUNDS * strips[0].states.shape[1])


def draw_moment(strips: Sequence[Strip], step: int, tick: int) -> NDArray[np.uint8]:
    """One picture of the film, (H, W, 3): all strips after `step` steps, the clips playing frame `tick` mod T."""
    rows = [draw_row(strip, step, tick) for strip in strips]
    head = 2 * MARGIN + TEXT
    canvas = Image.new("RGB", (rows[0].shape[1], head + sum(len(row) for row in rows) + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    pen.text((MARGIN, MARGIN), f"step {step}", INK, font)
    pen.text((LABEL, MARGIN), "the frames of a clip, and the gamma of each", GREY, font)
    pen.text((canvas.width - MARGIN, MARGIN), "the clip", GREY, font, anchor="ra")
    top = head
    for row in rows:
        canvas.paste(Image.fromarray(row), (0, top))
        top += len(row)
    return np.asarray(canvas)


def draw_row(strip: Strip, step: int, tick: int) -> NDArray[np.uint8]:
    """One strip after `step` steps, (H, W, 3)."""
    frames, size = strip.states.shape[1:3]
    scale = max(1, round(TILE / size))
    pixels = np.where(
        strip.gammas[step, :, None, None, None] < CLEAR, posterised(strip.states[step]), strip.states[step]
    )
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    barred = draw_gamma_bars(pixels[None], strip.gammas[None, step], rest=SETTLED)[0]
    height, width = barred.shape[1:3]
    film = LABEL + frames * (width + GAP)
    canvas = Image.new("RGB", (film + 2 * GAP + width + MARGIN, height + 3 * GAP), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    end = f"ends: {strip.end}" if step == len(strip.states) - 1 else ""
    for line, (text, ink) in enumerate(((strip.task, INK), (strip.says, GREY), (end, INK))):
        pen.text((MARGIN, GAP + line * (TEXT + 5)), text, ink, font)
    for index, picture in enumerate(barred):
        left = LABEL + index * (width + GAP)
        canvas.paste(Image.fromarray(picture), (left, GAP))
        if strip.known[index]:
            pen.rectangle((left - 2, GAP - 2, left + width + 1, GAP + scale * size + 1), outline=RESTING, width=3)
    canvas.paste(Image.fromarray(pixels[tick % frames]), (film + 2 * GAP, GAP))
    return np.asarray(canvas)


def posterised(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels rounded to a few levels in each channel."""
    width = 255 / (LEVELS - 1)
    return np.rint(np.rint(pixels / width) * width).astype(np.uint8)
