"""`python -m eqm_video partial MODEL [MODEL ...] --data FOLDER --out DIR`: clips that start half-way to noise.

Held-out clips are mixed with noise, x = gamma·clip + (1 - gamma)·noise, and sampled from there. An equilibrium needs no
word about gamma: it descends from wherever it starts. A flow is integrated from its start to 1 and must be told where
that is, so a flow model is shown twice, told the right start and told 0, as if every start were noise.

Measured against the clip: the RMS of the latents' difference, the PSNR of the pixels, and, for moving shapes, how many
results still move as the clip does, and show its shape. The clip's label is not told unless asked: what is kept comes
from the start then. For reference: the start itself, another held-out clip, and what the codec alone loses.

Legend: N clips, T frames, C latent channels, h w latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import ConstantDecay
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import SHAPES, label_names, score_motion
from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.samplers import DivergenceError, Sampler, run
from eqm_video.sampling.arguments import check_fraction, make_generators, told_gammas
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.partial import report
from eqm_video.studies.request import add_model, add_split, choose_split, describe_rule, number, open_model, whole
from eqm_video.system import files
from eqm_video.system.parser import Parser

SPLIT = "test"  # what a model was not trained on, where there are lists
MOVING_SHAPES = frozenset(label_names())


@dataclass(frozen=True)
class Variant:
    """One curve: a model, and what it is told of the start: "nothing", "the start" (its gamma), or "0"."""

    name: str
    pipeline: EqMPipeline
    sampler: Sampler
    told: str


@dataclass(frozen=True)
class Pairs:
    """What starts are mixed from: clean latents and noise, both (N, T, C, h, w), and the generators that drew it."""

    clean: Tensor
    noise: Tensor
    generators: list[Generator]

    @classmethod
    def of(cls, pipeline: EqMPipeline, clips: Clips, seed: int, batch_size: int) -> Pairs:
        """Clips encoded by a model's codec; the noise of clip k is that of seed + k."""
        count, frames, *size = clips.pixels.shape[:4]
        parts = [pipeline.encode(clips.pixels[k : k + batch_size]) for k in range(0, count, batch_size)]
        generators = make_generators(count, range(seed, seed + count), None)
        noise = pipeline.start_noise(generators, num_frames=frames, size=tuple(size))
        return cls(torch.cat(parts), noise, generators)

    def start(self, gamma: float) -> Tensor:
        """gamma·clean + (1 - gamma)·noise."""
        return interpolate(self.clean, self.noise, self.clean.new_full(self.clean.shape[:2], gamma))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, mix, sample, measure, write."""
    options = parse(arguments)
    claim_output(options.out, "partial")
    starts = [check_fraction("--start-gammas", gamma) for gamma in sorted(set(options.start_gammas))]
    pipelines = {path: open_model(options, path) for path in options.models}
    source = open_source(options, list(pipelines.values()))
    clips = source.read()
    labels = told_labels(options.labels, clips, list(pipelines.values()))
    pairs = {path: Pairs.of(one, clips, options.seed, options.batch_size) for path, one in pipelines.items()}
    measured, shown = {}, {}
    for path, variant in variants(pipelines):
        rows = []
        for gamma in tqdm(starts, desc=variant.name, unit="start", leave=False, disable=None):
            latents = denoise(variant, pairs[path], labels, gamma, options)
            pixels = variant.pipeline.decode(latents)
            rows.append(measure(clips, pixels, latents, pairs[path].clean))
            shown[variant.name, gamma] = pixels[0]
        measured[variant.name] = rows
    first, ours = pipelines[options.models[0]], pairs[options.models[0]]
    for gamma in starts:
        pixels = first.decode(ours.start(gamma))
        measured.setdefault(report.START, []).append(measure(clips, pixels, ours.start(gamma), ours.clean))
        shown[report.START, gamma] = pixels[0]
    numbers = {
        "settings": describe(options, pipelines, source, len(labels)),
        "start_gammas": starts,
        "measured": measured,
        "references": references(first, clips, ours.clean),
    }
    files.write_record(options.out / "partial.json", numbers)
    report.draw_curves(numbers, options.out / "partial.png")
    report.draw_examples(clips.pixels[0], shown, options.out / "partial_examples.png")
    print(
        report.table(numbers),
        f"look at {options.out}/partial.png, partial_examples.png; numbers: partial.json",
        sep="\n",
    )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video partial", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="exports, training runs or checkpoints, or hub ids")
    add_model(parser, positional=False)
    add("--data", type=Path, required=True, metavar="FOLDER", help="videos or images like those it was trained on")
    add_split(parser, SPLIT)
    add("--frame-interval", type=whole(1), metavar="K", help="of --data; default: by the fps of data and model")
    add("--clips", type=whole(2), default=64, metavar="N", help="at most; default: 64")
    add("--start-gammas", type=number(0), nargs="+", default=[0, 0.2, 0.4, 0.6, 0.8], metavar="G", help="in [0, 1)")
    add("--labels", choices=("none", "given"), default="none", help="tell the model the clips' labels; default: none")
    add("--steps", type=whole(1), metavar="N", help="of every descent, whatever its start; default: the model's")
    add("--guidance-scale", type=number(), metavar="S", help="with --labels given; default: the model's")
    add("--batch-size", type=whole(1), default=32, metavar="B", help="default: 32")
    add("--seed", type=whole(0), default=0, metavar="K", help="the noise of clip k has seed K + k; default: 0")
    return parser.parse_args(arguments)


# Models and clips ---------------------------------------------------------------------------------------------------


def open_source(options: argparse.Namespace, pipelines: Sequence[EqMPipeline]) -> Source:
    """The held-out clips; UserError where models differ in frames, size or rate."""
    asked = {(one.check_frames(), one.check_size(), one.config.fps) for one in pipelines}
    if len(asked) > 1:
        raise UserError(f"the models were trained on different clips (frames, size, fps): {sorted(asked)}")
    ((frames, size, fps),) = asked
    lists = choose_split(options, options.data, SPLIT)
    interval = options.frame_interval
    return Source(
        options.data, frames=frames, size=size, fps=fps, count=options.clips, frame_interval=interval, **lists
    )


def told_labels(asked: str, clips: Clips, pipelines: Sequence[EqMPipeline]) -> list[str | None]:
    """The clips' labels, or None for each; UserError where a model does not know one."""
    if asked == "none":
        return [None] * len(clips.labels)
    for pipeline in pipelines:
        if unknown := sorted({str(label) for label in clips.labels} - set(pipeline.labels.values())):
            raise UserError(f"a model does not know the label {unknown[0]!r} of the data: type --labels none")
    return clips.labels


