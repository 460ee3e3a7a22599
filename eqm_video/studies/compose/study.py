"""Several labels, or several models, in one sample.

Legend: N samples, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eqm_video import options
from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import Decay, ScaledDecay
from eqm_video.data.moving_shapes import DIRECTIONS, SHAPES, score_motion, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.samplers import NAG, DivergenceError, GradientDescent, Sampler, knows_gamma, run
from eqm_video.sampling.arguments import default_steps, make_generators, step_gammas
from eqm_video.sampling.option_groups import Columns, Ruled, Stepping
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.compose import report
from eqm_video.studies.compose.report import Samples
from eqm_video.studies.compose.terms import WRITE_DATA, Term, read_term
from eqm_video.studies.request import Request, describe_rule
from eqm_video.studies.study import Report, Sampled
from eqm_video.studies.walk import FAR
from eqm_video.system import machine, waits

GREY = 128  # the level of clips that diverged
VIDEOS, HELD_OUT = 118, 12  # of each attribute: as many clips as the demo has in all


@dataclass(frozen=True)
class Variant:
    """A way to sample a composition: `kind` is "composed", "mean", "plain sum" or "alone"."""

    kind: str
    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        """The names of the terms, joined by +."""
        return " + ".join(term.name for term in self.terms if term.label is not None or self.kind == "alone")


@dataclass(frozen=True, kw_only=True)
class DataToWrite:
    """Write moving shapes filed under single attributes, the data of the recipe attributes."""

    write_data: Path = option(metavar="FOLDER", help="a new folder for the videos")


@dataclass(frozen=True, kw_only=True)
class Compose(Sampled, Ruled, Stepping, Columns, group="look"):
    """Several labels, or several models, in one sample.

    Fields can be added: f_null + sum of w (f_label - f_null) pulls a sample towards all labels at once (the paper's
    Figure 11 adds plain fields, f_1 + f_2). --terms LABEL:WEIGHT ... names the summands; `2/LABEL:WEIGHT` takes the
    label from the first model of --with, and `none` is a model's unlabelled field. Weights that sum to 1 are used
    unchanged; otherwise MODEL's unlabelled field gets the rest.

    Without --terms all pairs of a model of single attributes are measured (Disc, Square and Right, Left, Down, Up, as
    the recipe `attributes` learns them): how many samples of Disc + Left are discs that move left, although no clip was
    ever labelled so. `compose --write-data FOLDER` writes the videos to train such a model.

    Each composition is compared with its terms alone, their mean, and their plain sum. The gradient of a plain sum of n
    terms is n times larger, so the same step size makes a larger step.
    """

    elsewhere: ClassVar[tuple[str, ...]] = (WRITE_DATA,)
    num_samples: int = 64
    labels: tuple[str, ...] | None = ("none",)
    step_size: float | None = narrower(None, words=())
    terms: tuple[Term, ...] | None = option(
        None,
        free=True,
        read=read_term,
        kind="[M/]LABEL:WEIGHT, such as Disc:2 or 2/DiscLeft:1",
        metavar="[M/]LABEL:WEIGHT",
        help="labels to compose, each with its weight",
        unset="all pairs of attributes",
    )
    others: tuple[str, ...] = option((), flag="--with", metavar="MODEL2", help="the models 2, 3 ... that terms name")
    weight: float | None = option(
        None, metavar="W", help="weight of each attribute of a pair", unset="the model's guidance scale"
    )
    columns: int | None = 4

    @classmethod
    def main(cls, words: Sequence[str]) -> int:
        """Run the command. `compose --write-data FOLDER` writes data and needs no model."""
        if words[:1] and words[0].partition("=")[0] == WRITE_DATA:
            return write_data(words)
        return super().main(words)

    def check(self) -> None:
        """UserError for --labels, and for --weight beside --terms: terms have labels and weights."""
        if self.labels != ("none",):
            raise UserError("compose takes its labels from --terms: leave --labels out")
        if self.weight is not None and self.terms:
            raise UserError(
                "--weight is for the pairs of attributes; a term has its own weight, LABEL:WEIGHT: leave --weight out"
            )

    def paths(self) -> Sequence[str | Path]:
        """MODEL, and the models of --with."""
        return (self.model, *self.others)

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table by name: means. composed: the share of composed samples that show both attributes."""
        if not (means := report.means(numbers["rows"])):
            return {}
        share = f"{100 * means['composed']['both_accuracy']:.0f} %"
        return {"means": report.mean_table(numbers["rows"]), "composed": share}

    def run(self, *models: EqMPipeline) -> Report:
        """Sample every variant of every composition once, and judge the samples."""
        first, request = models[0], self.request(models[0])
        pairs = [check_terms(self.terms, models)] if self.terms else attribute_pairs(first, self.weight, request)
        every: list[Samples] = []
        done: dict[Variant, tuple[np.ndarray, int]] = {}
        work = [(terms, variant) for terms in pairs for variant in variants(terms, request)]
        for terms, variant in waits.bar(work, "compositions", unit="set"):
            if variant not in done:
                done[variant] = self.sample(models, request, variant)
            clips, diverged = done[variant]
            every.append(Samples(kind_of(variant), variant.name, target(terms), clips, diverged))
        rows = [{**row(samples, models), "composition": samples.name} for samples in every]
        numbers = {
            "settings": {
                "models": [str(path) for path in self.paths()],
                **request.settings(),
                "sampler": describe_rule(self.rule(first)),
                "steps": self.steps or default_steps(first.config.sampler, self.rule(first)),
                "terms": [[asdict(term) for term in terms] for terms in pairs],
                "machine": machine.describe(first.device),
            },
            "rows": rows,
        }
        fps = float(first.config.fps)
        pictures = {"compose.gif": lambda path: report.draw_grid(path, every, fps, self.columns)}
        if report.means(rows):
            pictures["compose.png"] = lambda path: report.draw_shares(path, rows)
        return Report(numbers, report.table(rows), pictures)

    def rule(self, pipeline: EqMPipeline) -> Sampler:
        """The sampler of the options; the model's own numbers fill gaps."""
        return pipeline.rule(self.sampler, self.step_size, self.mu)

    @torch.no_grad()
    def sample(self, models: Sequence[EqMPipeline], request: Request, variant: Variant) -> tuple[np.ndarray, int]:
        """Clips (N, T, H, W, 3) of a variant, and the number of clips that diverged, which are grey."""
        first, clips, lost = models[0], [], 0
        sampler = self.rule(first)
        steps = self.steps or default_steps(first.config.sampler, sampler)
        gammas = network_gammas(models, variant, sampler, steps)
        how = {"steps": steps, "decay": field_decay(models, variant, sampler)}
        for batch in waits.bar(request.batches(), "sampling", unit="batch"):
            generators = make_generators(len(request.seeds[batch]), request.seeds[batch], None)
            noise = first.start_noise(generators, num_frames=request.frames, size=request.size)
            scheduled = ScheduledField(field(models, request, variant, len(noise)), steps, gammas)
            try:
                latents = run(scheduled, noise, sampler, generators=generators, **how).latents
            except DivergenceError:
                latents = torch.full_like(noise, torch.inf)
            gone = ~(latents.flatten(1).square().mean(1).sqrt() < FAR)
            lost += int(gone.sum())
            pixels = first.decode(latents.masked_fill(gone.view(-1, 1, 1, 1, 1), 0))
            pixels[gone.cpu().numpy()] = GREY
            clips.append(pixels)
        return np.concatenate(clips), lost


