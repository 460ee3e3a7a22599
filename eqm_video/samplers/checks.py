"""Checks of all samplers: arguments at the start, finite latents and gradients on the way.

Legend: B clips, T frames, b active clips (b <= B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], Any]
STOP = object()  # returned by a callback, it ends the descent after this step

CHECK_EVERY = 16  # updates between two checks for non-finite latents: each check waits for the GPU


class DivergenceError(ValueError):
    """The latents or the gradient became infinite or NaN."""


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_finite(values: Tensor, rows: Tensor, sampler: object, what: str, advice: str) -> None:
    """Raise a DivergenceError unless all of `values` (b, ...) are finite.

    `rows` (b,) are the positions of these clips in the whole batch. The message names the values by `what`, such as
    "the latents after step 3 of 10", and ends with `advice`, the remedy.
    """
    finite = values.isfinite()
    if not bool(finite.all()):
        clips = rows.to(values.device)[~finite.reshape(len(rows), -1).all(dim=1)].tolist()
        raise DivergenceError(
            f"the descent diverged: infinite or NaN values in {what}, in {len(clips)} clips (the first is clip "
            f"{clips[0]}), with {sampler!r}; {advice}"
        )


def check_arguments(
    gradient: Gradient,
    start: Tensor,
    steps: int,
    known: Tensor | None,
    generators: Sequence[torch.Generator] | None,
) -> Tensor | None:
    """Return `known` on the device of `start`; ValueError for the first wrong argument that all samplers share."""
    if not callable(gradient):
        raise ValueError(f"gradient must be a callable latents -> gradient, got {type(gradient).__name__}")
    if not isinstance(start, Tensor) or not start.is_floating_point() or start.ndim < 2:
        actual = f"{start.dtype} {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"start must be a floating-point tensor (B, T, C, H, W), got {actual}")
    if not bool(start.isfinite().all()):
        raise ValueError("start holds infinite or NaN values; it must be finite latents (B, T, C, H, W)")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; it must be an integer >= 0, the number of updates")
    if generators is not None and len(generators) != start.shape[0]:
        raise ValueError(f"{len(generators)} generators for {start.shape[0]} clips; give one for each clip")
    if known is None:
        return None
    if not isinstance(known, Tensor) or known.dtype != torch.bool or start.ndim < 3 or known.shape != start.shape[:2]:
        actual = f"{known.dtype} {tuple(known.shape)}" if isinstance(known, Tensor) else type(known).__name__
        raise ValueError(f"known must be a bool tensor (B, T) = {tuple(start.shape[:2])}, got {actual}")
    return known.to(start.device)


def check_start_gamma(start_gamma: float, end: float = 1.0) -> float:
    """Return `start_gamma`, the gamma at which a solver starts; ValueError unless it is a number in [0, end)."""
    if not is_number(start_gamma) or not 0 <= start_gamma < end:
        raise ValueError(f"start_gamma is {start_gamma!r}; it must be a number in [0, {end:g}), where 0 is noise")
    return float(start_gamma)
