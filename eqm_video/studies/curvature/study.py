"""`python -m eqm_video curvature MODEL --out DIR`: is the field a gradient, and how large a step does it bear?

At several stages of the model's own descents, from noise to rest, or with --data at real clips mixed with noise:

* the curl, |J - J^T| / |J| of the field's Jacobian J. Where it is 0 the field is the gradient of an energy, and
  "energy" is a true word for it; an implicit field is one only as far as training has made it so.
* the largest curvature, that of J's eigenvalues which binds the step: gradient descent is stable for step sizes below
  2 / curvature, NAG below 2 / (curvature (1 + 2 mu)); larger ones overshoot, and end where no data are. Each clip
  counts with its stiffest stage, and the limit is that of the mean clip. It is measured for the guided field that is
  sampled, at several guidance scales, since guidance makes the field stiffer.

--write keeps the result in the export, where `step_size="auto"` (--step-size auto) finds it.

Legend: S stages, B clips, T frames, C channels, h w latents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Generator, Tensor
from tqdm import tqdm

from eqm_video.analysis.curvature import curl, largest_curvature, step_limit
from eqm_video.core.objective import interpolate
from eqm_video.data.source import Source
from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.randomness import generator
from eqm_video.samplers import DivergenceError, run
from eqm_video.sampling.arguments import make_generators
from eqm_video.sampling.folders import read_json
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.curvature.report import Stages, draw, numbers, report, stiffest
from eqm_video.studies.request import Request, add_model, add_sampling, number, whole
from eqm_video.system import files, machine
from eqm_video.system.devices import open_device
from eqm_video.system.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    claim_output(options.out, "curvature")
    diffusers_logging.disable_progress_bar()
    pipeline, folder = load_pipeline(options.model, codec=options.codec)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(open_device(options.device))
    if options.write and not (Path(folder) / "model_index.json").is_file():
        raise UserError(f"--write keeps the result in an export, and {folder} is none: give the folder of an export")
    if pipeline.transformer.config.conditioned_on_gamma:
        raise UserError("this network is told gamma: its field is another one at every step, and has no curvature")
    request = Request.of(pipeline, options)
    if options.data is not None:
        request, where, progress = points_at_data(pipeline, request, options)
    else:
        where, progress = points_of_descents(pipeline, request, options)
    scales = choose_scales(request, options.guidance_scales)
    found = [measure(pipeline, request, where(scale), scale, options) for scale in tqdm(scales, desc="guidance scales")]
    own = next(one for one in found if one.guidance_scale == request.guidance_scale)
    curvature = summarise(pipeline, found, own, options)
    record = {
        "settings": {"model": folder, **request.settings(), "machine": machine.describe(pipeline.device)},
        "curvature": curvature,
        "progress": progress,
        "stages": [{"guidance_scale": one.guidance_scale, **numbers(one)} for one in found],
    }
    files.write_record(options.out / "curvature.json", record)
    draw(options.out / "curvature.png", found, own, progress, options.data is not None, pipeline.decay)
    report(pipeline, curvature, own, progress, options)
    if options.write:
        write(Path(folder) / "model_index.json", curvature)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video curvature", description=__doc__.splitlines()[0])
    add_model(parser)
    add_sampling(parser, num_samples=8)
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="measure at these clips mixed with noise, not on descents")
    add(
        "--guidance-scales",
        nargs="+",
        type=number(0),
        metavar="S",
        help="beside the model's own; default: 1, and twice",
    )
    add("--stages", type=whole(2), default=17, metavar="S", help="from noise to rest; default: 17")
    add("--iterations", type=whole(1), default=12, metavar="M", help="of the eigenvalues; default: 12")
    add("--probes", type=whole(1), default=8, metavar="P", help="of the curl; default: 8")
    add("--write", action="store_true", help="keep the result in the export, for --step-size auto")
    return parser.parse_args(arguments)


# Measuring ----------------------------------------------------------------------------------------------------------


def choose_scales(request: Request, wanted: Sequence[float] | None) -> list[float]:
    """Guidance scales in order, the model's own among them; that one alone where no sample has a label."""
    own = request.guidance_scale
    if all(one is None for one in request.ids):
        return [own]
    return sorted({own, *(wanted if wanted is not None else (1.0, 2 * max(own, 1.0)))})


Points = Callable[[float], Tensor]  # guidance scale -> latents (S, B, T, C, h, w) of the stages


def points_of_descents(
    pipeline: EqMPipeline, request: Request, options: argparse.Namespace
) -> tuple[Points, list[float]]:
    """Where the model's own descents are at each stage, and which part of their steps is behind them then, 0 to 1."""
    steps = options.steps or pipeline.config.sampler["steps"]
    kept = sorted({round(k * steps / (options.stages - 1)) for k in range(options.stages)})
    sampler = pipeline.rule(options.sampler, options.step_size, options.mu)

    def descend(scale: float) -> Tensor:
        generators = make_generators(len(request.seeds), request.seeds, None)  # their next numbers are the sampler's
        noise = pipeline.start_noise(generators, num_frames=request.frames, size=request.size)
        states = {0: noise}

        def keep(step: int, latents: Tensor, gradient: Tensor) -> None:
            if step + 1 in kept:
                states[step + 1] = latents.clone()

        field = pipeline.field(request.ids, num_frames=request.frames, guidance_scale=scale)
        try:
            with torch.no_grad():
                run(field, noise, sampler, steps=steps, callback=keep, generators=generators)
        except DivergenceError as error:
            raise UserError(f"at guidance {scale:g} {error}") from error
        return torch.stack([states[step] for step in kept])

    return descend, [step / steps for step in kept]


