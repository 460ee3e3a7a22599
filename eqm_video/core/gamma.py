"""Decays c(gamma) and draws of gamma: how strongly the target pulls, and where between noise and data a frame stands.

Legend: B clips, T frames. gamma is 0 at noise and 1 at data (Equilibrium Matching, arXiv 2510.02300, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Decay = Callable[[Tensor], Tensor]

PATTERNS = ("prefix", "ends", "subset")
MODES = ("shared", "context", "per_frame")  # how the gammas of a clip may look


def _check_number(owner: object, name: str, low: float, high: float, *, low_open: bool = True) -> None:
    value = getattr(owner, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value < high or (low_open and value == low):
        allowed = f"{'above' if low_open else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; it must be a finite number {allowed}")


# ---------------------------------------------------------------------------------------------------- decays


@dataclass(frozen=True)
class LinearDecay:
    """c = gain * (1 - gamma)."""

    gain: float = 4.0

    def __post_init__(self) -> None:
        _check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        return self.gain * (1 - gamma)


@dataclass(frozen=True)
class TruncatedDecay:
    """c = gain * min(1, (1 - gamma) / (1 - a)): constant up to gamma = a, then linear to 0. The project's default."""

    a: float = 0.8  # where the decay begins, in [0, 1)
    gain: float = 4.0

    def __post_init__(self) -> None:
        _check_number(self, "a", 0, 1, low_open=False)
        _check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        return self.gain * ((1 - gamma) / (1 - self.a)).clamp(max=1)


@dataclass(frozen=True)
class PiecewiseDecay:
    """c = gain * (b at gamma 0, linearly to 1 at gamma = a, linearly to 0 at gamma = 1)."""

    a: float = 0.8  # the joint, in (0, 1)
    b: float = 1.4  # the value at pure noise, above 0; 1 gives the truncated decay
    gain: float = 4.0

    def __post_init__(self) -> None:
        _check_number(self, "a", 0, 1)
        _check_number(self, "b", 0, math.inf)
        _check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """c(gamma), of gamma's shape and dtype; gamma in [0, 1]."""
        before = self.b + (1 - self.b) * gamma / self.a
        after = (1 - gamma) / (1 - self.a)
        return self.gain * torch.where(gamma <= self.a, before, after)


@dataclass(frozen=True)
class ConstantDecay:
    """c = gain everywhere. Not an equilibrium (c(1) is not 0): for the flow-matching baseline alone."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_number(self, "gain", 0, math.inf)

    def __call__(self, gamma: Tensor) -> Tensor:
        """The gain, in gamma's shape and dtype."""
        return torch.full_like(gamma, self.gain)


DECAYS: dict[str, type] = {
    "linear": LinearDecay,
    "truncated": TruncatedDecay,
    "piecewise": PiecewiseDecay,
    "constant": ConstantDecay,
}


def check_decay(decay: Decay, *, allow_constant: bool = False) -> Decay:
    """Return `decay` if data are an equilibrium under it: finite, >= 0 on [0, 1], not 0 everywhere, and c(1) = 0.

    Any callable from a tensor of gammas to a tensor of the same shape will do. `allow_constant` lets a `ConstantDecay`
    (and nothing else) off c(1) = 0, for the flow-matching baseline.

    Raises:
        ValueError: which of these the decay fails, and where.
    """
    if not callable(decay):
        raise ValueError(f"the decay must be a callable gamma -> c(gamma), got {decay!r}; such as TruncatedDecay()")
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    values = decay(grid)
    if not isinstance(values, Tensor) or values.shape != grid.shape:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"decay {decay!r} must keep the shape of gamma: {tuple(grid.shape)} in, {found} out")
    values = values.detach().double()
    rounding = 1e-6 * values.abs().max()  # a decay computed in float32 is 0 at 1 only up to rounding
    wrong = ~values.isfinite() | (values < -rounding)
    if wrong.any():
        where = int(wrong.nonzero()[0])
        raise ValueError(f"decay {decay!r} is {values[where]:g} at gamma {grid[where]:g}; it must be finite and >= 0")
    if rounding == 0:
        raise ValueError(f"decay {decay!r} is 0 everywhere on [0, 1]: there is nothing to learn")
    if values[-1] > rounding and not (allow_constant and isinstance(decay, ConstantDecay)):
        raise ValueError(
            f"decay {decay!r} is {values[-1]:g} at gamma 1; it must be 0 there, so that data are at rest "
            "(use TruncatedDecay, LinearDecay or PiecewiseDecay; a constant one is for the flow baseline alone)"
        )
    return decay


