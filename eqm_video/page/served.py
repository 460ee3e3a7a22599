"""One model that serves many people: descents and scores, one at a time, which report while they run.

Everything here is free of the web: a job is a generator of `Moment`s that ends with a `Made` or a `Scored`. A reader
that closes the generator ends the job at its next step.
B clips, T frames, H W pixels.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.analysis.gamma_estimate import calibrate, frame_rms, read_gamma
from eqm_video.errors import UserError
from eqm_video.metrics.ood import frame_scores, largest_jump
from eqm_video.samplers.frame_schedule import frame_delay
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out, window_starts
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.descent.trace import passed_gamma
from eqm_video.wording import counted

SHOWN = 16  # states of a descent that are decoded and shown
EVERY = 1.0  # seconds after which a slow descent says how far it is
MOST_SAMPLES = 4  # clips of a call
MOST_LENGTH = 512  # frames of a long video
UNIT = math.sqrt(2.0)  # RMS(noise - clean) for latents of mean square 1, until a first sample was measured


@dataclass(frozen=True)
class Curve:
    """A line of a chart: x and y values, and a name; frame: the number of its frame, if it has one."""

    x: list[float]
    y: list[float]
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart: a title, the names of its axes, and its curves. most: the upper end of y, if it is fixed."""

    title: str
    x: str
    curves: list[Curve]
    most: float | None = None


@dataclass(frozen=True)
class Moment:
    """A glimpse of a running job.

    done: its share, 0 to 1. says: a line. frames: uint8 (B, T, H, W, 3) of the state, if it was decoded. gamma (B, T)
    of these frames, if it is known.
    """

    done: float
    says: str
    frames: np.ndarray | None = None
    gamma: np.ndarray | None = None
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True)
class Made:
    """Finished clips uint8 (B, T, H, W, 3) at `fps`, a line about them, and the charts of the descent.

    known: the numbers of frames that were given.
    """

    clips: np.ndarray
    fps: float
    says: str
    charts: tuple[Chart, ...] = ()
    known: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scored:
    """The scores of a clip uint8 (T, H, W, 3): charts over its frames, and a line."""

    clip: np.ndarray
    says: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Wish:
    """The samples that somebody wants.

    labels: a name for each sample, None: unlabelled. seed: of the first sample. clip: uint8 (T, H, W, 3), of which the
    `known` frames stay; rate: its frames per second. length: of a long video, in windows that overlap.
    """

    labels: tuple[str | None, ...]
    seed: int
    how: Sampling = field(default_factory=Sampling)
    clip: np.ndarray | None = None
    known: tuple[int, ...] = ()
    rate: float | None = None
    length: int | None = None
    overlap: int | None = None


class _LeftError(Exception):
    """The reader of a job has left."""


Event = Moment | Made | Scored
Tell = Callable[[Event | None], None]


