"""Metrics of a run's samples against held-out clips, while it trains.

Legend: N clips, B clips of a batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from eqm_video.data.clips import ClipSet
from eqm_video.data.identity import identity
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Files, Sampled
from eqm_video.evaluation.protocol import Protocol, digest_of
from eqm_video.evaluation.run import Evaluation
from eqm_video.features.registry import open_feature
from eqm_video.metrics.registry import find_metric
from eqm_video.system.files import write_record
from eqm_video.training.config import Config, EvaluateConfig

FOLDER = "evaluations"  # of a run: a record for each evaluation
OPTION = "train.evaluate.metrics="
REAL = 4  # held-out clips for each sample, at most
REDRAWS, PERMUTATIONS = 200, 200
BATCH = 16  # clips that go through the network of the metrics at once


class Evaluating:
    """A hook for the trainer: `evaluate` on samples of the averaged network, against clips that are held out.

    It returns {"evaluate": {metric: {"value", "low", "high", "floor"}}}, with "best_step" where a best checkpoint is
    wanted, and writes the whole record, with its protocol, into `evaluations/`. All of it is `evaluate`'s own code. The
    samples have the same noise and labels at every step, every process makes its share, and any number of processes
    gets the same numbers.

    sample(seeds, labels): clips uint8 (T, H, W, 3) by seed, or a sentence on why there are none, such as a descent that
    diverges early in training: then there are no numbers this time. labels: a number for each sample, or empty.
    UserError where the metrics do not fit the clips or the network.
    """

    def __init__(
        self,
        config: Config,
        clips: ClipSet,
        sample: Callable[[list[int], list[int] | None], dict[int, Any] | str],
        labels: Sequence[int],
        *,
        fps: float,
        accelerator: Accelerator,
    ) -> None:
        evaluate, data = config.train.evaluate, config.data
        self.settings, self.folder, self.accelerator = evaluate, config.run.folder, accelerator
        self.sample, self.labels, self.fps, self.names = sample, list(labels), fps, list(clips.labels)
        self.shape = (clips.frames, *clips.size)
        windows = clips.windows()
        count = min(len(windows), REAL * evaluate.n)
        chosen = [windows[k * len(windows) // count] for k in range(count)]
        about = {"identity": identity(clips)["total"], "held out": True, "files": len(clips)}
        self.real = Files(clips, chosen, about)
        protocol = Protocol(
            feature=evaluate.features,
            count=evaluate.n,
            real_count=count,
            frames=clips.frames,
            stride=clips.frame_interval,
            order="sorted",
            window="every",
            seed=config.train.seed,
            size=clips.size,
            crop=data.resize,
        )
        self.evaluation = open_evaluation(evaluate, protocol, accelerator.device)
        try:
            self.evaluation.meter.check(self.shape)
        except UserError as error:
            raise UserError(f"train.evaluate: {error}") from error
        self.measured = self.evaluation.measure_real(self._samples({}), self.real)[0]
        self.best = None
        if evaluate.best is not None:
            under = digest_of({**self.evaluation.resolved(self._samples({}), self.real), **about})
            self.best = Best(evaluate.best, under)

    def __call__(self, step: int, network: nn.Module) -> dict[str, Any]:
        """The numbers of a step; {} where no samples could be made, or a signal ends the run. `network` is not used:
        `sample` knows it.
        """
        problems: dict[str, str] = {}
        record = self.evaluation.run(self._samples(problems), self.real, real_set=self.measured)
        shared = [problems] if self.accelerator.num_processes == 1 else gather_object([problems])
        problem = next((each["problem"] for each in shared if each), None)
        if problem is not None:
            self.accelerator.print(f"no evaluation of step {step}: {problem}")
            return {}
        result = {"evaluate": {name: in_short(each) for name, each in record["metrics"].items()}}
        if self.best is not None:
            metric = find_metric(self.best.metric, self.settings.features, OPTION)
            value = record["metrics"][metric.name]
            self.best.offer(step, value["value"], loss_of(value))
            result["best_step"] = self.best.step
        if self.accelerator.is_main_process:
            self._write(step, record)
        return result

    def _samples(self, problems: dict[str, str]) -> Sampled:
        """The samples as a source of clips; a sentence in `problems` says that they are black, as they failed."""

        def draw(rows: Sequence[int]) -> np.ndarray:
            black = np.zeros((len(rows), *self.shape, 3), np.uint8)
            if problems:
                return black
            made = self.sample(list(rows), [self.labels[row] for row in rows] if self.labels else None)
            if isinstance(made, str):
                problems["problem"] = made
                return black
            return np.stack([made[row] for row in rows])

        count = self.settings.n
        names = [self.names[number] for number in self.labels] if self.labels else [None] * count
        return Sampled(draw, self.shape, names, self.fps, {"model": "the averaged weights"})

    def _write(self, step: int, record: dict[str, Any]) -> None:
        path = Path(self.folder) / FOLDER / f"step_{step:08d}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            write_record(path, {"step": step, **record})
        except (OSError, UserError) as error:  # the numbers are in the log
            self.accelerator.print(f"no record of the evaluation of step {step}: {error}")


class Best:
    """The best value of a metric so far, and its step; None before the first.

    metric: its name. under: what the values depend on besides the weights, such as a protocol's hash: a best of another
    protocol does not count. State and comparison are the same on every process.
    """

    def __init__(self, metric: str, under: str) -> None:
        self.metric, self.under = metric, under
        self.step: int | None = None
        self.value: float | None = None
        self.loss: float | None = None  # lower is better
        self._before: Mapping[str, Any] = self.state()

    def offer(self, step: int, value: float, loss: float) -> bool:
        """Take the value of a step if its loss is the lowest so far; returns whether it is. NaN never is."""
        if not (self.loss is None or loss < self.loss) or loss != loss:
            return False
        self._before = self.state()
        self.step, self.value, self.loss = step, value, loss
        return True

    def back(self) -> None:
        """Undo the newest `offer` that was taken: its checkpoint could not be written."""
        self._set(self._before)

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint's record, which `load` takes."""
        return {"metric": self.metric, "under": self.under, "step": self.step, "value": self.value, "loss": self.loss}

    def load(self, state: Mapping[str, Any] | None) -> bool:
        """Go on from the `state` of a checkpoint; returns False, and forgets it, if it is of other values."""
        same = state is not None and (state.get("metric"), state.get("under")) == (self.metric, self.under)
        if same:
            self._set(state)
        return same

    def _set(self, state: Mapping[str, Any]) -> None:
        self.step, self.value, self.loss = state["step"], state["value"], state["loss"]


