"""The protocol of a metric: a class whose first docstring line is its description, and whose `value` is the number.

A class in a file of this folder with `name=` is found by `metrics.registry`; nothing else has to name it.

Legend: N clips of the samples, M of the real set, B redraws, T frames, H W pixels.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eqm_video.metrics.measured import Measured
from eqm_video.system.devices import double


@dataclass(frozen=True)
class Statistics:
    """The numbers that define a metric's value, a part of every protocol.

    ddof: covariances are divided by N - ddof. degree, coef: of the MMD's kernel (<x, y>/D + coef)^degree. biased:
    whether the MMD counts each clip beside itself. scale: a factor on the MMD. subsets, subset_size: of KID.
    neighbours: of precision and recall. splits: of the Inception Score.
    """

    ddof: int = 1
    degree: int = 2
    coef: float = 0.0
    biased: bool = False
    scale: float = 1.0
    subsets: int = 100
    subset_size: int = 1000
    neighbours: int = 3
    splits: int = 10


class Metric:  # no ABC: before Python 3.11 its subclasses could not have a keyword `name`
    """A number that says something of a set of clips.

    needs: which parts of `Measured` it reads: features, logits, spatial, windows, labels, or "pairs" where clip k of
    the samples is compared with clip k of the real set. reference: whether a real set is part of the value. better:
    lower, higher, or real where the best value is that of real clips. least: clips below which there is no value.
    least_frames: frames of a clip below which there is none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    reference: ClassVar[bool] = True
    better: ClassVar[Literal["lower", "higher", "real"]] = "lower"
    least: ClassVar[int] = 2
    least_frames: ClassVar[int] = 1

    def __init_subclass__(cls, name: str = "", title: str = "", **rest: Any) -> None:
        """`name`: what is typed to ask for the metric; `title`: what tables and pictures call it."""
        super().__init_subclass__(**rest)
        if name:
            cls.name, cls.title = name, title or name

    @classmethod
    def says(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The number itself."""
        raise NotImplementedError(f"{type(self).__name__} has no number: write its value")

    def redraws(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> Tensor:
        """Values (B,) for files drawn anew with replacement with all their clips, of both sets alike."""
        values = []
        for _ in range(count):
            pair = [side.take(redraw(side.sources, generator)) for side in (samples, real)]
            values.append(self.value(pair[0], pair[1], settings))
        return torch.tensor(values, dtype=torch.float64)

    def extras(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> dict[str, Any]:
        """Further entries of the record, such as a p-value from `count` permutations."""
        return {}

    def warning(self, samples: Measured, real: Measured) -> str | None:
        """A sentence where the sets are too small for the number to mean what it says; None elsewhere."""
        return None


class PerClip(Metric):
    """A metric that is the mean of one number a clip, `per_clip`; of real clips where `of_real` is true."""

    of_real: ClassVar[bool] = False

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """Numbers (N,), one for each clip of the samples."""
        raise NotImplementedError(f"{type(self).__name__} has no numbers of clips: write its per_clip")

    def value(self, samples: Measured, real: Measured, settings: Statistics) -> float:
        """The mean over the clips."""
        return float(double(self.per_clip(samples, real, settings)).mean())

    def redraws(
        self, samples: Measured, real: Measured, settings: Statistics, count: int, generator: torch.Generator
    ) -> Tensor:
        """Means (B,) over the files of the counted clips drawn anew; the other set stays as it is."""
        values = double(self.per_clip(samples, real, settings))
        sources = (real if self.of_real else samples).sources
        if len(sources) != len(values):  # clips without a label have no number: each of the others counts alone
            sources = torch.arange(len(values))
        return torch.stack([values[redraw(sources, generator)].mean() for _ in range(count)])


class Reading(PerClip):
    """A number read off the pixels of each clip, without a network."""

    reference = False
    better = "real"
    least = 1
    least_frames = 2

    def read(self, clips: Tensor) -> Tensor:
        """Numbers (N,) float64 of clips uint8 (N, T, H, W, 3); a metric with its own `per_clip` may read several."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing: write its read")

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """The readings of the samples."""
        return samples.readings[self.name]


class Paired(PerClip):
    """A number read off each clip and the true clip that it was made to equal."""

    needs = frozenset({"pairs"})
    better = "higher"
    least = 1

    def compare(self, clips: Tensor, truth: Tensor) -> Tensor:
        """Numbers (N,) float64 of clips and their true clips, both uint8 (N, T, H, W, 3)."""
        raise NotImplementedError(f"{type(self).__name__} compares nothing: write its compare")

    def per_clip(self, samples: Measured, real: Measured, settings: Statistics) -> Tensor:
        """The comparisons of the samples."""
        return samples.readings[self.name]


def redraw(sources: Tensor, generator: torch.Generator) -> Tensor:
    """Places of clips (N,) by their files (N,), drawn with replacement: a drawn file comes with all its clips.

    Windows of one file resemble each other: drawn one by one they would make an interval that is too narrow.
    """
    names, which = sources.unique(return_inverse=True)
    drawn = torch.randint(len(names), (len(names),), generator=generator)
    if len(names) == len(sources):
        return drawn
    return torch.cat([(which == file).nonzero()[:, 0] for file in drawn.tolist()])