class Served:
    """A model on its device, used by one job at a time.

    pipeline: the model. frames, size: of its clips.
    """

    def __init__(self, pipeline: EqMPipeline) -> None:
        self.pipeline, self.frames, self.size = pipeline, pipeline.check_frames(None), pipeline.check_size(None)
        self.scale = UNIT
        self._turn = threading.Lock()

    @property
    def labels(self) -> list[str]:
        """The names of the model's labels."""
        return list(self.pipeline.labels.values())

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._turn.locked()

    def sample(self, wish: Wish) -> Iterator[Event]:
        """Moments of a descent, then `Made`; UserError for a wish that cannot be met, and if the descent diverges."""
        if not 1 <= len(wish.labels) <= MOST_SAMPLES:
            raise UserError(f"{counted(len(wish.labels), 'clip')} at once: the page makes 1 to {MOST_SAMPLES}")
        if wish.length is None:
            return self._job(lambda tell: self._clips(wish, tell))
        if not self.frames < wish.length <= MOST_LENGTH:
            raise UserError(f"{wish.length} frames: a long video has {self.frames + 1} to {MOST_LENGTH} frames here")
        return self._job(lambda tell: self._long(wish, tell))

    def score(self, clip: np.ndarray, label: str | None, rate: float | None = None) -> Iterator[Event]:
        """`Scored` of a clip uint8 (T, H, W, 3), beside a grey clip and one of noise."""
        return self._job(lambda tell: self._score(clip, label, rate, tell))

    # Jobs -----------------------------------------------------------------------------------------------------------

    def _job(self, work: Callable[[Tell], None]) -> Iterator[Event]:
        """Run `work` in a thread, when it is its turn, and yield what it tells; an error of it is raised here."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        left = threading.Event()

        def tell(event: Event | None) -> None:
            if left.is_set():
                raise _LeftError
            if event is not None:
                events.put(event)

        def run() -> None:
            while not self._turn.acquire(timeout=0.2):
                tell(None)
            try:
                work(tell)
            finally:
                self._turn.release()

        pool = ThreadPoolExecutor(1)
        future: Future[None] = pool.submit(run)
        future.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            future.result()
        finally:
            left.set()
            pool.shutdown(wait=False)  # who leaves need not wait for the step

    def _clips(self, wish: Wish, tell: Tell) -> None:
        model, how = self.pipeline, wish.how.on(self.pipeline)
        watch = _Watch(self, wish, how, tell)
        result = model.sample(wish.how.call(), callback=watch, output_type="latent", **self._call(wish))
        self.scale = calibrate(result.frames)
        clips = model.decode(result.frames)
        spent = f"{int(result.nfe.max())} evaluations of the field"
        fps = wish.rate or float(model.config.fps)
        tell(Made(clips, fps, f"{counted(len(clips), 'clip')}, {spent}", watch.charts(), wish.known))

    def _long(self, wish: Wish, tell: Tell) -> None:
        model, how = self.pipeline, wish.how.on(self.pipeline)
        overlap = wish.overlap or min(4, self.frames // 2)
        windows, many = len(window_starts(wish.length, self.frames, overlap)), len(wish.labels)
        parts: list[np.ndarray] = []
        curves = [Curve([], [], "new frames"), Curve([], [], "known frames")]
        total, count = windows * how.steps, iter(range(1, windows * how.steps * self.frames))

        def step(*_: Any) -> None:
            part = min(1.0, next(count) / total)
            tell(Moment(part, f"window {len(parts) + 1} of {windows}") if next_second() else None)

        next_second = _clock()
        call = {key: value for key, value in self._call(wish).items() if key != "output_type"}
        length = {"length": wish.length, "overlap": overlap}
        for window in roll_out(model, how=wish.how.call(), callback=step, **length, **call):
            parts.append(window.frames)
            fresh, old = ~window.known[0].cpu(), window.known[0].cpu()
            for curve, rows in zip(curves, (fresh, old), strict=True):
                if bool(rows.any()):
                    curve.x.append(float(window.start))
                    curve.y.append(float(window.rms[:, rows].mean()))
            chart = Chart("gradient RMS at the end of each window", "frame", [c for c in curves if c.x])
            says = f"window {window.index + 1} of {windows}"
            tell(Moment(len(parts) / windows, says, np.concatenate(parts, axis=1)[:, -self.frames :], None, (chart,)))
        clips = np.concatenate(parts, axis=1)
        says = f"{counted(many, 'video')} of {wish.length} frames in {windows} windows that overlap by {overlap}"
        tell(Made(clips, wish.rate or float(model.config.fps), says, (chart,), wish.known))

    @torch.no_grad()
    def _score(self, clip: np.ndarray, label: str | None, rate: float | None, tell: Tell) -> None:
        model = self.pipeline
        noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
        clips = np.stack([clip, np.full_like(clip, 128), noise])
        latents = model.encode(clips)
        condition = model.field([label] * 3, num_frames=len(clip), fps=rate, guidance_scale=1.0)
        scores = frame_scores(condition.at_gamma(1.0), latents, model.transformer.config.energy)
        x = [float(frame) for frame in range(len(clip))]
        charts = tuple(  # noise is far above: it would press the others flat
            Chart(
                title, "frame", [Curve(x, values[0].tolist(), "your clip"), Curve(x, values[1].tolist(), "flat grey")]
            )
            for title, values in (
                ("gradient RMS: higher is less like the training data", scores["gradient_norm"].cpu()),
                ("energy: higher is less like the training data", scores["energy"].cpu()),
            )
        )
        own = scores["gradient_norm"][:1].cpu()
        says = f"mean gradient RMS {float(own.mean()):.3f} (flat grey {float(scores['gradient_norm'][1].mean()):.3f}, "
        says += f"noise {float(scores['gradient_norm'][2].mean()):.3f}), highest at frame {int(own[0].argmax())}"
        if len(clip) > 1:
            jump = int(largest_jump(own)[0])
            says += f"; the largest jump is from frame {jump - 1} to frame {jump}"
        tell(Scored(clip, says, charts))

    def _call(self, wish: Wish) -> dict[str, Any]:
        """Keyword arguments of a call, for the pipeline and for `roll_out` alike."""
        many = len(wish.labels)
        call = {
            "labels": [None] * many if wish.how.composition else list(wish.labels),
            "seeds": [wish.seed + index for index in range(many)],
            "num_frames": self.frames,
            "size": self.size,
        }
        if wish.clip is not None:
            call |= {"clips": np.stack([wish.clip] * many), "fps": wish.rate}
            call |= {"known": list(wish.known)} if wish.known else {}
        return call


class _Watch:
    """The callback of a descent: it records the gradient of every step, and shows some states with their gamma."""

    def __init__(self, served: Served, wish: Wish, how: Sampling, tell: Tell) -> None:
        self.model, self.scale, self.tell = served.pipeline, served.scale, tell
        unknown = served.frames - len(wish.known)
        self.total = how.steps
        if how.frame_schedule != "joint":
            self.total += frame_delay(how.frame_schedule, how.steps, unknown) * (unknown - 1)
        self.shown = {round(k * (self.total - 1) / (SHOWN - 1)) for k in range(SHOWN)}
        self.known, self.frames = wish.known, served.frames
        self.path = passed_gamma(self.model, how.sampler, how.steps) if how.warp is None else None
        conditioned = self.model.transformer.config.conditioned_on_gamma
        self.readable = self.path is None and self.model.decay is not None and not conditioned and how.warp is None
        labels = [None] * len(wish.labels) if how.composition else list(wish.labels)
        self.field = self.model.field(labels, num_frames=served.frames, fps=wish.rate, guidance_scale=1.0)
        self.rms: list[Tensor] = []  # (T,) of the first clip
        self.gammas: dict[int, Tensor] = {}  # (T,) of the first clip, by step
        self.due = _clock()

    def __call__(self, step: int, latents: Tensor, gradient: Tensor) -> None:
        self.rms.append(frame_rms(gradient)[0].cpu())
        says, part = f"step {step + 1} of {self.total}", min(1.0, (step + 1) / self.total)
        if step not in self.shown:
            self.tell(Moment(part, says, None, None, self.charts()) if self.due() else None)
            return
        gamma = self._gamma(step, latents)
        if gamma is not None:
            self.gammas[step + 1] = gamma[0]
        shown = None if gamma is None else gamma.numpy()
        self.tell(Moment(part, says, self.model.decode(latents), shown, self.charts()))

    def _gamma(self, step: int, latents: Tensor) -> Tensor | None:
        if self.path is not None:
            number = self.path[min(step + 1, len(self.path) - 1)]
            return number.expand(latents.shape[:2]).clone()
        return read_gamma(self.field, latents, self.model.decay, self.scale) if self.readable else None

    def charts(self) -> tuple[Chart, ...]:
        """The curves so far of the frames of the first clip that are not known."""
        moving = [frame for frame in range(self.frames) if frame not in self.known]
        steps = [float(step + 1) for step in range(len(self.rms))]
        rms = [Curve(steps, [float(each[frame]) for each in self.rms], f"frame {frame}") for frame in moving]
        charts = [Chart("gradient RMS of each frame", "step", rms)]
        if self.gammas:
            at = sorted(self.gammas)
            gamma = [
                Curve([float(k) for k in at], [float(self.gammas[k][frame]) for k in at], f"frame {frame}")
                for frame in moving
            ]
            charts.append(Chart("gamma of each frame: 0 is noise, 1 is data", "step", gamma, most=1.0))
        return tuple(charts)


def _clock() -> Callable[[], bool]:
    """A function that is true once in every second, at most."""
    last = [time.monotonic()]

    def due() -> bool:
        now = time.monotonic()
        if now - last[0] < EVERY:
            return False
        last[0] = now
        return True

    return due
