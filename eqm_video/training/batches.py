"""Which clips an optimizer step trains on: computed from (seed, step) alone, so resuming has no position to restore.

The data are walked in epochs, each a fresh permutation. Global position p of step s is clip number s x batch_size + p
of that endless walk; a request is (index of the video, seed of its random window). A process takes a contiguous part of
every micro-batch, so any number of processes and any accumulation train on the same clips with the same randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader

from eqm_video.errors import UserError
from eqm_video.randomness import fold, generator


@dataclass(frozen=True)
class BatchPlan:
    """The clips of one process; `batch_size` is the global number of clips in one optimizer step."""

    size: int  # videos or images in the set
    batch_size: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError("the data set is empty: nothing to train on")
        if self.batch_size % (self.world * self.accumulation):
            raise UserError(
                f"train.batch_size={self.batch_size} is the global batch: it must be divisible by processes x "
                f"accumulation = {self.world} x {self.accumulation} = {self.world * self.accumulation}"
            )

    @property
    def micro_batch(self) -> int:
        """Clips in one forward pass of one process."""
        return self.batch_size // (self.world * self.accumulation)

    def positions(self, micro: int) -> range:
        """Positions in the global batch that this process loads for forward pass `micro` of a step."""
        start = (micro * self.world + self.rank) * self.micro_batch
        return range(start, start + self.micro_batch)

    def requests(self, step: int, micro: int) -> list[tuple[int, int]]:
        """(index, seed) of every clip of one forward pass; `step` counts from 0."""
        requests = []
        for position in self.positions(micro):
            epoch, place = divmod(step * self.batch_size + position, self.size)
            index = _permutation(self.seed, epoch, self.size)[place]
            requests.append((index, fold(self.seed, "window", step, position)))
        return requests


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    return torch.randperm(size, generator=generator(seed, "epoch", epoch)).tolist()


class Requests:
    """A DataLoader's `batch_sampler`: the requests of every forward pass from one step to another (exclusive)."""

    def __init__(self, plan: BatchPlan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            for micro in range(self.plan.accumulation):
                yield self.plan.requests(step, micro)


@dataclass(frozen=True)
class Batches:
    """The batches of one process, decoded ahead of time in `workers` processes.

    `dataset[(index, seed)]` is a clip and `collate(clips)` a mapping with `labels` (B,), -1 for none, `times` (B, T) in
    seconds, `names`, and either `pixels` (B, T, 3, H, W) uint8 or `moments` (B, T, 2C, h, w).
    """

    dataset: Any
    collate: Callable[[list[Any]], dict[str, Any]]
    plan: BatchPlan
    workers: int = 0
    pin_memory: bool = False

    def between(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The batches of steps [start, stop) in order, `accumulation` of them for every step."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=Requests(self.plan, start, stop),
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.workers > 0,
            worker_init_fn=_ignore_signals,
            # Its own generator: by default the loader draws from torch's global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(fold(self.plan.seed, "loader")),
        )
        return _plain_errors(iter(loader))


def _plain_errors(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A worker's UserError comes back with the worker's traceback around it; keep the sentence."""
    try:
        yield from batches
    except UserError as error:
        sentence = str(error).strip().splitlines()[-1]
        raise UserError(sentence.split("Error: ", 1)[-1]) from error


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; only the trainer may answer them."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
