"""Resuming: the checkpoint to continue from, and what to do about damaged ones beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eqm_video.errors import UserError
from eqm_video.system.record import damage
from eqm_video.training.checkpoint import Checkpoints, is_checkpoint, read_record, step_of
from eqm_video.training.config import Config, TrainConfig, parse_config
from eqm_video.training.optim import Schedule

NEWEST = "newest"  # what `--resume` without a path stands for


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
    """The checkpoint to continue from; UserError rather than overwriting a run. Changes nothing.

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
    told = [f"{path.name}: {fault}" for path, fault in faults.items()]
    if newest is None and named:
        raise UserError(
            f"run.dir={folder} holds no whole checkpoint ({'; '.join(told[:3])}), and nothing was changed: give "
            "another run.dir=FOLDER to start anew"
        )
    return StartingPoint(newest, from_older, [f"note: passed over the damaged checkpoint {text}" for text in told])


def _chosen(folder: Path, newest: Path | None, chosen: Path, from_older: bool) -> StartingPoint:
    """The starting point where a checkpoint was named."""
    own = chosen.resolve().parent == (folder / "checkpoints").resolve()
    if newest is not None and newest.resolve() != chosen.resolve() and not (own and from_older):
        back = "add --from-older to go back to it (later ones are set aside), " if own else ""
        raise UserError(
            f"run.dir={folder} already holds {newest.name}, and the checkpoint to resume is {chosen}: {back}give "
            "another run.dir=FOLDER to branch off there, or --resume alone to go on from the newest"
        )
    return StartingPoint(chosen, from_older and own)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder, or the newest one of a run's folder."""
    newest = Checkpoints(path / "checkpoints").newest()
    chosen = path if is_checkpoint(path) or newest is None else newest
    read_record(chosen)  # raises where it is no checkpoint
    return chosen


def recorded_config(checkpoint: Path, overrides: Any = ()) -> Config:
    """The recipe in a checkpoint; a key that it does not have yet has its default."""
    return parse_config(read_record(checkpoint, "config")["config"], overrides)


def note_rates(step: int, then: TrainConfig, now: TrainConfig) -> list[str]:
    """A note with both learning rates where the next step's differs, as when a schedule is stretched."""
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
