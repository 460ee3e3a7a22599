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

    "joint" is 0, "autoregressive" is `steps`, "pyramid" spreads the starts of the `unknown` frames over `steps`, so
    that the whole takes less than twice as many; a number is the delay itself.

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
    most = int(unknown.sum(dim=1).max()) if unknown.numel() else 0
    delay = frame_delay(schedule, steps, most)
    if delay <= 0 or most < 2:
        return None
    start = delay * (unknown.cumsum(dim=1) - 1)  # (B, T)
    step = torch.arange(steps + delay * (most - 1), device=unknown.device)[:, None, None]
    return unknown & (start <= step) & (step < start + steps)


@dataclass(frozen=True)
class Turns:
    """Masks of steps as the loop asks for them."""

    moves: Tensor  # (S, B, T) bool
    left: Tensor  # (S, B, T) bool: the frame moves at this step or a later one

    @classmethod
    def of(cls, moves: Tensor | None, steps: int, start: Tensor) -> Turns | None:
        """`moves` (S, T) or (S, B, T) for a descent from `start` (B, T, ...); ValueError where it does not fit."""
        if moves is None:
            return None
        frames = tuple(start.shape[:2])
        shapes = ((steps, frames[1]), (steps, *frames))
        if not isinstance(moves, Tensor) or moves.dtype != torch.bool or start.ndim < 3 or moves.shape not in shapes:
            found = f"{moves.dtype} {tuple(moves.shape)}" if isinstance(moves, Tensor) else type(moves).__name__
            raise ValueError(
                f"moves must be a bool tensor (S, T) = {shapes[0]} or (S, B, T) = {shapes[1]}, got {found}"
            )
        moves = moves.to(start.device)
        moves = moves if moves.ndim == 3 else moves[:, None].expand(steps, *frames)
        return cls(moves, moves.flip(0).cummax(dim=0).values.flip(0) if steps else moves)

    def at(self, step: int, rows: Tensor) -> Tensor:
        """The frames (b, T) of the clips `rows` that move at a step."""
        return self.moves[step, rows]

    def to_come(self, step: int, rows: Tensor) -> Tensor:
        """The frames (b, T) that move at a step or later."""
        return self.left[step, rows]
