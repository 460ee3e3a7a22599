"""Ways to sample that fit any objective of the comparison, each at a given number of field evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eqm_video.core.decay import ConstantDecay, Decay
from eqm_video.samplers import NAG, SAMPLERS

STRIDES = (2.0, 4.0, 8.0)  # of NAG on an equilibrium: steps x step size x gain, the way in gamma before c falls
LARGEST = 0.2  # step size x gain, beyond which NAG is unstable near data (a = 0.8)


@dataclass(frozen=True)
class Way:
    """A way to sample: `sampling(evaluations)` are fields of `Sampling`; None where it cannot take that few."""

    name: str
    sampling: Callable[[int], Mapping[str, Any] | None]


def ways(decay: Decay) -> dict[str, Way]:
    """The ways that fit a field of this decay, by name.

    euler, heun: solvers of the flow, for a constant decay. nag N: NAG whose steps add up to N in units of the gain,
    for an equilibrium; on a flow its steps add up to 1, which ends at the data. multistep: of order 2 in equal steps of
    gamma, for every decay.
    """
    fitting = (
        [Way("multistep", lambda count: {"sampler": "multistep", "steps": count})] if "multistep" in SAMPLERS else []
    )
    if isinstance(decay, ConstantDecay):
        fitting.append(Way("euler", lambda count: {"sampler": "euler", "steps": count}))
        fitting.append(Way("heun", lambda count: None if count % 2 else {"sampler": "heun", "steps": count // 2}))
        fitting.append(_nag("nag", 1.0, decay.gain, most=1.0))
    else:
        gain = float(getattr(decay, "gain", 1.0))
        fitting += [_nag(f"nag {stride:g}", stride, gain, most=LARGEST) for stride in STRIDES]
    return {way.name: way for way in fitting}


def _nag(name: str, stride: float, gain: float, most: float) -> Way:
    """NAG whose `count` steps add up to `stride` / gain; no step is larger than `most` / gain."""

    def sampling(count: int) -> Mapping[str, Any]:
        return {"sampler": NAG(step_size=min(stride / count, most) / gain, mu=NAG.mu), "steps": count}

    return Way(name, sampling)
