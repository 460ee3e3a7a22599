"""Long videos of endless moving shapes, in windows far beyond the training length, measured window by window.

Every video starts with some frames of the truth and has its label, so that every later frame has a right answer.

Legend: N clips, L frames of a video, T frames of a window, W windows; positions in pixels on the torus.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqm_video.data.moving_shapes import score_motion
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.tasks.clips import Truth, errors_of, forward, straight, tracks
from eqm_video.studies.tasks.short import Setting

# Fields of `Sampling` that ways differ in
CHOICES = ("frame_schedule", "context_gamma", "history_guidance", "guidance_scale")


@dataclass(frozen=True)
class Way:
    """A way to roll out: the frames that windows share, and the `CHOICES` of sampling; None: as the setting says."""

    overlap: int
    how: Sampling = field(default_factory=Sampling)

    def choices(self) -> dict[str, Any]:
        """The choices that this way makes."""
        values = {key: getattr(self.how, key) for key in CHOICES}
        return {key: value for key, value in values.items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """The overlap and the choices, for the record."""
        return {"overlap": self.overlap, **self.choices()}

    def name(self, plain: Way) -> str:
        """The differences from the way `plain`, as a name."""
        usual = plain.settings()
        changed = {key.replace("_", " "): value for key, value in self.settings().items() if value != usual.get(key)}
        return ", ".join(f"{key} {value}" for key, value in changed.items()) or "usual"

    def but(self, key: str, value: Any) -> Way:
        """This way with another overlap, or another choice."""
        if key == "overlap":
            return replace(self, overlap=value)
        return replace(self, how=replace(self.how, **{key: value}))


def ways(plain: Way, frames: int) -> dict[str, list[Way]]:
    """Ways for windows of T frames that differ from `plain` in one choice, by title; each list begins with it."""
    options: dict[str, list[Any]] = {
        "frame_schedule": ["pyramid", "autoregressive"],
        "context_gamma": [1.0, 0.9, 0.8, 0.6, 0.4],
        "guidance_scale": [1.0],
        "history_guidance": [1.5, 2.0],
        "overlap": sorted({1, frames // 4, frames // 2, 3 * frames // 4} - {0}),
    }
    titles = {"history_guidance": "guidance", "guidance_scale": "guidance"}
    titled: dict[str, list[Way]] = {}
    for key, values in options.items():
        others = [plain.but(key, value) for value in values if value != plain.settings().get(key)]
        titled.setdefault(titles.get(key, key.replace("_", " ")), [plain]).extend(others)
    return titled


@dataclass(frozen=True)
class Video:
    """Videos (N, L, H, W, 3), and for each window its first new frame (W,), its drift and its motion (W, N).

    Drift and motion are those of `rollout.Window`. nfe (N,): evaluations in all windows; seconds: of all calls.
    """

    clips: NDArray[np.uint8]
    starts: list[int]
    drift: NDArray[np.float64]
    nfe: NDArray[np.int64]
    seconds: float
    motion: NDArray[np.float64]


def continue_clips(pipeline: EqMPipeline, way: Way, setting: Setting) -> Video:
    """The clips of the truth, continued from their first `overlap` frames to the length of the truth."""
    frames, truth, parts = pipeline.check_frames(), setting.truth, []
    how = replace(setting.how, **way.choices())
    length, begun = truth.clips.shape[1], time.perf_counter()
    for batch in setting.batches():
        windows = list(
            roll_out(
                pipeline,
                truth.names[batch],
                length=length,
                clips=truth.clips[batch, :frames],
                known=list(range(way.overlap)),
                seeds=[setting.seed + k for k in range(batch.start, batch.stop)],
                overlap=way.overlap,
                how=how,
            )
        )
        clips = np.concatenate([window.frames for window in windows], axis=1)
        drift, motion = (
            torch.stack([getattr(window, name) for window in windows]).double().numpy() for name in ("drift", "motion")
        )
        nfe = torch.stack([window.nfe for window in windows]).sum(dim=0).numpy()
        parts.append((clips, [way.overlap, *(window.start for window in windows[1:])], drift, motion, nfe))
    clips, starts, drift, motion, nfe = zip(*parts, strict=True)
    seconds = time.perf_counter() - begun
    drift, motion = (np.concatenate(each, axis=1) for each in (drift, motion))
    return Video(np.concatenate(clips), starts[0], drift, np.concatenate(nfe), seconds, motion)


def measure(video: Video, truth: Truth, frames: int) -> dict[str, Any]:
    """Measures of the windows, a list for each measure with a value for each window, and means over the windows.

    A window is measured with the frames before it that fill T. direction, shape, both: shares of clips that agree with
    their label; overlap: with the best shape (IoU); speed: over the true speed, median of the clips; position: error of
    the new frames in pixels, mean and median; colour: distance of their ground from the true ground in grey levels;
    drift: mean over the clips. nfe a frame: evaluations for each new frame.
    """
    length = video.clips.shape[1]
    ends = [*video.starts[1:], length]
    measures: dict[str, list[float]] = {}
    for start, end, drift in zip(video.starts, ends, video.drift, strict=True):
        part = video.clips[:, max(0, end - frames) : end]
        for name, value in _window(part, truth, start, end).items():
            measures.setdefault(name, []).append(value)
        measures.setdefault("drift", []).append(float(drift.mean()))
    whole = {name: float(np.mean(values)) for name, values in measures.items()}
    made = length - video.starts[0]
    cost = {"nfe a frame": float(video.nfe.mean()) / made, "seconds": round(video.seconds, 1)}
    return {"starts": video.starts, "ends": ends, "windows": measures, "mean": whole, **cost}


def _window(part: NDArray[np.uint8], truth: Truth, start: int, end: int) -> dict[str, float]:
    """The measures of frames (N, T', H, W, 3) that end before frame `end` of the video and are new from `start` on."""
    scores = score_motion(part, truth.names, truth.shapes, endless=True)
    places = tracks(part)
    errors = errors_of(places, truth, range(start, end), end - part.shape[1])
    grounds = [np.median(clips[:, start - end :], axis=(1, 2, 3)) for clips in (part, truth.clips[:, :end])]
    shares = {name: float(scores[f"{name}_accuracy"]) for name in ("direction", "shape", "both")}
    return {
        **shares,
        "overlap": float(scores["shape_overlap"]),
        "speed": float(np.median(forward(places, truth.names, truth.size) / truth.speeds)),
        "position": float(errors.mean()),
        "position median": float(np.median(errors)),
        "colour": float(np.abs(grounds[0] - grounds[1]).mean()),
    }


def extrapolated(truth: Truth, rebuilt: NDArray[np.uint8], video: Sequence[int], length: int) -> list[float]:
    """Mean error, in each window, of the straight line through the known frames (N, k, ...).

    video: the first new frame of each window.
    """
    known = list(range(rebuilt.shape[1]))
    places = straight(tracks(rebuilt), known, length, truth.size)
    ends = [*video[1:], length]
    return [float(errors_of(places, truth, range(start, end)).mean()) for start, end in zip(video, ends, strict=True)]
