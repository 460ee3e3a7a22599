"""Descents along the exact field of a few moving shapes, task by task, and their ends.

Legend: M clips of the set, B descents, T frames, C channels, H W pixels, S states of a descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.analysis.gamma_estimate import frame_rms
from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import DIRECTIONS, SHAPES, coverage
from eqm_video.output import media
from eqm_video.randomness import generator, normal
from eqm_video.samplers import NAG, descend
from eqm_video.studies.oracle.pictures import Strip
from eqm_video.system import waits

DECAY = TruncatedDecay(a=0.8, gain=4.0)
GROUND = (40, 44, 60)
COLOURS = {"Disc": (86, 180, 233), "Square": (230, 159, 0), "Triangle": (0, 190, 140), "Cross": (224, 110, 170)}
RADIUS, TRAVEL = 0.2, 0.5  # radius of a shape and length of its path, in sizes of the world
ARRIVED = 0.01  # a descent ends at a clip if its RMS from it is below this, for pixels in [-1, 1]


class Options(Protocol):
    """The options of the study that affect its descents."""

    num_samples: int
    steps: int
    tolerance: float
    seed: int


@dataclass(frozen=True)
class Task:
    """A task on the first clip: its known frames, or (`ramp`) a start with a different gamma in each frame."""

    name: str
    says: str
    known: tuple[int, ...] = ()
    shown: int = 1  # descents in the film
    ramp: bool = False

    def gammas(self, frames: int) -> Tensor:
        """The gamma at which each frame starts, (T,) in [0, 1]: 1 is the frame of the clip itself."""
        if self.ramp:
            return torch.linspace(0.9, 0.0, frames, dtype=torch.float64)
        gammas = torch.zeros(frames, dtype=torch.float64)
        gammas[list(self.known)] = 1.0
        return gammas


def tasks(frames: int) -> list[Task]:
    """The tasks of clips of `frames` frames, at least 5."""
    inner = (frames // 4, frames - 1 - frames // 4)
    return [
        Task("generation", "nothing is known"),
        Task("image-to-video", "the first frame is known", (0,), shown=2),
        Task("continuation", "the first two are known", (0, 1)),
        Task("in-betweening", "first and last are known", (0, frames - 1), shown=2),
        Task("inpainting in time", "two on the way are known", inner),
        Task("mixed noise", "each has its own gamma", ramp=True),
    ]


def moving_clips(size: int, frames: int, shapes: Sequence[str] = SHAPES) -> tuple[Tensor, list[str]]:
    """Clips (M, T, 3, H, W) float64 in [-1, 1] and their names: every shape in every direction, in that order.

    A turn of the picture by 90 degrees maps each direction to the next, for all shapes except the triangle.
    """
    centre, ground = (size - 1) / 2, np.array(GROUND, float)
    clips, names = [], []
    for shape in shapes:
        for direction, way in DIRECTIONS.items():
            places = centre + np.linspace(0, TRAVEL * size, frames)[:, None] * np.array(way)
            cover = np.stack([coverage(shape, (x, y), RADIUS * size, size, endless=True) for x, y in places])
            clips.append(ground + cover[..., None] * (np.array(COLOURS[shape], float) - ground))
            names.append(shape + direction)
    return torch.from_numpy(np.stack(clips)).movedim(-1, 2) / 127.5 - 1, names


class Runs:
    """The descents of a task. All start from the first clip's known frames, each with its own noise."""

    def __init__(self, clips: Tensor, task: Task, rule: NAG, options: Options) -> None:
        self.clips, self.task, self.rule, self.options = clips, task, rule, options
        frames = clips.shape[1]
        gammas = task.gammas(frames).expand(options.num_samples, frames)
        seeds = [generator(options.seed + index) for index in range(options.num_samples)]
        noise = normal(clips.shape[1:], seeds, dtype=torch.float64)
        self.start = interpolate(clips[:1].expand_as(noise), noise, gammas)
        self.known = torch.zeros(gammas.shape, dtype=torch.bool)
        self.known[:, list(task.known)] = True

    def ends(self, *, frame_wise: bool = True, **how: Any) -> Any:
        """The ends of descents along the exact field with a gamma for each frame, or one gamma for the clip."""
        field = OracleField(self.clips, DECAY, frame_wise)
        steps = self.options.steps
        with waits.bar(what=self.task.name, total=steps, unit="step") as bar:
            how = {"steps": steps, "known": self.known, "callback": lambda *_: bar.update(), **how}
            return descend(field, self.start, self.rule, **how)

    def measure(self, names: Sequence[str], ends: Any) -> dict[str, Any]:
        """The entry of this task in oracle.json."""
        task, frames = self.task, self.clips.shape[1]
        allowed = self.allowed()
        stopping = {"tolerance": self.options.tolerance}
        together, stopped = self.ends(**stopping), self.ends(**stopping, per_frame=True)
        chosen, far = self.nearest(ends.latents)
        numbers = {
            "known": list(task.known),
            "start_gammas": task.gammas(frames).tolist(),
            "agreeing_clips": [names[index] for index in allowed],
            "chosen": {names[index]: int((chosen == index).sum()) for index in sorted({*allowed, *chosen.tolist()})},
            **self.quality(ends.latents),
            "known_frames_unchanged": bool(torch.equal(ends.latents[self.known], self.start[self.known])),
            "rms_from_clip": float(far.max()),
            "nfe": float(ends.nfe.double().mean()),
            "per_frame_stopping": {
                "nfe": float(stopped.nfe.double().mean()),
                "nfe_together": float(together.nfe.double().mean()),
                "frame_nfe": stopped.frame_nfe.double().mean(dim=0).tolist(),
                "same_clip": float((self.nearest(stopped.latents)[0] == chosen).double().mean()),
                "rms_from_clip": float(self.nearest(stopped.latents)[1].max()),
            },
        }
        if task.known:
            shared = self.ends(frame_wise=False)
            numbers["gradient_on_known_frames"] = self.unrest(frame_wise=True)
            numbers["one_gamma_for_the_clip"] = {
                **self.quality(shared.latents),
                "gradient_on_known_frames": self.unrest(frame_wise=False),
            }
        return numbers

    def allowed(self) -> list[int]:
        """The numbers of clips that have the known frames; only the first for `ramp`, which shows all its frames."""
        if self.task.ramp:
            return [0]
        where = list(self.task.known)
        same = (self.clips[:, where] - self.clips[:1, where]).abs().flatten(1).amax(dim=1) if where else None
        return list(range(len(self.clips))) if same is None else (same < 1e-9).nonzero().flatten().tolist()

    def nearest(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the nearest clip and the RMS from it, (B,) each."""
        rms, chosen = (latents[:, None] - self.clips).square().mean(dim=(2, 3, 4, 5)).sqrt().min(dim=1)
        return chosen, rms

    def quality(self, latents: Tensor) -> dict[str, float]:
        """The shares of descents that end at a clip of the set, and at a clip that agrees with the known frames."""
        chosen, rms = self.nearest(latents)
        arrived = rms < ARRIVED
        agrees = arrived & torch.isin(chosen, torch.tensor(self.allowed()))
        return {"at_a_clip": float(arrived.double().mean()), "at_an_agreeing_clip": float(agrees.double().mean())}

    def unrest(self, *, frame_wise: bool) -> float:
        """Mean RMS of the gradient on the known frames at the start: the field's pull away from them."""
        return float(frame_rms(OracleField(self.clips, DECAY, frame_wise)(self.start))[self.known].mean())

    def strips(self, names: Sequence[str], ends: Any) -> list[Strip]:
        """The first descents that end at different clips, repeated to record their states."""
        chosen = self.nearest(ends.latents)[0].tolist()
        rows = [chosen.index(clip) for clip in dict.fromkeys(chosen)][: self.task.shown]
        start, states = self.start[rows], [self.start[rows]]
        descend(
            OracleField(self.clips, DECAY, frame_wise=True),
            start,
            self.rule,
            steps=self.options.steps,
            known=self.known[rows],
            callback=lambda step, latents, slope: states.append(latents),
        )
        walks = torch.stack(states, dim=1)  # (b, S, T, 3, H, W)
        goals = self.clips[[chosen[row] for row in rows]]
        gammas = way_come(walks, goals, self.task.gammas(self.clips.shape[1]))
        known = np.isin(np.arange(self.clips.shape[1]), self.task.known)
        return [
            Strip(self.task.name, self.task.says, media.to_uint8(walk), gamma.numpy(), known, names[chosen[row]])
            for row, walk, gamma in zip(rows, walks, gammas, strict=True)
        ]


def way_come(walks: Tensor, goals: Tensor, start: Tensor) -> Tensor:
    """Gamma (b, S, T) of every frame of walks (b, S, T, 3, H, W): 1 - gamma is proportional to the distance left."""
    rest = frame_distance(walks, goals)
    return 1 - (1 - start) * rest / rest[:, :1].clamp(min=1e-12)


def frame_distance(walks: Tensor, goals: Tensor) -> Tensor:
    """Root mean square distance (b, S, T) of every frame of walks (b, S, T, C, H, W) from goals (b, T, C, H, W)."""
    return (walks - goals[:, None]).square().mean(dim=(3, 4, 5)).sqrt()