def write_data(words: Sequence[str]) -> int:
    """`compose --write-data FOLDER`: moving shapes filed under single attributes, to train the recipe `attributes`."""
    folder = options.parse(DataToWrite, words, prog="eqm-video compose").write_data
    write_moving_shapes(folder, attributes=True, videos=VIDEOS, held_out=HELD_OUT)
    print(f"moving shapes under single attributes are in {folder}")
    print(f"train on them with eqm-video train --config attributes data.root={shlex.quote(str(folder))}")
    return 0


# Compositions -------------------------------------------------------------------------------------------------------


def check_terms(terms: tuple[Term, ...], models: Sequence[EqMPipeline]) -> tuple[Term, ...]:
    """`terms` themselves; UserError where a model, or a label of a model, does not exist."""
    for term in terms:
        if not 0 <= term.model < len(models):
            raise UserError(
                f"--terms {term} asks for model {term.model + 1}, but there are {len(models)}: name it after --with"
            )
        models[term.model].label_ids([term.label])
    return terms


def attribute_pairs(pipeline: EqMPipeline, weight: float | None, request: Request) -> list[tuple[Term, ...]]:
    """All pairs of a shape and a direction that are labels of the model; UserError if there are none."""
    names = set(pipeline.labels.values())
    weight = request.guidance_scale if weight is None else weight
    pairs = [(shape, way) for shape in SHAPES for way in DIRECTIONS if {shape, way} <= names]
    if not pairs:
        raise UserError(
            "this model has no labels of single attributes (such as Disc and Left): give the terms, for "
            f"instance --terms {' '.join(f'{name}:1' for name in sorted(names)[:2]) or '0:1 1:1'}"
        )
    return [tuple(Term(label, weight) for label in pair) for pair in pairs]


