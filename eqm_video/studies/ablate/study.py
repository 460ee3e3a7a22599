"""The ablations: each choice of Equilibrium Matching against the base, on moving shapes.

Legend: N samples, T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqm_video.core.decay import ConstantDecay
from eqm_video.samplers import NAG, SAMPLERS
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.option_groups import Batched, Guided, Labelled, Many, Measuring, Seeded, Shaped
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.ablate import report as ablate_report
from eqm_video.studies.demo import write_videos
from eqm_video.studies.measured import Clips, Measured
from eqm_video.studies.quality import Judge, check_evaluation, feature_name
from eqm_video.studies.recipes import Recipes, Trained
from eqm_video.studies.request import Request, open_model
from eqm_video.studies.study import Opening, Report
from eqm_video.studies.walk import decode, walk
from eqm_video.system import machine
from eqm_video.training.config import Config

BASE = "base"
RECIPES = Recipes("ablations", BASE)
STRIDE = 0.08  # step_size * gain of all recipes: the length of a step while the decay is at its maximum
ADAM = {"step_size": 0.05, "beta1": 0.9, "beta2": 0.999}  # the best of eight tried on the base, with 48 samples


@dataclass(frozen=True, kw_only=True)
class Ablate(
    Opening,
    Trained,
    Labelled,
    Many,
    Shaped,
    Guided,
    Seeded,
    Batched,
    Measuring,
    group="compare",
    record="ablations.json",
):
    """Train and compare objectives, decays and samplers on moving shapes.

    The recipes of ablations/ differ from base in a single choice each. All of them are trained, and sampled from the
    same noise with the samplers that fit them. Measured are the share of clips with the motion and the shape of their
    labels (in closed form), --metrics against the data with 95 % intervals, the gradient at the end of the descents,
    and the error of the field on held-out clips. Finished runs and measurements
    are reused, interrupted runs continue. Every recipe is trained once: a difference of a few clips means nothing.

    The runs lie in --out. The videos are written if --data does not exist. Words such as train.steps=100 replace values
    in all recipes.
    """

    data: Path = Path("data/moving_shapes")
    num_samples: int = 128

    def run(self) -> Report:
        """Train missing runs, and make missing measurements."""
        names = RECIPES.chosen(self.chosen)
        check_evaluation(self, RECIPES.config(names[0], self))
        RECIPES.claim(names, self)
        write_videos(self.data)
        for name in names:
            RECIPES.train(name, self)
        lines = [line for name in names for line in self.measure(name)]
        numbers = {
            "samples": self.num_samples,
            "seeds": [self.seed, self.seed + self.num_samples - 1],
            "training runs of each recipe": 1,
            "machine": machine.describe(),
            **lines[0]["reference"],
            "lines": [{key: value for key, value in line.items() if key != "reference"} for line in lines],
        }
        tables = ablate_report.tables(numbers)
        pictures = {"ablations.png": lambda path: ablate_report.draw(numbers, path)}
        return Report(numbers, tables, pictures, {"ablations.md": tables})

    def measure(self, name: str) -> list[dict[str, Any]]:
        """The lines of a model, one for each way to sample it. Earlier measurements are reused."""
        config = RECIPES.config(name, self)
        pipeline = open_model(self, config.run.folder / "export")
        request = Request.of(pipeline, self)
        wanted = {"weights": fingerprint(pipeline), **request.settings(), "data": str(self.data)}
        wanted["measures"] = {"metrics": list(self.metrics), "features": feature_name(self, request.frames)}
        judge = cache(lambda: Judge.of(pipeline, request, self))  # reads the data, so only if it is needed
        measured, lines = Measured(self.out, self.again), []
        for way in ways(name, config):

            def measure(way: Way = way) -> tuple[dict[str, Any], Clips]:
                print(f"sampling {name} with {way.sampler}", flush=True)
                clips, numbers = sample(pipeline, way, request)
                rest = numbers.pop("rms") / config.objective.decay.gain
                numbers |= {**judge()(clips, request.names), "rest": rest}
                return {"found": numbers, "reference": judge().scale(len(request.ids))}, (
                    clips,
                    np.asarray(request.ids),
                )

            known = measured.keep(f"{name}_{way.sampler}", {**wanted, **asdict(way)}, measure)
            line = {"recipe": name, **asdict(way), **known["found"], **training_log(config)}
            lines.append({**line, "reference": known["reference"]})
        return lines


# Sampling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to sample a model: a sampler of `SAMPLERS`, its number of steps, and its own numbers."""

    sampler: str
    steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)


def ways(name: str, config: Config) -> list[Way]:
    """The samplers that fit a model, at equal evaluations of the field.

    Equilibria are descended. Flows are integrated up to gamma = 1, their end. Descent along a flow has no such end; it
    is tried, with the base's stride, if the network is not conditioned on gamma.
    """
    steps, rule, decay = config.sampler.steps, config.sampler.rule, config.objective.decay
    if isinstance(decay, ConstantDecay) and decay.gain != 1:
        # The field is not a velocity, which solvers need: descent by 1 / (steps gain) is Euler's method.
        return [Way("gd", steps, {"step_size": 1 / (steps * decay.gain)})]
    if isinstance(decay, ConstantDecay):
        half = max(1, steps // 2)  # heun and sde evaluate twice a step
        solved = [Way("euler", steps), Way("heun", half), Way("sde", half)]
        endless = Way("gd", steps, {"step_size": STRIDE / decay.gain})
        return solved if config.model.conditioned_on_gamma else [*solved, endless]
    step = {"step_size": rule.step_size}
    descents = [Way("nag", steps, {"mu": NAG.mu, **asdict(rule)}), Way("gd", steps, step)]
    return [*descents, Way("adam", steps, ADAM)] if name == BASE else descents


def sample(pipeline: EqMPipeline, way: Way, request: Request) -> tuple[np.ndarray, dict[str, Any]]:
    """Clips (N, T, H, W, 3), and numbers of their descents.

    diverged: number of clips; rms: of the gradient at their ends (at gamma = 1 for a network that is conditioned on
    gamma), mean over clips; nfe: mean evaluations of a clip; seconds: of all descents.
    """
    sampler = SAMPLERS[way.sampler](**way.numbers)
    result = walk(pipeline, request, sampler, steps=way.steps)
    return decode(pipeline, result.latents), {
        "diverged": int(result.diverged.sum()),
        "rms": float(result.rms.square().mean(dim=1).sqrt().mean()),
        "nfe": float(result.nfe.double().mean()),
        "seconds": round(result.seconds, 1),
    }


def training_log(config: Config) -> dict[str, Any]:
    """The end of a run's log: steps, seconds of training, and the loss on held-out clips over the decay squared.

    The loss at gamma is the mean of (f - (noise - clean) c)². Divided by c² it is the loss of f / c as a prediction of
    noise - clean, comparable between decays and gains. It has a number for each gamma of the recipe.
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
