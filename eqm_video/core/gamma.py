"""Draws of gamma for training: the position of each frame of a clip between noise and data.

Legend: B clips, T frames. gamma is 0 at noise and 1 at data (Equilibrium Matching, arXiv 2510.02300, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqm_video.core.decay import check_number
from eqm_video.core.density import density_field

PATTERNS = ("prefix", "ends", "subset")
MODES = ("shared", "context", "per_frame")  # the patterns of gamma over a clip, in the order of `gamma_modes`


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer in low..high, both ends included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator, device=generator.device))


def _check_frames(frames: int) -> None:
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames is {frames!r}; it must be an integer, at least 1")


def _check_patterns(patterns: object) -> tuple[str, ...]:
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)  # type: ignore[arg-type]
    unknown = [name for name in listed if name not in PATTERNS]
    if unknown or not listed:
        raise ValueError(f"patterns are {patterns!r}; give one or more of {', '.join(PATTERNS)}")
    return listed


@dataclass(frozen=True)
class SharedGamma:
    """A single draw for the whole clip, by `density`."""

    density: Any = density_field()  # noqa: RUF009 (makes a field)

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32 in [0, 1), all equal."""
        _check_frames(frames)
        return self.density(_uniform(1, generator)).repeat(frames)


@dataclass(frozen=True)
class PerFrameGamma:
    """An independent draw for each frame, by `density`."""

    density: Any = density_field()  # noqa: RUF009 (makes a field)

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32 in [0, 1)."""
        _check_frames(frames)
        return self.density(_uniform(frames, generator))


@dataclass(frozen=True)
class ContextGamma:
    """Some frames clean (gamma exactly 1, where the target is 0), the others at a shared draw by `density`.

    Each clip takes one of `patterns` at random, which says the clean frames:
        prefix: the first k frames, k uniform in 0..T-1 (generation, image-to-video, continuation);
        ends: the first and the last (in-betweening); skipped for clips of 2 frames, where no frame would be noisy;
        subset: each frame with probability 1/2, but never all of them.
    """

    patterns: tuple[str, ...] = ("prefix",)  # which frames are clean: prefix, ends, subset
    density: Any = density_field()  # noqa: RUF009 (makes a field)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", _check_patterns(self.patterns))

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32: 1 for clean frames, else in [0, 1). A single frame is never clean."""
        gamma = SharedGamma(self.density).draw(frames, generator)
        if frames == 1:
            return gamma
        fitting = [name for name in self.patterns if name != "ends" or frames > 2]
        if not fitting:
            raise ValueError(f"pattern 'ends' needs at least 3 frames, the clip has {frames}; use 'prefix'")
        pattern = fitting[_integer(0, len(fitting) - 1, generator)]
        return gamma.masked_fill(self._clean(pattern, frames, generator), 1.0)

    def _clean(self, pattern: str, frames: int, generator: torch.Generator) -> Tensor:
        clean = torch.zeros(frames, dtype=torch.bool, device=generator.device)
        if pattern == "prefix":
            clean[: _integer(0, frames - 1, generator)] = True
        elif pattern == "ends":
            clean[[0, -1]] = True
        else:
            clean = _uniform(frames, generator) < 0.5
            while clean.all():  # drawn again, so that the other subsets stay equally likely
                clean = _uniform(frames, generator) < 0.5
        return clean


@dataclass(frozen=True)
class MixtureGamma:
    """Shared, context or per-frame gammas, chosen for each clip by these shares; defaults did best (docs/video.md)."""

    shared: float = 0.3  # share of clips with one gamma for all frames
    context: float = 0.3  # share of clips with clean frames, by the patterns
    per_frame: float = 0.4  # share of clips with a gamma for every frame
    patterns: tuple[str, ...] = PATTERNS  # which frames are clean: prefix, ends, subset
    density: Any = density_field()  # noqa: RUF009 (makes a field)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", _check_patterns(self.patterns))
        for name in ("shared", "context", "per_frame"):
            check_number(self, name, 0, math.inf, low_open=False)
        total = self.shared + self.context + self.per_frame
        if abs(total - 1) > 1e-6:
            raise ValueError(f"MixtureGamma: shared + context + per_frame is {total:g}; they must sum to 1")

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32: 1 for clean frames, else in [0, 1). A single frame takes one uniform draw."""
        if frames == 1:
            return SharedGamma(self.density).draw(frames, generator)
        choice = float(_uniform(1, generator))
        if choice < self.shared:
            return SharedGamma(self.density).draw(frames, generator)
        if choice < self.shared + self.context:
            return ContextGamma(self.patterns, self.density).draw(frames, generator)
        return PerFrameGamma(self.density).draw(frames, generator)


GAMMA_DRAWS: dict[str, type] = {
    "shared": SharedGamma,
    "per_frame": PerFrameGamma,
    "context": ContextGamma,
    "mixture": MixtureGamma,
}
GammaDraw = SharedGamma | PerFrameGamma | ContextGamma | MixtureGamma


def draw_gamma(rule: GammaDraw, frames: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Gammas (B, T), float32 on the generators' device: row k comes from `generators[k]` alone, whatever B is."""
    if len(generators) == 0:
        raise ValueError("draw_gamma needs one generator for each clip, got none")
    return torch.stack([rule.draw(frames, generator) for generator in generators])


def gamma_modes(gamma: Tensor) -> Tensor:
    """The pattern of the gammas (B, T) of each clip, as an index into MODES: (B,) int64.

    A clip with a frame at exactly 1 is "context"; a clip with equal gammas is "shared", which includes a context draw
    without a clean frame; any other clip is "per_frame".
    """
    context, equal = (gamma == 1).any(dim=1), (gamma == gamma[:, :1]).all(dim=1)
    return torch.where(context, 1, torch.where(equal, 0, 2))
