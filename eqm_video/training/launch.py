"""`eqm-video train`: train from a recipe, resume, or only print the resolved recipe and its cost (`--dry-run`)."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.system.claims import removed_if_empty
from eqm_video.system.files import MARK, write_text
from eqm_video.training import build
from eqm_video.training import launcher as launch
from eqm_video.training.checkpoint import Checkpoints
from eqm_video.training.config import Config, to_tree, to_yaml
from eqm_video.training.estimate import SPECS, count_memory, note_memory, seconds_per_step, this_device
from eqm_video.training.heartbeat import Heartbeat
from eqm_video.training.lock import LOCK, lock_run
from eqm_video.training.options import TrainOptions, parse
from eqm_video.training.own import Choice, as_begun, with_clips
from eqm_video.training.recipes import check_base
from eqm_video.training.report import write_report
from eqm_video.training.resume import compare, compare_data, starting_point, with_latents
from eqm_video.training.strict_yaml import flatten
from eqm_video.training.trackers import check_trackers, start_trackers
from eqm_video.wording import about, counted, pace

# Files of a run that has not begun: what the first look at its data found, and a log without a line
UNBEGUN = re.compile(rf"{re.escape(LOCK)}|data_(index|report)(_\w+)?\.json|metrics\.jsonl")


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError for a user's mistake."""
    options: TrainOptions = parse(words)
    config = options.config_of_run()
    if options.unnamed:
        print(
            f"note: no recipe is named, so all keys have their defaults, such as {config.model.preset}; `eqm-video "
            "recipes` lists recipes, and `eqm-video train own FOLDER` picks one",
            file=sys.stderr,
        )
    choice = options.choice if options.own is not None else None
    if not options.dry_run:
        return train(config, options.resume, options.from_older, choice)
    if choice is not None:
        choice = with_clips(choice)
        config = choice.config()
        print(choice.said, flush=True)
    return dry_run(config, options.device_spec)


def dry_run(config: Config, device_spec: str | None = None) -> int:
    """Print the resolved recipe, then a line of JSON: parameters, and operations of a forward pass of a clip.

    Memory and time of a step on one device, `device_spec` or that at hand, go to stderr. The clip has `data.frames`
    frames. With `data.buckets` the line also has the operations of a clip of each shape.
    """
    downsampling, channels = build.codec_shape(config.codec.name)
    labels = config.model.num_labels
    if labels is None and not config.data.labelled:
        labels = 0
    elif labels is None:
        labels = 1000 if config.data.kind == "images" else 101
        print(
            f"note: model.num_labels is null and will come from the data; counted here with {labels}", file=sys.stderr
        )
    with torch.device("meta"):
        network = build.make_network(config, labels, channels)
    size = build.check_size(config, downsampling, network.config.patch_size)
    cost: dict[str, Any] = build.measure(network, (1, config.data.frames, channels, size, size))
    if config.data.buckets:
        shapes = {f"{shape.frames}x{shape.frame_interval}": shape.frames for shape in config.data.shapes}
        lengths = set(shapes.values())
        each = {frames: build.measure(network, (1, frames, channels, size, size))["flops"] for frames in lengths}
        cost["flops_of_buckets"] = {shape: each[frames] for shape, frames in shapes.items()}
    print(to_yaml(config), end="")
    print(json.dumps(cost))
    size_of = f"{cost['parameters'] / 1e6:,.1f} M parameters; a clip's forward pass: {cost['flops'] / 1e9:,.1f} GFLOP"
    print(size_of, file=sys.stderr)
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = this_device(here) if device_spec is None else SPECS[device_spec]
    frames = max(shape.frames for shape in config.data.shapes)
    memory = count_memory(config, network, (frames, channels, size, size), kind=device.kind)
    seconds = seconds_per_step(config, device, cost["flops"], config.data.frames)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.gibibytes().items())
    steps = config.train.steps
    whole = f"{steps:,} steps: {about(seconds * steps)}, " if steps > 1 else ""
    print(f"one {device.name}, a step: about {pace(seconds)}, {whole}computed; memory in GiB: {parts}", file=sys.stderr)
    for note in note_memory(memory, device):
        print(note, file=sys.stderr)
    return 0


def train(config: Config, resume: str | None, from_older: bool = False, choice: Choice | None = None) -> int:
    """Train to the last step and export, or stop at a signal with a checkpoint.

    `choice` is what was picked for somebody's own videos, and has led to `config`; its clips are picked here.
    """
    check_trackers(config.track.to)
    check_base(config.lora.rank, config.train.init_from)
    if launch.read_sharding() is not None:
        launch.check_sharding(config)
    accelerator = build.make_accelerator(config)
    launch.check_launch(accelerator)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for the codec and other float32 computations
    starting_point(config, resume)  # raises before anything is touched
    main_process = accelerator.is_main_process
    claim_output(config.run.folder, "train", option="run.dir", probe=main_process)
    with claimed_run(config.run.folder) if main_process else nullcontext(), Heartbeat(accelerator) as heartbeat:
        accelerator.wait_for_everyone()
        start = starting_point(config, resume, from_older)  # again, now that no other process writes there
        checkpoint, notes = start.checkpoint, start.notes
        if choice is not None:
            with before_steps():
                choice = choice if checkpoint is None else as_begun(choice, checkpoint)
                choice = with_clips(choice, accelerator, checkpoint)
            config = choice.config()
            accelerator.print(choice.said, flush=True)
        config = with_latents(config, checkpoint) if checkpoint is not None else config
        notes += compare(checkpoint, config, accelerator.num_processes) if checkpoint is not None else []
        accelerator.wait_for_everyone()
        if main_process:
            checkpoints = Checkpoints(config.run.folder / "checkpoints")
            checkpoints.remove_leftovers()
            notes += start.set_aside(checkpoints)
        accelerator.wait_for_everyone()
        _train(config, resume, checkpoint, notes, accelerator, heartbeat)
    return 0


