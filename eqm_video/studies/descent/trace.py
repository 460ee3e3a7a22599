"""A record of a model's descents from noise: gradient, energy and gamma of every frame at every evaluation.

Legend: E evaluations, S kept states, B clips, M shown clips, T frames, C latent channels, h w latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.analysis.gamma_estimate import calibrate, frame_dot, frame_rms, read_gamma
from eqm_video.core.decay import ConstantDecay, gamma_path
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, DivergenceError, GradientDescent, Sampler, run
from eqm_video.studies.request import Request, describe_rule
from eqm_video.studies.walk import Watched, begin, decode
from eqm_video.system import waits

if TYPE_CHECKING:
    from eqm_video.sampling.pipeline import EqMPipeline

STATES = 60  # states of a descent that are kept, at most
FOLLOWERS = (GradientDescent, NAG)  # rules that follow the gradient: their gamma has a closed form


@dataclass(frozen=True)
class Trace:
    """The record of a model's descents.

    settings: the sampler, its steps and evaluations. rms, energy (E, B, T): of the guided field at each evaluation.
    measure: the name of the energy. states: the numbers of updates after which clips were kept. pixels uint8
    (S, M, T, H, W, 3): the first M clips in these states, or (1, M, T, H, W, 3) in the last one. gamma (S, B, T): of
    all clips in these states; None for a model without a decay, and where they were not asked for. expected: rms,
    energy and gamma (E,) in closed form for a single data point, if there is one.
    """

    name: str
    settings: dict[str, Any]
    measure: str
    rms: Tensor
    energy: Tensor
    states: list[int]
    pixels: np.ndarray
    gamma: Tensor | None
    expected: dict[str, Tensor]


def is_flow(pipeline: EqMPipeline) -> bool:
    """Whether a model is a flow, whose training target does not vanish at the data."""
    return isinstance(pipeline.decay, ConstantDecay)


@torch.no_grad()
def trace(
    pipeline: EqMPipeline, request: Request, name: str, sampler: Sampler, steps: int, shown: int = 3, along: bool = True
) -> Trace:
    """Descend all samples in one batch and record every evaluation; the first `shown` clips are decoded.

    along: whether the states on the way are decoded too, and their gammas estimated, which takes most of the time. If
    not, the last one alone is decoded, and there are no gammas.
    UserError if the descent diverges.
    """
    scheduled, start, generators = begin(pipeline, request, slice(None), sampler, steps)
    explicit = pipeline.transformer.config.energy != "implicit"
    rms, energy = [], []

    def look(watched: Watched, latents: Tensor, gradient: Tensor) -> Tensor:
        rms.append(frame_rms(gradient).cpu())
        size = latents[0, 0].numel()  # energies are sums over a frame; a mean does not depend on its size
        energy.append((watched.field.energies(latents) / size if explicit else frame_dot(latents, gradient)).cpu())
        return gradient

    states = sorted({round(k * steps / min(steps, STATES)) for k in range(min(steps, STATES) + 1)})
    kept = {0: start}

    def keep(step: int, latents: Tensor, gradient: Tensor) -> None:
        bar.update()
        if step + 1 in states:
            kept[step + 1] = latents.clone()

    watched = Watched(scheduled, torch.arange(len(start), device=start.device), look)
    try:
        how = {"steps": steps, "generators": generators, "decay": pipeline.decay}
        with waits.bar(what=f"descending: {name}", total=steps, unit="step") as bar:
            result = run(watched, start, sampler, callback=keep, **how)
    except DivergenceError as error:
        raise UserError(f"{name}: {error}") from error
    kept[steps] = result.latents
    return Trace(
        name=name,
        settings={"sampler": describe_rule(sampler), "steps": steps, "nfe": int(result.nfe.max())},
        measure=f"energy g ({pipeline.transformer.config.energy})" if explicit else "score x.f",
        rms=torch.stack(rms),
        energy=torch.stack(energy),
        states=states,
        pixels=np.stack([decode(pipeline, kept[state][:shown]) for state in (states if along else [steps])]),
        gamma=read_gammas(pipeline, request, kept, sampler, steps) if along else None,
        expected=expectation(pipeline, sampler, steps, calibrate(result.latents), explicit),
    )


def read_gammas(
    pipeline: EqMPipeline, request: Request, kept: dict[int, Tensor], sampler: Sampler, steps: int
) -> Tensor | None:
    """The gamma of every frame in the kept states (B, T, C, h, w): (S, B, T), float64.

    A flow, or a network that is conditioned on gamma, has the gamma of `passed_gamma`. For all others gamma is
    estimated from the unguided gradient. None for a model without a decay.
    """
    states, path = sorted(kept), passed_gamma(pipeline, sampler, steps)
    if path is not None:
        return path[states][:, None, None].expand(-1, *kept[0].shape[:2])
    if pipeline.decay is None:
        return None
    field = pipeline.field(request.ids, num_frames=request.frames, guidance_scale=1.0)
    scale = calibrate(kept[steps])
    return torch.stack([read_gamma(field, kept[state], pipeline.decay, scale) for state in states])


def passed_gamma(pipeline: EqMPipeline, sampler: Sampler, steps: int) -> Tensor | None:
    """The gamma after each number of updates (steps + 1,), where the sampler passes it to the network, or follows it.

    So it is for a flow, and for a network that is conditioned on gamma: a solver's time, or the closed form of a
    descent. None for all others.
    """
    if not is_flow(pipeline) and not pipeline.transformer.config.conditioned_on_gamma:
        return None
    if isinstance(sampler, FOLLOWERS):
        return gamma_path(pipeline.decay, [sampler.step_size] * steps + [0.0], steps + 1)
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)  # the times of a solver


def expectation(pipeline: EqMPipeline, sampler: Sampler, steps: int, scale: float, explicit: bool) -> dict[str, Tensor]:
    """The closed form for a single data point x, (E,) each: gamma, rms S c and score c (1 - gamma S²).

    Here c = c(gamma), S² = 1 + E x², and `scale` is S. Empty without a decay, and for a sampler that does not follow
    the gradient. There is no score for a model with an `explicit` energy.
    """
    if pipeline.decay is None or not isinstance(sampler, FOLLOWERS):
        return {}
    gammas = gamma_path(pipeline.decay, sampler.step_size, steps)
    decay = pipeline.decay(gammas)
    curves = {"gamma": gammas, "rms": scale * decay}
    return curves if explicit else {**curves, "energy": decay * (1 - gammas * scale**2)}
