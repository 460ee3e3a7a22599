"""`Sampling`: the settings of a descent, declared once for the pipeline, `eqm-video sample` and samples.json."""

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
from eqm_video.samplers import FRAME_SCHEDULES, SAMPLERS, SCHEDULES, ClosedLoop, Sampler, Schedule
from eqm_video.samplers.closed_loop import LearnedLoop
from eqm_video.samplers.warp import FORMS, Warp, read_warp, warp_text
from eqm_video.sampling.arguments import default_steps
from eqm_video.sampling.option_words import read_term

LOOPS = ("field", "readout")  # what a closed loop reads the levels from
IN_THE_RULE = ("step_size", "mu", "temperature")  # numbers that belong to a sampler object


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings of a descent, the same for clips, images, predictions and long videos.

    Fields that are None take the model's own settings. steps: number of updates. sampler: a name in
    `samplers.SAMPLERS`, or an object such as `NAG(0.003, 0.35)`, which brings its own numbers. step_size: eta, or
    "auto" if the model's curvature was measured. mu: the look-ahead factor of nag. temperature: that of langevin.
    step_schedule: "constant", "linear", "cosine", or (step, steps) -> factor of eta. guidance_scale: 1 is the plain
    labelled field, 0 the unlabelled one. guidance_interval, match_norm: see `GuidedField`. composition, plain_sum:
    terms instead of labels, see `composed_field`. tolerance: a clip stops once the gradient's RMS is below it in every
    frame; with per_frame each frame stops by itself. start_gamma, context_gamma, history_guidance: for clips and known
    frames, see `EqMPipeline`. frame_schedule: "joint", "pyramid", "autoregressive", or the steps between the starts of
    two unknown frames; every frame makes `steps` updates of its own. warp: the spread of the steps over
    gamma, a text such as "shift:3" or an object such as `Shift(3.0)`; with it gd, nag, euler and heun follow the
    velocity f / c(gamma) to gamma = 1. closed_loop: "field", "readout", or a `ClosedLoop` with other variances: every
    frame's level is corrected at every step, and the rest of its way shared by the steps that are left; for multistep,
    and for gd and nag with a warp. loop: frames on a ring, see `core.ring.RingField`.
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
        None,
        above=0,
        words=("auto",),
        metavar="E",
        help="step size eta, or auto (run curvature --write first)",
        unset="the model's",
    )
    mu: float | None = option(None, least=0, below=1, metavar="M", help="look-ahead of nag", unset="the model's")
    temperature: float | None = option(
        None, least=0, metavar="T", help="temperature of langevin", unset="the sampler's", rare=True
    )
    guidance_scale: float | None = option(None, metavar="S", help="guidance; 1 = none", unset="the model's")
    step_schedule: str | Schedule = option(
        "constant", choices=tuple(SCHEDULES), help="schedule of the step size", rare=True
    )
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
        help="sample all these labels at once, instead of --labels",
    )
    plain_sum: bool = option(
        False, help="compose as the paper does: the fields' sum, without the unlabelled one", rare=True
    )
    tolerance: float | None = option(None, above=0, metavar="R", help="the gradient's RMS below which a clip stops")
    per_frame: bool = option(False, help="every frame stops by itself")
    start_gamma: float = option(
        0.0, least=0, below=1, metavar="G", help="gamma of unknown frames at the start: 0 = noise"
    )
    frame_schedule: str | int = option(
        "joint",
        least=0,
        words=FRAME_SCHEDULES,
        metavar="KIND",
        help="joint, pyramid, autoregressive, or a delay in steps",
    )
    context_gamma: float = option(
        1.0, above=0, most=1, metavar="G", help="gamma at which the network sees known frames", rare=True
    )
    history_guidance: float = option(1.0, metavar="S", help="guidance scale of the known frames; 1 = none", rare=True)
    warp: str | Warp | None = option(
        None,
        read=read_warp,
        kind=FORMS,
        metavar="KIND",
        help="steps along gamma, in place of a step size: identity, shift:R, logsnr:MAX,MIN, decay:KIND",
        unset="equal steps for multistep, none for others",
        rare=True,
    )
    closed_loop: str | ClosedLoop | None = option(
        None,
        choices=LOOPS,
        metavar="KIND",
        help="correct each frame's level at every step, by its gradient (field), or a learned readout",
        unset="off",
        rare=True,
    )

    loop: bool = option(False, help="the last frame meets the first: a seamless loop", rare=True)

    def __post_init__(self) -> None:
        options.check(self, prefix="")
        if isinstance(self.warp, str):
            object.__setattr__(self, "warp", _as_warp(self.warp))
        for entry in fields(self):  # JSON and torch do not know numpy's numbers
            value = getattr(self, entry.name)
            if isinstance(value, numbers.Real) and not isinstance(value, int | float):
                plain = int(value) if isinstance(value, numbers.Integral) else float(value)
                object.__setattr__(self, entry.name, plain)

    @classmethod
    def of(cls, chosen: Any, **others: Any) -> Sampling:
        """The fields of this class that `chosen` (the options of a command) has; `others` replace some of them."""
        own = {entry.name: getattr(chosen, entry.name) for entry in fields(cls) if hasattr(chosen, entry.name)}
        return cls(**own | others)

    @classmethod
    def split(cls, keywords: Mapping[str, Any], how: Sampling | None = None) -> tuple[Sampling, dict[str, Any]]:
        """(`Sampling`, other keywords) of a call.

        `how` may stand in place of this class's fields; UserError for both.
        """
        own = {entry.name: keywords[entry.name] for entry in fields(cls) if entry.name in keywords}
        if how is not None and own:
            raise UserError(f"give how, or its fields, not both: {', '.join(own)}")
        others = {key: value for key, value in keywords.items() if key not in own}
        return (cls(**own) if how is None else how), others

    def call(self) -> Sampling:
        """These settings for a pipeline call: without guidance beside a composition, whose weights take its place."""
        plain = {"guidance_scale": None, "guidance_interval": None, "match_norm": False}
        return self if self.composition is None else replace(self, **plain)

    @property
    def steepness(self) -> float | None:
        """Steepness in units of a labelled field: the guidance scale, or the sum of a composition's |weights|."""
        if self.composition is None:
            return self.guidance_scale
        return sum(abs(float(term[1])) for term in self.composition)

    @property
    def plain(self) -> list[float] | None:
        """The weights of a plain sum of fields; None for guidance, and for a composition with an unlabelled field."""
        summed = self.plain_sum and self.composition is not None
        return [float(term[1]) for term in self.composition] if summed else None

    def on(self, pipeline: Any) -> Sampling:
        """These settings with the model's own filled in and the sampler as an object. A second call changes nothing."""
        own = pipeline.config.sampler
        if self.warp is not None and (self.step_size is not None or self.step_schedule != "constant"):
            raise UserError(
                "a warp says how long every step is: leave step_size and step_schedule out (--step-size, "
                "--step-schedule), or the warp"
            )
        steps = default_steps(own, self.sampler) if self.steps is None else self.steps
        more = {"temperature": self.temperature, "steps": steps, "guidance_scale": self.steepness, "plain": self.plain}
        rule = pipeline.rule(self.sampler, self.step_size, self.mu, step_schedule=self.step_schedule, **more)
        scale = own["guidance_scale"] if self.guidance_scale is None else self.guidance_scale
        filled = {"guidance_scale": float(scale), "closed_loop": self.closed(rule)}
        return replace(self, steps=steps, sampler=rule, **filled, **dict.fromkeys(IN_THE_RULE))

    def closed(self, rule: Sampler) -> ClosedLoop | None:
        """The closed loop of a descent by `rule`. UserError for a rule that does not step by levels."""
        named = {"field": ClosedLoop(), "readout": LearnedLoop()}
        loop = named.get(self.closed_loop, self.closed_loop) if isinstance(self.closed_loop, str) else self.closed_loop
        if loop is not None and (hasattr(rule, "solve") or not (self.warp or getattr(rule, "needs_route", False))):
            raise UserError(
                f"a closed loop corrects levels, by which {rule!r} does not step: take multistep (--sampler "
                "multistep), or gd or nag with a warp (--warp identity), or leave closed_loop (--closed-loop) out"
            )
        return loop

    def record(self) -> dict[str, Any]:
        """The entries of samples.json, from what `on` returns. Fields that keep their defaults are left out."""
        kind = next(name for name, sampler in SAMPLERS.items() if type(self.sampler) is sampler)
        sampler = {"kind": kind, **asdict(self.sampler)}
        values = ((entry, getattr(self, entry.name)) for entry in fields(self))
        chosen = {entry.name: value for entry, value in values if value != entry.default}
        if self.warp is not None:
            chosen["warp"] = warp_text(self.warp)
        if isinstance(self.closed_loop, ClosedLoop):
            kind = "readout" if isinstance(self.closed_loop, LearnedLoop) else "field"
            chosen["closed_loop"] = {"kind": kind, **asdict(self.closed_loop)}
        return {"steps": self.steps, "sampler": sampler, "guidance_scale": self.guidance_scale} | {
            name: value for name, value in chosen.items() if name not in ("steps", "sampler", "guidance_scale")
        }


def _as_warp(text: str) -> Warp:
    try:
        return read_warp(text)
    except ValueError as error:
        raise UserError(f"warp is {text!r}; it must be {FORMS}") from error


def with_sampling(function: Callable) -> inspect.Signature:
    """The signature of a function (self, how, ...) with the fields of `Sampling` as keywords in place of `how`."""
    first, _, *others = inspect.signature(function).parameters.values()
    how = [
        inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=entry.type)
        for entry in fields(Sampling)
    ]
    return inspect.Signature([first, *others, *how], return_annotation=inspect.signature(function).return_annotation)
