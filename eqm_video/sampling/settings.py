"""`Sampling`: how samples are made. The pipeline's keywords, `eqm-video sample` and samples.json are made from it."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.limits import MOST_UPDATES
from eqm_video.options import option
from eqm_video.samplers import FRAME_SCHEDULES, SAMPLERS, SCHEDULES, Sampler, Schedule
from eqm_video.sampling.arguments import default_steps

IN_THE_RULE = ("step_size", "mu", "temperature")  # numbers that a sampler given as an object brings


def read_frame_schedule(text: str) -> str | int:
    """A name of `FRAME_SCHEDULES`, or a number of steps; ValueError for anything else."""
    return text if text in FRAME_SCHEDULES else int(text) if text.isdecimal() else int("")


def read_term(text: str) -> tuple[str, float]:
    """LABEL:WEIGHT, a label of any name and a number; without :WEIGHT the weight is 1."""
    label, colon, weight = text.rpartition(":")
    return (label, _finite(weight)) if colon else (text, 1.0)


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= 1e9:
        raise ValueError(text)
    return value


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are made, whatever is sampled.

    What is None comes from the model's own settings. steps: number of updates. sampler: a name in `samplers.SAMPLERS`,
    or an object such as `NAG(0.003, 0.35)`, which brings its own numbers. step_size: eta, or "auto" where the model's
    curvature was measured. mu: of nag. temperature: of langevin. step_schedule: "constant", "linear", "cosine", or
    (step, steps) -> factor of eta. guidance_scale: 1 is the plain labelled field, 0 the unlabelled one.
    guidance_interval, match_norm: see `GuidedField`. composition, plain_sum: terms instead of labels, see
    `composed_field`. tolerance: a clip stops once the gradient's RMS is below it in every frame; with per_frame each
    frame by itself. start_gamma, context_gamma, history_guidance: of clips and known frames, see `EqMPipeline`.
    frame_schedule: "joint", "pyramid", "autoregressive", or the steps between the starts of two unknown frames; every
    frame makes `steps` updates of its own.
    """

    title: ClassVar[str] = "how to descend"
    steps: int | None = option(
        None, least=0, most=MOST_UPDATES, metavar="N", help="updates of a descent", unset="the model's; 12 of multistep"
    )
    sampler: str | Sampler | None = option(
        None,
        choices=tuple(SAMPLERS),
        metavar="KIND",
        help="nag, multistep (few steps), gd, ...",
        unset="the model's",
    )
    step_size: float | str | None = option(
        None, above=0, words=("auto",), metavar="E", help="eta, or auto (curvature --write first)", unset="the model's"
    )
    mu: float | None = option(
        None, least=0, below=1, metavar="M", help="look-ahead of nag, in [0, 1)", unset="the model's"
    )
    temperature: float | None = option(None, least=0, metavar="T", help="of langevin", unset="the sampler's", rare=True)
    guidance_scale: float | None = option(None, metavar="S", help="1 = no guidance", unset="the model's")
    step_schedule: str | Schedule = option("constant", choices=tuple(SCHEDULES), help="of the step size", rare=True)
    guidance_interval: tuple[float, float] | None = option(
        None, least=0, most=1, metavar=("FIRST", "LAST"), help="guide this part: 0 0.5 is early", rare=True
    )
    match_norm: bool = option(False, help="guidance keeps the norm of the labelled gradient", rare=True)
    composition: tuple[Any, ...] | None = option(
        None,
        flag="--compose",
        free=True,
        read=read_term,
        kind="LABEL:WEIGHT, such as Disc:2",
        metavar="LABEL:WEIGHT",
        help="all these labels at once, instead of --labels",
    )
    plain_sum: bool = option(
        False, help="compose as the paper does: the fields' sum, without the unlabelled one", rare=True
    )
    tolerance: float | None = option(None, above=0, metavar="R", help="the gradient's RMS below which a clip stops")
    per_frame: bool = option(False, help="every frame comes to rest by itself")
    start_gamma: float = option(
        0.0, least=0, below=1, metavar="G", help="how clean unknown frames start: 0 = noise, 1 = the clip"
    )
    frame_schedule: str | int = option(
        "joint",
        read=read_frame_schedule,
        kind=f"one of {', '.join(FRAME_SCHEDULES)}, or a number of steps",
        metavar="KIND",
        help="joint, pyramid, autoregressive, or a delay in steps",
    )
    context_gamma: float = option(
        1.0, above=0, most=1, metavar="G", help="show the network known frames this clean", rare=True
    )
    history_guidance: float = option(1.0, metavar="S", help="weight of what known frames say; 1 = none", rare=True)

    def __post_init__(self) -> None:
        options.check(self, prefix="")
        for one in fields(self):  # numpy's numbers, which JSON and torch do not know
            value = getattr(self, one.name)
            if isinstance(value, numbers.Real) and not isinstance(value, int | float):
                plain = int(value) if isinstance(value, numbers.Integral) else float(value)
                object.__setattr__(self, one.name, plain)

    @classmethod
    def of(cls, chosen: Any, **others: Any) -> Sampling:
        """The part of some options that says how samples are made, with `others` in place of theirs."""
        return cls(**{one.name: getattr(chosen, one.name) for one in fields(cls) if hasattr(chosen, one.name)} | others)

    @classmethod
    def split(cls, keywords: Mapping[str, Any], how: Sampling | None = None) -> tuple[Sampling, dict[str, Any]]:
        """The keywords of a call that are of this class, as one (or `how` in their place), and the others."""
        own = {one.name: keywords[one.name] for one in fields(cls) if one.name in keywords}
        if how is not None and own:
            raise UserError(f"give how, or its fields, not both: {', '.join(own)}")
        others = {key: value for key, value in keywords.items() if key not in own}
        return (cls(**own) if how is None else how), others

    def call(self) -> Sampling:
        """As a call takes it: a composition is its own guidance."""
        plain = {"guidance_scale": None, "guidance_interval": None, "match_norm": False}
        return self if self.composition is None else replace(self, **plain)

    @property
    def steepness(self) -> float | None:
        """How steep the field is, in units of a labelled one: the guidance scale, or the weights of a composition."""
        if self.composition is None:
            return self.guidance_scale
        return sum(abs(float(term[1])) for term in self.composition)

    @property
    def plain(self) -> list[float] | None:
        """The weights of a plain sum of fields; None for guidance, and for a composition about the unlabelled field."""
        summed = self.plain_sum and self.composition is not None
        return [float(term[1]) for term in self.composition] if summed else None

    def on(self, pipeline: Any) -> Sampling:
        """The same, of this model: its own settings filled in, the sampler an object. Does nothing a second time."""
        own = pipeline.config.sampler
        steps = default_steps(own, self.sampler) if self.steps is None else self.steps
        more = {"temperature": self.temperature, "steps": steps, "guidance_scale": self.steepness, "plain": self.plain}
        rule = pipeline.rule(self.sampler, self.step_size, self.mu, step_schedule=self.step_schedule, **more)
        scale = own["guidance_scale"] if self.guidance_scale is None else self.guidance_scale
        return replace(self, steps=steps, sampler=rule, guidance_scale=float(scale), **dict.fromkeys(IN_THE_RULE))

    def record(self) -> dict[str, Any]:
        """For samples.json, of what `on` returns: what is not used is left out."""
        kind = next(name for name, sampler in SAMPLERS.items() if type(self.sampler) is sampler)
        sampler = {"kind": kind, **asdict(self.sampler)}
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {"steps": self.steps, "sampler": sampler, "guidance_scale": self.guidance_scale} | {
            name: value for name, value in given.items() if name not in ("steps", "sampler", "guidance_scale")
        }


def with_sampling(function: Callable) -> inspect.Signature:
    """The signature of a function (self, how, ...) with the fields of `Sampling` as keywords in place of `how`."""
    first, _, *others = inspect.signature(function).parameters.values()
    how = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Sampling)
    ]
    return inspect.Signature([first, *others, *how], return_annotation=inspect.signature(function).return_annotation)
