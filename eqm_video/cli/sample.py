"""`python sample_video.py MODEL --out DIR ...`: labelled clips, or images, from a trained model.

Sample k starts from the noise of seed K + k, whatever the batch size and the number of processes. The work is cut into
batches of consecutive samples that the processes share; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm

from eqm_video.cli.sample_folder import Look, SampleFolder
from eqm_video.errors import UserError
from eqm_video.loading import load_pipeline
from eqm_video.media import gif_fps
from eqm_video.pipeline import EqMPipeline
from eqm_video.randomness import fold
from eqm_video.samplers import RULES

FORMATS = ("gif", "mp4", "png")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EXAMPLES = """examples:
  python sample_video.py runs/demo/export --out samples --labels DiscLeft SquareUp --num-samples 16 --guidance-scale 2
  python sample_video.py runs/imagenet --out samples frames=1 --labels random --num-samples 50000 --batch-size 64
  torchrun --standalone --nproc_per_node 2 sample_video.py runs/demo --out samples     (several processes)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, write."""
    options = parse(arguments)
    state = start_processes(options.device)
    device = choose_device(options.device, state)
    diffusers_logging.disable_progress_bar()
    pipeline, source = load_pipeline(options.model, codec=options.codec)
    settings = resolve(pipeline, options)
    labels = choose_labels(pipeline, options.labels, options.num_samples, options.seed)
    look = choose_look(options, settings)
    folder = SampleFolder(
        options.out, settings, [-1 if one is None else one for one in labels], names(pipeline, labels)
    )
    if state.is_main_process and options.overwrite:
        folder.clear()
    state.wait_for_everyone()
    folder.check()
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if state.is_main_process:
        print(f"{source} -> {options.out}: {describe(settings)}")
        folder.start()
    batches = folder.missing(options.batch_size, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process and sum(map(len, batches)) < folder.count:
        print(f"{folder.count - sum(map(len, batches))} of {folder.count} samples are there already")
    pipeline.to(device)
    sample(pipeline, folder, batches[state.process_index :: state.num_processes], labels, look, state)
    state.wait_for_everyone()
    if state.is_main_process:
        seeds = [options.seed + index for index in range(folder.count)]
        folder.finish({"model": source, "labels": folder.names, "seeds": seeds, "versions": versions()})
        report(folder, look)
    state.wait_for_everyone()
    state.destroy_process_group()
    return 0


# Command line -------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `frames=1` and `sampler.steps=50` are the same as `--frames 1` and `--steps 50`."""
    parser = argparse.ArgumentParser(
        prog="sample_video.py",
        description="Sample labelled clips, or images, from a trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="an export, a training run or checkpoint (folders), or a hub id OWNER/NAME")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for grid.gif, clips/, samples.npz, samples.json")
    add("--labels", nargs="+", metavar="LABEL", help="names or numbers, in turn; or all (default), random, none")
    add("--num-samples", type=_whole(1), default=16, metavar="N", help="default: 16")
    add("--frames", type=_whole(1), metavar="T", help="frames of a clip, 1 = images; default: as trained")
    add("--fps", type=_number(0.01), metavar="F", help="frames per second; default: as trained")
    add("--size", type=_size, metavar="PIXELS", help="height and width, or HEIGHTxWIDTH; default: as trained")
    add("--steps", type=_whole(1), metavar="N", help="updates; default: the model's")
    add("--sampler", choices=("nag", "gd"), help="NAG-GD or gradient descent; default: the model's")
    add("--step-size", type=_number(0, above=True), metavar="E", help="eta; default: the model's")
    add("--mu", type=_number(0), metavar="M", help="look-ahead of nag, in [0, 1); default: the model's")
    add("--guidance-scale", type=_number(), metavar="S", help="1 = no guidance; default: the model's")
    add("--seed", type=_whole(0), default=0, metavar="K", help="sample k has seed K + k; default: 0")
    add("--batch-size", type=_whole(1), default=16, metavar="B", help="samples of each process at once; default: 16")
    add("--format", metavar="LIST", help="of gif,mp4,png (png of a clip: its frames in a row); default: gif, or png")
    add("--clips", type=_whole(0), metavar="M", help="clips that get files of their own; default: the first 64")
    add("--scale", type=_whole(1), help="pixels of the grid for each pixel; default: clips about 128 wide")
    add("--columns", type=_whole(1), help="of the grid; default: a row for each label")
    add("--codec", metavar="NAME", help="use this codec: bundled, a folder or a hub id")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: auto")
    add("--mixed-precision", choices=tuple(PRECISIONS), default="no", help="of the network; default: no")
    add("--overwrite", action="store_true", help="delete samples of other settings in DIR first")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = [name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")]
    return parser.parse_args([_as_option(one, options) for one in given])


def _as_option(argument: str, options: Sequence[str]) -> str:
    """`section.key=value` as `--key=value`."""
    match = re.fullmatch(r"((?:data|sampler)\.)?([a-z]+(?:_[a-z]+)*)=(.*)", argument)
    if match is None or Path(argument).exists():
        return argument
    section, key, value = match.groups()
    key = "sampler" if section == "sampler." and key == "kind" else key.replace("_", "-")
    if key not in options or key in ("help", "labels", "overwrite"):
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.4)
        hint = f"did you mean {near[0].replace('-', '_')}={value}? " if near else ""
        raise UserError(f"unknown override {argument!r}; {hint}See --help for the options")
    return f"--{key}={value}"


