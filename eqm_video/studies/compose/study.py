"""`python -m eqm_video compose MODEL --out DIR`: several labels, or several models, in one sample.

Fields can be added: f_null + sum of w (f_label - f_null) pulls a sample towards every label at once (the paper's Figure
11 adds plain fields, f_1 + f_2). --terms LABEL:WEIGHT ... names what is composed; `2/LABEL:WEIGHT` takes the label from
the first model of --with, and `none` is a model's unlabelled field. Where the weights sum to 1 nothing is added;
otherwise MODEL's unlabelled field fills them up to 1.

Without --terms all pairs of a model of single attributes are measured (Disc, Square and Right, Left, Down, Up, as
`compose --write-data FOLDER` writes them and configs/attributes.yaml learns them): how many samples of Disc + Left are
discs that move left, though no clip was ever labelled so.

Each composition stands beside its terms alone, beside their mean, and beside the plain sum, whose gradient is as many
times larger as there are terms, so that the same step size is a larger step.

Legend: N samples, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eqm_video.core.composition import ScheduledField
from eqm_video.data.moving_shapes import DIRECTIONS, SHAPES, score_motion, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.samplers import NAG, DivergenceError, GradientDescent, Sampler, run
from eqm_video.sampling.arguments import make_generators, told_gammas
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.compose.report import Sampled, draw_grid, draw_shares, report
from eqm_video.studies.request import Request, add_model, add_sampling, describe_rule, number, open_model
from eqm_video.studies.walk import FAR
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser

GREY = 128  # the level of clips that diverged
VIDEOS, HELD_OUT = 118, 12  # of each attribute: as many clips as the demo has in all


@dataclass(frozen=True)
class Term:
    """One summand: a label (None: unlabelled) of model number `model` (0 is MODEL), and its weight."""

    label: str | None
    weight: float
    model: int = 0

    @property
    def name(self) -> str:
        """As it is shown: the label, with its model's number where there are several."""
        label = "unlabelled" if self.label is None else self.label
        return f"{self.model + 1}/{label}" if self.model else label


@dataclass(frozen=True)
class Variant:
    """One way to sample a composition: `kind` is "composed", "mean", "plain sum" or "alone"."""

    kind: str
    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        """The terms' names."""
        return " + ".join(term.name for term in self.terms if term.label is not None or self.kind == "alone")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--write-data"]:
        return write_data(given)
    options = parse(given)
    claim_output(options.out, "compose")
    models = [open_model(options, path) for path in (options.model, *options.others)]
    if options.labels is not None:
        raise UserError("compose takes its labels from --terms: leave --labels out")
    options.labels = ["none"]
    request = Request.of(models[0], options)
    pairs = [parse_terms(options.terms, models)] if options.terms else attribute_pairs(models[0], options, request)
    found: list[Sampled] = []
    done: dict[Variant, tuple[np.ndarray, int]] = {}
    work = [(terms, variant) for terms in pairs for variant in variants(terms, models, request)]
    for terms, variant in tqdm(work, desc="compositions", unit="set", disable=None):
        if variant not in done:
            done[variant] = sample(models, request, variant, options)
        clips, diverged = done[variant]
        found.append(Sampled(kind_of(variant), variant.name, target(terms), clips, diverged))
    rows = [{**row(one, models), "composition": one.name} for one in found]
    record = {
        "settings": {
            "models": [str(path) for path in (options.model, *options.others)],
            **request.settings(),
            "sampler": describe_rule(models[0].rule(options.sampler, options.step_size, options.mu)),
            "steps": options.steps or models[0].config.sampler["steps"],
            "terms": [[asdict(term) for term in terms] for terms in pairs],
            "machine": machine.describe(models[0].device),
        },
        "rows": rows,
    }
    files.write_record(options.out / "compose.json", record)
    draw_grid(options.out / "compose.gif", found, float(models[0].config.fps), options.columns)
    drawn = draw_shares(options.out / "compose.png", rows)
    report(rows, options.out, drawn)
    return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m eqm_video compose",
        description=__doc__.splitlines()[0],
        epilog="compose --write-data FOLDER writes the moving shapes that configs/attributes.yaml learns.",
    )
    add_model(parser)
    add_sampling(parser, num_samples=64)
    add = parser.add_argument
    add("--terms", nargs="+", metavar="[M/]LABEL:WEIGHT", help="what is composed; default: all pairs of attributes")
    add("--with", nargs="+", dest="others", default=[], metavar="MODEL2", help="models 2, 3 ... of the terms")
    add("--weight", type=number(), metavar="W", help="of each attribute of a pair; default: the model's guidance scale")
    add("--columns", type=int, default=4, metavar="K", help="samples of each kind in a row of compose.gif; default: 4")
    options = parser.parse_args(given)
    if options.weight is not None and options.terms:
        raise UserError("--weight is for the pairs of attributes; a term brings its own, LABEL:WEIGHT")
    return options


