"""`train_video.py`: train from a recipe, resume, or only say what a recipe means (`--dry-run`)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from eqm_video.data.identity import difference
from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.output.outputs import claim_output
from eqm_video.system.claims import removed_if_empty
from eqm_video.system.files import MARK, write_text
from eqm_video.system.parser import Parser
from eqm_video.training import build
from eqm_video.training import launcher as launch
from eqm_video.training.checkpoint import LOCK, Checkpoints, lock_run, read_record
from eqm_video.training.config import Config, load_config, to_tree, to_yaml
from eqm_video.training.heartbeat import Heartbeat
from eqm_video.training.resume import NEWEST, find_checkpoint, note_rates, recorded_config, starting_point
from eqm_video.training.strict_yaml import flatten
from eqm_video.training.trackers import check_trackers, start_trackers
from eqm_video.wording import counted

# What may not change when a run continues: with another value here the checkpoint would belong to another run.
FIXED = (
    *("model", "codec.name", "objective", "gamma", "data.kind", "data.split", "data.fold", "data.frames", "data.size"),
    *("data.frame_interval", "data.buckets", "data.image_fraction", "data.flip", "data.upright", "data.short"),
    "data.reference_fps",
    *("train.batch_size", "train.seed", "train.optimizer", "train.ema", "train.label_dropout", "train.init_from"),
    "held_out.fraction",  # it takes files from the training
)
# What may change without a word: none of it touches the weights, save train.steps by the learning rate: `note_rates`.
FREE = (
    *("train.steps", "train.log_every", "train.save_every", "train.keep", "held_out", "preview", "sampler", "track"),
    *("run", "data.workers", "data.root", "data.images", "data.verify"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    words = separate_resume(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_intermixed_args(words)  # overrides may stand anywhere
    config = read_config(arguments)
    return dry_run(config) if arguments.dry_run else train(config, arguments.resume, arguments.from_older)


def parser() -> argparse.ArgumentParser:
    """The command line of `train_video.py`."""
    made = Parser(
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
    made.add_argument(
        "--from-older",
        action="store_true",
        help="with --resume: pass over damaged checkpoints, or go back to an older PATH; later ones are renamed",
    )
    made.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the cost, and stop")
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the recipe")
    return made


def read_config(arguments: argparse.Namespace) -> Config:
    """The recipe with its overrides; `--resume` without a recipe takes the one in the checkpoint."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.from_older and arguments.resume is None:
        raise UserError("--from-older says where --resume goes on: type --resume --from-older")
    if arguments.resume is None or arguments.config is not None:
        return config
    if arguments.resume == NEWEST:
        checkpoint = Checkpoints(config.run.folder / "checkpoints").newest()
    else:
        checkpoint = find_checkpoint(Path(arguments.resume))
    return config if checkpoint is None else recorded_config(checkpoint, arguments.overrides)


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


def train(config: Config, resume: str | None, from_older: bool = False) -> int:
    """Train to the last step and export, or stop at a signal with a checkpoint."""
    check_trackers(config.track.to)
    accelerator = build.make_accelerator(config)
    launch.check_launch(accelerator)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for the codec and what else computes in float32
    starting_point(config, resume)  # refuses before anything is touched
    main_process = accelerator.is_main_process
    claim_output(config.run.folder, "train", option="run.dir", probe=main_process)
    with claimed_run(config.run.folder) if main_process else nullcontext(), Heartbeat(accelerator) as heartbeat:
        accelerator.wait_for_everyone()
        start = starting_point(config, resume, from_older)  # again, now that nobody else writes there
        checkpoint, notes = start.checkpoint, start.notes
        notes += compare(checkpoint, config, accelerator.num_processes) if checkpoint is not None else []
        accelerator.wait_for_everyone()
        if main_process:
            checkpoints = Checkpoints(config.run.folder / "checkpoints")
            checkpoints.remove_leftovers()
            notes += start.set_aside(checkpoints)
        accelerator.wait_for_everyone()
        _train(config, resume, checkpoint, notes, accelerator, heartbeat)
        accelerator.wait_for_everyone()
    return 0


@contextmanager
def claimed_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder; one that was made for that goes again where the run fails before it writes anything."""
    with removed_if_empty(folder, LOCK), lock_run(folder):
        yield


def _train(
    config: Config,
    resume: str | None,
    checkpoint: Path | None,
    notes: list[str],
    accelerator: Any,
    heartbeat: Heartbeat,
) -> None:
    """The training itself, in a folder that is this process's."""
    from eqm_video.training.run import Run

    say, folder = accelerator.print, config.run.folder
    run = Run(config, accelerator, resuming=checkpoint is not None, heartbeat=heartbeat)
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
        export = run.export()
        say(f"finished: {export} holds the model; sample with\n  python sample_video.py {export} --out samples")
    else:
        say(f"stopped after step {run.trainer.step}; type the same command with --resume to continue")
    run.log.close()


def compare(checkpoint: Path, config: Config, processes: int) -> list[str]:
    """Refuse to continue as another run; returns notes on differences that make it continue, but not bit for bit."""
    record, recorded = read_record(checkpoint, "config", "world_size"), recorded_config(checkpoint)
    old = to_tree(recorded)
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
    notes += note_rates(record["step"], recorded.train, config.train)
    count = record["world_size"]
    if count != processes:
        notes.append(f"note: {count} processes then, {processes} now: the run goes on, but not bit for bit the same")
    return notes


def compare_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Refuse to continue on other data: their order is computed from their number, the labels are rows of weights.

    A record from before the files themselves were part of it is compared by their number and labels.
    """
    old = read_record(checkpoint, "data")["data"]
    if isinstance(old.get("labels"), list):
        old = {**old, "labels": [as_label(str(label)) for label in old["labels"]]}
    advice = f"resume with the same data, or start a new run from its weights with train.init_from={checkpoint}"
    plain = [{key: value for key, value in one.items() if not key.endswith("identity")} for one in (old, data)]
    if plain[0] != plain[1]:
        raise UserError(f"the data changed: {_items(old)} when {checkpoint} was written, {_items(data)} now; {advice}")
    for key in ("identity", "images_identity"):
        other = difference(old[key], data[key]) if isinstance(old.get(key), dict) and key in data else None
        if other is not None:
            raise UserError(f"the data changed since {checkpoint} was written, {other}; {advice}")


def _items(data: dict[str, Any]) -> str:
    if not {"size", "labels"} <= data.keys():
        return "unknown data"
    images = f" and {counted(data['images'], 'image')} beside them" if "images" in data else ""
    return f"{counted(data['size'], 'item')}{images} with {counted(len(data['labels']), 'label')}"


def summary(run: Any) -> str:
    """The run in one paragraph."""
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
    found = f"{counted(run.data_record['size'], data.kind[:-1])} with {counted(len(run.video_labels), 'label')}"
    if "images" in run.data_record:
        further = counted(len(run.labels) - len(run.video_labels), "further label")
        found += f" and {counted(run.data_record['images'], 'image')} beside them with {further}"
    return (
        f"{config.model.preset}, {count / 1e6:.1f} M parameters; {found}; "
        f"{what}, {data.size} px{'' if only_images else f', {run.fps:g} fps'}\n"
        f"step {run.trainer.step} of {train.steps}; {samples} a step = {counted(plan.world, 'process')} x "
        f"{plan.accumulation} accumulated x {plan.batch_size // plan.world // plan.accumulation}; "
        f"{run.accelerator.device}, mixed precision: {train.mixed_precision}; writing to {run.folder}"
    )


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
