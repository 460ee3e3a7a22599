"""One long video of each clip, measured while it is made: memory does not depend on the length.

Legend: N clips, T frames of a window, K spans of frames that double in length.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.samplers.closed_loop import NEAR_1, ClosedLoop
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import Window, roll_out
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.forcing.measure import motion
from eqm_video.studies.tasks.clips import Truth, forward, tracks

MEASURES = ("right", "speed", "speed error", "drift", "level", "level error")
TRUSTING = ClosedLoop(bias=1e-6)
UNKNOWN = 1e9  # a variance: nothing is known of the level before it is measured


@dataclass(frozen=True)
class Schedule:
    """A way in which windows follow each other.

    overlap: known frames of a window, a part of T, at least 2: fewer tell no speed. frames: the frame schedule.
    bake_in: the known frames were written as pixels of 8 bits, and encoded again.
    """

    overlap: float
    frames: str = "joint"
    bake_in: bool = False

    def known(self, frames: int, overlap: int | None) -> int:
        """The known frames of a window of T = `frames`; `overlap` in place of the half, and at most that many."""
        most = overlap or max(2, round(frames / 2))
        return min(most, max(2, round(frames * self.overlap)))


SCHEDULES = {
    "overlap": Schedule(0.5),
    "chunk": Schedule(0.0),
    "rolling": Schedule(0.5, frames="pyramid"),
    "bake-in": Schedule(0.5, bake_in=True),
}


@dataclass(frozen=True)
class Watch(ClosedLoop):
    """A closed loop `loop`, or None for an open one, that keeps what each evaluation says of the levels.

    estimates: of every evaluation, the levels (b, T) of the steps, and those at which the field implies noise of the
    right size, with nothing assumed of the level. Without a loop the levels are those of the steps alone, bit for bit.
    """

    loop: ClosedLoop | None = None
    estimates: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)

    def corrected(
        self, gamma: Tensor, variance: Tensor, decay: Decay, point: Tensor, slope: Tensor, power: Tensor, chance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The levels that `loop` makes of an evaluation, or those before it. Arguments: see `ClosedLoop.corrected`."""
        seen = (decay, point, slope, power, chance)
        alone, _ = TRUSTING.corrected(gamma, torch.full_like(variance, UNKNOWN), *seen)
        followed = (gamma, variance) if self.loop is None else self.loop.corrected(gamma, variance, *seen)
        self.estimates.append((followed[0].cpu(), alone.cpu()))
        return followed

    def gaps(self) -> NDArray[np.float64]:
        """Estimated less scheduled level, and its absolute value: (2, N), means over the frames on their way.

        A frame is on its way where its level is between noise and data; the estimates are forgotten afterwards.
        """
        used, alone = (torch.stack(each) for each in zip(*self.estimates, strict=True))
        self.estimates.clear()
        gaps = torch.where((used > 0) & (used < NEAR_1), alone - used, torch.nan).double()
        return torch.stack([gaps.nanmean(dim=(0, 2)), gaps.abs().nanmean(dim=(0, 2))]).numpy()


def spans(length: int, frames: int) -> list[int]:
    """The ends of spans of a video of `length` frames, the first of two windows and each twice as long as all before.

    A last span that would be shorter than all before it is a part of the span before.
    """
    ends = [2 * frames]
    while 2 * ends[-1] <= length:
        ends.append(2 * ends[-1])
    return [*ends[:-1], length]


def roll(
    pipeline: EqMPipeline,
    truth: Truth,
    schedule: Schedule,
    how: Sampling,
    *,
    length: int,
    overlap: int | None,
    seed: int,
) -> dict[str, Any]:
    """Continue the clips of `truth` to `length` frames, and measure every window: a value of each clip in each span.

    right: share of windows that show direction and shape of their label. speed: in the label's direction, over the true
    speed. speed error: in pixels a frame. drift: RMS of the gradient on the known frames. level, level error: see
    `Watch.gaps`. memory: MiB, the most that the process has had until the end of each span. seconds: CPU, of 1,000
    frames.
    """
    frames = pipeline.check_frames()
    known, ends, begun = schedule.known(frames, overlap), spans(length, frames), time.process_time()
    watch = Watch(loop=how.closed_loop)
    how = replace(how, closed_loop=watch, frame_schedule=schedule.frames)
    windows = roll_out(
        pipeline,
        truth.names,
        length=length,
        overlap=known,
        clips=truth.clips[:, :frames],
        known=list(range(known)),
        seeds=[seed + k for k in range(len(truth.names))],
        bake_in=schedule.bake_in,
        how=how,
    )
    rows: dict[str, list[list[float]]] = {name: [] for name in MEASURES}
    memory, values = [], []
    for end, value in _measured(windows, truth, watch, frames):
        values.append(value)
        if end >= ends[len(memory)]:
            means = np.nanmean(np.stack(values), axis=0)  # (measures, N)
            for name, row in zip(MEASURES, means.tolist(), strict=True):
                rows[name].append(row)
            memory.append(peak())
            values.clear()
            print(f"  frame {end}: {100 * means[0].mean():.0f} % of windows are right", flush=True)
    seconds = 1000 * (time.process_time() - begun) / length
    return {"ends": ends, "spans": rows, "memory": memory, "seconds": seconds, "known": known}


def _measured(
    windows: Iterator[Window], truth: Truth, watch: Watch, frames: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The end of each window, and its measures (measures, N), of the T frames that end there."""
    before: NDArray[np.uint8] | None = None
    for window in windows:
        clips = window.frames if before is None else np.concatenate([before, window.frames], axis=1)
        before = clips[:, -frames:]
        right = motion(before, truth)["both"]
        speeds = forward(tracks(before), truth.names, truth.size)
        gaps = speeds / truth.speeds, np.abs(speeds - truth.speeds)
        values = np.stack([np.array(right), *gaps, window.drift.double().numpy(), *watch.gaps()])
        yield window.start + window.frames.shape[1], values


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    import resource  # not on every system

    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def kind_of(pipeline: EqMPipeline) -> str:
    """The training target of a model in words; models of one target count as runs of it."""
    decay, objective = pipeline.config.decay, pipeline.config.objective or {}
    density = (objective.get("gamma") or {}).get("density", {}).get("kind", "uniform")
    if pipeline.transformer.config.conditioned_on_gamma:
        name = "flow matching" if decay["kind"] == "constant" else "EqM, conditioned on gamma"
    elif decay["kind"] == "constant":
        name = "EqF"
    else:
        name = f"EqM, {decay['kind']}, gain {decay.get('gain', 1.0):g}"
    return name if density == "uniform" else f"{name}, gamma drawn by {density}"


def stacked(runs: Sequence[Mapping[str, Any]], measure: str, span: slice, ends: Sequence[int]) -> Tensor:
    """Values (S, N) of a measure: means over the spans `span`, each weighted by its length."""
    lengths = np.diff([0, *ends])[span].astype(np.float64)
    rows = [np.average(np.array(run["spans"][measure])[span], axis=0, weights=lengths) for run in runs]
    return torch.tensor(np.stack(rows), dtype=torch.float64)
