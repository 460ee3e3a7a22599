"""The exact field of a finite data set, by quadrature: what a network trained to perfection would predict.

Legend: M data clips, B clips, T frames, F frames with a gamma of their own (T, or 1 when all share one), D numbers in
such a frame, Q quadrature nodes.

Given noisy latents y, each data clip x_i and each gamma has a posterior weight (gamma uniform on [0, 1), noise
standard normal), p(i, gamma | y) ~ (1 - gamma)^(-D) exp(-|y - gamma x_i|^2 / (2 (1 - gamma)^2)), and the best
prediction is the posterior mean of the target, f(y) = E[(eps - x_i) c(gamma)]. Since eps = (y - gamma x_i) /
(1 - gamma), eps - x_i = (y - x_i) / (1 - gamma). With u = -log(1 - gamma), the integral over gamma is smooth, and the
exponent is

    log weight = (D - 1) u - (|y - x_i|^2 e^(2u) + 2 <y - x_i, x_i> e^u + |x_i|^2) / 2,

which has one maximum in u. With one gamma for each frame, p(i | y) is the product over frames of these integrals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, reduce
from torch import Tensor

from eqm_video.gamma import Decay, check_decay

U_MAX = 20.0  # 1 - gamma >= 2e-9: at a data point itself the integral diverges, and is cut here
LOG_NEGLIGIBLE = 45.0  # weights below e^-45 of the largest are left out
CHUNK = 2**22  # numbers in the largest temporary tensor


def _gauss_nodes(panels: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) on [0, 1]: equal panels of 4-point Gauss-Legendre, robust to the kink of a decay."""
    inner, outer = (3 / 7 - 2 / 7 * 1.2**0.5) ** 0.5, (3 / 7 + 2 / 7 * 1.2**0.5) ** 0.5
    nodes = torch.tensor([-outer, -inner, inner, outer], dtype=torch.float64)
    heavy, light = (18 + 30**0.5) / 36, (18 - 30**0.5) / 36
    weights = torch.tensor([light, heavy, heavy, light], dtype=torch.float64)
    left = torch.arange(panels, dtype=torch.float64)
    positions = rearrange(left[:, None] + (nodes + 1) / 2, "panel node -> (panel node)") / panels
    return positions, weights.repeat(panels) / (2 * panels)


