"""Descents that are looked at while they run: every evaluation seen, clips that run away contained, time measured.

Legend: B clips of a batch, N clips in all, T frames, b clips that still move.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from eqm_video.analysis.gamma_estimate import frame_rms
from eqm_video.core.composition import ScheduledField
from eqm_video.core.field import GradientField
from eqm_video.samplers import Descent, DivergenceError, Sampler, Schedule, run
from eqm_video.sampling.arguments import make_generators, step_gammas
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.request import Request
from eqm_video.system.machine import synchronise

FAR = 5.0  # root mean square of a clip's latents that counts as diverged: noise has 1, data about 1


class Watched(GradientField):
    """A gradient with an onlooker: `look(watched, latents, gradient) -> gradient` at every evaluation.

    `watched.rows` (b,) are the places, in the whole batch, of the clips that are evaluated, `watched.field` is the
    field of this step; latents and gradient (b,T,C,H,W) are those of the point where the rule evaluates (for NAG the
    look-ahead), and the result is what the sampler is given.
    """

    def __init__(self, field: Any, rows: Tensor, look: Callable[[Watched, Tensor, Tensor], Tensor]) -> None:
        self.field, self.rows, self.look = field, rows, look

    def __call__(self, latents: Tensor) -> Tensor:
        """The gradient at latents, after the onlooker has seen it."""
        return self.look(self, latents, self.field(latents))

    @property
    def forwards(self) -> int:
        """Network calls so far."""
        return self.field.forwards

    def select(self, indices: Tensor) -> Watched:
        """The gradient of the clips at `indices`."""
        return Watched(self.field.select(indices), self.rows[indices.to(self.rows.device)], self.look)

    def at_step(self, step: int) -> Watched:
        """The gradient of one step of a descent."""
        return Watched(self.field.at_step(step), self.rows, self.look)

    def at_gamma(self, gamma: float) -> Watched:
        """The gradient at a solver's time."""
        return Watched(self.field.at_gamma(gamma), self.rows, self.look)


@dataclass(frozen=True)
class Walk:
    """What N descents came to.

    latents (N,T,C,h,w); nfe (N,) and frame_nfe (N,T) int64; rms (N,T), of the gradient where each clip ended (an
    evaluation that nfe does not count); diverged (N,) bool: not finite, or beyond `FAR`, and held where that was seen;
    latents that become infinite end their whole batch, all of it diverged, its latents and rms NaN; seconds of the
    descents alone, on the clock and (cpu_seconds) of this process's processors, which other work on the machine does
    not lengthen; forwards: network calls.
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
    """Of some of the samples: field, start noise (B,T,C,h,w) and generators (whose next numbers are the sampler's).

    A network that is conditioned on gamma is told the closed form of a rule's descent; a solver tells its own time.
    """
    field = pipeline.field(request.ids[batch], num_frames=request.frames, guidance_scale=request.guidance_scale)
    told = None
    if pipeline.transformer.config.conditioned_on_gamma:
        told = step_gammas(pipeline.decay, sampler, steps, schedule, 0.0, None)
    generators = make_generators(len(request.seeds[batch]), request.seeds[batch], None)
    start = pipeline.start_noise(generators, num_frames=request.frames, size=request.size)
    return ScheduledField(field, steps, told), start, generators


@torch.no_grad()
def walk(pipeline: EqMPipeline, request: Request, sampler: Sampler, *, steps: int, **how: Any) -> Walk:
    """Sample all that is requested, batch by batch; `how` is handed to `samplers.run` (tolerance, per_frame ...)."""
    parts = [_walk(pipeline, request, batch, sampler, steps, how) for batch in request.batches()]
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
        """Hold the clips that have left: one that diverges must not end the descent of the others."""
        rows = watched.rows
        taken[rows] += 1
        diverged[rows] |= ~_within(latents) | ~gradient.isfinite().flatten(1).all(1)
        return gradient.masked_fill(diverged[rows].view(-1, 1, 1, 1, 1), 0)

    watched = Watched(field, torch.arange(len(start), device=start.device), contain)
    synchronise(start.device)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    try:
        result = run(watched, start, sampler, steps=steps, generators=generators, decay=pipeline.decay, **how)
    except DivergenceError:  # infinite after a single step: too late to hold a clip
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
    """Latents (N,T,C,h,w) as clips (N,T,H,W,3) of uint8; what is not finite, or beyond 1e4, shows grey."""
    safe = latents.where(latents.abs() < 1e4, 0).to(pipeline.device)  # a codec overflows far from its latents
    return np.concatenate([pipeline.decode(part) for part in safe.split(at_once)])