def variants(pipelines: Mapping[str, EqMPipeline]) -> list[tuple[str, Variant]]:
    """The curves, and which model each is of. A flow model is integrated by Euler's method where it names a descent."""
    kinds = {path: "FM" if isinstance(one.decay, ConstantDecay) else "EqM" for path, one in pipelines.items()}
    found = []
    for path, pipeline in pipelines.items():
        kind, sampler = kinds[path], pipeline.rule()
        name = kind if list(kinds.values()).count(kind) == 1 else f"{kind} {path}"
        if kind == "FM" and not hasattr(sampler, "solve"):
            sampler = pipeline.rule("euler")
        knows = hasattr(sampler, "solve") or pipeline.transformer.config.conditioned_on_gamma
        for told in ("the start", "0") if knows else ("nothing",):
            found.append((path, Variant(f"{name}, told {told}", pipeline, sampler, told)))
    return found


# Sampling and measuring ---------------------------------------------------------------------------------------------


@torch.no_grad()
def denoise(
    variant: Variant, pairs: Pairs, labels: Sequence[str | None], gamma: float, options: argparse.Namespace
) -> Tensor:
    """Sample from the start at `gamma`, with what the variant is told; (N, T, C, h, w), in batches.

    As `pipeline(labels, clips=..., start_gamma=gamma)` does it, but for a start that is told wrongly. UserError where
    the descent diverges.
    """
    pipeline, sampler, start, found = variant.pipeline, variant.sampler, pairs.start(gamma), []
    steps = options.steps or pipeline.config.sampler["steps"]
    told, gammas = 0.0 if variant.told == "0" else gamma, None
    if pipeline.transformer.config.conditioned_on_gamma:
        gammas = told_gammas(pipeline.decay, sampler, steps, "constant", told, None)
    for first in range(0, len(start), options.batch_size):
        rows = slice(first, first + options.batch_size)
        field = pipeline.field(list(labels[rows]), num_frames=start.shape[1], guidance_scale=options.guidance_scale)
        scheduled = ScheduledField(field, steps, gammas)
        generators = [one.clone_state() for one in pairs.generators[rows]]  # every start meets the same numbers
        how = {"steps": steps, "start_gamma": told, "generators": generators}
        try:
            found.append(run(scheduled, start[rows], sampler, **how).latents)
        except DivergenceError as error:
            raise UserError(f"{variant.name}, from gamma {gamma:g}: {error}") from error
    return torch.cat(found)


def measure(clips: Clips, pixels: np.ndarray, latents: Tensor, clean: Tensor) -> dict[str, float]:
    """Means over the clips: latent RMS, PSNR in dB of 8-bit pixels, and how many show the label's motion and shape."""
    found = {
        "rms": float((latents - clean).square().mean(dim=(1, 2, 3, 4)).sqrt().mean()),
        "psnr": psnr(pixels, clips.pixels),
    }
    if MOVING_SHAPES.issuperset(clips.labels):
        shapes = [shape for shape in SHAPES if any(label.startswith(shape) for label in clips.labels)]
        shares = score_motion(pixels, clips.labels, shapes)
        found |= {"motion": float(shares["direction_accuracy"]), "shape": float(shares["shape_accuracy"])}
    return found


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the clips (N, T, H, W, 3) of 10·log10(255² / mean squared error), in dB; 100 at most."""
    errors = np.square(one.astype(np.float32) - other).mean(axis=(1, 2, 3, 4))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 255**2 / 1e10))))


def references(pipeline: EqMPipeline, clips: Clips, clean: Tensor) -> dict[str, dict[str, float]]:
    """What the codec alone loses, and how far another clip is, of another label where there is one."""
    other = clips.partners(0)
    return {
        "codec alone": measure(clips, pipeline.decode(clean), clean, clean),
        "another clip": measure(clips, clips.pixels[other], clean[other], clean),
    }


def describe(
    options: argparse.Namespace, pipelines: Mapping[str, EqMPipeline], source: Source, count: int
) -> dict[str, Any]:
    """For the record beside the numbers."""
    return {
        "models": {
            path: {
                "decay": variant.pipeline.config.decay,
                "told_gamma": variant.pipeline.transformer.config.conditioned_on_gamma,
                "sampler": describe_rule(variant.sampler),
                "steps": options.steps or variant.pipeline.config.sampler["steps"],
            }
            for path, variant in variants(pipelines)
        },
        "data": str(options.data),
        "split": options.split,
        "clips": count,
        "frames": source.frames,
        "frame_interval": source.data.frame_interval,
        "labels": options.labels,
        "guidance_scale": options.guidance_scale,
        "seed": options.seed,
    }
