"""`train_video.py`: train from a recipe, resume, or only say what a recipe means (`--dry-run`)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from eqm_video import build
from eqm_video.config import Config, load_config, parse_config, to_tree, to_yaml
from eqm_video.errors import UserError
from eqm_video.recipe import flatten
from eqm_video.training.checkpoint import Checkpoints, is_checkpoint, lock_run, read_record
from eqm_video.training.tracking import check_trackers, start_trackers

NEWEST = "newest"  # what `--resume` without a path stands for
# What may not change when a run continues: with another value here the checkpoint would belong to another run.
FIXED = (
    *("model", "codec.name", "objective", "gamma", "data.kind", "data.split", "data.fold", "data.frames", "data.size"),
    *("data.frame_interval", "data.buckets", "data.image_fraction", "data.flip", "data.short", "data.reference_fps"),
    *("train.batch_size", "train.seed", "train.optimizer", "train.ema", "train.label_dropout", "train.init_from"),
)
# What may change without a word: none of it touches the weights.
FREE = (
    *("train.steps", "train.log_every", "train.save_every", "train.keep", "held_out", "preview", "sampler", "track"),
    *("run", "data.workers", "data.root", "data.images", "data.verify"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    words = separate_resume(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_intermixed_args(words)  # overrides may stand anywhere
    config = read_config(arguments)
    return dry_run(config) if arguments.dry_run else train(config, arguments.resume)


def parser() -> argparse.ArgumentParser:
    """The command line of `train_video.py`."""
    made = argparse.ArgumentParser(
        prog="train_video.py",
        description="Train a video or image model with Equilibrium Matching.",
        epilog="Example: accelerate launch train_video.py --config configs/ucf101_b2.yaml data.root=data/UCF-101 "
        "run.dir=runs/ucf train.steps=100000",
    )
    made.add_argument("--config", metavar="FILE", help="a YAML recipe, such as configs/ucf101_b2.yaml")
    made.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="PATH",
        help="continue exactly from a checkpoint: PATH, or the newest whole one of run.dir",
    )
    made.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the cost, and stop")
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the recipe")
    return made


def read_config(arguments: argparse.Namespace) -> Config:
    """The recipe with its overrides; `--resume` without a recipe takes the one in the checkpoint."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.resume is None or arguments.config is not None:
        return config
    if arguments.resume == NEWEST:
        checkpoint = Checkpoints(config.run.folder / "checkpoints").newest()
    else:
        checkpoint = find_checkpoint(Path(arguments.resume))
    return config if checkpoint is None else parse_config(read_record(checkpoint)["config"], arguments.overrides)


def separate_resume(words: Sequence[str]) -> list[str]:
    """`--resume train.steps=9` means the newest checkpoint, not one at the path `train.steps=9`."""
    words = list(words)
    for place, word in enumerate(words[:-1]):
        if word == "--resume" and "=" in words[place + 1] and not Path(words[place + 1]).exists():
            words[place] = f"--resume={NEWEST}"
    return words


def dry_run(config: Config) -> int:
    """Print the resolved recipe, then one line of JSON: parameters, and the operations of one clip's forward.

    That is a clip of `data.frames` frames; with `data.buckets` there are those of a clip of each shape beside it.
    """
    downsampling, channels = build.codec_shape(config.codec.name)
    labels = config.model.num_labels
    if labels is None and not config.data.labelled:
        labels = 0
    elif labels is None:
        labels = 1000 if config.data.kind == "images" else 101
        print(f"note: model.num_labels is null, it comes from the data; counted here with {labels}", file=sys.stderr)
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
    return 0


def train(config: Config, resume: str | None) -> int:
    """Train to the last step and export, or stop at a signal with a checkpoint."""
    check_trackers(config.track.to)
    accelerator = build.make_accelerator(config)
    build.check_launch(accelerator)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for the codec and what else computes in float32
    starting_point(config, resume)  # refuses before anything is touched
    main_process = accelerator.is_main_process
    with lock_run(config.run.folder) if main_process else nullcontext():
        accelerator.wait_for_everyone()
        checkpoint = starting_point(config, resume)  # again, now that nobody else writes there
        notes = compare(checkpoint, config, accelerator.num_processes) if checkpoint is not None else []
        if main_process:
            Checkpoints(config.run.folder / "checkpoints").remove_leftovers()
        accelerator.wait_for_everyone()
        _train(config, resume, checkpoint, notes, accelerator)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _train(config: Config, resume: str | None, checkpoint: Path | None, notes: list[str], accelerator: Any) -> None:
    """The training itself, in a folder that is this process's."""
    from eqm_video.run import Run

    say, folder = accelerator.print, config.run.folder
    run = Run(config, accelerator, resuming=checkpoint is not None)
    if checkpoint is not None:
        compare_data(checkpoint, run.data_record)
        run.trainer.resume(checkpoint)
        say(f"resuming {checkpoint} after step {run.trainer.step}")
    else:
        run.log.truncate(0)
        if resume is not None:
            say(f"no checkpoint in {folder} yet: starting from scratch")
    if accelerator.is_main_process:
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    if config.track.to:
        names = dict(flatten(to_tree(config)))
        start_trackers(accelerator, folder, config.track.to, names, config.track.project, config.track.name)
    for note in (*notes, *run.notes, *run.data_notes):
        say(note)
    say(summary(run))
    finished = run.trainer.run()
    if finished:
        export = run.export()
        say(f"finished: {export} holds the model; sample with\n  python sample_video.py {export} --out samples")
    else:
        say(f"stopped after step {run.trainer.step}; type the same command with --resume to continue")


