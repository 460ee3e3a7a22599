"""Measurements of one model of the comparison: a value for each clip, so that runs can be averaged and paired.

Legend: N clips, T frames, C h w latents, G gammas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.analysis.gamma_estimate import calibrate, frame_dot, frame_rms, infer_gamma
from eqm_video.core.decay import ConstantDecay, Decay
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import measure_motion
from eqm_video.randomness import generator, normal
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.batches import batches, encode
from eqm_video.studies.tasks import long as tasks_long
from eqm_video.studies.tasks import short as tasks_short
from eqm_video.studies.tasks.clips import NEAR, Truth, errors_of, tracks
from eqm_video.studies.tasks.short import Filled, Setting, Task

GAMMAS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # at which fields are measured
KNOWN, KNOWN_SERIES = 80, 9_000_000  # clips of each label that the exact field has, as the training set; their seed
Values = dict[str, list[float]]  # by measure, one number for each clip


def motion(clips: NDArray[np.uint8], truth: Truth) -> Values:
    """By measure, direction, shape and both: 1 for a clip of (N, T, H, W, 3) that shows that of its label, else 0."""
    values: Values = {"direction": [], "shape": [], "both": []}
    for clip, name in zip(clips, truth.names, strict=True):
        seen = measure_motion(clip, truth.shapes, endless=True)
        moves = seen.direction is not None and name.endswith(seen.direction)
        shows = name.startswith(seen.shape)
        for key, right in (("direction", moves), ("shape", shows), ("both", moves and shows)):
            values[key].append(float(right))
    return values


def placed(filled: Filled, task: Task, truth: Truth) -> Values:
    """Mean error of each clip in pixels over its unknown frames, and the share of these within `NEAR` pixels."""
    errors = errors_of(tracks(filled.clips), truth, task.unknown(filled.clips.shape[1]))
    return {"error": errors.mean(axis=1).tolist(), "near": (errors < NEAR).mean(axis=1).tolist()}


def carry_out(pipeline: EqMPipeline, task: Task, setting: Setting) -> Values:
    """Carry out a task; measure motion where the label is a condition, positions where known frames decide them."""
    filled = tasks_short.fill(pipeline, task, setting)
    values: Values = motion(filled.clips, setting.truth) if task.told else {}
    return values | (placed(filled, task, setting.truth) if task.placed else {})


def rolled_out(pipeline: EqMPipeline, setting: Setting, overlap: int) -> dict[str, Any]:
    """Continue clips to the length of the truth: right windows of each clip, the last one, and means by window."""
    frames, truth = pipeline.check_frames(), setting.truth
    video = tasks_long.continue_clips(pipeline, tasks_long.Way(overlap, setting.how), setting)
    ends = [*video.starts[1:], video.clips.shape[1]]
    right = np.array([motion(video.clips[:, max(0, end - frames) : end], truth)["both"] for end in ends])
    errors = [
        np.median(errors_of(tracks(video.clips[:, start:end]), truth, range(start, end), start))
        for start, end in zip(video.starts, ends, strict=True)
    ]
    return {
        "values": {"windows": right.mean(axis=0).tolist(), "last window": right[-1].tolist()},
        "ends": ends,
        "right": right.mean(axis=1).tolist(),
        "error": [float(error) for error in errors],
        "drift": video.drift.mean(axis=1).tolist(),
    }


# The field itself ---------------------------------------------------------------------------------------------------


Errors = dict[str, dict[str, list[float]]]  # by measure and gamma, one number for each clip
Gradient = Callable[[slice, float, Tensor], Tensor]  # of a batch of the clips, its gamma and its noisy latents


@torch.no_grad()
def field_errors(pipeline: EqMPipeline, truth: Truth, gammas: Sequence[float], seed: int, batch_size: int) -> Errors:
    """The errors of the labelled field on clips that it was not trained on, by gamma, a number for each clip.

    velocity: mean square of f / c - (noise - clean), which compares fields of all decays. level: mean over the frames
    of |gamma as it is estimated from the gradient - gamma|; left out for a network that is conditioned on gamma. All
    frames of a clip have the same gamma. Noise depends on (seed, clip, gamma) alone.
    """
    clean = encode(pipeline, truth.clips[:, : pipeline.check_frames()], batch_size).to(pipeline.device)
    conditioned = pipeline.transformer.config.conditioned_on_gamma

    def gradient(part: slice, gamma: float, noisy: Tensor) -> Tensor:
        return pipeline.field(truth.names[part], guidance_scale=1.0).at_gamma(gamma)(noisy)

    return _errors(gradient, pipeline.decay, clean, gammas, seed, batch_size, conditioned=conditioned)


@torch.no_grad()
def exact_errors(
    pipeline: EqMPipeline, truth: Truth, gammas: Sequence[float], seed: int, batch_size: int
) -> dict[str, Errors]:
    """The same of the exact field of `KNOWN` clips of each label: on the first of these, and on the clips of `truth`.

    That field has the least training loss that there is on its clips: on them its error is what no network can go
    below, on others it is the error of one that has learned its clips by heart.
    """
    frames, size = pipeline.check_frames(), truth.size
    labels, decay = list(dict.fromkeys(truth.names)), ConstantDecay()
    known = Truth.render([name for name in labels for _ in range(KNOWN)], frames, size, KNOWN_SERIES)
    data = encode(pipeline, known.clips, batch_size).to(pipeline.device)
    fields = {name: OracleField(data[KNOWN * k : KNOWN * (k + 1)], decay) for k, name in enumerate(labels)}
    own = torch.stack([fields[name].data[k // len(labels) % KNOWN] for k, name in enumerate(truth.names)]).to(data)
    others = encode(pipeline, truth.clips[:, :frames], batch_size).to(pipeline.device)

    def gradient(part: slice, gamma: float, noisy: Tensor) -> Tensor:
        each = zip(truth.names[part], noisy.split(1), strict=True)
        return torch.cat([fields[name](clip) for name, clip in each])

    clips = {"exact, own": own, "exact, others": others}
    return {name: _errors(gradient, decay, clean, gammas, seed, batch_size) for name, clean in clips.items()}


def _errors(
    gradient: Gradient,
    decay: Decay,
    clean: Tensor,
    gammas: Sequence[float],
    seed: int,
    batch_size: int,
    *,
    conditioned: bool = False,
) -> Errors:
    """The errors of a field on clean latents (N, T, C, h, w); the level's unless it is conditioned on gamma."""
    scale = calibrate(clean)
    values: Errors = {"velocity": {}, "level": {}}
    for gamma in gammas:
        for part in batches(len(clean), batch_size):
            x = clean[part]
            noise = _noise(x, seed, part, gamma)
            noisy = interpolate(x, noise, torch.full(x.shape[:2], gamma, device=x.device))
            predicted = gradient(part, gamma, noisy)
            error = (predicted / decay(torch.tensor(gamma)) - (noise - x)).square().flatten(1).mean(dim=1)
            values["velocity"].setdefault(f"{gamma:g}", []).extend(error.tolist())
            if not conditioned:
                level = (estimated(noisy, predicted, decay, scale) - gamma).abs().mean(dim=1)
                values["level"].setdefault(f"{gamma:g}", []).extend(level.tolist())
    return values


def estimated(noisy: Tensor, gradient: Tensor, decay: Decay, scale: float) -> Tensor:
    """Gamma (B, T) of every frame from its gradient; of a constant decay, from the gradient's direction alone."""
    dot = frame_dot(noisy, gradient)
    if isinstance(decay, ConstantDecay):
        return ((1 - dot / decay.gain) / scale**2).clamp(0, 1)
    return infer_gamma(frame_rms(gradient), decay, scale, dot=dot).to(noisy)


def _noise(clean: Tensor, seed: int, part: slice, gamma: float) -> Tensor:
    """Standard normal noise like `clean` (B, T, C, h, w); clip k of all has a generator of its own."""
    generators = [generator(seed, "field error", k, f"{gamma:g}") for k in range(part.start, part.stop)]
    return normal(clean.shape[1:], generators, device=clean.device, dtype=clean.dtype)