class OracleField:
    """The exact Equilibrium Matching field of M data clips (they count equally); a gradient for `descend`.

    Args:
        data: (M, T, C, H, W) clips, or (M, D) points; finite.
        decay: c(gamma), as for training; a `ConstantDecay` gives the flow baseline's field.
        frame_wise: a gamma for each frame, drawn independently (needs clips with frames); else one for the whole clip.

    Computed in float64 on the latents' device, and returned in the latents' dtype. Slow by design: O(B M T (D + Q)).
    """

    def __init__(self, data: Tensor, decay: Decay, frame_wise: bool = False) -> None:
        if not isinstance(data, Tensor) or data.ndim not in (2, 5) or data.numel() == 0:
            found = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ValueError(f"data must be a tensor (M, T, C, H, W) or (M, D) and not empty, got {found}")
        if not data.isfinite().all():
            raise ValueError("data hold infinite or NaN values")
        if frame_wise and data.ndim != 5:
            raise ValueError(f"frame_wise=True needs data (M, T, C, H, W), got {tuple(data.shape)}")
        self.data = data.double()
        self.decay = check_decay(decay, allow_constant=True)
        self.frame_wise = frame_wise

    def __call__(self, latents: Tensor) -> Tensor:
        """f(latents), of the latents' shape (B, T, C, H, W) or (B, D) and dtype."""
        data = self._frames(self.data).to(latents.device)
        fields = []
        for frames in self._chunks(latents):
            difference = frames[:, None] - data  # (B, M, F, D)
            log_mass, pull = self._integrals(difference, data)
            chosen = log_mass.sum(dim=2).softmax(dim=1)
            fields.append(torch.einsum("bm,bmf,bmfd->bfd", chosen, pull, difference))
        return torch.cat(fields).reshape(latents.shape).to(latents.dtype)

    def posterior(self, latents: Tensor) -> Tensor:
        """Probabilities (B, M), float64, that the latents are a noisy version of each data clip."""
        data = self._frames(self.data).to(latents.device)
        chunks = [self._integrals(frames[:, None] - data, data)[0] for frames in self._chunks(latents)]
        return torch.cat(chunks).sum(dim=2).softmax(dim=1)

    def select(self, indices: Tensor) -> OracleField:
        """The field of some clips of a batch: the same one, since it knows nothing of single clips."""
        return self

    def _frames(self, values: Tensor) -> Tensor:
        """(B, ...) -> (B, F, D)."""
        if self.frame_wise:
            return rearrange(values, "b t c h w -> b t (c h w)")
        return values.reshape(values.shape[0], 1, -1)

    def _chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents as (b, F, D) float64, a few clips at a time."""
        if latents.shape[1:] != self.data.shape[1:]:
            raise ValueError(
                f"latents {tuple(latents.shape)} and data {tuple(self.data.shape)} differ beyond their number"
            )
        frames = self._frames(latents.double())
        per_clip = self.data.shape[0] * frames.shape[1] * max(frames.shape[2], 256)
        return iter(frames.split(max(1, CHUNK // per_clip)))

    def _integrals(self, difference: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """For each pair of a clip and a datum and each frame, (B, M, F) each: log of the integral of the weight over
        gamma, and the posterior mean of c(gamma) / (1 - gamma)."""
        size = difference.shape[-1]
        square = reduce(difference.square(), "b m f d -> b m f", "sum")
        cross = torch.einsum("bmfd,mfd->bmf", difference, data)
        norm = reduce(data.square(), "m f d -> m f", "sum")

        def log_weight(u: Tensor) -> Tensor:  # (..., B, M, F)
            return (size - 1) * u - (square * torch.exp(2 * u) + 2 * cross * torch.exp(u) + norm) / 2

        low, high = _window(log_weight, _mode(square, cross, size))
        positions, weights = (part.to(difference.device) for part in _gauss_nodes())
        u = low + (high - low) * positions[:, None, None, None]  # (Q, B, M, F)
        log_terms = log_weight(u) + torch.log(weights[:, None, None, None] * (high - low))
        pull = self.decay(-torch.expm1(-u)) * torch.exp(u)
        return log_terms.logsumexp(dim=0), (log_terms.softmax(dim=0) * pull).sum(dim=0)


def _mode(square: Tensor, cross: Tensor, size: int) -> Tensor:
    """The u in [0, U_MAX] where the weight is largest: the root of (D - 1) - square e^(2u) - cross e^u = 0."""
    # the form of the quadratic's root that stays finite as square -> 0, chosen by the sign of cross
    root = (cross.square() + 4 * square * (size - 1)).sqrt()
    scale = torch.where(cross > 0, 2 * (size - 1) / (cross + root), (root - cross) / (2 * square))
    return torch.log(scale).nan_to_num(nan=U_MAX, posinf=U_MAX).clamp(0, U_MAX)


def _window(log_weight: Callable[[Tensor], Tensor], mode: Tensor, halvings: int = 40) -> tuple[Tensor, Tensor]:
    """The interval of [0, U_MAX] around the mode outside which the weight is negligible, by bisection."""
    floor = log_weight(mode) - LOG_NEGLIGIBLE
    ends = []
    for end in (0.0, U_MAX):
        outside, inside = torch.full_like(mode, end), mode
        for _ in range(halvings):
            middle = (outside + inside) / 2
            negligible = log_weight(middle) < floor
            outside = torch.where(negligible, middle, outside)
            inside = torch.where(negligible, inside, middle)
        ends.append(outside)
    return ends[0], ends[1]