def _whole(least: int) -> Any:
    def parse_whole(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")

    return parse_whole


def _number(least: float = -math.inf, above: bool = False) -> Any:
    def parse_number(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if math.isfinite(value) and (value > least or (value == least and not above)):
                return value
        limit = "" if least == -math.inf else f" {'above' if above else 'of at least'} {least:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number{limit}")

    return parse_number


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels, such as 256 or 256x384 (height x width)")
    return int(match[1]), int(match[2] or match[1])


# Choices ------------------------------------------------------------------------------------------------------------


def start_processes(device: str) -> PartialState:
    """Accelerate's view of the launch; refuses one whose processes do not know of each other."""
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # a slower process may keep the others waiting
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked > state.num_processes:
        raise UserError(
            f"the launcher started {asked} processes, but each is alone: on CPUs type ACCELERATE_USE_CPU=1 torchrun "
            f"--standalone --nproc_per_node {asked} sample_video.py ... --device cpu"
        )
    return state


def choose_device(name: str, state: PartialState) -> torch.device:
    """The device of this process."""
    if state.num_processes > 1 and name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: with several processes each takes its own device; leave --device out")
    if name == "auto" or state.num_processes > 1:
        return state.device
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--device {name} cannot be used here ({reason}); give --device cpu, or leave it out"
        ) from error
    return torch.device(name)


