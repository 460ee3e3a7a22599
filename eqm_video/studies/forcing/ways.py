"""Ways to sample that fit any objective of the comparison, each at a given number of field evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eqm_video.core.decay import ConstantDecay, Decay
from eqm_video.samplers import NAG

STRIDES = (2.0, 6.0)  # of NAG on an equilibrium: steps x step size x gain, the way in gamma before c falls
LARGEST = 0.2  # step size x gain; from 0.235 on NAG is unstable near data (a = 0.8, mu = 0.35)


@dataclass(frozen=True)
class Way:
    """A way to sample: `sampling(evaluations)` are fields of `Sampling`; None where it cannot take that few."""

    name: str
    sampling: Callable[[int], Mapping[str, Any] | None]


def ways(decay: Decay) -> dict[str, Way]:
    """The ways that fit a field of this decay, by name.

    multistep and euler take equal steps of gamma on the field of any decay. On a velocity heun and nag do so too; on an
    equilibrium `nag N` is the paper's NAG, whose steps add up to N / gain along the field.
    """
    fitting = [Way(kind, _equal_gamma(kind)) for kind in ("multistep", "euler")]
    if isinstance(decay, ConstantDecay):
        fitting += [Way("heun", _equal_gamma("heun", each=2)), Way("nag", _equal_gamma("nag"))]
    else:
        gain = float(getattr(decay, "gain", 1.0))
        fitting += [Way(f"nag {stride:g}", nag(stride, gain)) for stride in STRIDES]
    return {way.name: way for way in fitting}


def _equal_gamma(kind: str, each: int = 1) -> Callable[[int], Mapping[str, Any] | None]:
    """A sampler with `each` evaluations a step, in equal steps of gamma."""

    def sampling(count: int) -> Mapping[str, Any] | None:
        return None if count % each else {"sampler": kind, "warp": "identity", "steps": count // each}

    return sampling


def nag(stride: float, gain: float) -> Callable[[int], Mapping[str, Any]]:
    """NAG along the field whose steps add up to `stride` / gain; no step is larger than `LARGEST` / gain."""

    def sampling(count: int) -> Mapping[str, Any]:
        return {"sampler": NAG(step_size=min(stride / count, LARGEST) / gain, mu=NAG.mu), "steps": count}

    return sampling
