"""Resuming: the checkpoint to continue from, damaged ones beside it, and whether it is of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eqm_video.data.identity import difference
from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.system.record import damage
from eqm_video.training.checkpoint import Checkpoints, is_checkpoint, read_record, step_of
from eqm_video.training.config import Config, TrainConfig, parse_config, to_tree
from eqm_video.training.optim import Schedule
from eqm_video.training.short_forms import NEWEST
from eqm_video.training.strict_yaml import as_yaml, flatten
from eqm_video.wording import counted

# Keys that may not change when a run continues: with another value it would be another run.
FIXED = (
    *("model", "codec.name", "objective", "gamma", "data.kind", "data.split", "data.fold", "data.frames", "data.size"),
    *("data.frame_interval", "data.buckets", "data.image_fraction", "data.flip", "data.upright", "data.short"),
    *("data.resize", "data.reference_fps"),
    *("train.batch_size", "train.seed", "train.optimizer", "train.ema", "train.label_dropout", "train.init_from"),
    "lora",
    "held_out.fraction",  # it takes files from the training
)
# Keys that may change without a note. Only train.steps affects the weights, by the learning rate (`note_rates`).
FREE = (
    *("train.steps", "train.log_every", "train.save_every", "train.save_every_minutes", "train.keep", "train.evaluate"),
    *("held_out", "preview", "sampler", "track", "run", "data.workers", "data.root", "data.images", "data.verify"),
)
# Keys of `data` with another default today, in records from before they were written.
BEFORE = {"latents": "online"}


@dataclass(frozen=True)
class StartingPoint:
    """A checkpoint to continue from, or None to start from scratch."""

    checkpoint: Path | None = None
    older: bool = False  # whether later checkpoints of the run are set aside
    notes: list[str] = field(default_factory=list)

    def set_aside(self, checkpoints: Checkpoints) -> list[str]:
        """With `--from-older`, rename the checkpoints after this one; returns notes that name them."""
        if not self.older or self.checkpoint is None:
            return []
        return [f"note: set aside as {path}" for path in checkpoints.set_aside(step_of(self.checkpoint))]


def starting_point(config: Config, resume: str | None, from_older: bool = False) -> StartingPoint:
    """The checkpoint to continue from; UserError where a run would be overwritten. Nothing is changed.

    `resume` is None, `NEWEST` or a path. `from_older` passes over checkpoints whose files are damaged.
    """
    folder = config.run.folder
    checkpoints = Checkpoints(folder / "checkpoints")
    named, newest = checkpoints.named(), checkpoints.newest()
    if resume is None:
        if named:
            raise UserError(
                f"run.dir={folder} already holds a run with {(newest or named[-1]).name}, and nothing was changed: add "
                "--resume to continue it, or give another run.dir=FOLDER"
            )
        return StartingPoint()
    if resume != NEWEST:
        return _chosen(folder, newest, find_checkpoint(Path(resume)), from_older)
    if from_older and named:
        newest, faults = checkpoints.newest_intact()
    else:
        later = [path for path in named if newest is None or step_of(path) > step_of(newest)]
        faults = {path: damage(path) for path in later}
    damaged = [f"{path.name}: {fault}" for path, fault in faults.items()]
    if newest is None and named:
        raise UserError(
            f"run.dir={folder} holds no whole checkpoint ({'; '.join(damaged[:3])}), and nothing was changed: give "
            "another run.dir=FOLDER to start anew"
        )
    return StartingPoint(newest, from_older, [f"note: passed over the damaged checkpoint {text}" for text in damaged])


def _chosen(folder: Path, newest: Path | None, chosen: Path, from_older: bool) -> StartingPoint:
    """The starting point if `chosen` was named; UserError if the run has a newer checkpoint."""
    own = chosen.resolve().parent == (folder / "checkpoints").resolve()
    if newest is not None and newest.resolve() != chosen.resolve() and not (own and from_older):
        back = "add --from-older to go back to it (later ones are set aside), " if own else ""
        raise UserError(
            f"run.dir={folder} already holds {newest.name}, and the checkpoint to resume is {chosen}: {back}give "
            "another run.dir=FOLDER to branch off there, or --resume alone to go on from the newest"
        )
    return StartingPoint(chosen, from_older and own)


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, or the newest checkpoint of a run; UserError if there is none."""
    newest = Checkpoints(path / "checkpoints").newest()
    chosen = path if is_checkpoint(path) or newest is None else newest
    read_record(chosen)  # raises where it is no checkpoint
    return chosen