def resolve(pipeline: EqMPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the samples, with the model's own settings filled in; checked before any work."""
    config, rule = pipeline.config, pipeline.rule(options.sampler, options.step_size, options.mu)
    precision = PRECISIONS[options.mixed_precision]
    if precision is torch.float16 and not torch.cuda.is_available():
        raise UserError("--mixed-precision fp16 needs a GPU; give bf16 or no")
    guidance = config.sampler["guidance_scale"] if options.guidance_scale is None else options.guidance_scale
    frames, fps = options.frames or config.frames, options.fps or config.fps
    pipeline.check_frames(frames)
    return {
        "model": fingerprint(pipeline),
        "labels": options.labels or ["all"],
        "num_samples": options.num_samples,
        "frames": frames,
        "fps": float(fps),
        "size": list(pipeline.check_size(options.size)),
        "steps": options.steps or config.sampler["steps"],
        "sampler": {"kind": options.sampler or config.sampler["kind"], **asdict(rule)},
        "guidance_scale": float(guidance),
        "seed": options.seed,
        "mixed_precision": options.mixed_precision,
    }


def choose_labels(pipeline: EqMPipeline, wanted: Sequence[str] | None, count: int, seed: int) -> list[int | None]:
    """One label for each sample (None: unlabelled): those that are wanted in turn, or drawn from (seed, sample)."""
    total, known = pipeline.transformer.null_label, pipeline.labels.values()
    word = wanted[0] if wanted and len(wanted) == 1 and wanted[0] not in known else None
    if word == "none" or (total == 0 and (wanted is None or word in ("all", "random"))):
        return [None] * count
    if word == "random":
        return [fold("label", seed + index) % total for index in range(count)]
    pool = list(range(total)) if wanted is None or word == "all" else pipeline.label_ids(wanted)
    return [pool[index % len(pool)] for index in range(count)]


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


def names(pipeline: EqMPipeline, labels: Sequence[int | None]) -> list[str] | None:
    """Captions of the samples; None where no sample has a label."""
    if all(label is None for label in labels):
        return None
    return ["unlabelled" if one is None else pipeline.labels.get(one, str(one)).split(",")[0] for one in labels]


def fingerprint(pipeline: EqMPipeline) -> str:
    """A hash of all weights and what they mean: samples of two models never mix."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([pipeline.config.id2label, pipeline.config.reference_fps]).encode())
    for module in (pipeline.transformer, pipeline.vae):
        config = {key: value for key, value in module.config.items() if not key.startswith("_")}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Work ---------------------------------------------------------------------------------------------------------------


def sample(
    pipeline: EqMPipeline,
    folder: SampleFolder,
    batches: Sequence[range],
    labels: Sequence[int | None],
    look: Look,
    state: PartialState,
) -> None:
    """Sample the batches of this process, and keep each as soon as it is there."""
    settings = folder.settings
    precision = PRECISIONS[settings["mixed_precision"]]
    rule = {key: value for key, value in settings["sampler"].items() if key != "kind"}
    pipeline.set_progress_bar_config(disable=True)
    done, mine, steps = 0, sum(map(len, batches)), settings["steps"]
    with tqdm(total=len(batches) * steps, unit="step", disable=not (batches and state.is_main_process)) as bar:
        for batch in batches:
            bar.set_description(f"samples {done}-{done + len(batch)} of {mine}")
            with torch.autocast(pipeline.device.type, precision, enabled=precision is not None):
                result = pipeline(
                    [labels[index] for index in batch],
                    num_frames=settings["frames"],
                    fps=settings["fps"],
                    size=tuple(settings["size"]),
                    steps=steps,
                    sampler=RULES[settings["sampler"]["kind"]](**rule),
                    guidance_scale=settings["guidance_scale"],
                    seeds=[settings["seed"] + index for index in batch],
                    output_type="uint8",
                    callback=lambda *_: bar.update(),
                )
            folder.write_part(batch.start, result.frames, look)
            done += len(batch)


def describe(settings: dict[str, Any]) -> str:
    """The settings in one line."""
    height, width = settings["size"]
    what = "images" if settings["frames"] == 1 else f"clips of {settings['frames']} frames at {settings['fps']:g} fps"
    rule = ", ".join(f"{key} {value}" for key, value in settings["sampler"].items())
    return (
        f"{settings['num_samples']} {what}, {height}x{width} pixels, {settings['steps']} steps ({rule}), guidance "
        f"{settings['guidance_scale']:g}, seeds from {settings['seed']}"
    )


def report(folder: SampleFolder, look: Look) -> None:
    """Write the pictures and say where to look."""
    grids = folder.show(look)
    real = gif_fps(look.fps)
    if "gif" in look.formats and abs(real - look.fps) > 1e-6:
        print(f"GIFs play at {real:.2f} fps instead of {look.fps:g}: their delays are multiples of 10 ms")
    if look.clips < folder.count:
        print(f"files for the first {look.clips} of {folder.count} samples (--clips); samples.npz holds all")
    print(f"look at {', '.join(map(str, grids))}; all samples: {folder.npz}")


def versions() -> dict[str, str]:
    """What the samples were made with."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "accelerate")},
    }
