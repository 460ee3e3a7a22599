"""Measured curvature and curl as numbers, in words, and as a picture.

Legend: S stages, B clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.analysis.curvature import auto_step, step_limit, steps_to_rest
from eqm_video.core.decay import ConstantDecay, Decay
from eqm_video.output import plots
from eqm_video.sampling.pipeline import EqMPipeline

TRUE_GRADIENT, NEARLY = 1e-3, 0.1  # bounds of the curl; below the first it is rounding


@dataclass
class Stages:
    """Measurements at a guidance scale: curvature (S, B); curl and its standard error (S, B), or None."""

    guidance_scale: float
    curvature: Tensor
    asymmetry: Tensor | None
    error: Tensor | None


def stiffest(stages: Stages) -> Tensor:
    """The curvature of each clip at its stiffest stage: (B,)."""
    return stages.curvature.amax(dim=0)


def numbers(stages: Stages) -> dict[str, Any]:
    """The record of each stage: mean and largest curvature; mean, range and standard error of the curl."""
    result: dict[str, Any] = {
        "curvature_mean": stages.curvature.mean(dim=1).tolist(),
        "curvature_largest": stages.curvature.amax(dim=1).tolist(),
    }
    if stages.asymmetry is not None:
        result["curl_mean"] = stages.asymmetry.mean(dim=1).tolist()
        result["curl_lowest"] = stages.asymmetry.amin(dim=1).tolist()
        result["curl_highest"] = stages.asymmetry.amax(dim=1).tolist()
        result["curl_standard_error"] = stages.error.square().mean(dim=1).sqrt().tolist()  # of a single clip
    return result


def verdict(asymmetry: float) -> str:
    """The meaning of a curl, in words."""
    if asymmetry < TRUE_GRADIENT:
        return "the field is the gradient of an energy, up to rounding"
    if asymmetry < NEARLY:
        return "nearly the gradient of an energy, but not quite: energies along a path depend on the path a little"
    return "not the gradient of any energy: read its x.f and |f|^2 as scores, not as energies"


def verdicts(
    pipeline: EqMPipeline, curvature: dict[str, Any], own: Stages, progress: Sequence[float], on_data: bool
) -> str:
    """The measurements and their consequences, in words."""
    turns, mu = curvature["curl"], curvature["mu"]
    place = progress[int(own.curvature.mean(dim=1).argmax())]
    unit = "of the way from noise to data" if on_data else "of the descent"
    by_scale = ", ".join(f"{value:.3g} at {scale:g}" for scale, value in curvature["by_guidance"])
    lines = [
        f"curl |J - J^T| / |J| at guidance {own.guidance_scale:g}: {turns['noise']:.2g} at noise, "
        f"{turns['halfway']:.2g} half-way, {turns['rest']:.2g} at the end",
        f"  {verdict(max(turns.values()))}",
        f"largest curvature {curvature['largest']:.3g} (stiffest clip {curvature['highest']:.3g}), at about "
        f"{place:.0%} {unit}; by guidance scale: {by_scale}",
        f"  step sizes are stable below {curvature['gd_limit']:.3g} with gd, below {curvature['nag_limit']:.3g} "
        f"with nag (mu {mu:g})",
        *own_steps(pipeline, curvature, mu),
    ]
    return "\n".join(lines)


def own_steps(pipeline: EqMPipeline, curvature: dict[str, Any], mu: float) -> list[str]:
    """Lines on the model's own step size, its limit, and the automatic step size; [] for a sampler without a limit."""
    sampler, decay = pipeline.config.sampler, pipeline.decay
    kind, steps = sampler["kind"], sampler["steps"]
    if kind not in ("gd", "nag"):
        return []
    share = sampler["step_size"] / step_limit(curvature, kind, mu)
    warning = "" if share < 1 else ": too large, samples suffer"
    lines = [f"  the model's own {kind} with {sampler['step_size']:g} is at {share:.0%} of its limit{warning}"]
    if decay is not None and not isinstance(decay, ConstantDecay):
        auto = auto_step(curvature, kind, mu, steps, decay)
        need = steps_to_rest(auto, decay)
        short = "" if need <= steps else f"; they are too few to come to rest, which takes {need}"
        lines.append(f"  --step-size auto would take {auto:.3g} at {steps} steps{short}")
    return lines


def draw(
    path: Path, measured: Sequence[Stages], own: Stages, progress: Sequence[float], on_data: bool, decay: Decay | None
) -> None:
    """Draw curvature and curl along the stages. At data the curvature around a single data point is drawn too."""
    figure = plots.figure(6.0, 5.4)
    where = "gamma" if on_data else "share of the descent"
    above = plots.axes(figure, 2, 1, 1, ylabel="curvature", title="Largest curvature of the field (mean clip)")
    for index, stages in enumerate(measured):
        above.plot(
            progress,
            stages.curvature.mean(dim=1),
            label=f"guidance {stages.guidance_scale:g}",
            markersize=4,
            **plots.style(index),
        )
    if on_data and decay is not None:
        gamma = torch.linspace(0, 0.999, 200, dtype=torch.float64)
        above.plot(gamma, decay(gamma) / (1 - gamma), "--", color=plots.GREY, label="one data point, c(γ) / (1 - γ)")
    above.set_ylim(bottom=0)
    plots.legend(above)
    below = plots.axes(figure, 2, 1, 2, xlabel=where, ylabel="|J - J$^T$| / |J|", title="Curl: 0 for a true gradient")
    place = list(measured).index(own)
    below.fill_between(
        progress,
        own.asymmetry.amin(dim=1),
        own.asymmetry.amax(dim=1),
        color=plots.PALETTE[place % len(plots.PALETTE)],
        alpha=0.2,
        linewidth=0,
        label="lowest to highest clip",
    )
    below.plot(
        progress,
        own.asymmetry.mean(dim=1),
        label=f"mean, guidance {own.guidance_scale:g}",
        markersize=4,
        **plots.style(place),
    )
    if float(own.asymmetry.max()) > TRUE_GRADIENT:
        below.set_ylim(bottom=0)
    else:
        below.set(yscale="log", ylim=(1e-8, 2))  # shows rounding; a rotation has 2
    plots.legend(below)
    plots.save(figure, path)
