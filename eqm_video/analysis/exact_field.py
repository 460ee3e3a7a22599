"""The exact field of a finite data set, by quadrature: the prediction of a perfectly trained network.

Legend: M data clips, B clips, T frames, F frames with a gamma of their own (T, or 1 when all share a gamma), D numbers
of such a frame, Q quadrature nodes.

Given noisy latents y, each data clip x_i and each gamma has a posterior weight (gamma uniform on [0, 1), noise
standard normal), p(i, gamma | y) ~ (1 - gamma)^(-D) exp(-|y - gamma x_i|^2 / (2 (1 - gamma)^2)), and the best
prediction is the posterior mean of the target, f(y) = E[(eps - x_i) c(gamma)]. Since eps = (y - gamma x_i) /
(1 - gamma), eps - x_i = (y - x_i) / (1 - gamma). With u = -log(1 - gamma), the integral over gamma is smooth, and the
exponent is

    log weight = (D - 1) u - (|y - x_i|^2 e^(2u) + 2 <y - x_i, x_i> e^u + |x_i|^2) / 2,

which has a single maximum in u. With a gamma for each frame, p(i | y) is the product over frames of these integrals.

A network that is conditioned on gamma, as the flow baseline is, has an easier task: `at_gamma` is its exact field, a
softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from torch import Tensor

from eqm_video.core.decay import Decay, check_decay
from eqm_video.core.field import GradientField
from eqm_video.system.devices import double

U_MAX = 20.0  # 1 - gamma >= 2e-9: at a data point the integral diverges, and is cut off at this u
LOG_NEGLIGIBLE = 45.0  # weights below e^-45 of the largest are left out
CHUNK = 2**22  # numbers in the largest temporary tensor
CHUNK_CPU = 2**18  # what stays in a cache is more than twice as fast


def _gauss_nodes(panels: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) on [0, 1]: equal panels of 4-point Gauss-Legendre, robust to the kink of a decay."""
    inner, outer = (3 / 7 - 2 / 7 * 1.2**0.5) ** 0.5, (3 / 7 + 2 / 7 * 1.2**0.5) ** 0.5
    nodes = torch.tensor([-outer, -inner, inner, outer], dtype=torch.float64)
    heavy, light = (18 + 30**0.5) / 36, (18 - 30**0.5) / 36
    weights = torch.tensor([light, heavy, heavy, light], dtype=torch.float64)
    left = torch.arange(panels, dtype=torch.float64)
    positions = rearrange(left[:, None] + (nodes + 1) / 2, "panel node -> (panel node)") / panels
    return positions, weights.repeat(panels) / (2 * panels)


