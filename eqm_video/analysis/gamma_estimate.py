"""Estimates of each frame's gamma from the gradient of a field that is not conditioned on gamma.

Legend: B clips, T frames, C channels, H W height and width, S = RMS(noise - clean) = sqrt(1 + mean square of the data).

A frame at gamma has the target (noise - clean) * c(gamma), so its RMS is S * c(gamma), and where c falls the size of
the gradient determines gamma. If c does not fall (the truncated decay below a) the size only says "at most a". The
direction then determines it: noise and data are independent, so that

    E <noisy, target> / (C H W) = c(gamma) * (1 - gamma * S^2),

which falls with gamma too. It holds for the best prediction as well as for the target, since the best prediction is the
target's mean given the noisy latents. It is the `dot` energy of Equilibrium Matching (arXiv 2510.02300) of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.samplers.active import frame_rms as frame_rms  # the size from which gamma is estimated
from eqm_video.system.devices import double

GRID = 1000  # steps of gamma in searches on [0, 1]
HALVINGS = 50
UNSURE = 0.85  # size of an uncertain prediction as a share of its target's, at the least


def frame_dot(latents: Tensor, gradient: Tensor) -> Tensor:
    """Mean over C, H, W of latents * gradient: (B, T), at least float32."""
    if latents.shape != gradient.shape:
        raise ValueError(f"latents {tuple(latents.shape)} and gradient {tuple(gradient.shape)} differ in shape")
    return (_frames(latents) * _frames(gradient)).mean(dim=2)


def calibrate(latents: Tensor) -> float:
    """The scale S = sqrt(1 + mean square) of data latents (B, T, C, H, W), or of samples that have come to rest.

    Raises ValueError for empty latents and for values that are not finite.
    """
    if not isinstance(latents, Tensor) or latents.numel() == 0:
        raise ValueError("calibrate needs latents (B, T, C, H, W) of at least one frame of data")
    scale = math.sqrt(1 + float(double(latents).square().mean()))
    if not math.isfinite(scale):
        raise ValueError("the latents hold infinite or NaN values, or overflow: give those of data")
    return scale


def saturation(decay: Decay) -> float:
    """The gamma from which on c falls strictly down to 0: a for the truncated decay, 0 for the linear one.

    Raises:
        ValueError: c does not fall towards gamma = 1 (a constant decay), so its size does not depend on gamma.
    """
    grid = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)
    values = decay(grid).double()
    rounding = 1e-9 * float(values.max())
    if not float(values[-1]) < float(values.max()) - rounding:
        raise ValueError(f"decay {decay!r} does not fall towards gamma 1: the gradient's size says nothing of gamma")
    rises = (values[1:] >= values[:-1] - rounding).nonzero()
    if len(rises) == 0:
        return 0.0
    last = int(rises[-1]) + 1  # c falls strictly from grid[last + 1] on, or from a little earlier
    low, high, level = float(grid[last]), float(grid[min(last + 1, GRID)]), float(values[last]) - rounding
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = float(decay(torch.tensor([middle], dtype=torch.float64))) >= level
        low, high = (middle, high) if inside else (low, middle)
    return low


def infer_gamma(rms: Tensor, decay: Decay, scale: float, *, dot: Tensor | None = None) -> Tensor:
    """Estimate each frame's gamma (B, T), float64 in [0, 1], from its gradient's size and, with `dot`, its direction.

    Args:
        rms: `frame_rms` of the gradient, (B, T).
        decay: the c(gamma) the field was trained with.
        scale: S, see `calibrate`.
        dot: `frame_dot` of the same latents and gradient, which gives gamma where the size is saturated. Without it
            such an estimate is an upper bound; full size gives `saturation(decay)`.

    For a single data point, whose field is certain, the estimate from size is exact where it is not saturated. The
    estimate from direction is right on average over noise; for a single frame it varies by about
    sqrt(2 / (C H W)) / S^2. For data that differ in size, a frame's estimate is off by as much as its own S differs
    from the common one.

    Raises ValueError for a decay that does not fall, a wrong scale, or shapes that differ.
    """
    strength = _strength(rms, scale)
    low, high = torch.full_like(strength, saturation(decay)), torch.ones_like(strength)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        early = decay(middle) > strength
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    most = (low + high) / 2
    if dot is None:
        return most
    if dot.shape != rms.shape:
        raise ValueError(f"dot {tuple(dot.shape)} and rms {tuple(rms.shape)} must both be (B, T)")
    threshold, dot = _open_from(decay), dot.to(strength)
    # A large gradient along the latents belongs to noise, even if an uncertain prediction is short.
    open_ = (strength >= threshold) | ((dot > 0) & (strength > threshold / 2) & (threshold < math.inf))
    return torch.where(open_, _gamma_of_dot(dot, decay, scale, most), most)


def read_gamma(field: Callable[[Tensor], Tensor], latents: Tensor, decay: Decay, scale: float) -> Tensor:
    """The gamma of every frame (B, T), float64 on the CPU, read from one evaluation of an unguided field.

    latents (B, T, C, H, W) of any gamma; decay and scale as for `infer_gamma`.
    """
    gradient = field(latents)
    dot = frame_dot(latents, gradient).cpu()
    return infer_gamma(frame_rms(gradient).cpu(), decay, scale, dot=dot)


def _open_from(decay: Decay) -> float:
    """The strength c(gamma) from which on size only bounds gamma from above; infinite if c falls from the start.

    It is 0.85 of the smallest strength below `saturation`: an uncertain prediction is shorter than its target.
    """
    knee = saturation(decay)
    if knee == 0:
        return math.inf
    return UNSURE * float(decay(torch.linspace(0, knee, GRID + 1, dtype=torch.float64)).min())


def _gamma_of_dot(dot: Tensor, decay: Decay, scale: float, most: Tensor) -> Tensor:
    """The gamma in [0, most] at which c(gamma) (1 - gamma S^2) is nearest to `dot`."""
    grid = torch.linspace(0, 1, GRID + 1, dtype=dot.dtype, device=dot.device)
    error = (dot[..., None] - decay(grid) * (1 - grid * scale**2)).abs()
    return grid[error.masked_fill(grid > most[..., None] + 1 / GRID, math.inf).argmin(dim=-1)]


def _strength(rms: Tensor, scale: float) -> Tensor:
    """The strength c(gamma) that a gradient of this size has: rms / scale, float64."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1 <= scale < math.inf:
        raise ValueError(
            f"scale is {scale!r}; it must be at least 1 (the noise's own RMS): measure it with calibrate()"
        )
    return double(rms) / scale


def _frames(values: Tensor) -> Tensor:
    if values.ndim != 5:
        raise ValueError(f"expected (B, T, C, H, W), got {tuple(values.shape)}")
    return values.flatten(2).to(torch.promote_types(values.dtype, torch.float32))
