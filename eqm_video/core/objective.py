"""The training objective of Equilibrium Matching: the field regresses (noise - clean) * c(gamma).

Legend: B clips, T frames, C channels, H W height and width, N tokens a frame, D width.
Source: arXiv 2510.02300, section 3, with one gamma for each frame. The target points from data to noise, so that
sampling descends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from eqm_video.core.decay import ConstantDecay, Decay, check_decay
from eqm_video.system.devices import widest


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(shapes.values()))
    if any(shape != first for shape in shapes.values()) or len(first) != 5:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ or are not (B, T, C, H, W): {listed}")


def _per_frame(gamma: Tensor, latents: Tensor) -> Tensor:
    """Gamma (B, T) as (B, T, 1, 1, 1), to multiply latents (B, T, C, H, W)."""
    if gamma.shape != latents.shape[:2]:
        raise ValueError(
            f"gamma has shape {tuple(gamma.shape)}; it needs one value for each frame, "
            f"(B, T) = {tuple(latents.shape[:2])} for latents {tuple(latents.shape)}"
        )
    return rearrange(gamma, "b t -> b t 1 1 1")


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision values as float32 (their squares overflow or lose digits); float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def interpolate(clean: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """x_gamma = gamma * clean + (1 - gamma) * noise, in clean's dtype.

    Args:
        clean: (B, T, C, H, W) latents of the data.
        noise: (B, T, C, H, W) standard normal.
        gamma: (B, T) in [0, 1]; a frame at exactly 1 comes back equal to `clean`.
    """
    _check_same_shape(clean=clean, noise=noise)
    gamma = _per_frame(gamma, clean)
    return (gamma * clean + (1 - gamma) * noise).to(clean.dtype)


def frame_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over C, H, W of each frame: two (B, T, C, H, W) -> (B, T), at least float32."""
    _check_same_shape(prediction=prediction, target=target)
    return (_at_least_float32(prediction) - _at_least_float32(target)).square().mean(dim=(2, 3, 4))


def dispersive_loss(hidden: Tensor) -> Tensor:
    """log mean exp(-D) over all B x B pairs of clips, D = squared distance / dimension; lower is more spread out.

    The dispersive loss (InfoNCE form, temperature 1) of the EqM reference. Pairs of a clip with itself (D = 0) count.
    The value is in (-log B, 0]; a batch of one gives 0. The weight is the caller's.

    Args:
        hidden: (B, T, N, D) tokens of the last block (any trailing shape is flattened).
    """
    if hidden.ndim < 2 or hidden.shape[0] == 0:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it must be (B, T, N, D) with at least one clip")
    # |a - b|^2 = |a|^2 + |b|^2 - 2 ab loses digits where rows are alike: centred rows, and no autocast or TF32. (pdist
    # keeps them too, but its backward on CUDA takes B x B x dimension numbers.)
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        rows = hidden.flatten(1).to(widest(hidden.device))
        rows = rows - rows.mean(dim=0)
        gram = rows @ rows.mT
        squares = gram.diagonal()
        distance = (squares[:, None] + squares - 2 * gram).clamp(min=0) / rows.shape[1]  # on the diagonal exactly 0
        return torch.exp(-distance).mean().log().to(torch.promote_types(hidden.dtype, torch.float32))


OBJECTIVES = {
    "eqm": "Equilibrium Matching (arXiv 2510.02300)",
    "forcing": "Equilibrium Forcing (arXiv 2608.14706)",
    "flow": "flow matching (arXiv 2210.02747)",
}


def objective_name(decay: Decay, *, conditioned: bool) -> str:
    """The name in OBJECTIVES of training with this decay; `conditioned`: whether gamma is an input of the network.

    A decay that falls to 0 at the data is Equilibrium Matching, conditioned or not. A constant one is a velocity: flow
    matching where the network is conditioned on gamma, Equilibrium Forcing where it is not.
    """
    if not isinstance(decay, ConstantDecay):
        return "eqm"
    return "flow" if conditioned else "forcing"


@dataclass(frozen=True)
class EqMObjective:
    """The target (noise - clean) * decay(gamma) and its loss.

    `decay` is any callable that `check_decay` accepts, or a `ConstantDecay` (the flow-matching baseline).
    `dispersion_weight` (>= 0; the reference uses 0.5) is the factor of `dispersive_loss(hidden)` in the training loss.
    """

    decay: Decay
    dispersion_weight: float = 0.0

    def __post_init__(self) -> None:
        check_decay(self.decay, allow_constant=True)
        weight = self.dispersion_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"dispersion_weight is {weight!r}; it must be a finite number >= 0 (0 switches it off)")

    def target(self, clean: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
        """(noise - clean) * c(gamma): (B, T, C, H, W); exactly 0 for frames at gamma = 1."""
        _check_same_shape(clean=clean, noise=noise)
        return ((noise - clean) * self.decay(_per_frame(gamma, clean))).to(clean.dtype)

    def loss(self, sample: Tensor, clean: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
        """Mean squared error (B, T) of each frame between the field's `sample` at x_gamma and the target."""
        return frame_loss(sample, self.target(clean, noise, gamma))
