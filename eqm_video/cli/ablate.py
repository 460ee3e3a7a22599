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

from eqm_video import media
from eqm_video.build import versions
from eqm_video.cli import ablate_report, options
from eqm_video.cli import train as training
from eqm_video.cli.demo import write_videos
from eqm_video.cli.quality import Judge
from eqm_video.cli.sample import fingerprint
from eqm_video.cli.walks import decode, walk
from eqm_video.config import Config, flatten, load_config, to_tree
from eqm_video.errors import UserError
from eqm_video.gamma import ConstantDecay
from eqm_video.pipeline import EqMPipeline
from eqm_video.samplers import NAG, SAMPLERS

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "ablations"
BASE = "base"
STRIDE = 0.08  # step_size * gain of all recipes: how far a step goes while the decay is at its full height
ADAM = {"step_size": 0.05, "beta1": 0.9, "beta2": 0.999}  # the best of eight tried on the base, with 48 samples
FREE = tuple(key for key in training.FREE if key != "train.steps")  # what may differ in a run that is found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure what is missing, write the table; returns the exit status."""
    given = parse(arguments)
    media.make_folder(given.out)
    write_videos(given.data)
    names = chosen(given.only)
    for name in names:
        train(name, given)
    lines = [line for name in names for line in measure(name, given)]
    summary = {
        "command": shlex.join(["python", "-m", "eqm_video", "ablate", *map(str, arguments or [])]),
        "samples": given.num_samples,
        "seeds": [given.seed, given.seed + given.num_samples - 1],
        "training runs of each recipe": 1,
        "machine": {"processor": options.processor(), "threads": torch.get_num_threads(), **versions()},
        "reference": lines[0]["reference"],
        "lines": [{key: value for key, value in line.items() if key != "reference"} for line in lines],
    }
    print(ablate_report.tables(summary))
    ablate_report.write(given.out, summary)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eqm_video ablate",
        description="Train the recipes of configs/ablations on moving shapes, each once, sample them all, and compare.",
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"these recipes alone: {', '.join(recipes())}; default: all")
    add("--data", type=Path, default=Path("data/moving_shapes"), help="the videos, written where they are missing")
    add("--again", action="store_true", help="measure again what was measured before")
    add("overrides", nargs="*", metavar="section.key=value", help="replace values in all recipes")
    options.add_model(parser, positional=False)
    options.add_sampling(parser, num_samples=128, descent=False)
    given = parser.parse_intermixed_args(arguments)
    if given.only is not None:  # overrides may stand behind the names
        given.overrides += [word for word in given.only if "=" in word]
        given.only = [word for word in given.only if "=" not in word]
    return given


# Recipes and runs ---------------------------------------------------------------------------------------------------


def recipes() -> list[str]:
    """Names of the recipes, the base first."""
    return sorted((path.stem for path in RECIPES.glob("*.yaml")), key=lambda name: (name != BASE, name))


def chosen(only: Sequence[str] | None) -> list[str]:
    """The recipes that are asked for; UserError where one of them is unknown."""
    names = recipes()
    if not names:
        raise UserError(f"there are no recipes in {RECIPES}: run this from a clone of the repository")
    if unknown := sorted(set(only or ()) - set(names)):
        raise UserError(f"--only {unknown[0]}: the recipes are {', '.join(names)}")
    return [name for name in names if only is None or name in only]


def replaced(name: str, given: argparse.Namespace) -> list[str]:
    """What `--out`, `--data` and the command line put in the place of a recipe's values."""
    words = [*given.overrides, f"data.root={given.data}", f"run.dir={given.out / name}"]
    source = origin(name)
    return words if source is None else [*words, f"train.init_from={given.out / source / 'export'}"]


def origin(name: str) -> str | None:
    """The recipe whose run this one starts from."""
    source = load_config(RECIPES / f"{name}.yaml").train.init_from  # runs/ablations/base/export
    return None if source is None else Path(source).parent.name


def train(name: str, given: argparse.Namespace) -> None:
    """Train a recipe, or continue, or find its run finished; first the run that it starts from."""
    recipe, words, source = RECIPES / f"{name}.yaml", replaced(name, given), origin(name)
    config = load_config(recipe, words)
    if (config.run.folder / "export").is_dir():
        check_same(config, recipe)
        return
    if source is not None:
        train(source, given)
    print(f"training {name}", flush=True)
    status = training.main(["--config", str(recipe), "--resume", *words])
    if status != 0 or not (config.run.folder / "export").is_dir():
        raise UserError(f"the training of {name} did not finish; type the same command again to continue")


def check_same(config: Config, recipe: Path) -> None:
    """Raise UserError where a finished run was trained from something else than its recipe says now."""
    then, now = (dict(flatten(to_tree(one))) for one in (load_config(config.run.folder / "config.yaml"), config))
    paths = ("train.init_from",)  # the same run, from another working folder
    changed = [
        f"{key} ({then.get(key)} there)"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in paths and not any(f"{key}.".startswith(f"{k}.") for k in FREE)
    ]
    if changed:
        raise UserError(
            f"{config.run.folder} was not trained from {recipe.name} as it is now: {', '.join(changed)}; give another "
            "--out, or remove that folder"
        )


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
    config = load_config(RECIPES / f"{name}.yaml", replaced(name, given))
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
            media.write_text(file, json.dumps(known, indent=1) + "\n")
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
