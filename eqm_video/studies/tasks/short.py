"""The tasks within one clip: generation, image-to-video, continuation, in-betweening, inpainting in time.

Each of them is a call of the pipeline with other known frames. Labels are given if the task leaves the motion open
(generation, image-to-video). If the known frames show the motion, the model must infer it without a label; for
comparison there are runs with the label, because unlabelled clips are a small part of training (label_dropout).

Legend: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqm_video.data.moving_shapes import score_motion
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches
from eqm_video.studies.tasks.clips import Truth, describe, errors_of, forward, held, straight, tracks

TOLD = "continuation, told"
TOLERANCES = (0.1, 0.2, 0.4, 0.8, 1.6)  # tolerances of adaptive compute, in quarters of the decay's gain


@dataclass(frozen=True)
class Task:
    """A task: its known frames, and whether the label is given. Two known frames or more determine the others."""

    name: str
    known: tuple[int, ...]
    told: bool

    @property
    def placed(self) -> bool:
        """Whether every frame has a single right position."""
        return len(self.known) > 1

    def unknown(self, frames: int) -> list[int]:
        """The numbers of the frames that a model fills in."""
        return [frame for frame in range(frames) if frame not in self.known]


def tasks(frames: int, context: int) -> list[Task]:
    """The tasks for clips of T frames, continued from the first `context` of them."""
    prefix, ends = tuple(range(context)), (0, frames - 1)
    return [
        Task("generation", (), True),
        Task("image-to-video", (0,), True),
        Task("continuation", prefix, False),
        Task(TOLD, prefix, True),
        Task("in-betweening", ends, False),
        Task("in-betweening, told", ends, True),
        Task("inpainting", tuple(sorted({0, (frames - 1) // 2, frames - 1})), False),
    ]


@dataclass(frozen=True)
class Setting:
    """The setting of all models: the truth, the seed of clip 0 (clip k has seed + k), batch size, and `Sampling`."""

    truth: Truth
    seed: int = 0
    batch_size: int = 32
    how: Sampling = field(default_factory=Sampling)

    def batches(self) -> list[slice]:
        """Slices of consecutive clips, of at most `batch_size`."""
        return batches(len(self.truth.names), self.batch_size)


@dataclass(frozen=True)
class Filled:
    """Filled clips (N, T, H, W, 3), their evaluations (N,), those of each frame (N, T), and seconds of all calls."""

    clips: NDArray[np.uint8]
    nfe: NDArray[np.int64]
    frame_nfe: NDArray[np.int64]
    seconds: float


def fill(pipeline: EqMPipeline, task: Task, setting: Setting, **changes: Any) -> Filled:
    """Carry out a task on the clips of the truth; `changes` are fields of `Sampling` in place of the setting's."""
    frames, truth, parts = pipeline.check_frames(), setting.truth, []
    how = replace(setting.how, **changes)
    begun = time.perf_counter()
    for batch in setting.batches():
        names = truth.names[batch]
        known = {"clips": truth.clips[batch, :frames], "known": list(task.known)} if task.known else {}
        seeds = [setting.seed + k for k in range(batch.start, batch.stop)]
        labels = names if task.told else [None] * len(names)
        parts.append(pipeline.sample(how, labels, seeds=seeds, output_type="uint8", **known))
    seconds = time.perf_counter() - begun
    nfe, frame_nfe = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("nfe", "frame_nfe"))
    return Filled(np.concatenate([part.frames for part in parts]), nfe, frame_nfe, seconds)


def measure(filled: Filled, task: Task, truth: Truth, rebuilt: NDArray[np.uint8]) -> dict[str, Any]:
    """The results of a task: motion if the label is given, distances from the true positions if these are determined.

    rebuilt (N, T, H, W, 3): the truth after the codec. Known frames must equal it (`changed`, grey levels).
    """
    frames, known = filled.clips.shape[1], list(task.known)
    results: dict[str, Any] = {"nfe": float(filled.nfe.mean()), "seconds": round(filled.seconds, 1)}
    places = tracks(filled.clips)
    if task.told:
        scores = score_motion(filled.clips, truth.names, truth.shapes, endless=True)
        results |= {key: value for key, value in scores.items() if "accuracy" in key or key == "shape_overlap"}
        speeds = forward(places, truth.names, truth.size)
        results["speed"] = float(np.median(speeds / truth.speeds))
    if task.placed:
        results["position"] = describe(errors_of(places, truth, task.unknown(frames)))
    if known:
        levels = np.abs(filled.clips[:, known].astype(int) - rebuilt[:, known])
        results["changed"] = int(levels.max())
        results["known position"] = float(errors_of(places, truth, known).mean())
    return results


def baselines(task: Task, truth: Truth, rebuilt: NDArray[np.uint8]) -> dict[str, dict[str, Any]]:
    """The same errors without a network: of the measurement itself, of a repeated frame, and of straight lines."""
    frames, known = rebuilt.shape[1], list(task.known)
    places = tracks(rebuilt)
    guesses = {
        "codec alone": places,
        "straight line": straight(places[:, known], known, frames, truth.size),
        "last frame held": held(places[:, known], known, frames),
    }
    return {name: describe(errors_of(guess, truth, task.unknown(frames))) for name, guess in guesses.items()}


def stopping(pipeline: EqMPipeline, task: Task, setting: Setting) -> list[dict[str, Any]]:
    """Adaptive compute in a task: evaluations and errors by tolerance, for clips that stop as a whole and by frame.

    nfe: evaluations of a clip; moves: evaluations at which an unknown frame was active, mean over the frames.
    """
    gain = getattr(pipeline.decay, "gain", 1.0)
    choices: list[dict[str, Any]] = [{}]
    choices += [{"tolerance": gain / 4 * level, "per_frame": each} for each in (False, True) for level in TOLERANCES]
    rows = []
    for changes in choices:
        filled = fill(pipeline, task, setting, **changes)
        unknown = task.unknown(filled.clips.shape[1])
        errors = errors_of(tracks(filled.clips), setting.truth, unknown)
        cost = {"nfe": float(filled.nfe.mean()), "moves": float(filled.frame_nfe[:, unknown].mean())}
        rows.append({"tolerance": None, "per_frame": False, **changes, **cost, "position": describe(errors)})
    return rows
