"""The training loop, composed of a field, an objective, a draw of gamma and batches. It knows no files and no sampler.

Legend: B clips, T frames, C channels, H W height and width of the latents. Steps count from 1: step s is update s.
Everything random is drawn from (seed, step, position in the global batch): neither resuming nor the number of processes
changes the numbers that a clip gets.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from eqm_video.core.energy import Field
from eqm_video.core.gamma import draw_gamma
from eqm_video.core.objective import EqMObjective, dispersive_loss, interpolate
from eqm_video.errors import UserError
from eqm_video.randomness import fold, generator, normal
from eqm_video.system import waits
from eqm_video.system.devices import send
from eqm_video.system.patience import FULL, patience
from eqm_video.system.record import read_record
from eqm_video.training.batches import Batches
from eqm_video.training.checkpoint import Checkpoints, load_state, move_into, save_state
from eqm_video.training.config import TrainConfig
from eqm_video.training.ema import Ema
from eqm_video.training.evaluating import Best
from eqm_video.training.gather import gather_clips
from eqm_video.training.heartbeat import Heartbeat
from eqm_video.training.optim import can_refuse, set_lr, step_unless
from eqm_video.training.progress import Forecast, beside
from eqm_video.training.rescue import Rescue
from eqm_video.training.saving import Saving, SavingTogether, stage_parts
from eqm_video.training.sharding import whole
from eqm_video.training.signals import Stopped, StopSignals
from eqm_video.training.tracking import Meter, RunLog, Stopwatch
from eqm_video.training.verdict import Verdict


@dataclass(frozen=True)
class Hook:
    """A function run(step, network) that gets the averaged network every `every` steps and at the last; 0: never."""

    every: int
    run: Callable[[int, nn.Module], dict[str, Any] | None]

    def due(self, step: int, last: bool) -> bool:
        """Whether the hook runs after this step."""
        return self.every > 0 and (last or step % self.every == 0)


@dataclass(eq=False)
class Trainer:
    """The training of a field; `run` is the loop.

    `signals` end the run after a step; `heartbeat` reports progress to the other processes.
    """

    field: Field
    objective: EqMObjective
    gamma: Any  # a draw of `core.gamma`
    batches: Batches
    _: KW_ONLY
    encode: Callable[[dict[str, Any], list[torch.Generator]], Tensor]  # of a batch: clean latents (B, T, C, H, W)
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # the learning rate of a step
    ema: Ema
    accelerator: Accelerator
    settings: TrainConfig
    checkpoints: Checkpoints
    log: RunLog
    reference_fps: float = 8.0  # the network's times are seconds x reference_fps
    evaluations: Sequence[Hook] = ()  # their numbers enter the log
    hooks: Sequence[Hook] = ()  # they run after the checkpoint (previews)
    record: dict[str, Any] = dataclasses.field(default_factory=dict)  # goes into every checkpoint
    describe: Callable[[Path], None] = lambda folder: None  # adds files to a checkpoint's folder
    best: Best | None = None  # the best evaluation so far: its checkpoint is written at once, and kept
    signals: StopSignals | None = None
    heartbeat: Heartbeat | None = None
    sharded: bool = False  # whether `Sharding.apply` has cut the field's weights, and `ema.shard` the averages

    def __post_init__(self) -> None:
        accelerator, checkpoints = self.accelerator, self.checkpoints
        self.network, self._plain = self.field.network, self.optimizer  # the optimizer without Accelerate's wrapper
        if self.sharded:  # DDP would copy the parts of process 0 to all others
            self.optimizer = accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        else:
            self.field, self.optimizer = accelerator.prepare(self.field, self.optimizer)
        self.step, self.skipped, self.saved = 0, 0, 0  # saved: the step of the newest checkpoint
        self.meter, self.watch = Meter(accelerator.device), Stopwatch()
        self.signals = self.signals or StopSignals(checkpoints.newest, accelerator.is_main_process)
        self.heartbeat = self.heartbeat or Heartbeat(accelerator)
        self.heartbeat.save = self.keep
        self._shown: dict[str, str] = {}  # beside the progress bar
        self._saved_at, self._clock_saves = time.monotonic(), False  # whether this step is saved by the clock
        if self.sharded:
            self.saving: Saving = SavingTogether(checkpoints, self._write, self.signals, accelerator)
        else:
            self.saving = Saving(checkpoints, self._write, self.signals)
        self._spoiled: list[Tensor] = []  # for each clip of a step: True if its latents are not finite
        self._verdict: Verdict | None = None  # on the newest step, unless it was read
        self._stopping = False  # whether any process got a stop signal, as far as is known

    def run(self) -> bool:
        """Train from the present step to the last; returns False if a signal ended the run early."""
        first, steps, every = self.step + 1, self.settings.steps, self.settings
        batches = self.batches.between(self.step, steps, self._may_leave)
        forecast = Forecast(
            steps,
            save_every=every.save_every,
            save_minutes=every.save_every_minutes,
            silent=not self.accelerator.is_main_process,
        )
        self._saved_at = time.monotonic()
        with self.signals, Rescue(self._keep_and_tell), self.heartbeat.working(), closing(batches), self._bar() as bar:
            for step in range(first, steps + 1):
                self.heartbeat.beat(f"step {step}")
                with self.watch:
                    self.meter.mark()
                    set_lr(self.optimizer, self.schedule(step))
                    try:
                        names = self._forward_backward(step, batches)
                    except Stopped:  # while waiting for data
                        return self._leave()
                    stop = self._judge(step, names)  # raises for the step before, which the device left out
                    with self.saving.whole:
                        self._update(step)
                last = step == steps
                evaluations = [hook for hook in self.evaluations if hook.due(step, last) and not stop]
                if step % every.log_every == 0 or evaluations or last:
                    self._settle()
                    self._shown |= self._write_log(step, evaluations, bar)
                elif step == first:
                    self._settle()  # the loss is shown at once, as is a fault
                bar.set_postfix(self._shown, refresh=False)
                bar.update()
                forecast.count(step)
                stop = stop or self._agree_on_stop(synchronized=bool(evaluations))
                improved = self.best is not None and self.best.step == step
                if improved and not (last or stop):
                    self._save_best()
                elif step % every.save_every == 0 or self._clock_saves or last or stop or self._retries:
                    self.save() if last or stop else self.save(must=False)
                hooks = [hook for hook in self.hooks if hook.due(step, last) and not stop]
                if hooks:
                    self._settle()
                    with beside(bar, "preview"), self.ema.whole() as average:
                        for hook in hooks:
                            hook.run(step, average)
                if (stop or self._agree_on_stop(synchronized=bool(hooks))) and not last:
                    return self._leave()
        return True

    def _update(self, step: int) -> None:
        """Update weights and average, unless the device refuses the step; then the step is whole."""
        refused = self._verdict.refused if self._verdict is not None else None
        # With a scaler the optimizer skips steps by itself; Accelerate's `step_was_skipped` does not notice it.
        masked = refused is not None and self.accelerator.scaler is None
        with step_unless(self._plain, refused) if masked else nullcontext():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if refused is not None or self.skipped == 0:
            self.ema.update(self.network, refused)
        self.step = step
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            self.saving.whole.done = torch.cuda.current_stream().record_event()

    def _forward_backward(self, step: int, batches: Any) -> list[str]:
        """Add up the gradient of the mean loss over the global batch; returns the names of this process's clips."""
        names, plan = [], self.batches.plan
        for number in range(plan.passes):
            batch = next(batches)
            names += [str(name) for name in batch.get("names", ())]
            # Dropout draws from torch's global generator. Its seed makes a resumed run draw the same numbers (another
            # number of processes draws others).
            torch.manual_seed(fold(self.settings.seed, "layers", step, number, plan.rank))
            # Processes average the gradients of all passes in the last pass. That is a pass of clips, in which every
            # weight takes part: images skip the temporal layers, and the average of these would be waited for.
            synchronize = number == plan.passes - 1 or self.accelerator.num_processes == 1
            with nullcontext() if synchronize else self.accelerator.no_sync(self.field):
                loss = self._loss(batch, step, plan.positions(number), plan.accumulation / plan.pieces(number))
                self.accelerator.backward(loss / plan.pieces(number))
        return names

    def _loss(self, batch: dict[str, Any], step: int, positions: Sequence[int], weight: float) -> Tensor:
        """The training loss of a pass, with noise, gamma and label dropout drawn for `positions` in the global batch.

        weight: the weight of the pass in the logged mean.
        """
        device, seed = self.accelerator.device, self.settings.seed
        small = [generator(seed, "gamma", step, position) for position in positions]  # on the CPU: no synchronization
        large = [generator(seed, "noise", step, position, device=device) for position in positions]
        clean = self.encode(batch, large)
        self._spoiled.append(~torch.isfinite(clean).flatten(1).all(dim=1))
        noise = normal(tuple(clean.shape[1:]), large, device=device)
        dropped = torch.stack([torch.rand((), generator=source) < self.settings.label_dropout for source in small])
        gamma = send(draw_gamma(self.gamma, clean.shape[1], small), device)
        labels = batch["labels"].cpu()
        labels = send(labels.masked_fill(dropped | (labels < 0), self.network.null_label), device)
        times = send(batch["times"] * self.reference_fps, device)
        output = self.field(interpolate(clean, noise, gamma), labels, times=times, gamma=gamma)
        losses = self.objective.loss(output.sample, clean, noise, gamma)
        loss = losses.mean()
        if self.objective.dispersion_weight:
            # Over the clips of this pass in all processes; accumulated passes are separate batches.
            hidden = gather_clips(output.hidden, self.accelerator)
            loss = loss + self.objective.dispersion_weight * dispersive_loss(hidden)
        self.meter.add_loss(loss, losses, gamma, weight)
        return loss

    def _clip(self) -> Tensor:
        """Clip the gradient to `clip_norm`; returns its norm before clipping, on the device."""
        limit = self.settings.clip_norm or math.inf
        return whole(torch.as_tensor(self.accelerator.clip_grad_norm_(self.network.parameters(), limit)))

    def _judge(self, step: int, names: list[str]) -> bool:
        """Have the device judge this step, and settle the step before it; returns whether any process is to stop.

        A step waits for the device only here, in `_settle`, for numbers that were sent a step ago. The stop signals of
        other processes are known a step late as well.
        """
        spoiled = torch.cat(self._spoiled) if self._spoiled else torch.zeros(0, dtype=torch.bool)
        self._spoiled = []
        norm = torch.as_tensor(self._clip())
        requests = torch.tensor([float(self.signals.received), float(self._clock_is_due())])
        faults = torch.stack([(~norm.isfinite()).float(), spoiled.any().to(norm.device).float()])
        flags = torch.cat([send(requests, norm.device), faults])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        running = self.meter.sums[:2].to(norm.dtype)  # loss and forward passes of this process, since the last line
        verdict = Verdict(step, names, norm, flags, running, spoiled, self.saving.whole.done)
        self._settle()
        self._verdict = verdict
        if self.sharded or (self.accelerator.scaler is None and not can_refuse(self._plain)):
            self._settle()  # such an optimizer cannot leave a step out by itself
        return self._stopping or (self.signals.received and self.accelerator.num_processes == 1)

    def _settle(self) -> None:
        """Read the verdict on the newest step, unless that was done. UserError if the run cannot go on from it."""
        if self._verdict is not None:
            self._verdict.read()  # before the next line: a rescue from another thread may come while this waits
            fault = self._count()
            if fault is not None:
                raise UserError(fault)

    def _count(self) -> str | None:
        """Count the newest step by its verdict, or take it back; returns the sentence with which the run ends, if any.

        A refused step left weights and average as they were.
        """
        verdict, self._verdict = self._verdict, None
        self._stopping, self._clock_saves = verdict.stop, verdict.clock
        self._shown["loss"] = "-" if verdict.loss is None else f"{verdict.loss:.4f}"
        self.skipped = self.skipped + 1 if verdict.infinite else 0
        fault = verdict.fault(scaled=self.accelerator.scaler is not None, skipped=self.skipped)
        if fault is not None:
            self._take_back(verdict)
            return fault
        if not verdict.infinite:
            self.meter.norms.append(verdict.norm)
        elif self.step == verdict.step:  # counted, although the average stayed
            self.ema.updates -= 1
        self.meter.keep()
        return None

    def _take_back(self, verdict: Verdict) -> None:
        """Count a step as not done: the device refused its update, or did not come to it."""
        if self.step == verdict.step:
            self.step, self.ema.updates = self.step - 1, self.ema.updates - 1
            self.saving.whole.done = verdict.before

    def _clock_is_due(self) -> bool:
        """Whether the main process's clock asks for a checkpoint; the others go by it."""
        minutes = self.settings.save_every_minutes
        waited = time.monotonic() - self._saved_at
        return minutes is not None and self.accelerator.is_main_process and waited >= 60 * minutes

    def _may_leave(self) -> bool:
        """Whether a signal may end the wait for data. It may not with several processes: the others would wait."""
        self.heartbeat.beat()
        return self.signals.received and self.accelerator.num_processes == 1

    def _agree_on_stop(self, synchronized: bool) -> bool:
        """Whether any process got a stop signal. Several processes ask each other only if all do: `synchronized`."""
        if self.accelerator.num_processes == 1:
            return self.signals.received
        if not synchronized:
            return False
        stopping = torch.tensor(float(self.signals.received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(stopping, reduction="sum") > 0)

    def _leave(self) -> bool:
        """End early, with a checkpoint of the last whole step."""
        self._settle()
        self.meter.back()
        if self.step > self.saved:
            self.save()
        return False

    def _write_log(self, step: int, evaluations: Sequence[Hook], bar: tqdm) -> dict[str, str]:
        seconds = self.watch.take_lap()
        done = step - self._logged
        self._logged = step
        metrics = self.meter.read(self.accelerator)
        speed = done * self.batches.plan.batch_size / max(seconds, 1e-9)
        metrics |= {"lr": self.schedule(step), "clips_per_second": speed, "seconds": self.watch.total}
        try:
            if evaluations:
                with beside(bar, "held-out loss"), self.ema.whole() as average:
                    for hook in evaluations:
                        metrics |= hook.run(step, average) or {}
        finally:  # an evaluation that fails ends the run, but its step is still logged
            self.log.write(step, metrics)
        return {"loss": f"{metrics['loss']:.4f}" if metrics["loss"] is not None else "-", "clips/s": f"{speed:.1f}"}

    def _bar(self) -> tqdm:
        self._logged = self.step
        main = self.accelerator.is_local_main_process
        return waits.bar(
            what="training", total=self.settings.steps, done=self.step, unit="step", delay=0, keep=True, shown=main
        )

    def _save_best(self) -> None:
        """Write the checkpoint of the best evaluation; where that fails, the best one stays what it was before."""
        written = self.save(must=False)
        if self.accelerator.num_processes > 1 and not self.sharded:  # only the main process knows
            written = broadcast_object_list([written])[0]
        if not written:
            self.best.back()

    def save(self, must: bool = True) -> bool:
        """Write a checkpoint of this step; every process must call it. `must`: see `Saving.save`.

        Returns whether it was written, as far as this process knows.
        """
        self._settle()
        self.heartbeat.beat(f"writing the checkpoint of step {self.step}")
        self.meter.gather(self.accelerator)
        written = self.saving.save(must) if self.sharded or self.accelerator.is_main_process else must
        self.accelerator.wait_for_everyone()
        # Processes must agree, and only the main one knows whether it was written, unless all write.
        if written if self.sharded or self.accelerator.num_processes == 1 else must:
            self.saved = self.step
        self._saved_at, self._clock_saves = time.monotonic(), False
        return written

    def _write(self, prune: bool) -> Path:
        parts = {"network": self.network, "ema": self.ema, "optimizer": self.optimizer}
        stage = stage_parts(self.checkpoints.stage(self.step), parts, self.accelerator) if self.sharded else None
        if not self.accelerator.is_main_process:
            return self.checkpoints.folder
        extra = {"meter": self.meter.state(), "seconds": self.watch.total, "skipped": self.skipped}
        if self.log.waiting:
            extra["log"] = list(self.log.waiting)

        def fill(folder: Path) -> None:
            if stage is not None:
                move_into(stage, folder)
            save_state(folder, extra=extra, **self._state())
            self.describe(folder)

        record = {"world_size": self.accelerator.num_processes, **self.record}
        if self.best is None:
            return self.checkpoints.write(self.step, fill, record, prune=prune)
        record["best"] = self.best.state()
        return self.checkpoints.write(self.step, fill, record, prune=prune, best=self.best.step)

    @property
    def _retries(self) -> bool:
        """Whether to try a failed checkpoint again.

        Several processes save together: they wait for the next checkpoint.
        """
        return self.accelerator.num_processes == 1 and self.saving.overdue

    def keep(self) -> str:
        """Save the last whole step after a failure, from this process alone; returns a part of a sentence about it.

        No other process takes part: the running means of the log are those of this process.
        """
        self._settle_for_rescue()
        self.meter.back()
        return self.saving.keep(self.step, self.network)

    def _settle_for_rescue(self) -> None:
        """Count the newest step if its verdict comes; else take it back, as its update waits in a queue for ever."""
        verdict = self._verdict
        if verdict is None:
            return
        try:
            if verdict.arrives(patience(FULL)):
                verdict.read()
                self._count()
                return
        except RuntimeError:  # the device is lost; `Saving.keep` meets the same error, and says so
            pass
        self._verdict = None
        self._take_back(verdict)

    def _keep_and_tell(self) -> str:
        """`keep` in process 0, which tells the others; the others wait for its sentence."""
        if not self.accelerator.is_main_process:
            return self.heartbeat.report("see its own message")
        kept = self.keep()
        self.heartbeat.kept(kept)
        return kept

    def resume(self, checkpoint: Path) -> None:
        """Continue exactly from a checkpoint: the next step is the step after it."""
        record = read_record(checkpoint)
        extra = load_state(checkpoint, **self._state())
        self.step, self.saved, self.skipped = record["step"], record["step"], extra["skipped"]
        self.watch.total = extra["seconds"]
        self.meter.load(extra["meter"], self.accelerator.is_main_process)
        self.log.truncate(self.step, extra.get("log", ()))
        state = record.get("best") or {}
        if self.best is not None and self.checkpoints.at(state.get("step")) is not None:  # a branch does not have it
            self.best.load(state)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scaler": self.accelerator.scaler,
        }
