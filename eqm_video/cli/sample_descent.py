"""How samples are made and shown: the options of `sample_video.py`, filled in from preset and model, and checked."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from eqm_video.cli.sample_folder import Look
from eqm_video.cli.sample_options import FORMATS
from eqm_video.errors import UserError
from eqm_video.pipeline import EqMPipeline
from eqm_video.samplers import SAMPLER_PRESETS, Sampler
from eqm_video.samplers.frames import frame_delay


@dataclass(frozen=True)
class Descent:
    """How the samples of a call are made: the arguments of `EqMPipeline.__call__` that are the same for all."""

    rule: Sampler
    steps: int
    guidance_scale: float
    step_schedule: str = "constant"
    guidance_interval: tuple[float, float] | None = None
    match_norm: bool = False
    composition: list[tuple[str, float]] | None = None
    plain_sum: bool = False
    tolerance: float | None = None
    per_frame: bool = False
    start_gamma: float = 0.0
    frame_schedule: str | int = "joint"
    context_gamma: float = 1.0
    history_guidance: float = 1.0

    def call(self) -> dict[str, Any]:
        """As keyword arguments."""
        guidance = {"guidance_scale", "guidance_interval", "match_norm"} if self.composition else set()
        named = {name: value for name, value in vars(self).items() if name not in {"rule", *guidance}}
        return {**named, "sampler": self.rule}

    def settings(self, kind: str) -> dict[str, Any]:
        """For samples.json; what is not used is left out."""
        plain = Descent(self.rule, self.steps, self.guidance_scale)
        more = {k: v for k, v in vars(self).items() if v != getattr(plain, k)}
        sampler = {"kind": kind, **asdict(self.rule)}
        return {"steps": self.steps, "sampler": sampler, "guidance_scale": self.guidance_scale, **more}


def choose_descent(pipeline: EqMPipeline, options: argparse.Namespace) -> tuple[Descent, str]:
    """How to sample, and the sampler's name: options first, then the preset, then the model's own settings."""
    preset = SAMPLER_PRESETS[options.preset] if options.preset else {}
    kind = options.sampler or preset.get("kind") or pipeline.config.sampler["kind"]
    same = kind == preset.get("kind")  # another sampler than the preset's takes none of its numbers

    def pick(name: str) -> Any:
        given = getattr(options, name)
        return preset.get(name) if given is None and (same or name in ("steps", "guidance_scale")) else given

    steps = pick("steps") or pipeline.config.sampler["steps"]
    guidance = pick("guidance_scale")
    guidance = float(pipeline.config.sampler["guidance_scale"] if guidance is None else guidance)
    scale = sum(abs(weight) for _, weight in options.compose) if options.compose else guidance
    more = {"temperature": options.temperature, "steps": steps, "guidance_scale": scale}
    more["step_schedule"] = options.step_schedule
    more["plain"] = [weight for _, weight in options.compose] if options.compose and options.plain_sum else None
    rule = pipeline.rule(kind, pick("step_size"), pick("mu"), **more)
    if options.per_frame and options.tolerance is None:
        raise UserError("--per-frame needs --tolerance, below which a frame stops")
    if options.plain_sum and not options.compose:
        raise UserError("--plain-sum says how to compose: add --compose LABEL:WEIGHT ...")
    guided = options.guidance_scale is not None or options.guidance_interval or options.match_norm
    if options.compose and (options.labels or guided):
        raise UserError(
            "--compose takes the place of --labels and of guidance: the weights are the guidance, leave those out"
        )
    if options.compose:
        pipeline.label_ids([label for label, _ in options.compose])
    try:
        frame_delay(options.frame_schedule or "joint", steps, 1)
    except ValueError as error:
        raise UserError(f"--frame-schedule: {error}") from error
    if options.frame_schedule not in (None, "joint", 0) and hasattr(rule, "solve"):
        raise UserError(
            f"--frame-schedule {options.frame_schedule}: the sampler {kind} carries all frames together; leave "
            "--frame-schedule out, or take gd, nag, adam or langevin with --sampler"
        )
    interval = tuple(options.guidance_interval) if options.guidance_interval else None
    return Descent(
        rule=rule,
        steps=steps,
        guidance_scale=guidance,
        step_schedule=options.step_schedule,
        guidance_interval=interval,
        match_norm=options.match_norm,
        composition=options.compose,
        plain_sum=options.plain_sum,
        tolerance=options.tolerance,
        per_frame=options.per_frame,
        start_gamma=options.start_gamma or 0.0,
        frame_schedule=options.frame_schedule or "joint",
        context_gamma=1.0 if options.context_gamma is None else options.context_gamma,
        history_guidance=1.0 if options.history_guidance is None else options.history_guidance,
    ), kind


def choose_look(options: argparse.Namespace, settings: dict[str, Any]) -> Look:
    """How the samples are shown."""
    still = settings["frames"] == 1
    formats = tuple(dict.fromkeys((options.format or ("png" if still else "gif")).split(",")))
    for kind in formats:
        if kind not in FORMATS or (still and kind != "png"):
            allowed = "png, for images (frames=1)" if still else ", ".join(FORMATS)
            raise UserError(f"--format {kind!r}: allowed is {allowed}")
    many = options.num_samples
    clips = (many if many <= 64 else 64) if options.clips is None else min(options.clips, many)
    known = [] if options.no_marks else settings.get("known", [])
    rates = tuple(settings.get("clip_fps", ()))
    return Look(formats, settings["fps"], clips, options.scale, options.columns, tuple(known), rates)
