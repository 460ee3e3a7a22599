"""The command line of `sample_video.py`, and everything that decides the samples, filled in and checked."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqm_video.cli.options import number, size, whole
from eqm_video.cli.sample_folder import Look
from eqm_video.errors import UserError
from eqm_video.pipeline import EqMPipeline
from eqm_video.samplers import SAMPLER_PRESETS, SAMPLERS, SCHEDULES, Sampler

FORMATS = ("gif", "mp4", "png")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EXAMPLES = """examples:
  python sample_video.py runs/demo/export --out samples --labels DiscLeft SquareUp --num-samples 16 --guidance-scale 2
  python sample_video.py runs/demo/export --out samples --tolerance 0.3 --steps 200      (clips stop when they rest)
  python sample_video.py runs/attributes --out samples --compose Disc:2 Left:2
  python sample_video.py runs/imagenet --out samples frames=1 --labels random --num-samples 50000 --batch-size 64
  torchrun --standalone --nproc_per_node 2 sample_video.py runs/demo --out samples     (several processes)"""


# Command line -------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `frames=1` and `sampler.steps=50` are the same as `--frames 1` and `--steps 50`."""
    parser = argparse.ArgumentParser(
        prog="sample_video.py",
        description="Sample labelled clips, or images, from a trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser)
    _add_how(parser)
    _add_files(parser)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = [name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")]
    return parser.parse_args([_as_option(one, options) for one in given])


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="an export, a training run or checkpoint (folders), or a hub id OWNER/NAME")
    add("--labels", nargs="+", metavar="LABEL", help="names or numbers, in turn; or all (default), random, none")
    add("--num-samples", type=whole(1), metavar="N", help="default: 16")
    add("--frames", type=whole(1), metavar="T", help="frames of a clip, 1 = images; default: as trained")
    add("--fps", type=number(0.01), metavar="F", help="frames per second; default: as trained")
    add("--size", type=size, metavar="PIXELS", help="height and width, or HEIGHTxWIDTH; default: as trained")
    add("--seed", type=whole(0), default=0, metavar="K", help="sample k has seed K + k; default: 0")
    add(
        "--compose", nargs="+", type=_term, metavar="LABEL:WEIGHT", help="all these labels at once, instead of --labels"
    )
    add(
        "--plain-sum",
        action="store_true",
        help="compose as the paper does: the fields' sum, without the unlabelled one",
    )
    add(
        "--start-from", type=Path, metavar="NPZ", help="partial denoising: clips (arr_0 of a samples.npz) to start from"
    )
    add(
        "--start-gamma",
        type=number(0),
        metavar="G",
        help="how clean they start: 0 = noise, towards 1 = the clip itself",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", choices=tuple(SAMPLER_PRESETS), help="sampler settings of the paper's public runs")
    add("--steps", type=whole(1), metavar="N", help="updates; default: the model's")
    add("--sampler", choices=tuple(SAMPLERS), help="descent, ODE or SDE; default: the model's")
    add(
        "--step-size", type=_step_size, metavar="E", help="eta, or auto (curvature --write first); default: the model's"
    )
    add("--step-schedule", choices=tuple(SCHEDULES), default="constant", help="of the step size; default: constant")
    add("--mu", type=number(0), metavar="M", help="look-ahead of nag, in [0, 1); default: the model's")
    add("--temperature", type=number(0), metavar="T", help="of langevin; default: the sampler's")
    add("--guidance-scale", type=number(), metavar="S", help="1 = no guidance; default: the model's")
    add(
        "--guidance-interval",
        nargs=2,
        type=number(0),
        metavar=("FIRST", "LAST"),
        help="guide this part: 0 0.5 is early",
    )
    add("--match-norm", action="store_true", help="guidance keeps the norm of the labelled gradient")
    add("--tolerance", type=number(0, above=True), metavar="R", help="a clip stops when its gradient's RMS is below R")
    add("--per-frame", action="store_true", help="with --tolerance: every frame stops by itself")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for grid.gif, clips/, samples.npz, samples.json")
    add("--format", metavar="LIST", help="of gif,mp4,png (png of a clip: its frames in a row); default: gif, or png")
    add("--clips", type=whole(0), metavar="M", help="clips that get files of their own; default: the first 64")
    add("--scale", type=whole(1), help="pixels of the grid for each pixel; default: clips about 128 wide")
    add("--columns", type=whole(1), help="of the grid; default: a row for each label")
    add("--overwrite", action="store_true", help="delete samples of other settings in DIR first")
    add("--batch-size", type=whole(1), default=16, metavar="B", help="samples of each process at once; default: 16")
    add("--codec", metavar="NAME", help="use this codec: bundled, a folder or a hub id")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: auto")
    add("--mixed-precision", choices=tuple(PRECISIONS), default="no", help="of the network; default: no")


def _as_option(argument: str, options: Sequence[str]) -> str:
    """`section.key=value` as `--key=value`."""
    match = re.fullmatch(r"((?:data|sampler)\.)?([a-z]+(?:_[a-z]+)*)=(.*)", argument)
    if match is None or Path(argument).exists():
        return argument
    section, key, value = match.groups()
    key = "sampler" if section == "sampler." and key == "kind" else key.replace("_", "-")
    switches = ("help", "labels", "overwrite", "compose", "guidance-interval", "plain-sum", "match-norm", "per-frame")
    if key in switches and key in options:
        raise UserError(f"{argument!r}: --{key} is an option, not an override; see --help for what follows it")
    if key not in options:
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.4)
        hint = f"did you mean {near[0].replace('-', '_')}={value}? " if near else ""
        raise UserError(f"unknown override {argument!r}; {hint}See --help for the options")
    return f"--{key}={value}"


def _step_size(text: str) -> float | str:
    return text if text == "auto" else number(0, above=True)(text)


def _term(text: str) -> tuple[str, float]:
    """LABEL:WEIGHT, a label of any name and a number; without :WEIGHT the weight is 1."""
    label, colon, weight = text.rpartition(":")
    return (label, number()(weight)) if colon else (text, 1.0)


# Choices ------------------------------------------------------------------------------------------------------------


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
    ), kind


def read_start(options: argparse.Namespace) -> np.ndarray | None:
    """The clips uint8 (N, T, H, W, 3) to start from, as many as samples are asked for; None to start from noise."""
    if options.start_from is None:
        if options.start_gamma is not None:
            raise UserError("--start-gamma needs clips to start from: add --start-from FILE.npz")
        return None
    if options.start_gamma is None:
        raise UserError("--start-from needs --start-gamma, such as 0.5: how clean the clips start")
    try:
        loaded = np.load(options.start_from, allow_pickle=False)
        clips = loaded["arr_0"] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--start-from {options.start_from} cannot be read ({error}): give a samples.npz, with arr_0 uint8 "
            "(N, T, height, width, 3), or (N, height, width, 3) of images"
        ) from error
    clips = clips[:, None] if clips.ndim == 4 else clips
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or len(clips) == 0:
        raise UserError(
            f"--start-from {options.start_from}: arr_0 is {clips.dtype} {clips.shape}, not uint8 (N, T, H, W, 3)"
        )
    if options.num_samples is not None and options.num_samples > len(clips):
        raise UserError(f"--num-samples {options.num_samples}, but {options.start_from} holds {len(clips)} clips")
    return clips[: options.num_samples]


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
    return Look(formats, settings["fps"], clips, options.scale, options.columns)