def variants(terms: tuple[Term, ...], request: Request) -> list[Variant]:
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
    """The kind of a variant in tables: a single attribute is a "shape alone" or a "direction alone"."""
    if variant.kind != "alone" or variant.terms[0].label not in (*SHAPES, *DIRECTIONS):
        return variant.kind
    return "shape alone" if variant.terms[0].label in SHAPES else "direction alone"


def target(terms: Sequence[Term]) -> str | None:
    """The label that samples should show, such as DiscLeft; None unless terms name one shape and one direction."""
    labels = [term.label for term in terms if term.label is not None and term.weight > 0]
    shapes = {shape for shape in SHAPES for label in labels if label.startswith(shape)}
    ways = {way for way in DIRECTIONS for label in labels if label.endswith(way)}
    return shapes.pop() + ways.pop() if len(shapes) == len(ways) == 1 else None


# Fields -------------------------------------------------------------------------------------------------------------


def network_gammas(models: Sequence[EqMPipeline], variant: Variant, sampler: Sampler, steps: int) -> Tensor | None:
    """Gamma at each step (steps,), the input of networks conditioned on gamma; None for other networks and for solvers.

    Gamma follows the closed form of the decay; a plain sum of n terms moves n times faster along it. UserError for
    models with different decays, and for a sampler without a closed form.
    """
    pipelines = _networks(models, variant)
    if knows_gamma(sampler) or not any(each.transformer.config.conditioned_on_gamma for each in pipelines):
        return None
    if any(each.config.decay != pipelines[0].config.decay for each in pipelines):
        raise UserError(
            "a model that is conditioned on gamma cannot be descended together with a model of another decay: type "
            "--sampler euler, or compose models of the same decay"
        )
    if variant.kind == "plain sum" and isinstance(sampler, (GradientDescent, NAG)):
        sampler = replace(sampler, step_size=len(variant.terms) * sampler.step_size)
    return step_gammas(pipelines[0].decay, sampler, steps, "constant", 0.0, None)


def field_decay(models: Sequence[EqMPipeline], variant: Variant, sampler: Sampler) -> Decay | None:
    """The c(gamma) of a variant's field, a plain sum of n fields having n times that of one; None where none is needed.

    UserError where a sampler that needs it finds models of several decays.
    """
    pipelines = _networks(models, variant)
    if not getattr(sampler, "needs_route", False) or pipelines[0].decay is None:
        return None
    if any(each.config.decay != pipelines[0].config.decay for each in pipelines):
        raise UserError(
            f"{sampler!r} divides the field by one decay, and these models have several: type --sampler nag, or "
            "compose models of one decay"
        )
    decay = pipelines[0].decay
    return ScaledDecay(decay, float(len(variant.terms))) if variant.kind == "plain sum" else decay


def _networks(models: Sequence[EqMPipeline], variant: Variant) -> list[EqMPipeline]:
    """The models of a variant's terms, each once; of a composition the first model too, whose unlabelled field acts."""
    pipelines = list({term.model: models[term.model] for term in variant.terms}.values())
    if variant.kind == "composed":
        return list({id(pipeline): pipeline for pipeline in (models[0], *pipelines)}.values())
    return pipelines


def field(models: Sequence[EqMPipeline], request: Request, variant: Variant, count: int) -> Any:
    """The field of a variant for `count` samples."""
    if variant.kind == "alone":
        (term,) = variant.terms
        return models[term.model].field(
            [term.label] * count, num_frames=request.frames, guidance_scale=request.guidance_scale
        )
    terms = [(term.label, term.weight, models[term.model]) for term in variant.terms]
    return models[0].composed_field(terms, count, plain_sum=variant.kind == "plain sum", num_frames=request.frames)


def row(samples: Samples, models: Sequence[EqMPipeline]) -> dict[str, Any]:
    """A line of the table. It has shares only if the samples have a target."""
    named = {name for model in models for name in model.labels.values()}
    shapes = tuple(shape for shape in SHAPES if any(name.startswith(shape) for name in named))
    result: dict[str, Any] = {"kind": samples.kind, "target": samples.target, "diverged": samples.diverged}
    if samples.target is not None:
        result |= score_motion(samples.clips, [samples.target] * len(samples.clips), shapes)
    return result