def starting_point(config: Config, resume: str | None) -> Path | None:
    """The checkpoint to continue from; UserError rather than overwriting a run. Changes nothing."""
    folder = config.run.folder
    newest = Checkpoints(folder / "checkpoints").newest()
    if resume is None:
        if newest is not None:
            raise UserError(
                f"run.dir={folder} already holds a run with {newest.name}, and nothing was changed: add --resume to "
                "continue it, or give another run.dir=FOLDER"
            )
        return None
    if resume == NEWEST:
        return newest
    chosen = find_checkpoint(Path(resume))
    if newest is not None and newest.resolve() != chosen.resolve():
        raise UserError(
            f"run.dir={folder} already holds {newest.name}, and the checkpoint to resume is {chosen}: give another "
            "run.dir=FOLDER to branch off there, or --resume alone to go on from the newest"
        )
    return chosen


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder, or the newest one of a run's folder."""
    newest = Checkpoints(path / "checkpoints").newest()
    chosen = path if is_checkpoint(path) or newest is None else newest
    read_record(chosen)  # raises where it is no checkpoint
    return chosen


def compare(checkpoint: Path, config: Config, processes: int) -> list[str]:
    """Refuse to continue as another run; returns notes on differences that make it continue, but not bit for bit."""
    record = read_record(checkpoint)
    old = to_tree(parse_config(record["config"]))  # a key that it does not have yet has its default
    then, now = dict(flatten(old)), dict(flatten(to_tree(config)))
    changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    listed = {key: f"{key} ({then.get(key)} there, {now.get(key)} here)" for key in changed}
    fixed = [text for key, text in listed.items() if _under(key, FIXED)]
    if fixed:
        raise UserError(
            f"{checkpoint} belongs to another run: {', '.join(fixed)}. Resume with the values of its run, or start "
            f"a new run from its weights with train.init_from={checkpoint}"
        )
    if record["step"] > config.train.steps:
        raise UserError(f"{checkpoint} is already beyond train.steps={config.train.steps}: give more steps")
    notes = [f"note: changed since the checkpoint: {text}" for key, text in listed.items() if not _under(key, FREE)]
    count = record["world_size"]
    if count != processes:
        notes.append(f"note: {count} processes then, {processes} now: the run goes on, but not bit for bit the same")
    return notes


def compare_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Refuse to continue on other data: their order is computed from their number, the labels are rows of weights."""
    old = read_record(checkpoint)["data"]
    if old != data:
        raise UserError(
            f"the data changed: {_items(old)} when {checkpoint} was written, {_items(data)} now; resume with the same "
            f"data, or start a new run from its weights with train.init_from={checkpoint}"
        )


def _items(data: dict[str, Any]) -> str:
    images = f" and {_counted(data['images'], 'image')} beside them" if "images" in data else ""
    return f"{_counted(data['size'], 'item')}{images} with {_counted(len(data['labels']), 'label')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def summary(run: Any) -> str:
    """The run in one paragraph."""
    config, train, data = run.config, run.config.train, run.config.data
    count = sum(parameter.numel() for parameter in run.trainer.network.parameters())
    plan = run.trainer.batches.plan
    shapes = f"{data.frames} frames" if not data.buckets else f"{', '.join(map(str, data.shapes))} (frames x interval)"
    samples = f"{plan.batch_size} clips"
    if plan.images:
        clips, images = _counted(plan.clips, "clip"), _counted(plan.images, "image")
        samples = f"{plan.batch_size} samples ({clips}, {images})"
    found = f"{_counted(run.data_record['size'], data.kind[:-1])} with {_counted(len(run.video_labels), 'label')}"
    if "images" in run.data_record:
        further = _counted(len(run.labels) - len(run.video_labels), "further label")
        found += f" and {_counted(run.data_record['images'], 'image')} beside them with {further}"
    return (
        f"{config.model.preset}, {count / 1e6:.1f} M parameters; {found}; "
        f"clips of {shapes}, {data.size} px, {run.fps:g} fps\n"
        f"step {run.trainer.step} of {train.steps}; {samples} a step = {_counted(plan.world, 'process')} x "
        f"{plan.accumulation} accumulated x {plan.batch_size // plan.world // plan.accumulation}; "
        f"{run.accelerator.device}, mixed precision: {train.mixed_precision}; writing to {run.folder}"
    )


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
