"""`python -m eqm_video descent MODEL [MODEL2] --out DIR`: what a descent does, evaluation by evaluation.

From the same start noise: the gradient's root mean square, the energy and the gamma of every frame along the descent
(descent.png, the paper's Figure 12), the samples while they form (strip.png, its Figure 4), and the same as a film,
with a bar below every frame that shows its gamma (descent.gif). MODEL2, such as a flow model, starts from the same
noise.

The energy of a model that learned one (dot, l2) is its own. An implicit model has none: shown is the score x.f, the
mean of latents times gradient, which need not fall at every step. Gamma is read off the unguided gradient, of a model
that was never told it; of a flow model it is the solver's time.

Legend: E evaluations, S shown states, B clips, T frames, H W pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.analysis.gamma_estimate import calibrate, frame_dot, frame_rms, infer_gamma
from eqm_video.core.decay import ConstantDecay, gamma_path
from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.samplers import NAG, RULES, DivergenceError, Dopri5, GradientDescent, Sampler, run
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.descent.pictures import draw_curves, draw_film, draw_strip
from eqm_video.studies.request import Request, add_model, add_sampling, describe_rule, open_model, whole
from eqm_video.studies.walk import Watched, begin, decode
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser

STATES = 60  # that are kept of a descent, at most
FOLLOWERS = (GradientDescent, NAG)  # of the gradient: their gamma has a closed form


@dataclass
class Trace:
    """One model's descents.

    rms, energy: (E,B,T), of the guided field where it was evaluated; `measure` says what the energy is. states: numbers
    of updates after which the clips were kept; gamma: what they stood at (S,B,T), None where that is not known; pixels:
    the first M of them, uint8 (S,M,T,H,W,3). expected: the closed form (E,) of rms, energy and gamma for one data
    point, where there is one.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    claim_output(options.out, "descent")
    models = [options.model, *([options.against] if options.against else [])]
    names = options.names or default_names(models)
    if len(names) != len(models):
        raise UserError(f"--names gives {len(names)} names for {len(models)} models; give one for each")
    traces = []
    for path, name in zip(models, names, strict=True):
        pipeline = open_model(options, path)
        request = Request.of(pipeline, options)
        steps = options.steps or pipeline.config.sampler["steps"]
        sampler = choose_sampler(pipeline, options, against=bool(traces))
        traces.append(trace(pipeline, request, name, sampler, steps, options.clips))
    shown = list(range(min(options.clips, options.num_samples)))
    draw_curves(options.out / "descent.png", traces)
    draw_strip(options.out / "strip.png", traces, shown, options.columns, request.names)
    draw_film(options.out / "descent.gif", traces, shown, request.names)
    record = {
        "settings": {**request.settings(), "machine": machine.describe(pipeline.device)},
        "models": [{"model": str(path), **numbers(one)} for path, one in zip(models, traces, strict=True)],
    }
    files.write_record(options.out / "descent.json", record)
    report(traces, options.out)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video descent", description=__doc__.splitlines()[0])
    add_model(parser)
    parser.add_argument("against", nargs="?", metavar="MODEL2", help="another model, from the same start noise")
    add_sampling(parser)
    add = parser.add_argument
    add("--against-sampler", metavar="KIND", help="of MODEL2; default: euler for a flow model, else the model's own")
    add("--names", nargs="+", metavar="NAME", help="of the models in the pictures; default: their folders'")
    add("--clips", type=whole(1), default=3, metavar="M", help="clips that are shown, of each model; default: 3")
    add("--columns", type=whole(2), default=8, metavar="S", help="states in the strip; default: 8")
    options = parser.parse_args(arguments)
    if options.num_samples > options.batch_size:
        options.batch_size = options.num_samples  # one batch: everything along the descent is kept
    return options


def default_names(models: Sequence[str]) -> list[str]:
    """The folders' own names, of an export its run's."""
    folders = [Path(model) for model in models]
    return [folder.parent.name if folder.name == "export" else folder.name or str(folder) for folder in folders]


def is_flow(pipeline: EqMPipeline) -> bool:
    """Whether a model is no equilibrium: its target does not vanish at the data."""
    return isinstance(pipeline.decay, ConstantDecay)


def choose_sampler(pipeline: EqMPipeline, options: argparse.Namespace, *, against: bool) -> Sampler:
    """As the options say; --step-size and --mu are the first model's, and the second's too if that is descended.

    UserError for dopri5, whose steps are each clip's own: no evaluation is one of all clips.
    """
    kind = (options.against_sampler if against else options.sampler) or ("euler" if is_flow(pipeline) else None)
    if against and kind is not None and kind not in RULES:
        sampler = pipeline.rule(kind)
    else:
        sampler = pipeline.rule(kind, options.step_size, options.mu)
    if isinstance(sampler, Dopri5):
        option = "--against-sampler" if against else "--sampler"
        raise UserError(f"dopri5 solves clip after clip, with no evaluations in common: type {option} euler or heun")
    return sampler


