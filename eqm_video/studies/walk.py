"""Descents that are watched: every evaluation can be seen, clips that diverge are contained, time is measured.

Legend: B clips of a batch, N clips in all, T frames, b active clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from eqm_video.analysis.gamma_estimate import frame_rms
from eqm_video.core.composition import ScheduledField
from eqm_video.core.field import FieldAround, Sight, observe
from eqm_video.samplers import Descent, DivergenceError, Sampler, Schedule, run
from eqm_video.sampling.arguments import make_generators, step_gammas
from eqm_video.studies.request import Request
from eqm_video.system import waits
from eqm_video.system.machine import synchronise

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline

FAR = 5.0  # a clip whose latents have this root mean square has diverged: noise has 1, data about 1


class Watched(FieldAround):
    """A field with an observer: `look(watched, latents, gradient) -> gradient` at every evaluation.

    `watched.rows` (b,) are the places of the evaluated clips in the whole batch, `watched.field` is the field of this
    step. latents and gradient (b,T,C,H,W) belong to the point where the rule evaluates (for NAG the look-ahead). The
    sampler gets the result of `look`.
    """

    def __init__(self, field: Any, rows: Tensor, look: Callable[[Watched, Tensor, Tensor], Tensor]) -> None:
        self.field, self.rows, self.look = field, rows, look

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The gradient at latents, after the observer, and the sight of the field."""
        gradient, sight = observe(self.field, latents)
        return self.look(self, latents, gradient), sight

    def select(self, indices: Tensor) -> Watched:
        """The gradient of the clips at `indices`."""
        return Watched(self.field.select(indices), self.rows[indices.to(self.rows.device)], self.look)

    def at_step(self, step: int) -> Watched:
        """The gradient of one step of a descent."""
        return self.changed(field=self.field.at_step(step))

    def at_gamma(self, gamma: float) -> Watched:
        """The gradient at a solver's time."""
        return self.changed(field=self.field.at_gamma(gamma))


@dataclass(frozen=True)
class Walk:
    """The results of N descents.

    latents (N,T,C,h,w). nfe (N,) and frame_nfe (N,T) int64. rms (N,T): of the gradient at the end of each clip, an
    evaluation that nfe does not count. diverged (N,) bool: not finite, or beyond `FAR`; such clips are stopped there.
    Latents that become infinite in a single step end their whole batch: all its clips count as diverged, with latents
    and rms NaN. seconds: of the descents alone; cpu_seconds: of this process's processors, which other work on the
    machine does not lengthen. forwards: network calls.
    """

    latents: Tensor
    nfe: Tensor
    frame_nfe: Tensor
    rms: Tensor
    diverged: Tensor
    seconds: float
    cpu_seconds: float
    forwards: int


def begin(
    pipeline: EqMPipeline, request: Request, batch: slice, sampler: Sampler, steps: int, schedule: Schedule = "constant"
) -> tuple[ScheduledField, Tensor, list[Generator]]:
    """(field, start noise (B,T,C,h,w), generators) of a batch of samples. The sampler draws on from the generators.

    A network that is conditioned on gamma gets the closed form of a rule's descent; a solver passes its own time.
    """
    field = pipeline.field(request.ids[batch], num_frames=request.frames, guidance_scale=request.guidance_scale)
    gammas = None
    if pipeline.transformer.config.conditioned_on_gamma:
        gammas = step_gammas(pipeline.decay, sampler, steps, schedule, 0.0, None)
    generators = make_generators(len(request.seeds[batch]), request.seeds[batch], None)
    start = pipeline.start_noise(generators, num_frames=request.frames, size=request.size)
    return ScheduledField(field, steps, gammas), start, generators


@torch.no_grad()
def walk(pipeline: EqMPipeline, request: Request, sampler: Sampler, *, steps: int, **how: Any) -> Walk:
    """Sample the requested clips, batch by batch. `how`: keywords of `samplers.run` (tolerance, per_frame ...)."""
    every = waits.bar(request.batches(), "descending", unit="batch")
    parts = [_walk(pipeline, request, batch, sampler, steps, how) for batch in every]
    joined = {name: torch.cat([getattr(part, name).cpu() for part in parts]) for name in _PER_CLIP}
    totals = {name: sum(getattr(part, name) for part in parts) for name in ("seconds", "cpu_seconds", "forwards")}
    return Walk(**joined, **totals)


_PER_CLIP = ("latents", "nfe", "frame_nfe", "rms", "diverged")


def _walk(
    pipeline: EqMPipeline, request: Request, batch: slice, sampler: Sampler, steps: int, how: dict[str, Any]
) -> Walk:
    field, start, generators = begin(pipeline, request, batch, sampler, steps, how.get("schedule", "constant"))
    diverged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    taken = torch.zeros(len(start), dtype=torch.long, device=start.device)

    def contain(watched: Watched, latents: Tensor, gradient: Tensor) -> Tensor:
        """Stop clips that diverge, so that they do not end the descent of the others."""
        rows = watched.rows
        taken[rows] += 1
        diverged[rows] |= ~_within(latents) | ~gradient.isfinite().flatten(1).all(1)
        return gradient.masked_fill(diverged[rows].view(-1, 1, 1, 1, 1), 0)

    watched = Watched(field, torch.arange(len(start), device=start.device), contain)
    synchronise(start.device)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    try:
        result = run(watched, start, sampler, steps=steps, generators=generators, decay=pipeline.decay, **how)
    except DivergenceError:  # infinite after a single step: too late to stop a clip
        frame_nfe = taken[:, None].expand(start.shape[:2])
        result = Descent(latents=torch.full_like(start, torch.nan), nfe=taken, frame_nfe=frame_nfe)
    synchronise(start.device)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
    forwards = field.forwards
    rms = frame_rms(field.at_gamma(1.0)(result.latents))
    diverged |= ~_within(result.latents) | ~rms.isfinite().all(1)
    return Walk(result.latents, result.nfe, result.frame_nfe, rms, diverged, seconds, cpu_seconds, forwards)


def _within(latents: Tensor) -> Tensor:
    """(B,...) -> (B,) bool: finite, and not beyond `FAR`."""
    size = latents.flatten(1).square().mean(1).sqrt()
    return size.isfinite() & (size < FAR)


@torch.no_grad()
def decode(pipeline: EqMPipeline, latents: Tensor, at_once: int = 32) -> np.ndarray:
    """Latents (N,T,C,h,w) as clips (N,T,H,W,3) of uint8; values that are not finite, or beyond 1e4, become grey."""
    safe = latents.where(latents.abs() < 1e4, 0).to(pipeline.device)  # a codec overflows far from its latents
    return np.concatenate([pipeline.decode(part) for part in safe.split(at_once)])
