"""A field on a ring of frames: the last frame meets the first, so that a clip plays as a seamless loop.

Legend: B clips, T frames, C channels, H W height and width.

A network sees frames in a row. On a ring every frame may be the first of the row, so the frames are turned before each
evaluation, its gradient is turned back, and the next evaluation turns them further: where the row is cut at one step is
its middle at another. The first turn of each clip is drawn at random. With R_k, which moves frame t to t + k, a descent
from R_j x with the first turn o + j then is R_j of the one from x with o. Noise and first turn are as likely as turned
ones, and so are the clips: they have no first frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.core.field import FieldAround, GradientField, Sight, observe


@dataclass(eq=False)
class RingField(FieldAround):
    """A field whose frames are turned before each evaluation, by the step of the descent."""

    field: GradientField  # a `GuidedField` or a `ComposedField`, which keep nothing of single frames but their gamma
    steps: int  # of the descent
    first: Tensor  # (B,) integers, the first turn of each clip
    frames: int  # T
    turn: int = 0
    gamma: Tensor | None = None  # (B, T) of the frames, if they differ

    @property
    def settled(self) -> bool:
        """Always false: the turn changes along the descent."""
        return False

    def select(self, indices: Tensor) -> RingField:
        """The field of the clips at `indices` (1-D integers)."""
        gamma = None if self.gamma is None else self.gamma[indices.to(self.gamma.device)]
        first = self.first[indices.to(self.first.device)]
        return self.changed(field=self.field.select(indices), first=first, gamma=gamma)

    def at_progress(self, progress: float) -> RingField:
        """The field at a point of the descent, 0 (start) to 1 (end), with the turn of that step."""
        turn = round(progress * self.steps) * stride(self.frames)
        return self.changed(field=self.field.at_progress(progress), turn=turn)

    def at_gamma(self, gamma: float | Tensor) -> RingField:
        """The field at gamma of the frames: a number, or (B, T), which turns with them."""
        if not isinstance(gamma, Tensor):
            return self.changed(field=self.field.at_gamma(gamma))
        return self.changed(gamma=gamma)

    def tell(self, gamma: float | Tensor) -> RingField:
        """The field with its network conditioned on `gamma`: a number, or (B, T)."""
        if isinstance(gamma, Tensor):
            return self.at_gamma(gamma)
        return self.changed(field=self.field.tell(gamma))

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The field at latents (B, T, C, H, W), and its sight."""
        turns = self.first.to(latents.device) + self.turn
        field = self.field if self.gamma is None else self.field.at_gamma(turned(self.gamma, -turns))
        gradient, sight = observe(field, turned(latents, -turns))
        levels = () if sight.level is None else (turned(sight.level, turns), turned(sight.spread, turns))
        return turned(gradient, turns), Sight(turned(sight.plain, turns), *levels)


def stride(frames: int) -> int:
    """The turn from one step to the next: about 0.38 of the ring, and without a common divisor with `frames`."""
    near = sorted(range(1, max(2, frames)), key=lambda turn: abs(turn - 0.382 * frames))
    return next(turn for turn in near if math.gcd(turn, frames) == 1)


def turned(values: Tensor, turns: Tensor) -> Tensor:
    """Values (B, T, ...) with frame t of clip b at t + turns[b], around the ring."""
    frames = torch.arange(values.shape[1], device=values.device)
    places = (frames - turns.to(values.device)[:, None]) % values.shape[1]
    return values[torch.arange(len(values), device=values.device)[:, None], places]