def recorded_config(checkpoint: Path, overrides: Any = ()) -> Config:
    """The configuration in a checkpoint, with `overrides`. Keys that it lacks are as in `BEFORE`, or have defaults."""
    tree = read_record(checkpoint, "config")["config"]
    data = tree.get("data")
    return parse_config({**tree, "data": {**BEFORE, **data}} if isinstance(data, dict) else tree, overrides)


def with_latents(config: Config, checkpoint: Path) -> Config:
    """The recipe with `data.latents=auto` replaced by the run's first choice: only latents in memory are rounded."""
    if config.data.latents != "auto":
        return config
    return replace(config, data=replace(config.data, latents=recorded_config(checkpoint).data.latents))


def note_rates(step: int, then: TrainConfig, now: TrainConfig) -> list[str]:
    """A note if the learning rate of the next step differs from before, as when a schedule is stretched."""
    rates = [_schedule(train)(step + 1) for train in (then, now)]
    if rates[0] == rates[1]:
        return []
    factor = f", {rates[1] / rates[0]:.3g} times that" if rates[0] > 0 else ""
    lengths = f" over train.steps={then.steps} there, {now.steps} here" if then.steps != now.steps else ""
    return [
        f"note: the learning rate of step {step + 1} would have been {rates[0]:.3g} and is {rates[1]:.3g}{factor} "
        f"(train.schedule={now.schedule}{lengths})"
    ]


def _schedule(train: TrainConfig) -> Schedule:
    return Schedule(train.lr, train.steps, train.warmup, train.schedule, train.min_lr_factor)


# Comparison -----------------------------------------------------------------------------------------------------------


def compare(checkpoint: Path, config: Config, processes: int) -> list[str]:
    """Notes on changes after which a run continues, though not bit for bit; UserError if it would be another run."""
    record, recorded = read_record(checkpoint, "config", "world_size"), recorded_config(checkpoint)
    old = to_tree(recorded)
    then, now = dict(flatten(old)), dict(flatten(to_tree(config)))
    changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    listed = {key: f"{key} ({as_yaml(then.get(key))} there, {as_yaml(now.get(key))} here)" for key in changed}
    fixed = [text for key, text in listed.items() if _under(key, FIXED)]
    if fixed:
        raise UserError(
            f"{checkpoint} belongs to another run: {', '.join(fixed)}. Resume with the values of its run, or start "
            f"a new run from its weights: in place of --resume type train.init_from={checkpoint} run.dir=FOLDER"
        )
    if record["step"] > config.train.steps:
        raise UserError(f"{checkpoint} is already beyond train.steps={config.train.steps}: give more steps")
    notes = [f"note: changed since the checkpoint: {text}" for key, text in listed.items() if not _under(key, FREE)]
    notes += note_rates(record["step"], recorded.train, config.train)
    count = record["world_size"]
    if count != processes:
        before = f"trained by {counted(count, 'process')} so far, by {processes} now"
        notes.append(f"note: {before}: the run goes on, but not bit for bit the same")
    return notes


def compare_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """UserError if the data changed: their order depends on their number, and labels are rows of weights.

    A record of an earlier version, which does not name the files, is compared by their number and labels.
    """
    old = read_record(checkpoint, "data")["data"]
    if isinstance(old.get("labels"), list):
        old = {**old, "labels": [as_label(str(label)) for label in old["labels"]]}
    advice = (
        "resume with the same data, or start a new run from its weights: in place of --resume type "
        f"train.init_from={checkpoint} run.dir=FOLDER"
    )
    others = [
        other
        for key in ("identity", "images_identity")
        if isinstance(old.get(key), dict) and key in data and (other := difference(old[key], data[key])) is not None
    ]
    plain = [{key: value for key, value in record.items() if not key.endswith("identity")} for record in (old, data)]
    if plain[0] != plain[1]:
        counts = f"{_items(old)} when {checkpoint} was written, {_items(data)} now"
        raise UserError(f"the data changed: {', '.join([counts, *others])}; {advice}")
    if others:
        raise UserError(f"the data changed since {checkpoint} was written, {', '.join(others)}; {advice}")


def _items(data: dict[str, Any]) -> str:
    if not {"size", "labels"} <= data.keys():
        return "unknown data"
    images = f" and {counted(data['images'], 'image')} beside them" if "images" in data else ""
    labels = counted(len(data["labels"]), "label") if data["labels"] else "no labels"
    return f"{counted(data['size'], 'item')}{images} with {labels}"


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