@torch.no_grad()
def trace(pipeline: EqMPipeline, request: Request, name: str, sampler: Sampler, steps: int, shown: int = 3) -> Trace:
    """Descend once, with everything that is seen on the way; `shown` clips are decoded. UserError if it diverges."""
    scheduled, start, generators = begin(pipeline, request, slice(None), sampler, steps)
    explicit = pipeline.transformer.config.energy != "implicit"
    rms, energy = [], []

    def look(watched: Watched, latents: Tensor, gradient: Tensor) -> Tensor:
        rms.append(frame_rms(gradient).cpu())
        size = latents[0, 0].numel()  # energies are sums over a frame; shown are means, whatever its size
        energy.append((watched.field.energies(latents) / size if explicit else frame_dot(latents, gradient)).cpu())
        return gradient

    states = sorted({round(k * steps / min(steps, STATES)) for k in range(min(steps, STATES) + 1)})
    kept = {0: start}

    def keep(step: int, latents: Tensor, gradient: Tensor) -> None:
        if step + 1 in states:
            kept[step + 1] = latents.clone()

    watched = Watched(scheduled, torch.arange(len(start), device=start.device), look)
    try:
        result = run(watched, start, sampler, steps=steps, callback=keep, generators=generators)
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
        pixels=np.stack([decode(pipeline, kept[state][:shown]) for state in states]),
        gamma=read_gamma(pipeline, request, kept, sampler, steps),
        expected=expectation(pipeline, sampler, steps, calibrate(result.latents), explicit),
    )


def read_gamma(
    pipeline: EqMPipeline, request: Request, kept: dict[int, Tensor], sampler: Sampler, steps: int
) -> Tensor | None:
    """What the kept states (B,T,C,h,w) stand at, (S,B,T): what the sampler goes by, or read off the unguided gradient.

    None for a model that does not say its decay.
    """
    states, decay = sorted(kept), pipeline.decay
    if is_flow(pipeline) or pipeline.transformer.config.conditioned_on_gamma:
        path = torch.linspace(0, 1, steps + 1, dtype=torch.float64)  # a solver's times
        if isinstance(sampler, FOLLOWERS):
            path = gamma_path(decay, [sampler.step_size] * steps + [0.0], steps + 1)
        return path[states][:, None, None].expand(-1, *kept[0].shape[:2])
    if decay is None:
        return None
    field = pipeline.field(request.ids, num_frames=request.frames, guidance_scale=1.0)
    scale = calibrate(kept[steps])
    gammas = []
    for state in states:
        gradient = field(kept[state])
        rms, dot = frame_rms(gradient).cpu(), frame_dot(kept[state], gradient).cpu()
        gammas.append(infer_gamma(rms, decay, scale, dot=dot))
    return torch.stack(gammas)


def expectation(pipeline: EqMPipeline, sampler: Sampler, steps: int, scale: float, explicit: bool) -> dict[str, Tensor]:
    """Closed form (E,) for one data point: rms S c, score c (1 - gamma S²), where c = c(gamma), S² = 1 + E x²."""
    if pipeline.decay is None or not isinstance(sampler, FOLLOWERS):
        return {}
    gammas = gamma_path(pipeline.decay, sampler.step_size, steps)
    decay = pipeline.decay(gammas)
    curves = {"gamma": gammas, "rms": scale * decay}
    return curves if explicit else {**curves, "energy": decay * (1 - gammas * scale**2)}


def numbers(one: Trace) -> dict[str, Any]:
    """The record of a trace: means and spreads over clips and frames, at every evaluation and every kept state."""
    curves = {"gradient_rms": one.rms, "energy": one.energy, "gamma": one.gamma}
    return {
        "name": one.name,
        **one.settings,
        "energy_is": f"{one.measure}, mean over the values of a frame",
        "states": one.states,
        **{name: spread(values) for name, values in curves.items() if values is not None},
        "expected_for_one_data_point": {name: values.tolist() for name, values in one.expected.items()},
        "share_of_steps_that_lower_the_energy": lowered(one.energy),
    }


def spread(values: Tensor) -> dict[str, list[float]]:
    """(E,B,T) -> lists (E,) of the mean and the 10th and 90th percentile over clips and frames."""
    flat = values.double().flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.1, 0.9], dtype=torch.float64), dim=1)
    return {"mean": flat.mean(1).tolist(), "p10": low.tolist(), "p90": high.tolist()}


def lowered(energy: Tensor) -> float:
    """Share of the steps, over all clips, after which the clip's energy (E,B,T) is lower."""
    clips = energy.double().sum(2)
    return float((clips[1:] < clips[:-1]).double().mean()) if len(clips) > 1 else 1.0


def report(traces: Sequence[Trace], out: Path) -> None:
    """Say what was measured and where to look."""
    for one in traces:
        first, last = float(one.rms[0].mean()), float(one.rms[-1].mean())
        begin_, end = float(one.energy[0].mean()), float(one.energy[-1].mean())
        print(
            f"{one.name}: {one.settings['nfe']} evaluations; gradient RMS {first:.3g} -> {last:.3g}, {one.measure} "
            f"{begin_:.3g} -> {end:.3g}, lower after {lowered(one.energy):.0%} of the steps"
        )
    print(f"look at {out / 'descent.png'}, {out / 'strip.png'} and {out / 'descent.gif'}; numbers: {out}/descent.json")
