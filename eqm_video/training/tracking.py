"""The log of a run: a JSONL file, Accelerate's trackers on request, and running means between lines."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from eqm_video.core.gamma import MODES, gamma_modes
from eqm_video.errors import UserError
from eqm_video.system.files import write_file
from eqm_video.training.trackers import to_tensorboard, tracker_errors
from eqm_video.wording import counted

BINS = 11  # gamma in [0, 0.1), ... [0.9, 1), and the clean frames at exactly 1
KINDS = (*MODES, "image")  # kinds of clips in the log: by the pattern of their gammas, or single frames


class Meter:
    """Means since the last line of the log, kept on the device so that a step does not wait for them.

    Every process adds its own part; `read` sums over processes. With `state` a resumed run logs the same means as an
    uninterrupted run.
    """

    def __init__(self, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2 + 2 * BINS, dtype=exact, device=device)  # loss, forward passes, bins, counts
        self.kinds = torch.zeros(2, len(KINDS), dtype=exact, device=device)  # losses and counts of clips
        self.norms: list[float] = []
        self._marked: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add_loss(self, loss: Tensor, losses: Tensor, gamma: Tensor, weight: float = 1.0) -> None:
        """Add a forward pass: its scalar loss, and the losses and gammas of its frames, both (B, T).

        weight: the weight of the pass in the mean loss, as passes may have different numbers of clips.
        """
        bins = (gamma.flatten() * (BINS - 1)).long().clamp(0, BINS - 1)
        self.sums[0] += loss.detach() * weight
        self.sums[1] += weight
        self.sums[2 : 2 + BINS].index_add_(0, bins, losses.detach().flatten().to(self.sums.dtype))
        self.sums[2 + BINS :].index_add_(0, bins, torch.ones_like(bins, dtype=self.sums.dtype))
        kinds = gamma_modes(gamma) if gamma.shape[1] > 1 else torch.full_like(bins, KINDS.index("image"))
        self.kinds[0].index_add_(0, kinds, losses.detach().mean(dim=1).to(self.kinds.dtype))
        self.kinds[1].index_add_(0, kinds, torch.ones_like(kinds, dtype=self.kinds.dtype))

    def gather(self, accelerator: Accelerator) -> None:
        """Move the sums of all processes to the main one."""
        for sums in (self.sums, self.kinds) if accelerator.num_processes > 1 else ():
            total = accelerator.reduce(sums, reduction="sum")
            sums.copy_(total if accelerator.is_main_process else torch.zeros_like(total))

    def read(self, accelerator: Accelerator) -> dict[str, Any]:
        """Loss, gradient norm, loss by gamma (lower edge of each bin) and by kind of clip since the last reading.

        All sums start again from 0. A clip's loss is the mean over its frames, clean ones included.
        """
        self.gather(accelerator)
        values, kinds = self.sums.tolist(), zip(KINDS, *self.kinds.tolist(), strict=True)
        loss, passes, sums, counts = values[0], values[1], values[2 : 2 + BINS], values[2 + BINS :]
        result = {
            "loss": loss / passes if passes else None,
            "grad_norm": sum(self.norms) / len(self.norms) if self.norms else None,
            "loss_by_gamma": {f"{k / 10:.1f}": sums[k] / counts[k] for k in range(BINS) if counts[k]},
            "loss_by_mode": {kind: total / count for kind, total, count in kinds if count},
        }
        self.sums.zero_()
        self.kinds.zero_()
        self.norms.clear()
        return result

    def mark(self) -> None:
        """Remember the sums, before a step that may fail. The norm of a step is added when the step is kept."""
        self._marked.append((self.sums.clone(), self.kinds.clone()))

    def keep(self) -> None:
        """Keep what was added after the oldest mark: that step is done."""
        del self._marked[:1]

    def back(self) -> None:
        """Undo what was added after the oldest mark by steps that were not kept."""
        if self._marked:
            sums, kinds = self._marked[0]
            self.sums.copy_(sums)
            self.kinds.copy_(kinds)
            self._marked.clear()

    def state(self) -> dict[str, list]:
        """The sums as plain numbers, for a checkpoint; `load` takes them."""
        return {"sums": self.sums.tolist(), "norms": list(self.norms), "kinds": self.kinds.tolist()}

    def load(self, state: Mapping[str, list], main_process: bool) -> None:
        """Continue from `state()`. The main process takes the sums.

        Earlier checkpoints lack the kinds: these start at 0.
        """
        self.norms = list(state["norms"])
        if main_process:
            self.sums.copy_(torch.tensor(state["sums"], dtype=self.sums.dtype))
            if "kinds" in state:
                self.kinds.copy_(torch.tensor(state["kinds"], dtype=self.kinds.dtype))


class Stopwatch:
    """Seconds spent inside its `with` blocks, over all starts of the run."""

    def __init__(self) -> None:
        self.total = 0.0
        self.lap = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
        spent = time.perf_counter() - self._began
        self.total += spent
        self.lap += spent

    def take_lap(self) -> float:
        """Seconds since the last call."""
        lap, self.lap = self.lap, 0.0
        return lap


class RunLog:
    """`metrics.jsonl` and the trackers; only the main process writes. No failure here ends a run.

    Lines that cannot be written are kept in `waiting`, which is part of a checkpoint, and written later.
    """

    def __init__(self, folder: str | Path, accelerator: Accelerator, trackers: tuple[str, ...] = ()) -> None:
        self.file = Path(folder) / "metrics.jsonl"
        self.accelerator = accelerator
        self.trackers = trackers
        self.waiting: list[str] = []
        self._said: set[str] = set()

    def truncate(self, step: int, waiting: Sequence[str] = ()) -> None:
        """Delete lines after `step`, which a resumed run writes again, and damaged lines.

        waiting: lines up to `step` that could not be written then.
        """
        if not self.accelerator.is_main_process:
            return
        self.waiting = list(waiting)
        try:
            lines = self.file.read_bytes().split(b"\n") if self.file.is_file() else []
            steps = [_step_of(line) for line in lines]
            kept = [line for line, number in zip(lines, steps, strict=True) if number is not None and number <= step]
            broken = sum(number is None and bool(line) for line, number in zip(lines[:-1], steps[:-1], strict=True))
            if broken:
                self._warn(f"{self.file}: {counted(broken, 'line')} could not be read and are left out")
            if kept != lines[:-1] or lines[-1:] not in ([], [b""]):
                whole = b"".join(line + b"\n" for line in kept)
                write_file(self.file, lambda aside: aside.write_bytes(whole))
        except (OSError, UserError) as error:
            self._warn(f"steps after {step} may stand in {self.file} twice: {error}")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line of numbers for a step."""
        if self.accelerator.is_main_process:
            self.waiting.append(json.dumps({"step": step, **_finite(metrics)}) + "\n")
            self.flush()
        if self.trackers:
            scalars = {key: value for key, value in _scalars(metrics) if value is not None}
            with self._optional("numbers"):
                self.accelerator.log(scalars, step=step)

    def flush(self) -> None:
        """Write the lines that wait. If that fails they go on waiting, with a single warning."""
        if not self.waiting:
            return
        size = None
        try:
            with self.file.open("ab", buffering=0) as file:
                size = file.tell()
                text = "".join(self.waiting).encode()
                if file.write(text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.waiting.clear()
        except OSError as error:
            self._warn(f"cannot write {self.file} ({error.strerror}): its lines wait in memory and in checkpoints")
            if size is not None and self.file.is_file():
                with contextlib.suppress(OSError):
                    os.truncate(self.file, size)  # half a line would spoil the next one

    @contextlib.contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """A block for trackers, which must not end a run: a full disk, a lost connection or their own error warns."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, *tracker_errors(self.trackers)) as error:
            self._warn(f"the trackers ({', '.join(self.trackers)}) did not take the {what}: {error}", what)

    def _warn(self, sentence: str, kind: str | None = None) -> None:
        if (kind or sentence) not in self._said:
            self._said.add(kind or sentence)
            warnings.warn(sentence, stacklevel=3)

    def video(self, name: str, path: Path, step: int) -> None:
        """Show a GIF or PNG file in the trackers.

        TensorBoard gets its bytes: it would need moviepy to make them itself.
        """
        if not self.accelerator.is_main_process:
            return
        with self._optional("pictures"):
            if "wandb" in self.trackers:
                import wandb

                media = wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
                self.accelerator.get_tracker("wandb", unwrap=True).log({name: media}, step=step)
            if "tensorboard" in self.trackers:
                to_tensorboard(self.accelerator.get_tracker("tensorboard", unwrap=True), name, path, step)

    def close(self) -> None:
        """Try once more to write the lines that wait, and end the trackers."""
        if self.accelerator.is_main_process:
            self.flush()
        with self._optional("end of the run"):
            self.accelerator.end_training()


def _step_of(line: bytes) -> int | None:
    """The step of a line of the log; None for any other line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _scalars(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """(name, value) pairs with flat names for trackers: {"held_out": {"0.1": 2}} gives ("held_out/0.1", 2)."""
    flat = []
    for key, value in metrics.items():
        flat += _scalars(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
