"""Frame schedules: the frames that move at each step, as masks, for joint, pyramid and autoregressive descents.

Legend: B clips, T frames, N steps of every frame, S steps of the whole descent.
The unknown frames of a clip start in order, `delay` steps apart, and each makes N steps. With delay 0 all move together
(joint). With delay N each begins when its predecessor is done (autoregressive). In between several move at once, the
earlier ones ahead of the later ones (pyramid, named after the figure in diffusion forcing, arXiv 2407.01392).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FRAME_SCHEDULES = ("joint", "pyramid", "autoregressive")


def frame_delay(schedule: str | int, steps: int, unknown: int) -> int:
    """Steps between the starts of two successive unknown frames.

    "joint" is 0 and "autoregressive" is `steps`. "pyramid" spreads the starts of the `unknown` frames over `steps`, at
    least 1 step apart, so that the whole descent takes less than twice as many. A number is the delay itself.

    Raises:
        ValueError: an unknown name, or a number outside 0..steps.
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
    """Masks (S, B, T) bool of the frames that move at each step; each `unknown` (B, T) frame moves at N steps.

    N is `steps`. None for a joint descent, in which all unknown frames always move. Raises ValueError as `frame_delay`.
    """
    counts = unknown.sum(dim=1).tolist()  # each clip has its own: its masks do not depend on the batch
    delays = [frame_delay(schedule, steps, count) for count in counts]
    longest = max((delay * (count - 1) for delay, count in zip(delays, counts, strict=True)), default=0)
    if longest <= 0:
        return None
    start = torch.tensor(delays, device=unknown.device)[:, None] * (unknown.cumsum(dim=1) - 1)  # (B, T)
    step = torch.arange(steps + longest, device=unknown.device)[:, None, None]
    return unknown & (start <= step) & (step < start + steps)


@dataclass(frozen=True)
class Turns:
    """The masks of a frame schedule during a descent; all on the CPU, so that the loop does not wait for the device."""

    moves: Tensor  # (S, B, T) bool, false on frames that are known or at rest

    @classmethod
    def of(cls, moves: Tensor | None, steps: int, start: Tensor, known: Tensor | None) -> Turns | None:
        """The turns of `moves` (S, T) or (S, B, T) in a descent from `start` (B, T, ...); ValueError for other shapes.

        `known` (B, T) bool: frames without a turn; None if no frame is known. The result is None for `moves` None.
        """
        if moves is None:
            return None
        frames = tuple(start.shape[:2])
        shapes = ((steps, frames[1]), (steps, *frames))
        if not isinstance(moves, Tensor) or moves.dtype != torch.bool or start.ndim < 3 or moves.shape not in shapes:
            actual = f"{moves.dtype} {tuple(moves.shape)}" if isinstance(moves, Tensor) else type(moves).__name__
            raise ValueError(
                f"moves must be a bool tensor (S, T) = {shapes[0]} or (S, B, T) = {shapes[1]}, got {actual}"
            )
        moves = moves.cpu()
        moves = moves if moves.ndim == 3 else moves[:, None].expand(steps, *frames)
        return cls(moves if known is None else moves & ~known.cpu())

    def rest(self, places: Tensor, frames: Tensor) -> Turns:
        """The turns without `frames` (b, T) of the clips `places` (b,), which have come to rest."""
        resting = torch.zeros(self.moves.shape[1:], dtype=torch.bool)
        resting[places] = frames
        return Turns(self.moves & ~resting)

    def at(self, clock: Tensor, places: Tensor) -> Tensor:
        """Mask (b, T) of the frames of the clips `places` (b,) that move at each clip's own step, `clock` (B,)."""
        return self.moves[clock[places], places]

    def next(self, clock: Tensor, places: Tensor) -> Tensor:
        """The first step (b,), from `clock` (B,) on, at which each clip in `places` (b,) has a turn; S if none."""
        steps = torch.arange(len(self.moves))[:, None]
        some = self.moves[:, places].any(dim=2) & (steps >= clock[places])  # (S, b)
        return steps.expand_as(some).masked_fill(~some, len(self.moves)).amin(dim=0)
