"""A forecast of the time that sampling takes: from its first steps, and for long clips before them.

The time of a step grows with the square of the number of frames, because every frame attends to all others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from eqm_video.core.cost import count_operations
from eqm_video.core.energy import Field
from eqm_video.system import machine, waits
from eqm_video.wording import about, counted, pace

SAID = 60.0  # seconds: a shorter wait needs no forecast
SLOW = 10.0  # seconds: a first step that takes longer is measured, of others the second, which starts nothing
MEASURED = 0.3  # seconds of an evaluation that tell the speed of a machine
LONG = 4  # times as long as the clips of training: a clip whose first step may take minutes


class Forecast:
    """Prints once, after the first step or two, about how long all `steps` take, if that is more than a minute."""

    def __init__(self, steps: int, *, shown: bool = True, clock: Callable[[], float] = time.perf_counter) -> None:
        self.steps, self.shown, self.clock = steps, shown, clock
        self._taken, self._last = 0, clock()

    def count(self) -> None:
        """Count the end of a step."""
        if not self.shown or self._taken == 2:
            return
        now = self.clock()
        seconds, self._last, self._taken = now - self._last, now, self._taken + 1
        if self._taken == 1 and seconds < SLOW:
            return
        left = seconds * (self.steps - self._taken)
        self._taken = 2
        if left > SAID:
            waits.say(
                f"{pace(seconds)} a step, so {about(left)} for {counted(self.steps, 'step')} (finished "
                "batches stay; after Ctrl-C the same command goes on)"
            )
            sys.stdout.flush()


def note_long(pipeline: Any, settings: dict[str, Any], steps: int, batch: int, with_length: bool) -> str | None:
    """A line about the time that `steps` steps of clips take that are far longer than those of training, else None.

    settings: of the samples, as samples.json keeps them. batch: clips of a step. with_length: whether they are windows
    of a longer video already. An evaluation of the field is timed on shorter clips.
    """
    frames, usual = settings["frames"], pipeline.config.frames
    if frames < LONG * usual:
        return None
    rows = len(settings["composition"]) + 1 if "composition" in settings else 1 + (settings["guidance_scale"] != 1)
    seconds = _seconds(pipeline, usual, frames, settings["size"]) * steps * batch * rows
    if seconds < SAID:
        return None
    windows = "" if with_length else f"; --length {frames} makes them in windows of {counted(usual, 'frame')}"
    return (
        f"note: clips of {frames:,} frames, {frames / usual:,.0f} times as long as those of training, take "
        f"{about(seconds)} (estimated from shorter ones){windows}"
    )


@torch.no_grad()
def _seconds(pipeline: Any, usual: int, frames: int, size: tuple[int, int]) -> float:
    """Seconds of an evaluation of a clip of `frames` frames: that of a shorter one, times the ratio of operations.

    The shorter one has `usual` frames, or more where those take no time.
    """
    network, device = pipeline.transformer, pipeline.device
    height, width = (side // pipeline.codec.downsampling for side in size)
    labels = torch.full((1,), network.null_label, device=device)

    def shape(count: int) -> tuple[int, ...]:
        return 1, count, network.config.in_channels, height, width

    def lap(count: int) -> float:
        latents = torch.zeros(shape(count), device=device, dtype=network.dtype)
        begun = time.perf_counter()
        Field(network)(latents, labels, gamma=torch.ones(1, count, device=device))
        machine.synchronise(device)
        return time.perf_counter() - begun

    lap(usual)  # what happens once
    short, seconds = usual, lap(usual)
    while seconds < MEASURED and 2 * short <= frames:
        short *= 2
        seconds = lap(short)
    with torch.device("meta"):
        empty = type(network).from_config(network.config)
    return seconds * count_operations(empty, shape(frames)) / count_operations(empty, shape(short))