def open_evaluation(evaluate: EvaluateConfig, protocol: Protocol, device: torch.device) -> Evaluation:
    """The evaluation that a recipe asks for, its network opened; UserError if that cannot be."""
    metrics = tuple(find_metric(name, evaluate.features, OPTION) for name in evaluate.metrics)
    weights = None if evaluate.weights is None else Path(evaluate.weights).expanduser()
    network = any(metric.needs - {"labels"} for metric in metrics)
    try:
        feature = open_feature(evaluate.features, protocol.input(), weights, device) if network else None
    except UserError as error:
        raise UserError(f"train.evaluate.features={evaluate.features}: {error}") from error
    return Evaluation(protocol, metrics, feature, device, BATCH, None, REDRAWS, PERMUTATIONS)


def in_short(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metric that enter the log: value, interval, and the floor or the real clips' own value."""
    low, high = result["interval"]
    around = result.get("floor") or result.get("real")
    return {"value": result["value"], "low": low, "high": high} | ({"floor": around["value"]} if around else {})


def loss_of(result: dict[str, Any]) -> float:
    """The distance of a metric's value from the best: lower is better."""
    if result["better"] == "real":
        return abs(result["value"] - result["real"]["value"])
    return -result["value"] if result["better"] == "higher" else result["value"]