def make_decay(settings: Mapping[str, Any]) -> Decay:
    """The decay of a mapping such as {"kind": "truncated", "a": 0.8, "gain": 4.0}; ValueError for an unknown kind."""
    numbers = dict(settings)
    kind = numbers.pop("kind", None)
    if kind not in DECAYS:
        raise ValueError(f"a decay of the unknown kind {kind!r}; known are {', '.join(DECAYS)}")
    return DECAYS[kind](**numbers)


def gamma_path(decay: Decay, step_size: float | Sequence[float], steps: int, start: float = 0.0) -> Tensor:
    """Where a descent stands before each of its steps, in closed form: (steps,) float64 in [0, 1].

    On the straight path to one data point the field is (noise - clean) c(gamma), so that gradient descent moves gamma
    by step_size * c(gamma). A network that is conditioned on gamma is told these while it is sampled by descent; with
    c = 1 and step_size 1 / steps they are the times k / steps of the flow baseline's Euler method. `step_size` is one
    number, or one for each step.
    """
    sizes = [float(step_size)] * steps if isinstance(step_size, (int, float)) else [float(one) for one in step_size]
    if len(sizes) != steps or not 0 <= start <= 1:
        raise ValueError(f"{len(sizes)} step sizes for {steps} steps, start gamma {start}: one each, start in [0, 1]")
    gamma, path = torch.tensor(float(start), dtype=torch.float64), []
    for size in sizes:
        path.append(gamma)
        gamma = (gamma + size * decay(gamma)).clamp(max=1)
    return torch.stack(path) if path else torch.zeros(0, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ draws of gamma


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
    """One uniform draw for the whole clip."""

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32 in [0, 1), all equal."""
        _check_frames(frames)
        return _uniform(1, generator).repeat(frames)


@dataclass(frozen=True)
class PerFrameGamma:
    """An independent uniform draw for each frame."""

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32 in [0, 1)."""
        _check_frames(frames)
        return _uniform(frames, generator)


@dataclass(frozen=True)
class ContextGamma:
    """Some frames clean (gamma exactly 1, where the target is 0), the others on one shared draw.

    Patterns, one of which is taken at random for each clip:
        prefix: the first k frames, k uniform in 0..T-1 (generation, image-to-video, continuation);
        ends: the first and the last (in-betweening; never taken for 2 frames, of which none would be left);
        subset: each frame with probability 1/2, but never all of them.
    """

    patterns: tuple[str, ...] = ("prefix",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", _check_patterns(self.patterns))

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32: 1 for clean frames, else in [0, 1). A single frame is never clean."""
        gamma = SharedGamma().draw(frames, generator)
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
    """For each clip: shared, context or per-frame gammas, by these shares; the defaults did best (docs/video.md)."""

    shared: float = 0.3
    context: float = 0.3
    per_frame: float = 0.4
    patterns: tuple[str, ...] = PATTERNS

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", _check_patterns(self.patterns))
        for name in ("shared", "context", "per_frame"):
            _check_number(self, name, 0, math.inf, low_open=False)
        total = self.shared + self.context + self.per_frame
        if abs(total - 1) > 1e-6:
            raise ValueError(f"MixtureGamma: shared + context + per_frame is {total:g}; they must sum to 1")

    def draw(self, frames: int, generator: torch.Generator) -> Tensor:
        """Gammas (T,), float32: 1 for clean frames, else in [0, 1). A single frame takes one uniform draw."""
        if frames == 1:
            return SharedGamma().draw(frames, generator)
        choice = float(_uniform(1, generator))
        if choice < self.shared:
            return SharedGamma().draw(frames, generator)
        if choice < self.shared + self.context:
            return ContextGamma(self.patterns).draw(frames, generator)
        return PerFrameGamma().draw(frames, generator)


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
    return torch.stack([rule.draw(frames, one) for one in generators])


def gamma_modes(gamma: Tensor) -> Tensor:
    """How the gammas (B, T) of every clip look, as indices into MODES: (B,) int64.

    A frame at exactly 1: context. Else all equal: shared, as where a context has no clean frame. Else per_frame.
    """
    given, equal = (gamma == 1).any(dim=1), (gamma == gamma[:, :1]).all(dim=1)
    return torch.where(given, 1, torch.where(equal, 0, 2))
