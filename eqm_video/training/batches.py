"""Batches of an optimizer step, computed from (seed, step) alone: resuming has no position in the data to restore.

The data are walked in epochs, each a fresh permutation. The `batch_size` samples of a step are first clips, then
images, each kind on its own walk: position p of step s is clip number s x clips + p of an endless walk. A process takes
a contiguous part of every micro-batch, so any number of processes and any accumulation train on the same samples with
the same randomness. All clips of a step have the same shape, drawn for the step: nothing is ever padded.

A step is made of forward passes. Passes of images come first, because they skip the temporal layers: gradients are
averaged over processes during the last pass, in which every weight must take part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader

from eqm_video.data.buckets import Views
from eqm_video.errors import UserError
from eqm_video.randomness import fold, generator
from eqm_video.training.reader import Reader
from eqm_video.training.signals import NAMES


@dataclass(frozen=True)
class BatchPlan:
    """The samples of a process; `batch_size` is the number of samples in an optimizer step over all processes.

    A request is (view, index, seed). view: the number of a shape of clips, or, after the last shape, the images. index:
    the file. seed: the seed of its random window.
    """

    size: int  # videos in the set (or images, if all samples are images)
    batch_size: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    weights: tuple[float, ...] = (1.0,)  # relative frequency of each shape of clips
    images: int = 0  # images among the samples of a step
    image_size: int = 0  # images in the set of images

    def __post_init__(self) -> None:
        if self.size < 1 or (self.images and self.image_size < 1):
            raise UserError("the data set is empty: nothing to train on")
        shares = self.world * self.accumulation
        divided = f"must be divisible by processes x accumulation = {self.world} x {self.accumulation} = {shares}"
        if self.batch_size % shares:
            raise UserError(f"train.batch_size={self.batch_size} is the global batch: it {divided}")
        if self.images % shares:
            near = min(range(shares, self.batch_size, shares), key=lambda count: abs(count - self.images), default=None)
            advice = f"data.image_fraction={near / self.batch_size:g}" if near else "a larger train.batch_size"
            raise UserError(
                f"data.image_fraction makes {self.images} of train.batch_size={self.batch_size} samples images: their "
                f"number {divided}; type for instance {advice}"
            )

    @property
    def clips(self) -> int:
        """Clips of an optimizer step, over all processes."""
        return self.batch_size - self.images

    @property
    def micro_batch(self) -> int:
        """Clips in a forward pass of a process."""
        return self.clips // (self.world * self.accumulation)

    @property
    def passes(self) -> int:
        """Forward passes of a process in an optimizer step: first of images, then of clips."""
        return self.accumulation * (2 if self.images else 1)

    def pieces(self, number: int) -> float:
        """This process's part of a step in units of pass `number`.

        The loss of a step is the mean over its samples: the mean loss of a pass enters it divided by this number.
        """
        return self.batch_size / (self.world * len(self.positions(number)))

    def view(self, step: int, number: int) -> int:
        """The number of the set for pass `number` of a step: the shape drawn for it, or the images, which come last."""
        if self._of_images(number):
            return len(self.weights)
        drawn = float(torch.rand((), generator=generator(self.seed, "shape", step))) * sum(self.weights)
        return next((k for k, edge in enumerate(accumulate(self.weights)) if drawn < edge), len(self.weights) - 1)

    def positions(self, number: int) -> range:
        """Positions in the global batch that this process loads for forward pass `number` of a step."""
        of_images = self._of_images(number)
        count = self.images // (self.world * self.accumulation) if of_images else self.micro_batch
        start = (number % self.accumulation * self.world + self.rank) * count + (self.clips if of_images else 0)
        return range(start, start + count)

    def requests(self, step: int, number: int) -> list[tuple[int, int, int]]:
        """The requests (view, index, seed) of a forward pass; `step` counts from 0."""
        view, requests = self.view(step, number), []
        for position in self.positions(number):
            if self._of_images(number):
                name, size, walked = "image epoch", self.image_size, step * self.images + position - self.clips
            else:
                name, size, walked = "epoch", self.size, step * self.clips + position
            epoch, place = divmod(walked, size)
            index = _permutation(self.seed, name, epoch, size)[place]
            requests.append((view, index, fold(self.seed, "window", step, position)))
        return requests

    def _of_images(self, number: int) -> bool:
        return bool(self.images) and number < self.accumulation


@lru_cache(maxsize=4)
def _permutation(seed: int, name: str, epoch: int, size: int) -> list[int]:
    return torch.randperm(size, generator=generator(seed, name, epoch)).tolist()


class Requests:
    """A DataLoader's `batch_sampler`: the requests of forward passes [first, stop), counted from the run's start."""

    def __init__(self, plan: BatchPlan, first: int, stop: int) -> None:
        self.plan, self.first, self.stop = plan, first, stop

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for number in range(self.first, self.stop):
            yield self.plan.requests(*divmod(number, self.plan.passes))


@dataclass(frozen=True)
class Batches:
    """The batches of a training process, decoded ahead of time in `workers` processes.

    `sets`: a set for each shape of clips, then the set of images; `set[(index, seed)]` is a clip. `collate(clips)` is a
    mapping with `labels` (B,), -1 for none, `times` (B, T) in seconds, `names`, and either `pixels`
    (B, T, 3, H, W) uint8 or `moments` (B, T, 2C, h, w).
    """

    sets: Sequence[Any]
    collate: Callable[[list[Any]], dict[str, Any]]
    plan: BatchPlan
    workers: int = 0
    pin_memory: bool = False

    def between(self, start: int, stop: int, stopping: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        """The batches of steps [start, stop) in order, `plan.passes` of them for every step.

        A wait for data ends with Stopped once `stopping()` is true. `Reader` says which other errors end it.
        """
        return Reader(self.loader, self.requested, start * self.plan.passes, stop * self.plan.passes, stopping)

    def loader(self, first: int, stop: int) -> Iterator[dict[str, Any]]:
        """The batches [first, stop), counted in forward passes from the start of the run, made ahead by workers."""
        # More workers than cores are what a slow disk needs; torch's advice against them would come at every start.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            Views(self.sets),
            batch_sampler=Requests(self.plan, first, stop),
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.workers > 0,
            worker_init_fn=_ignore_signals,
            # Its own generator: by default the loader draws from torch's global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(fold(self.plan.seed, "loader")),
        )
        return iter(loader)

    def requested(self, number: int) -> list[str]:
        """Names of the files in batch `number`, counted as in `loader`; empty if the sets have no names."""
        step, part = divmod(number, self.plan.passes)
        names = []
        for view, index, _ in self.plan.requests(step, part):
            data = self.sets[view]
            files = getattr(data, "files", None) or getattr(getattr(data, "data", None), "files", None)
            names += [str(files[index][0])] if isinstance(files, list) else []
        return names


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP in a worker: they reach all processes, and only the trainer may answer them."""
    import signal

    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
