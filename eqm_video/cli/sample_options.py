"""The command line of `sample_video.py`: its options, their kinds of values, and examples."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eqm_video.cli.labels import protect_labels, unprotect
from eqm_video.cli.options import SPLITS, number, size, whole
from eqm_video.cli.parser import Parser
from eqm_video.cli.sample_known import parse_keyframe, parse_known
from eqm_video.cli.sample_sources import END
from eqm_video.errors import UserError
from eqm_video.samplers import SAMPLER_PRESETS, SAMPLERS, SCHEDULES
from eqm_video.samplers.frames import FRAME_SCHEDULES

FORMATS = ("gif", "mp4", "png")
SWITCHES = (  # without a value, or with several
    *("help", "labels", "overwrite", "compose", "guidance-interval", "plain-sum", "match-norm", "per-frame"),
    *("keyframes", "no-marks"),
)
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EXAMPLES = """examples:
  python sample_video.py runs/demo/export --out samples --labels DiscLeft SquareUp --num-samples 16 --guidance-scale 2
  python sample_video.py runs/demo/export --out samples --tolerance 0.3 --steps 200      (clips stop when they rest)
  python sample_video.py runs/demo --out moving --start-from photo.jpg --num-samples 4      (image to video)
  python sample_video.py runs/demo --out future --start-from clip.mp4 --known 0-3 --at 2.5  (continuation)
  python sample_video.py runs/demo --out future --start-from videos/ --split test --known first:4 --at end
  python sample_video.py runs/demo --out between --start-from clip.mp4 --known ends         (in-betweening)
  python sample_video.py runs/demo --out between --keyframes 0=start.png -1=end.png
  python sample_video.py runs/demo --out long --length 160 --overlap 4                      (sliding windows)
  python sample_video.py runs/attributes --out samples --compose Disc:2 Left:2
  python sample_video.py runs/imagenet --out samples frames=1 --labels random --num-samples 50000 --batch-size 64
  torchrun --standalone --nproc_per_node 2 sample_video.py runs/demo --out samples     (several processes)"""


# Command line -------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `frames=1` and `sampler.steps=50` are the same as `--frames 1` and `--steps 50`."""
    parser = Parser(
        prog="sample_video.py",
        description="Sample labelled clips, or images, from a trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser)
    _add_start(parser)
    _add_long(parser)
    _add_how(parser)
    _add_files(parser)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = [name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")]
    words = protect_labels(given, options)
    return parser.parse_args([_as_value(_as_option(one, options)) for one in words])


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="an export, a training run or checkpoint (folders), or a hub id OWNER/NAME")
    add(
        "--labels",
        nargs="+",
        type=unprotect,
        metavar="LABEL",
        help="names or numbers, in turn; or all (default), random, none",
    )
    add("--num-samples", type=whole(1), metavar="N", help="default: 16")
    add("--frames", type=whole(1), metavar="T", help="frames of a clip, 1 = images; default: as trained")
    add(
        "--fps", type=number(0.01), metavar="F", help="frames per second; default: as trained, or those of known frames"
    )
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


def _add_start(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("start from clips or pictures")
    add = group.add_argument
    add("--start-from", type=Path, metavar="PATH", help="a video, an image, a folder of one kind, or a samples.npz")
    add(
        "--known",
        type=parse_known,
        metavar="FRAMES",
        help="frames of PATH that stay: first, first:4, last:4, ends, 0-3, 0,-1 ...; of an image default: first",
    )
    add(
        "--keyframes",
        nargs="+",
        type=parse_keyframe,
        metavar="FRAME=IMAGE",
        help="known frames from pictures: 0=a.png -1=b.png, instead of --start-from",
    )
    add(
        "--start-gamma",
        type=number(0),
        metavar="G",
        help="how clean the unknown frames start: 0 = noise (default), towards 1 = the clip itself",
    )
    add("--at", type=_seconds, metavar="SECONDS", help="of a video: where a clip begins, or end; default: 0")
    add("--frame-interval", type=whole(1), metavar="K", help="take every K-th frame; default: nearest to --fps")
    add("--split", choices=SPLITS, help="of a folder with official lists (UCF-101's, CIFAR-10's); default: all")
    add("--fold", type=whole(1), metavar="F", help="of the split; default: 1")
    add(
        "--frame-schedule",
        type=frame_schedule,
        metavar="KIND",
        help="joint (default), pyramid, autoregressive, or a delay",
    )
    add("--context-gamma", type=number(0), metavar="G", help="show the network known frames this clean; default: 1")
    add("--history-guidance", type=number(), metavar="S", help="weight of what known frames say; default: 1")


def _add_long(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("long videos").add_argument
    add(
        "--length",
        type=whole(1),
        metavar="N",
        help="frames of the video, made in windows of --frames; --known and --keyframes are of the first window",
    )
    add(
        "--overlap",
        type=whole(1),
        metavar="K",
        help="known frames of each next window; default: 4, at most half a window",
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
    add("--no-marks", action="store_true", help="no borders around known frames in the grid")
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
    if key in SWITCHES and key in options:
        raise UserError(f"{argument!r}: --{key} is an option, not an override; see --help for what follows it")
    if key not in options:
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.4)
        hint = f"did you mean {near[0].replace('-', '_')}={value}? " if near else ""
        raise UserError(f"unknown override {argument!r}; {hint}See --help for the options")
    return f"--{key}={value}"


def _as_value(argument: str) -> str:
    """Frame numbers from the end, such as -1=end.png or -2,-1, are values, though they begin like options."""
    return f" {argument}" if re.match(r"-\d+[^\d.]", argument) else argument


def _seconds(text: str) -> float | str:
    return END if text == END else number(0)(text)


def frame_schedule(text: str) -> str | int:
    """Argparse type of `--frame-schedule`: its name, or the steps between the starts of two frames."""
    if text not in FRAME_SCHEDULES and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(FRAME_SCHEDULES)}, or a number of steps")
    return text if text in FRAME_SCHEDULES else int(text)


def _step_size(text: str) -> float | str:
    return text if text == "auto" else number(0, above=True)(text)


def _term(text: str) -> tuple[str, float]:
    """LABEL:WEIGHT, a label of any name and a number; without :WEIGHT the weight is 1."""
    text = unprotect(text)
    label, colon, weight = text.rpartition(":")
    return (label, number()(weight)) if colon else (text, 1.0)
