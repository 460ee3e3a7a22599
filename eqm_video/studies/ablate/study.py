"""`python -m eqm_video ablate`: what each choice of Equilibrium Matching is worth, on moving shapes.

Trains the recipes of configs/ablations, which differ from base.yaml in one choice each, samples all of them with the
samplers that fit them, from the same noise, and measures: do clips show the motion and the shape of their labels (in
closed form), how far are they from the data (Fréchet distance in random projections of the pixels), how near to rest
did they end, how well does the field predict held-out clips. Finished runs and measurements are found and kept,
interrupted runs continue. Every recipe is trained once: a difference of a few clips means nothing.

Legend: N samples, T frames, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqm_video.core.decay import ConstantDecay
from eqm_video.output import media
from eqm_video.output.outputs import claim_output
from eqm_video.samplers import NAG, SAMPLERS
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies import request as options
from eqm_video.studies.ablate import report as ablate_report
from eqm_video.studies.demo import write_videos
from eqm_video.studies.quality import Judge
from eqm_video.studies.recipes import CONFIGS, Recipes, split_overrides
from eqm_video.studies.walk import decode, walk
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser
from eqm_video.training.config import Config

BASE = "base"
RECIPES = Recipes(CONFIGS / "ablations", BASE)
STRIDE = 0.08  # step_size * gain of all recipes: how far a step goes while the decay is at its full height
ADAM = {"step_size": 0.05, "beta1": 0.9, "beta2": 0.999}  # the best of eight tried on the base, with 48 samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure what is missing, write the table; returns the exit status."""
    given = parse(arguments)
    claim_output(given.out, "ablate")
    names = RECIPES.chosen(given.only)
    RECIPES.claim(names, given)
    write_videos(given.data)
    for name in names:
        RECIPES.train(name, given)
    lines = [line for name in names for line in measure(name, given)]
    summary = {
        "command": shlex.join(["python", "-m", "eqm_video", "ablate", *map(str, arguments or [])]),
        "samples": given.num_samples,
        "seeds": [given.seed, given.seed + given.num_samples - 1],
        "training runs of each recipe": 1,
        "machine": machine.describe(),
        "reference": lines[0]["reference"],
        "lines": [{key: value for key, value in line.items() if key != "reference"} for line in lines],
    }
    print(ablate_report.tables(summary))
    ablate_report.write(given.out, summary)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m eqm_video ablate",
        description="Train the recipes of configs/ablations on moving shapes, each once, sample them all, and compare.",
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"these recipes alone: {', '.join(RECIPES.names())}; default: all")
    add("--data", type=Path, default=Path("data/moving_shapes"), help="the videos, written where they are missing")
    add("--again", action="store_true", help="measure again what was measured before")
    add("overrides", nargs="*", metavar="section.key=value", help="replace values in all recipes")
    options.add_model(parser, positional=False)
    options.add_sampling(parser, num_samples=128, descent=False)
    given = split_overrides(parser.parse_intermixed_args(arguments))
    given.runs = given.out
    return given


# Sampling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to sample a model: a sampler of `SAMPLERS`, its number of steps, and its own numbers."""

    sampler: str
    steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)


def ways(name: str, config: Config) -> list[Way]:
    """The samplers that fit a model, at equal evaluations of the field.

    Equilibria are descended. Flows end at gamma = 1, so they are integrated up to there; descent knows no such end, and
    is tried where the network is told no gamma, with the base's stride.
    """
    steps, rule, decay = config.sampler.steps, config.sampler.rule, config.objective.decay
    if (
        isinstance(decay, ConstantDecay) and decay.gain != 1
    ):  # not a velocity: descent as slow as this is Euler's method
        return [Way("gd", steps, {"step_size": 1 / (steps * decay.gain)})]
    if isinstance(decay, ConstantDecay):
        half = max(1, steps // 2)  # these evaluate twice a step
        solved = [Way("euler", steps), Way("heun", half), Way("sde", half)]
        endless = Way("gd", steps, {"step_size": STRIDE / decay.gain})
        return solved if config.model.conditioned_on_gamma else [*solved, endless]
    step = {"step_size": rule.step_size}
    descents = [Way("nag", steps, {"mu": NAG.mu, **asdict(rule)}), Way("gd", steps, step)]
    return [*descents, Way("adam", steps, ADAM)] if name == BASE else descents


def measure(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Sample one model in all its ways; a line of the table for each. What was measured before is read."""
    config = RECIPES.config(name, given)
    pipeline = options.open_model(given, config.run.folder / "export")
    request = options.Request.of(pipeline, given)
    asked = {"weights": fingerprint(pipeline), **request.settings(), "data": str(given.data)}
    lines, judge = [], None
    for way in ways(name, config):
        file = given.out / "measured" / f"{name}_{way.sampler}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not given.again else {}
        if known.get("asked") != {**asked, **asdict(way)}:
            print(f"sampling {name} with {way.sampler}", flush=True)
            judge = judge or Judge.of(pipeline, request, given.data)
            clips, found = sample(pipeline, way, request)
            found |= {**judge(clips, request.names), "rest": found.pop("rms") / config.objective.decay.gain}
            media.write_npz(file.with_suffix(".npz"), clips, np.asarray(request.ids))
            known = {"asked": {**asked, **asdict(way)}, "found": found, "reference": judge.scale}
            files.write_record(file, known)
        line = {"recipe": name, **asdict(way), **known["found"], **training_log(config)}
        lines.append({**line, "reference": known["reference"]})
    return lines


def sample(pipeline: EqMPipeline, way: Way, request: options.Request) -> tuple[np.ndarray, dict[str, Any]]:
    """Clips (N,T,H,W,3), and how their descents went; rms is the mean gradient where they ended, told gamma = 1."""
    sampler = SAMPLERS[way.sampler](**way.numbers)
    result = walk(pipeline, request, sampler, steps=way.steps)
    return decode(pipeline, result.latents), {
        "diverged": int(result.diverged.sum()),
        "rms": float(result.rms.square().mean(dim=1).sqrt().mean()),
        "nfe": float(result.nfe.double().mean()),
        "seconds": round(result.seconds, 1),
    }


def training_log(config: Config) -> dict[str, Any]:
    """What a run's log says last: steps, seconds of training, and the loss on held-out clips over the decay squared.

    The loss at gamma is the mean of (f - (noise - clean) c)²; over c² it is that of f / c as a prediction of
    noise - clean, whatever the decay and its gain. One number for each gamma of the recipe.
    """
    text = (config.run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    losses = next((line["held_out"] for line in reversed(log) if "held_out" in line), {})
    names = {f"{gamma:g}": config.objective.decay(torch.tensor(gamma)) for gamma in config.held_out.gammas}
    return {
        "training_steps": log[-1]["step"],
        "training_seconds": round(log[-1]["seconds"], 1),
        "held_out_error": {name: losses[name] / float(decay) ** 2 for name, decay in names.items() if name in losses},
    }
