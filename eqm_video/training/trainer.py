"""The training loop: composed of a field, an objective, a draw of gamma and batches; it knows no files and no sampler.

Legend: B clips, T frames, C channels, H W height and width of the latents. Steps count from 1: step s is update s.
Everything random is drawn from (seed, step, position in the global batch), so that neither resuming nor the number of
processes changes which numbers a clip meets.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from eqm_video.energy import Field
from eqm_video.errors import UserError
from eqm_video.gamma import draw_gamma
from eqm_video.objective import EqMObjective, dispersive_loss, interpolate
from eqm_video.randomness import fold, generator, normal
from eqm_video.training.batches import Batches
from eqm_video.training.checkpoint import Checkpoints, load_state, read_record, save_state
from eqm_video.training.ema import Ema
from eqm_video.training.gather import gather_clips
from eqm_video.training.optim import set_lr
from eqm_video.training.progress import Forecast
from eqm_video.training.tracking import Meter, RunLog, Stopwatch

MAX_SKIPPED = 50  # fp16: consecutive steps without an update before the run gives up


@dataclass(frozen=True)
class Settings:
    """The numbers of a run that belong to the loop itself."""

    steps: int
    seed: int = 0
    clip_norm: float | None = 1.0
    label_dropout: float = 0.1  # probability of the null label
    reference_fps: float = 8.0  # the network's times are seconds x reference_fps
    log_every: int = 50
    save_every: int = 5000


@dataclass(frozen=True)
class Hook:
    """`run(step, network)` gets the averaged network every so many steps, and at the last; 0 never."""

    every: int
    run: Callable[[int, nn.Module], dict[str, Any] | None]

    def due(self, step: int, last: bool) -> bool:
        """Whether the hook runs after this step."""
        return self.every > 0 and (last or step % self.every == 0)


class Trainer:
    """Trains a field; `run` is the loop.

    `encode(batch, generators)` gives clean latents (B, T, C, H, W); `evaluations` are hooks whose numbers enter the
    log, `hooks` run after the checkpoint (previews); `record` and `describe(folder)` go into every checkpoint.
    """

    def __init__(
        self,
        field: Field,
        objective: EqMObjective,
        gamma: Any,
        batches: Batches,
        *,
        encode: Callable[[dict[str, Any], list[torch.Generator]], Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        ema: Ema,
        accelerator: Accelerator,
        settings: Settings,
        checkpoints: Checkpoints,
        log: RunLog,
        evaluations: Sequence[Hook] = (),
        hooks: Sequence[Hook] = (),
        record: dict[str, Any] | None = None,
        describe: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.network, self.ema = field.network, ema
        self.objective, self.gamma, self.batches, self.encode = objective, gamma, batches, encode
        self.schedule, self.settings, self.accelerator = schedule, settings, accelerator
        self.checkpoints, self.log = checkpoints, log
        self.evaluations, self.hooks = evaluations, hooks
        self.record, self.describe = record or {}, describe
        self.field, self.optimizer = accelerator.prepare(field, optimizer)
        self.step, self.skipped = 0, 0
        self.meter, self.watch = Meter(accelerator.device), Stopwatch()
        self.signals = StopSignals()

    def run(self) -> bool:
        """Train from where the trainer stands to the last step; False where a signal ended it early."""
        steps, every = self.settings.steps, self.settings
        batches = self.batches.between(self.step, steps)
        forecast = Forecast(steps, silent=not self.accelerator.is_main_process)
        with self.signals, self._progress() as bar:
            for step in range(self.step + 1, steps + 1):
                with self.watch:
                    set_lr(self.optimizer, self.schedule(step))
                    names = self._forward_backward(step, batches)
                    norm = self._clip()
                    stop = self._agree(step, norm, names)  # raises before a bad gradient reaches the weights
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                    # A fused optimizer skips by itself, which Accelerate's `step_was_skipped` does not see.
                    if self.skipped == 0:
                        self.ema.update(self.network)
                self.step, last = step, step == steps
                evaluations = [hook for hook in self.evaluations if hook.due(step, last) and not stop]
                if step % every.log_every == 0 or evaluations or last:
                    bar.set_postfix(self._write_log(step, evaluations), refresh=False)
                bar.update()
                forecast.count(step)
                if step % every.save_every == 0 or last or stop:
                    self.save()
                if stop and not last:
                    return False
                for hook in self.hooks:
                    if hook.due(step, last):
                        hook.run(step, self.ema.network)
        return True

    def _forward_backward(self, step: int, batches: Any) -> list[str]:
        """Add up the gradient of the mean loss over the global batch; returns the names of this process's clips."""
        names, plan = [], self.batches.plan
        for number in range(plan.passes):
            batch = next(batches)
            names += [str(name) for name in batch.get("names", ())]
            # Dropout draws from torch's global generator, for a whole forward pass: a resumed run draws the same (and
            # another number of processes others).
            torch.manual_seed(fold(self.settings.seed, "layers", step, number, plan.rank))
            # Gradients of all passes are averaged over processes in the last one. It is one of clips, so that every
            # weight takes part: a single frame skips the temporal layers, and their average would be waited for.
            synchronize = number == plan.passes - 1 or self.accelerator.num_processes == 1
            with nullcontext() if synchronize else self.accelerator.no_sync(self.field):
                loss = self._loss(batch, step, plan.positions(number), plan.accumulation / plan.pieces(number))
                self.accelerator.backward(loss / plan.pieces(number))
        return names

    def _loss(self, batch: dict[str, Any], step: int, positions: Sequence[int], weight: float) -> Tensor:
        """The training loss of some clips, with the noise, gamma and label dropout of their places in the batch.

        `weight` is that of the forward pass in the logged mean.
        """
        device, seed = self.accelerator.device, self.settings.seed
        small = [generator(seed, "gamma", step, position) for position in positions]  # on the CPU: no synchronization
        large = [generator(seed, "noise", step, position, device=device) for position in positions]
        clean = self.encode(batch, large)
        noise = normal(tuple(clean.shape[1:]), large, device=device)
        dropped = torch.stack([torch.rand((), generator=one) < self.settings.label_dropout for one in small])
        gamma = draw_gamma(self.gamma, clean.shape[1], small).to(device)
        labels = batch["labels"].cpu()
        labels = labels.masked_fill(dropped | (labels < 0), self.network.null_label).to(device)
        times = (batch["times"] * self.settings.reference_fps).to(device)
        output = self.field(interpolate(clean, noise, gamma), labels, times=times, gamma=gamma)
        losses = self.objective.loss(output.sample, clean, noise, gamma)
        loss = losses.mean()
        if self.objective.dispersion_weight:
            # Of the clips of this forward pass in all processes; accumulated passes are separate batches.
            hidden = gather_clips(output.hidden, self.accelerator)
            loss = loss + self.objective.dispersion_weight * dispersive_loss(hidden)
        self.meter.add_loss(loss, losses, gamma, weight)
        return loss

    def _clip(self) -> float:
        """Clip the gradient to `clip_norm`; returns its norm before clipping (the step's one wait for the device)."""
        limit = self.settings.clip_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(self.network.parameters(), limit))

    def _agree(self, step: int, norm: float, names: list[str]) -> bool:
        """Whether any process was told to stop; raises in all of them where the gradient is not finite."""
        finite = math.isfinite(norm)
        if finite:
            self.meter.norms.append(norm)
        scaled = self.accelerator.scaler is not None  # fp16 skips steps that overflow, and lowers its scale
        self.skipped = 0 if finite else self.skipped + 1
        broken = not finite and (not scaled or self.skipped > MAX_SKIPPED)
        stop = self.signals.received
        if self.accelerator.num_processes > 1:
            flags = torch.tensor([float(stop), float(broken)], device=self.accelerator.device)
            stop, broken = (self.accelerator.reduce(flags, reduction="sum") > 0).tolist()
        if broken:
            raise UserError(self._not_finite(step, norm, names))
        return bool(stop)

    def _not_finite(self, step: int, norm: float, names: list[str]) -> str:
        newest = self.checkpoints.newest()
        resume = f"the last good checkpoint is {newest}: add --resume" if newest else "there is no checkpoint to resume"
        clips = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return (
            f"the gradient of step {step} is not finite (norm {norm}), so the weights were left as they were. Use a "
            "lower train.lr or a longer train.warmup, train.mixed_precision=bf16 instead of fp16, and look at the "
            f"clips of this step: {clips or 'they have no names'}; {resume}"
        )

    def _write_log(self, step: int, evaluations: Sequence[Hook]) -> dict[str, str]:
        seconds = self.watch.take_lap()
        done = step - self._logged
        self._logged = step
        metrics = self.meter.read(self.accelerator)
        speed = done * self.batches.plan.batch_size / max(seconds, 1e-9)
        metrics |= {"lr": self.schedule(step), "clips_per_second": speed, "seconds": self.watch.total}
        for hook in evaluations:
            metrics |= hook.run(step, self.ema.network) or {}
        self.log.write(step, metrics)
        return {"loss": f"{metrics['loss']:.4f}" if metrics["loss"] is not None else "-", "clips/s": f"{speed:.1f}"}

    def _progress(self) -> tqdm:
        self._logged = self.step
        hidden = not self.accelerator.is_local_main_process
        return tqdm(total=self.settings.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)

    def save(self) -> None:
        """Write a checkpoint of this step; every process must call it."""
        self.meter.gather(self.accelerator)
        if self.accelerator.is_main_process:
            extra = {"meter": self.meter.state(), "seconds": self.watch.total, "skipped": self.skipped}

            def fill(folder: Path) -> None:
                save_state(folder, extra=extra, **self._state())
                self.describe(folder)

            self.checkpoints.write(self.step, fill, {"world_size": self.accelerator.num_processes, **self.record})
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint exactly: the next step is the one after it."""
        record = read_record(checkpoint)
        extra = load_state(checkpoint, **self._state())
        self.step, self.skipped = record["step"], extra["skipped"]
        self.watch.total = extra["seconds"]
        self.meter.load(extra["meter"], self.accelerator.is_main_process)
        self.log.truncate(self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scaler": self.accelerator.scaler,
        }


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads; a second one, a second later, ends at once.

    Launchers forward what the terminal has already sent to the whole process group: a repetition within a second counts
    as the same signal.
    """

    def __init__(self) -> None:
        self.received = False
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: Any) -> None:
        if not self.received:
            self.received, self._first = True, time.monotonic()
        elif time.monotonic() - self._first > 1:
            raise SystemExit(128 + number)
