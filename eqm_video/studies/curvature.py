"""Curl and largest curvature of a model's field, and the step sizes that follow from them.

Legend: S stages, B clips, T frames, C channels, h w latents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from eqm_video.analysis.curvature import auto_step, curl, largest_curvature, step_limit, steps_to_rest
from eqm_video.core.decay import ConstantDecay, Decay
from eqm_video.core.objective import interpolate
from eqm_video.data.source import Source
from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.randomness import generator
from eqm_video.samplers import DivergenceError, run
from eqm_video.sampling.arguments import default_steps, make_generators
from eqm_video.sampling.folders import find_model
from eqm_video.sampling.option_groups import Data, Ruled, Stepping, WritesBack
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.batches import batches
from eqm_video.studies.request import Request
from eqm_video.studies.study import Report, Sampled
from eqm_video.system import files, machine, waits
from eqm_video.system.reading import read_json

Points = Callable[[float], Tensor]  # guidance scale -> latents (S, B, T, C, h, w) of the stages


@dataclass(frozen=True, kw_only=True)
class Curvature(Sampled, Ruled, Stepping, Data, WritesBack, group="look"):
    """Curl and largest curvature of a field, and the steps that it bears.

    Two properties are measured at several stages of the model's own descents, from noise to rest, or with --data at
    real clips mixed with noise:

    * the curl, |J - J^T| / |J| of the field's Jacobian J. If it is 0, the field is the gradient of an energy. The curl
      of an implicit field is only as small as training has made it.
    * the largest curvature, the eigenvalue of J that limits the step: gradient descent is stable for step sizes below
      2 / curvature, NAG below 2 / (curvature (1 + 2 mu)). Larger steps overshoot, and end away from the data. Each clip
      counts with its stiffest stage, and the limit is that of the mean clip. It is measured for the guided field that
      is sampled, at several guidance scales, because guidance makes the field stiffer.

    --write keeps the result in the export, for `step_size="auto"` (--step-size auto).
    """

    num_samples: int = 8
    step_size: float | None = narrower(None, words=())  # auto needs the result of this command
    guidance_scales: tuple[float, ...] | None = option(
        None,
        least=0,
        metavar="S",
        help="guidance scales to measure beside the model's own",
        unset="1, and twice the model's own",
    )
    stages: int = option(17, least=2, most=1000, metavar="S", help="points of a descent, from noise to rest")
    iterations: int = option(12, least=1, most=1000, metavar="M", help="iterations for an eigenvalue")
    probes: int = option(8, least=1, most=1000, metavar="P", help="random directions in which the curl is measured")

    def run(self, pipeline: EqMPipeline) -> Report:
        """Measure at every guidance scale, and with --write keep the result in the export."""
        folder = find_model(self.model)
        if self.write and not (Path(folder) / "model_index.json").is_file():
            raise UserError(
                f"--write keeps the result in an export, and {folder} is none: give the folder of an export"
            )
        if pipeline.transformer.config.conditioned_on_gamma:
            raise UserError(
                "this network is conditioned on gamma, so its field changes at every step and has no single curvature: "
                "give a model that is not"
            )
        request = self.request(pipeline)
        if self.data is not None:
            request, where, progress = self.points_at_data(pipeline, request)
        else:
            where, progress = self.points_of_descents(pipeline, request)
        scales = choose_scales(request, self.guidance_scales)
        measured = [
            self.measure(pipeline, request, where(scale), scale)
            for scale in waits.bar(scales, "guidance scales", unit="scale")
        ]
        own = next(stages for stages in measured if stages.guidance_scale == request.guidance_scale)
        curvature = self.summarise(pipeline, measured, own)
        record = {
            "settings": {"model": folder, **request.settings(), "machine": machine.describe(pipeline.device)},
            "curvature": curvature,
            "progress": progress,
            "stages": [{"guidance_scale": stages.guidance_scale, **numbers(stages)} for stages in measured],
        }
        said = verdicts(pipeline, curvature, own, progress, self.data is not None)
        if self.write:
            keep(Path(folder) / "model_index.json", curvature)
            said += f"\n  kept in {Path(folder) / 'model_index.json'}, for --step-size auto"
        else:
            said += "\n  --write keeps it in the export, for --step-size auto"
        picture = lambda path: draw(path, measured, own, progress, self.data is not None, pipeline.decay)  # noqa: E731
        return Report(record, said, {"curvature.png": picture})

    def points_of_descents(self, pipeline: EqMPipeline, request: Request) -> tuple[Points, list[float]]:
        """The latents of the model's own descents at each stage, and the share of steps taken by then, 0 to 1."""
        steps = self.steps or default_steps(pipeline.config.sampler, self.sampler)
        kept = sorted({round(k * steps / (self.stages - 1)) for k in range(self.stages)})
        sampler = pipeline.rule(self.sampler, self.step_size, self.mu)

        def descend(scale: float) -> Tensor:
            generators = make_generators(len(request.seeds), request.seeds, None)  # the sampler draws on from them
            noise = pipeline.start_noise(generators, num_frames=request.frames, size=request.size)
            states = {0: noise}

            def keep(step: int, latents: Tensor, gradient: Tensor) -> None:
                if step + 1 in kept:
                    states[step + 1] = latents.clone()

            field = pipeline.field(request.ids, num_frames=request.frames, guidance_scale=scale)
            try:
                with torch.no_grad():
                    how = {"steps": steps, "generators": generators, "decay": pipeline.decay}
                    run(field, noise, sampler, callback=keep, **how)
            except DivergenceError as error:
                raise UserError(f"at guidance {scale:g} {error}") from error
            return torch.stack([states[step] for step in kept])

        return descend, [step / steps for step in kept]

    def points_at_data(self, pipeline: EqMPipeline, request: Request) -> tuple[Request, Points, list[float]]:
        """Real clips at the model's frame rate, with their own labels, mixed with noise at each stage's gamma.

        Returns (request for these clips, at most as many as before, their latents, gammas). UserError without clips.
        """
        fps = float(pipeline.config.fps)
        source = Source(self.data, frames=request.frames, size=request.size, fps=fps, count=len(request.ids))
        clips = source.read()
        if clips is None:
            raise UserError(f"no clip of {request.frames} frames at {fps:g} fps in {self.data}: give other --data")
        known = set(pipeline.labels.values())
        ids = [pipeline.label_ids([label])[0] if label in known else None for label in clips.labels]
        count = len(ids)
        request = replace(request, ids=ids, names=[label or "" for label in clips.labels], seeds=request.seeds[:count])
        clean = pipeline.encode(clips.pixels)
        noise = pipeline.start_noise(request.seeds, num_frames=request.frames, size=request.size)
        shares = [k / (self.stages - 1) for k in range(self.stages)]
        gammas = [torch.full(noise.shape[:2], share, dtype=noise.dtype, device=noise.device) for share in shares]
        mixed = torch.stack([interpolate(clean, noise, gamma) for gamma in gammas])
        return request, lambda scale: mixed, shares

    def measure(self, pipeline: EqMPipeline, request: Request, points: Tensor, scale: float) -> Stages:
        """Curvature at all points (S, B, T, C, h, w), and the curl if the guidance is the model's own."""
        values, odd, errors = [], [], []
        with_curl = scale == request.guidance_scale
        for stage, latents in enumerate(waits.bar(points, f"guidance {scale:g}", unit="stage")):
            for rows in batches(len(latents), request.batch_size):
                ids = request.ids[rows]
                field = pipeline.field(ids, num_frames=request.frames, guidance_scale=scale)
                generators = chosen_generators("curvature", self.seed, stage, rows)
                values.append(
                    largest_curvature(field, latents[rows], iterations=self.iterations, generators=generators).cpu()
                )
                if with_curl:
                    generators = chosen_generators("curl", self.seed, stage, rows)
                    measured = curl(field, latents[rows], probes=self.probes, generators=generators)
                    odd.append(measured.asymmetry.cpu())
                    errors.append(measured.standard_error.cpu())
        shape = points.shape[:2]
        tables = [torch.cat(parts).reshape(shape) if parts else None for parts in (values, odd, errors)]
        return Stages(scale, *tables)

    def summarise(self, pipeline: EqMPipeline, measured: Sequence[Stages], own: Stages) -> dict[str, Any]:
        """The result that --write keeps: the largest curvatures, the limits that follow, the curl, and the settings.

        A clip passes its stiffest stage in a few steps, so samples begin to suffer at the limit of the mean clip.
        """
        mu = float(pipeline.config.sampler.get("mu", 0.35) if self.mu is None else self.mu)
        core: dict[str, Any] = {
            "largest": float(stiffest(own).mean()),
            "guidance_scale": own.guidance_scale,
            "by_guidance": [[each.guidance_scale, float(stiffest(each).mean())] for each in measured],
            "mu": mu,
        }
        stages, clips = own.curvature.shape
        return {
            **core,
            "gd_limit": step_limit(core, "gd"),
            "nag_limit": step_limit(core, "nag", mu),
            "highest": float(own.curvature.max()),
            "curl": {
                name: float(own.asymmetry[k].mean())
                for name, k in (("noise", 0), ("halfway", stages // 2), ("rest", -1))
            },
            "samples": clips,
            "stages": stages,
            "iterations": self.iterations,
            "probes": self.probes,
            "seed": self.seed,
            "points": "descent" if self.data is None else "data",
        }


def choose_scales(request: Request, wanted: Sequence[float] | None) -> list[float]:
    """Guidance scales in order, with the model's own; only that if no sample has a label."""
    own = request.guidance_scale
    if all(label is None for label in request.ids):
        return [own]
    return sorted({own, *(wanted if wanted is not None else (1.0, 2 * max(own, 1.0)))})


def chosen_generators(name: str, seed: int, stage: int, rows: slice) -> list[Generator]:
    """A generator for each clip, the same whatever the batch size."""
    return [generator(name, seed, stage, clip) for clip in range(rows.start, rows.stop)]


def keep(index: Path, curvature: dict[str, Any]) -> None:
    """Write the result into an export's `model_index.json`, which is replaced as a whole."""
    settings = {**read_json(index), "curvature": curvature}
    files.write_text(index, json.dumps(settings, indent=2, sort_keys=True) + "\n")


# Numbers, words and picture -------------------------------------------------------------------------------------------

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
