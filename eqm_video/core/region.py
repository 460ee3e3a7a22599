"""A field beside known tokens: a part of a frame is known in space, the rest is made to fit it.

Legend: B clips, T frames, C channels, h w latents; a token is a place (h, w) of a frame.

A network that was trained with a level for each frame has never seen clean tokens beside noisy ones of the same frame.
So the known tokens move with their frame: where it stands at gamma they are shown as m * clean + (1 - m) * noise, and
clean at the end. At m = gamma, the replacement of diffusion inpainting (arXiv 2201.09865), they say too little while
the frame is decided; at m = 1 the network leaves noise in the others. m = (1 + gamma) / 2, half-way ahead, is the best
of 0, 1/4, 1/2 and 1 ahead, on the exact field (where all descents end right) and on a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eqm_video.core.decay import Decay
from eqm_video.core.field import FieldAround, GradientField, Sight, observe
from eqm_video.core.objective import interpolate

AHEAD = 0.5  # of what the frame still has to go


@dataclass(eq=False)
class RegionField(FieldAround):
    """A field of B clips that sees known tokens ahead of their frame, and moves them along their own straight path.

    It needs `at_gamma` before a call, as solvers and rules that step by levels do; ValueError otherwise.
    """

    field: GradientField
    mask: Tensor  # (B, T, 1, h, w) bool, the known tokens
    clean: Tensor  # (B, T, C, h, w), the end of their path
    noise: Tensor  # (B, T, C, h, w), its start
    decay: Decay | None  # c(gamma) of the field; None if it is a velocity, c = 1
    ahead: float = AHEAD  # how far ahead of their frame the tokens are shown, of what it still has to go, in [0, 1]
    gamma: float | Tensor | None = None  # of the frames, from `at_gamma`

    def __post_init__(self) -> None:
        mask, shape = self.mask, (*self.noise.shape[:2], 1, *self.noise.shape[3:])
        if mask.dtype != torch.bool or mask.shape != shape or self.clean.shape != self.noise.shape:
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; it must be bool (B, T, 1, h, w) = {shape}")

    def select(self, indices: Tensor) -> RegionField:
        """The field of the clips at `indices` (1-D integers)."""
        parts = {name: getattr(self, name) for name in ("mask", "clean", "noise", "gamma")}
        chosen = {name: part[indices.to(part.device)] for name, part in parts.items() if isinstance(part, Tensor)}
        return self.changed(field=self.field.select(indices), **chosen)

    def at_gamma(self, gamma: float | Tensor) -> RegionField:
        """The field at gamma of the frames: a number, or (B, T)."""
        return self.changed(field=self.field.at_gamma(gamma), gamma=gamma)

    def observed(self, latents: Tensor) -> tuple[Tensor, Sight]:
        """The gradient at latents (B, T, C, h, w), on known tokens that of their path; and the sight of the field."""
        if self.gamma is None:
            raise ValueError(
                "known tokens take the level of their frame, which this sampler does not say: take multistep, euler, "
                "heun, or gd or nag with a warp"
            )
        gamma = self._levels(latents)
        shown = interpolate(self.clean, self.noise, (gamma + self.ahead * (1 - gamma)).to(self.noise)).to(latents)
        gradient, sight = observe(self.field, torch.where(self.mask, shown, latents))
        strength = torch.ones_like(gamma) if self.decay is None else self.decay(gamma)
        path = strength[:, :, None, None, None].to(latents) * (self.noise - self.clean).to(latents)
        plain = torch.where(self.mask, path, sight.plain)
        return torch.where(self.mask, path, gradient), Sight(plain, sight.level, sight.spread)

    def _levels(self, latents: Tensor) -> Tensor:
        """gamma as (B, T)."""
        if isinstance(self.gamma, Tensor):
            return self.gamma
        return torch.full(latents.shape[:2], float(self.gamma), dtype=torch.float32, device=latents.device)


def tokens(pixels: Tensor, downsampling: int) -> Tensor:
    """The tokens (..., h, w) that lie in the known pixels (..., H, W) bool with all of theirs."""
    height, width = (side // downsampling for side in pixels.shape[-2:])
    cells = pixels.reshape(*pixels.shape[:-2], height, downsampling, width, downsampling)
    return cells.all(dim=-1).all(dim=-2)