@contextmanager
def claimed_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder. A run that is refused before it begins leaves no file there, and no folder that it made."""
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    with removed_if_empty(folder, LOCK), lock_run(folder):
        try:
            yield
        except UserError:
            if not (folder / "config.yaml").exists():
                for path in folder.iterdir():
                    if path.name not in before and UNBEGUN.fullmatch(path.name):
                        path.unlink()
            raise


@contextmanager
def before_steps() -> Iterator[None]:
    """A block of work before the first step, which makes nothing that could be lost but what is known of the files."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("no step was made: type the same command again") from interrupt


def _train(
    config: Config,
    resume: str | None,
    checkpoint: Path | None,
    notes: list[str],
    accelerator: Any,
    heartbeat: Heartbeat,
) -> None:
    """The training itself, in a folder that is locked for this run."""
    from eqm_video.training.run import Run

    say, folder = accelerator.print, config.run.folder
    with before_steps():
        run = Run(config, accelerator, resuming=checkpoint is not None, heartbeat=heartbeat)
    config = run.config  # in which data.latents is decided
    if checkpoint is not None:
        compare_data(checkpoint, run.data_record)
        run.trainer.resume(checkpoint)
        say(f"resuming {checkpoint} after step {run.trainer.step}")
    else:
        run.log.truncate(0)
        if resume is not None:
            say(f"no checkpoint in {folder} yet: starting from scratch")
    if accelerator.is_main_process:
        write_text(folder / "config.yaml", f"# {MARK.decode()}\n{to_yaml(config)}")
    if config.track.to:
        names, track = dict(flatten(to_tree(config))), config.track
        start_trackers(accelerator, folder, track.to, names, track.project, track.name, run.trainer.step)
    for note in (*notes, *run.notes, *run.data_notes):
        say(note)
    say(summary(run))
    if checkpoint is not None:
        run.make_up_preview()
    finished = run.trainer.run()
    if finished:
        export, best = run.export(), run.export_best()
        if accelerator.is_main_process and config.run.report:
            say(note_report(folder))
        typed = f"eqm-video sample {shlex.quote(str(export))} --out samples"
        say(f"finished: {export} holds the model; sample with\n  {typed}")
        if best is not None:
            say(
                f"{best} holds the best model by {run.best.metric}, {run.best.value:.4g} after step {run.best.step}; "
                f"sample with\n  eqm-video sample {shlex.quote(str(best))} --out samples"
            )
    else:
        say(f"stopped after step {run.trainer.step}; type the same command with --resume to continue")
    accelerator.wait_for_everyone()
    run.log.close()  # which ends the communication of processes as well


def note_report(folder: Path) -> str:
    """Write the report of a finished run; returns a line about it. No failure here ends a run, which is whole."""
    try:
        return f"report: {write_report(folder)}"
    except (UserError, OSError) as error:
        return f"no report: {error}; later: eqm-video report {shlex.quote(str(folder))}"


def summary(run: Any) -> str:
    """A description of the run in a paragraph."""
    config, train, data = run.config, run.config.train, run.config.data
    count = sum(parameter.numel() for parameter in run.trainer.network.parameters())
    plan = run.trainer.batches.plan
    shapes = (
        f"{', '.join(map(str, data.shapes))} (frames x interval)" if data.buckets else counted(data.frames, "frame")
    )
    only_images = data.frames == 1 and not data.buckets
    what = "images" if only_images else f"clips of {shapes}"
    samples = counted(plan.batch_size, "image" if only_images else "clip")
    if plan.images:
        clips, images = counted(plan.clips, "clip"), counted(plan.images, "image")
        samples = f"{counted(plan.batch_size, 'sample')} ({clips}, {images})"
    labels = counted(len(run.video_labels), "label") if run.video_labels else "no labels"
    data_line = f"{counted(run.data_record['size'], data.kind[:-1])} with {labels}"
    if "images" in run.data_record:
        further = counted(len(run.labels) - len(run.video_labels), "further label")
        data_line += f" and {counted(run.data_record['images'], 'image')} beside them with {further}"
    return (
        f"{config.model.preset}, {count / 1e6:.1f} M parameters; {data_line}; "
        f"{what}, {data.size} px{'' if only_images else f', {run.fps:g} fps'}\n"
        f"step {run.trainer.step} of {train.steps}; {samples} a step = {counted(plan.world, 'process')} x "
        f"{plan.accumulation} accumulated x {plan.batch_size // plan.world // plan.accumulation}; "
        f"{run.accelerator.device}, mixed precision: {train.mixed_precision}; writing to {run.folder}"
    )