@dataclass(eq=False)
class OracleField(GradientField):
    """The exact Equilibrium Matching field of M data clips with equal weights; a gradient for `descend`.

    Computed in float64 on the latents' device (on the CPU for a device without float64), and returned with the device
    and dtype of the latents. Slow: O(B M T (D + Q)).

    Raises:
        ValueError: data of another shape, empty or not finite, or a decay that `check_decay` refuses.
    """

    data: Tensor  # (M, T, C, H, W) clips, or (M, D) points; finite
    decay: Decay  # c(gamma), as for training; a `ConstantDecay` gives the flow baseline's field
    frame_wise: bool = False  # a gamma for each frame, drawn independently (needs frames), else one for the whole clip

    def __post_init__(self) -> None:
        data = self.data
        if not isinstance(data, Tensor) or data.ndim not in (2, 5) or data.numel() == 0:
            actual = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ValueError(f"data must be a tensor (M, T, C, H, W) or (M, D) and not empty, got {actual}")
        if not data.isfinite().all():
            raise ValueError("data hold infinite or NaN values")
        if self.frame_wise and data.ndim != 5:
            raise ValueError(f"frame_wise=True needs data (M, T, C, H, W), got {tuple(data.shape)}")
        self.data = double(data)
        self.decay = check_decay(self.decay, allow_constant=True)

    def __call__(self, latents: Tensor) -> Tensor:
        """The field at latents (B, T, C, H, W) or (B, D), in their shape and dtype."""
        chunks = _chunks(latents, self.data, self.frame_wise)
        data = _frames(self.data.to(chunks[0].device), self.frame_wise)
        fields = []
        for frames in chunks:
            difference = frames[:, None] - data  # (B, M, F, D)
            log_mass, pull = self._integrals(difference, data)
            probabilities = log_mass.sum(dim=2).softmax(dim=1)
            fields.append(torch.einsum("bm,bmf,bmfd->bfd", probabilities, pull, difference))
        return torch.cat(fields).reshape(latents.shape).to(latents)

    def posterior(self, latents: Tensor) -> Tensor:
        """Probabilities (B, M), float64, that the latents are a noisy version of each data clip."""
        chunks = _chunks(latents, self.data, self.frame_wise)
        data = _frames(self.data.to(chunks[0].device), self.frame_wise)
        log_mass = torch.cat([self._integrals(frames[:, None] - data, data)[0] for frames in chunks])
        return log_mass.sum(dim=2).softmax(dim=1)

    def at_gamma(self, gamma: float | Tensor) -> KnownGammaField:
        """The exact field of a network that is conditioned on gamma; with a `ConstantDecay`, of flow matching.

        Args:
            gamma: in [0, 1]: a number, (B,) for each clip, or (B, T) for each frame. `frame_wise` has no effect: it
                says how an unknown gamma is distributed.

        Raises:
            ValueError: gamma of another shape, or outside [0, 1].
        """
        known = double(gamma) if isinstance(gamma, Tensor) else torch.as_tensor(gamma, dtype=torch.float64)
        allowed = 2 if self.data.ndim == 5 else 1
        if known.ndim > allowed or (known.ndim == 2 and known.shape[1] != self.data.shape[1]):
            frames = f" or (B, {self.data.shape[1]})" if allowed == 2 else ""
            raise ValueError(f"gamma has shape {tuple(known.shape)}; it must be one number or (B,){frames}")
        if not bool(((known >= 0) & (known <= 1)).all()):
            raise ValueError(f"gamma is {gamma!r}; it must lie in [0, 1], from noise to data")
        return KnownGammaField(self.data, self.decay, known)

    def _integrals(self, difference: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the weight's integral over gamma, and the posterior mean of c(gamma) / (1 - gamma).

        Both (B, M, F): for each clip, data clip and frame.
        """
        size = difference.shape[-1]
        square = reduce(difference.square(), "b m f d -> b m f", "sum")
        cross = torch.einsum("bmfd,mfd->bmf", difference, data)
        norm = reduce(data.square(), "m f d -> m f", "sum")

        def log_weight(u: Tensor, growth: Tensor) -> Tensor:  # (..., B, M, F), with growth = e^u and without norm
            return torch.addcmul((size - 1) * u, torch.addcmul(-cross, growth, square, value=-0.5), growth)

        low, high = _window(log_weight, _mode(square, cross, size))
        positions, weights = (part.to(difference.device) for part in _gauss_nodes())
        u = torch.addcmul(low, high - low, positions[:, None, None, None])  # (Q, B, M, F)
        growth = u.exp()
        log_terms = log_weight(u, growth)
        largest = log_terms.amax(dim=0)
        terms = (log_terms - largest).exp()
        pull = self.decay(1 - 1 / growth) * growth
        mass, pulled = (torch.tensordot(weights, part, dims=1) for part in (terms, terms * pull))
        return largest - norm / 2 + (mass * (high - low)).log(), pulled / mass


@dataclass(frozen=True)
class KnownGammaField(GradientField):
    """The exact field at a known gamma, f(y, gamma) = c(gamma) E[eps - x_i | y, gamma]; a gradient for `descend`.

    p(i | y, gamma) ~ exp(-|y - gamma x_i|^2 / (2 (1 - gamma)^2)), a product over frames if each has its own gamma, and
    eps - x_i = (y - x_i) / (1 - gamma). At gamma = 1 exactly, the latents determine the clip but not the noise, whose
    mean is 0: f = -c(1) x_i, with the nearest x_i. With c(1) = 0 data are then at rest; in a flow they move on.
    """

    data: Tensor  # (M, T, C, H, W) or (M, D), float64
    decay: Decay
    gamma: Tensor  # (), (B,) or (B, T), float64

    def __call__(self, latents: Tensor) -> Tensor:
        """The field at latents (B, T, C, H, W) or (B, D), in their shape and dtype."""
        fields = []
        for frames, data, gamma in self._parts(latents):
            clean = torch.einsum("bm,mfd->bfd", self._probabilities(frames, data, gamma), data)
            line = torch.where(gamma < 1, (frames - clean) / _rest(gamma), -clean)  # E[eps - x_i]
            fields.append(line * self.decay(gamma))
        return torch.cat(fields).reshape(latents.shape).to(latents)

    def posterior(self, latents: Tensor) -> Tensor:
        """Probabilities (B, M), float64, that the latents are a noisy version of each data clip at this gamma."""
        return torch.cat([self._probabilities(*part) for part in self._parts(latents)])

    def select(self, indices: Tensor) -> KnownGammaField:
        """The field of some clips of a batch, with their own gammas."""
        return self if self.gamma.ndim == 0 else replace(self, gamma=self.gamma[indices.to(self.gamma.device)])

    def _parts(self, latents: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Latents (b, F, D), data (M, F, D) and gamma (b, F, 1), for a few clips at a time."""
        frame_wise = self.gamma.ndim == 2
        chunks = _chunks(latents, self.data, frame_wise)
        data = _frames(self.data.to(chunks[0].device), frame_wise)
        gamma = self.gamma.to(chunks[0].device)
        if gamma.ndim > 0 and len(gamma) != len(latents):
            raise ValueError(f"gamma {tuple(gamma.shape)} is for {len(gamma)} clips, the latents are {len(latents)}")
        gamma = gamma.reshape(-1, gamma.shape[1] if frame_wise else 1, 1).expand(len(latents), -1, 1)
        return [(part, data, known) for part, known in zip(chunks, gamma.split(len(chunks[0])), strict=True)]

    @staticmethod
    def _probabilities(frames: Tensor, data: Tensor, gamma: Tensor) -> Tensor:
        """Probabilities p(i | y, gamma): (b, M)."""
        noise = (frames[:, None] - gamma[:, None] * data) / _rest(gamma)[:, None]  # (b, M, F, D)
        return (-noise.square().sum(dim=(2, 3)) / 2).softmax(dim=1)


def _rest(gamma: Tensor) -> Tensor:
    """1 - gamma, at least e^-U_MAX as in the integrals: gamma = 1 selects the nearest clip instead of giving 0 / 0."""
    return (1 - gamma).clamp(min=math.exp(-U_MAX))


def _frames(values: Tensor, frame_wise: bool) -> Tensor:
    """Clips (B, T, C, H, W) or points (B, D) as frames with a gamma of their own (B, F, D)."""
    if frame_wise:
        return rearrange(values, "b t c h w -> b t (c h w)")
    return values.reshape(values.shape[0], 1, -1)


def _chunks(latents: Tensor, data: Tensor, frame_wise: bool) -> tuple[Tensor, ...]:
    """Latents as (b, F, D) float64, a few clips at a time."""
    if latents.shape[1:] != data.shape[1:]:
        raise ValueError(f"latents {tuple(latents.shape)} and data {tuple(data.shape)} differ beyond their number")
    frames = _frames(double(latents), frame_wise)
    per_clip = data.shape[0] * frames.shape[1] * max(frames.shape[2], 256)
    chunk = CHUNK_CPU if frames.device.type == "cpu" else CHUNK
    return frames.split(max(1, chunk // per_clip))


def _mode(square: Tensor, cross: Tensor, size: int) -> Tensor:
    """The u in [0, U_MAX] at which the weight is largest: the root of (D - 1) - square e^(2u) - cross e^u = 0."""
    # Of the two forms of the quadratic's root, the sign of cross selects the form that stays finite as square -> 0.
    root = (cross.square() + 4 * square * (size - 1)).sqrt()
    scale = torch.where(cross > 0, 2 * (size - 1) / (cross + root), (root - cross) / (2 * square))
    return torch.log(scale).nan_to_num(nan=U_MAX, posinf=U_MAX).clamp(0, U_MAX)


def _window(log_weight: Callable[[Tensor, Tensor], Tensor], mode: Tensor, halvings: int = 24) -> tuple[Tensor, Tensor]:
    """The interval of [0, U_MAX] around the mode outside which the weight is negligible, by bisection."""
    floor = log_weight(mode, mode.exp()) - LOG_NEGLIGIBLE
    ends = []
    for end in (0.0, U_MAX):
        outside, inside = torch.full_like(mode, end), mode
        for _ in range(halvings):
            middle = (outside + inside) / 2
            negligible = log_weight(middle, middle.exp()) < floor
            outside = torch.where(negligible, middle, outside)
            inside = torch.where(negligible, inside, middle)
        ends.append(outside)
    return ends[0], ends[1]