def points_at_data(
    pipeline: EqMPipeline, request: Request, options: argparse.Namespace
) -> tuple[Request, Points, list[float]]:
    """Real clips in the model's rhythm, with their own labels, mixed with noise at each stage's gamma.

    Returns the request for these clips, at most as many as were asked for, their latents, and the gammas.
    """
    fps = float(pipeline.config.fps)
    source = Source(options.data, frames=request.frames, size=request.size, fps=fps, count=len(request.ids))
    clips = source.read()
    if clips is None:
        raise UserError(f"no clip of {request.frames} frames at {fps:g} fps in {options.data}: give other --data")
    known = set(pipeline.labels.values())
    ids = [pipeline.label_ids([label])[0] if label in known else None for label in clips.labels]
    count = len(ids)
    request = replace(request, ids=ids, names=[label or "" for label in clips.labels], seeds=request.seeds[:count])
    clean = pipeline.encode(clips.pixels)
    noise = pipeline.start_noise(request.seeds, num_frames=request.frames, size=request.size)
    shares = [k / (options.stages - 1) for k in range(options.stages)]
    gammas = [torch.full(noise.shape[:2], share, dtype=noise.dtype, device=noise.device) for share in shares]
    mixed = torch.stack([interpolate(clean, noise, gamma) for gamma in gammas])
    return request, lambda scale: mixed, shares


def measure(
    pipeline: EqMPipeline, request: Request, points: Tensor, scale: float, options: argparse.Namespace
) -> Stages:
    """Curvature at all points (S, B, T, C, h, w), and the curl where the guidance is the model's own."""
    values, odd, errors = [], [], []
    with_curl = scale == request.guidance_scale
    for stage, latents in enumerate(tqdm(points, desc=f"guidance {scale:g}", unit="stage", leave=False)):
        for rows in batches(len(latents), request.batch_size):
            ids = request.ids[rows]
            field = pipeline.field(ids, num_frames=request.frames, guidance_scale=scale)
            generators = chosen_generators("curvature", options.seed, stage, rows)
            values.append(
                largest_curvature(field, latents[rows], iterations=options.iterations, generators=generators).cpu()
            )
            if with_curl:
                generators = chosen_generators("curl", options.seed, stage, rows)
                found = curl(field, latents[rows], probes=options.probes, generators=generators)
                odd.append(found.asymmetry.cpu())
                errors.append(found.standard_error.cpu())
    shape = points.shape[:2]
    tables = [torch.cat(one).reshape(shape) if one else None for one in (values, odd, errors)]
    return Stages(scale, *tables)


def batches(count: int, size: int) -> list[slice]:
    """Consecutive clips that go through the network together."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def chosen_generators(name: str, seed: int, stage: int, rows: slice) -> list[Generator]:
    """One for each clip, whatever the batch size."""
    return [generator(name, seed, stage, clip) for clip in range(rows.start, rows.stop)]


# What it means ------------------------------------------------------------------------------------------------------


def summarise(
    pipeline: EqMPipeline, found: Sequence[Stages], own: Stages, options: argparse.Namespace
) -> dict[str, Any]:
    """What `--write` keeps: the largest curvatures with the limits that follow, the curl, and how they were found.

    A clip passes its stiffest stage in a few steps, so the mean over clips says when samples begin to suffer.
    """
    mu = float(pipeline.config.sampler.get("mu", 0.35) if options.mu is None else options.mu)
    core: dict[str, Any] = {
        "largest": float(stiffest(own).mean()),
        "guidance_scale": own.guidance_scale,
        "by_guidance": [[one.guidance_scale, float(stiffest(one).mean())] for one in found],
        "mu": mu,
    }
    stages, clips = own.curvature.shape
    return {
        **core,
        "gd_limit": step_limit(core, "gd"),
        "nag_limit": step_limit(core, "nag", mu),
        "highest": float(own.curvature.max()),
        "curl": {
            name: float(own.asymmetry[k].mean()) for name, k in (("noise", 0), ("halfway", stages // 2), ("rest", -1))
        },
        "samples": clips,
        "stages": stages,
        "iterations": options.iterations,
        "probes": options.probes,
        "seed": options.seed,
        "points": "descent" if options.data is None else "data",
    }


def write(index: Path, curvature: dict[str, Any]) -> None:
    """Keep the result in an export's `model_index.json`, which is replaced as a whole."""
    settings = {**read_json(index), "curvature": curvature}
    files.write_text(index, json.dumps(settings, indent=2, sort_keys=True) + "\n")