def write_data(given: Sequence[str]) -> int:
    """`compose --write-data FOLDER`: moving shapes filed under single attributes, to train configs/attributes.yaml."""
    parser = Parser(prog="python -m eqm_video compose")
    parser.add_argument("--write-data", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args(given).write_data
    write_moving_shapes(folder, attributes=True, videos=VIDEOS, held_out=HELD_OUT)
    print(f"moving shapes under single attributes are in {folder}; train on them with configs/attributes.yaml")
    return 0


# What is composed ---------------------------------------------------------------------------------------------------


def parse_terms(words: Sequence[str], models: Sequence[EqMPipeline]) -> tuple[Term, ...]:
    """`Disc:2`, `2/DiscLeft:1`, `none:-1`; UserError for what is no term of these models."""
    terms = []
    for word in words:
        place, slash, rest = word.partition("/")
        if not slash or not place.isdecimal():  # a label may hold a slash
            place, rest = "1", word
        label, colon, weight = rest.rpartition(":")
        try:
            term = Term(None if label == "none" else label, float(weight), int(place) - 1)
        except ValueError as error:
            raise UserError(f"--terms {word!r} is not [M/]LABEL:WEIGHT, such as Disc:2 or 2/DiscLeft:1") from error
        if not colon or not np.isfinite(term.weight):
            raise UserError(f"--terms {word!r} is not [M/]LABEL:WEIGHT, such as Disc:2 or 2/DiscLeft:1")
        if not 0 <= term.model < len(models):
            raise UserError(
                f"--terms {word!r} asks for model {place}, but there are {len(models)}: name it after --with"
            )
        models[term.model].label_ids([term.label])
        terms.append(term)
    return tuple(terms)


def attribute_pairs(pipeline: EqMPipeline, options: argparse.Namespace, request: Request) -> list[tuple[Term, ...]]:
    """Every shape with every direction that the model has as labels of their own."""
    names = set(pipeline.labels.values())
    weight = request.guidance_scale if options.weight is None else options.weight
    pairs = [(shape, way) for shape in SHAPES for way in DIRECTIONS if {shape, way} <= names]
    if not pairs:
        raise UserError(
            "this model has no labels of single attributes (such as Disc and Left): say what to compose, for instance "
            f"--terms {' '.join(f'{name}:1' for name in sorted(names)[:2]) or '0:1 1:1'}"
        )
    return [tuple(Term(label, weight) for label in pair) for pair in pairs]


def variants(terms: tuple[Term, ...], models: Sequence[EqMPipeline], request: Request) -> list[Variant]:
    """The terms alone, their composition, their mean, and their plain sum."""
    labelled = tuple(term for term in terms if term.label is not None)
    alone = [Variant("alone", (Term(term.label, request.guidance_scale, term.model),)) for term in labelled]
    equal = tuple(Term(term.label, 1 / max(len(labelled), 1), term.model) for term in labelled)
    plain = tuple(Term(term.label, 1.0, term.model) for term in labelled)
    result = [*alone, Variant("composed", terms)]
    if len(labelled) > 1:
        result += [Variant("mean", equal), Variant("plain sum", plain)]
    return result


def kind_of(variant: Variant) -> str:
    """How a variant is called in tables: of a single attribute, which one."""
    if variant.kind != "alone" or variant.terms[0].label not in (*SHAPES, *DIRECTIONS):
        return variant.kind
    return "shape alone" if variant.terms[0].label in SHAPES else "direction alone"


def target(terms: Sequence[Term]) -> str | None:
    """What samples shall show, such as DiscLeft; None where the terms name no shape and direction, or two of a kind."""
    labels = [term.label for term in terms if term.label is not None and term.weight > 0]
    shapes = {shape for shape in SHAPES for label in labels if label.startswith(shape)}
    ways = {way for way in DIRECTIONS for label in labels if label.endswith(way)}
    return shapes.pop() + ways.pop() if len(shapes) == len(ways) == 1 else None


# Sampling -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    models: Sequence[EqMPipeline], request: Request, variant: Variant, options: argparse.Namespace
) -> tuple[np.ndarray, int]:
    """Clips (N, T, H, W, 3) of one variant, and how many of them diverged (those are grey)."""
    first, clips, lost = models[0], [], 0
    sampler = first.rule(options.sampler, options.step_size, options.mu)
    steps = options.steps or first.config.sampler["steps"]
    told = told_of(models, variant, sampler, steps)
    for batch in request.batches():
        generators = make_generators(len(request.seeds[batch]), request.seeds[batch], None)
        noise = first.start_noise(generators, num_frames=request.frames, size=request.size)
        scheduled = ScheduledField(field(models, request, variant, len(noise)), steps, told)
        try:
            latents = run(scheduled, noise, sampler, steps=steps, generators=generators).latents
        except DivergenceError:
            latents = torch.full_like(noise, torch.inf)
        gone = ~(latents.flatten(1).square().mean(1).sqrt() < FAR)
        lost += int(gone.sum())
        pixels = first.decode(latents.masked_fill(gone.view(-1, 1, 1, 1, 1), 0))
        pixels[gone.cpu().numpy()] = GREY
        clips.append(pixels)
    return np.concatenate(clips), lost


