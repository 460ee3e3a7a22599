"""Which frames move at which step: joint, pyramid and autoregressive descents of one clip, as masks of steps.

Legend: B clips, T frames, N steps that every frame makes, S steps of the whole descent.
The unknown frames of a clip start one after the other, `delay` steps apart, and each makes N steps: with delay 0 all
move together (joint), with delay N one begins when the one before it is done (autoregressive), in between several are
on their way, the earlier ones ahead of the later (pyramid; diffusion forcing, arXiv 2407.01392, draws it so).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FRAME_SCHEDULES = ("joint", "pyramid", "autoregressive")


def frame_delay(schedule: str | int, steps: int, unknown: int) -> int:
    """Steps from the start of one unknown frame to that of the next.

    "joint" is 0, "autoregressive" is `steps`, "pyramid" spreads the starts of the `unknown` frames over `steps`, at
    least one apart, so that the whole takes less than twice as many; a number is the delay itself.

    Raises:
        ValueError: another schedule, or a number outside 0..steps.
    """
    named = {"joint": 0, "pyramid": max(1, steps // max(unknown, 1)), "autoregressive": steps}
    if isinstance(schedule, str) and schedule in named:
        return min(named[schedule], steps)
    if isinstance(schedule, bool) or not isinstance(schedule, int) or not 0 <= schedule <= steps:
        raise ValueError(
            f"the frame schedule is {schedule!r}; it must be one of {', '.join(FRAME_SCHEDULES)}, or the steps between "
            f"the starts of two frames, a whole number from 0 (joint) to {steps} (autoregressive)"
        )
    return schedule


def frame_moves(schedule: str | int, steps: int, unknown: Tensor) -> Tensor | None:
    """Which frames move at each step (S, B, T) bool, for frames `unknown` (B, T) bool that make `steps` moves each.

    None for a joint descent, where nothing needs to be said. Raises ValueError as `frame_delay` does.
    """
    counts = unknown.sum(dim=1).tolist()  # a clip's own turns: they do not depend on the others of the batch
    delays = [frame_delay(schedule, steps, count) for count in counts]
    longest = max((delay * (count - 1) for delay, count in zip(delays, counts, strict=True)), default=0)
    if longest <= 0:
        return None
    start = torch.tensor(delays, device=unknown.device)[:, None] * (unknown.cumsum(dim=1) - 1)  # (B, T)
    step = torch.arange(steps + longest, device=unknown.device)[:, None, None]
    return unknown & (start <= step) & (step < start + steps)


@dataclass(frozen=True)
class Turns:
    """Masks of steps as the loop asks for them; all on the CPU, so that the loop does not wait for the device."""

    moves: Tensor  # (S, B, T) bool, false on frames that are known or at rest

    @classmethod
    def of(cls, moves: Tensor | None, steps: int, start: Tensor, known: Tensor | None) -> Turns | None:
        """`moves` (S, T) or (S, B, T) for a descent from `start` (B, T, ...); ValueError where it does not fit.

        `known` (B, T) bool frames have no turns; None: there are none.
        """
        if moves is None:
            return None
        frames = tuple(start.shape[:2])
        shapes = ((steps, frames[1]), (steps, *frames))
        if not isinstance(moves, Tensor) or moves.dtype != torch.bool or start.ndim < 3 or moves.shape not in shapes:
            found = f"{moves.dtype} {tuple(moves.shape)}" if isinstance(moves, Tensor) else type(moves).__name__
            raise ValueError(
                f"moves must be a bool tensor (S, T) = {shapes[0]} or (S, B, T) = {shapes[1]}, got {found}"
            )
        moves = moves.cpu()
        moves = moves if moves.ndim == 3 else moves[:, None].expand(steps, *frames)
        return cls(moves if known is None else moves & ~known.cpu())

    def rest(self, places: Tensor, frames: Tensor) -> Turns:
        """The turns left where `frames` (b, T) of the clips `places` (b,) have come to rest."""
        resting = torch.zeros(self.moves.shape[1:], dtype=torch.bool)
        resting[places] = frames
        return Turns(self.moves & ~resting)

    def at(self, clock: Tensor, places: Tensor) -> Tensor:
        """The frames (b, T) of the clips `places` (b,) that move at the step of each that `clock` (B,) says."""
        return self.moves[clock[places], places]

    def next(self, clock: Tensor, places: Tensor) -> Tensor:
        """The first step (b,) from `clock` (B,) on at which a frame of the clips `places` (b,) moves; S where none."""
        steps = torch.arange(len(self.moves))[:, None]
        some = self.moves[:, places].any(dim=2) & (steps >= clock[places])  # (S, b)
        return steps.expand_as(some).masked_fill(~some, len(self.moves)).amin(dim=0)
