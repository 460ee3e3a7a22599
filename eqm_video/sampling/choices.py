"""The options of `eqm-video sample`, checked, and filled in from the preset and the model's own settings."""

from __future__ import annotations

from typing import Any

from eqm_video.errors import UserError
from eqm_video.samplers import RULES, SAMPLER_PRESETS
from eqm_video.samplers.frame_schedule import frame_delay
from eqm_video.sampling.folder import Look
from eqm_video.sampling.options import FORMATS, SampleOptions
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling


def choose_sampling(pipeline: EqMPipeline, options: SampleOptions) -> Sampling:
    """The `Sampling` of a command line: its options, then the preset, then the model's own settings.

    UserError for options that exclude or need each other.
    """
    preset = SAMPLER_PRESETS[options.preset] if options.preset else {}
    kind = options.sampler or preset.get("kind") or pipeline.config.sampler["kind"]
    same = kind == preset.get("kind")  # the preset's numbers are for its own sampler

    def pick(name: str) -> Any:
        value = getattr(options, name)
        return preset.get(name) if value is None and (same or name in ("steps", "guidance_scale")) else value

    numbers = {name: pick(name) for name in ("steps", "step_size", "mu", "guidance_scale")}
    plain = {"start_gamma": options.start_gamma or 0.0, "frame_schedule": options.frame_schedule or "joint"}
    how = Sampling.of(options, sampler=kind, **plain, **numbers).on(pipeline)
    if options.per_frame and options.tolerance is None:
        raise UserError("--per-frame needs --tolerance, below which a frame stops")
    if options.plain_sum and not options.composition:
        raise UserError("--plain-sum says how to compose: add --compose LABEL:WEIGHT ...")
    guided = options.guidance_scale is not None or options.guidance_interval or options.match_norm
    if options.composition and (options.labels or guided):
        raise UserError(
            "--compose takes the place of --labels and of guidance: the weights are the guidance, leave those out"
        )
    if options.composition:
        pipeline.label_ids([label for label, _ in options.composition])
    try:
        frame_delay(options.frame_schedule, how.steps, 1)
    except ValueError as error:
        raise UserError(f"--frame-schedule: {error}") from error
    if options.frame_schedule not in ("joint", 0) and hasattr(how.sampler, "solve"):
        raise UserError(
            f"--frame-schedule {options.frame_schedule}: the sampler {kind} carries all frames together; leave "
            f"--frame-schedule out, or take {', '.join(RULES)} with --sampler"
        )
    return how


def choose_look(options: SampleOptions, settings: dict[str, Any]) -> Look:
    """The `Look` of a command line. UserError for a format that these samples cannot have."""
    still = settings["frames"] == 1
    formats = tuple(dict.fromkeys((options.format or ("png" if still else "gif")).split(",")))
    for kind in formats:
        if kind not in FORMATS or (still and kind != "png"):
            allowed = "png, for images (frames=1)" if still else ", ".join(FORMATS)
            raise UserError(f"--format {kind!r}: allowed is {allowed}")
    many = options.num_samples
    clips = min(64 if options.clips is None else options.clips, many)
    known = [] if options.no_marks else settings.get("known", [])
    rates = tuple(settings.get("clip_fps", ()))
    return Look(formats, settings["fps"], clips, options.scale, options.columns, tuple(known), rates)