def told_of(models: Sequence[EqMPipeline], variant: Variant, sampler: Sampler, steps: int) -> Tensor | None:
    """What networks that are told gamma are told at each step, (steps,); None where none is, and for solvers.

    It is the closed form of one decay, along which a plain sum of fields goes as many times faster as it has terms.
    UserError where models that are composed disagree about the decay, or for a sampler without a closed form.
    """
    pipelines = list({term.model: models[term.model] for term in variant.terms}.values())
    if variant.kind == "composed":
        pipelines = list({id(one): one for one in (models[0], *pipelines)}.values())  # its unlabelled field fills up
    if hasattr(sampler, "solve") or not any(one.transformer.config.conditioned_on_gamma for one in pipelines):
        return None
    if any(one.config.decay != pipelines[0].config.decay for one in pipelines):
        raise UserError(
            "a model that is told gamma cannot be descended together with one of another decay: type --sampler euler, "
            "or compose models of one decay"
        )
    if variant.kind == "plain sum" and isinstance(sampler, (GradientDescent, NAG)):
        sampler = replace(sampler, step_size=len(variant.terms) * sampler.step_size)
    return told_gammas(pipelines[0].decay, sampler, steps, "constant", 0.0, None)


def field(models: Sequence[EqMPipeline], request: Request, variant: Variant, count: int) -> Any:
    """The gradient of a variant for `count` samples."""
    if variant.kind == "alone":
        (term,) = variant.terms
        return models[term.model].field(
            [term.label] * count, num_frames=request.frames, guidance_scale=request.guidance_scale
        )
    terms = [(term.label, term.weight, models[term.model]) for term in variant.terms]
    return models[0].composed_field(terms, count, plain_sum=variant.kind == "plain sum", num_frames=request.frames)


def row(one: Sampled, models: Sequence[EqMPipeline]) -> dict[str, Any]:
    """One line of the table; shares only where the composition says what is to be seen."""
    named = {name for model in models for name in model.labels.values()}
    shapes = tuple(shape for shape in SHAPES if any(name.startswith(shape) for name in named))
    result: dict[str, Any] = {"kind": one.kind, "target": one.target, "diverged": one.diverged}
    if one.target is not None:
        result |= score_motion(one.clips, [one.target] * len(one.clips), shapes)
    return result
