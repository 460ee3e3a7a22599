"""The samplers of the few-step curve on exact fields, where the right end of every start is known.

Legend: K repeats, N starts of each, M points, D numbers of a point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.composition import ComposedField
from eqm_video.core.decay import Decay
from eqm_video.metrics.intervals import estimate
from eqm_video.randomness import generator
from eqm_video.samplers import SAMPLERS, Multistep, run
from eqm_video.samplers.warp import Identity
from eqm_video.studies.forcing.ways import Way
from eqm_video.studies.measured import Measured

POINTS, NUMBERS = 100, 576
FINE = 100  # multistep steps of the solution that decides where a start ends


def measure(
    decays: Mapping[str, Decay],
    listed: Mapping[str, Mapping[str, Way]],
    counts: Sequence[int],
    sizes: tuple[int, int, int],
    kept: Measured,
) -> dict[str, Any]:
    """By field, measure, way and number of evaluations: estimates over repeats and starts.

    Args:
        decays: of the fields, by name. The field "flow" is told gamma, "composed" is a composition, others are neither.
        listed: the ways of each field.
        counts: numbers of evaluations.
        sizes: K, N, and the first seed.
        kept: the measurements that are there already.
    """
    numbers: dict[str, Any] = {}
    for name, decay in decays.items():
        wanted = {"decay": repr(decay), "counts": list(counts), "sizes": sizes, "ways": list(listed[name])}

        def work(name: str = name, decay: Decay = decay) -> dict[str, Any]:
            field, data = composed(decay, sizes[2]) if name == "composed" else plain(decay, sizes[2])
            gradient = field if name == "flow" else lambda x: field(x)  # a function alone is told nothing
            return _values(gradient, decay, data, listed[name], counts, sizes)

        values = kept.found(f"exact_{name}", wanted, f"measuring the exact field of {decay!r}, {name}", work)
        numbers[name] = {
            kind: {
                way: {count: asdict(estimate(torch.tensor(lists, dtype=torch.float64))) for count, lists in row.items()}
                for way, row in rows.items()
            }
            for kind, rows in values.items()
        }
    return numbers


def plain(decay: Decay, seed: int) -> tuple[OracleField, Tensor]:
    """The exact field of random points, and the points (M, D)."""
    data = torch.randn(POINTS, NUMBERS, generator=generator(seed, "exact points", 0), dtype=torch.float64)
    return OracleField(data, decay), data


def composed(decay: Decay, seed: int) -> tuple[ComposedField, Tensor]:
    """The composition of two conditions on points of two attributes, and the points (M, D).

    Point (i, k) is a_i + b_k, with S = sqrt(M) values of each. The fields of the points with the first value of one
    attribute and of the other, less that of all points, lead to the single point that has both.
    """
    side = round(POINTS**0.5)
    first, other = torch.randn(2, side, NUMBERS, generator=generator(seed, "exact points", 1), dtype=torch.float64)
    table = (first[:, None] + other[None]) / 2**0.5
    parts = [OracleField(points, decay) for points in (table[0], table[:, 0], table.flatten(0, 1))]
    return ComposedField(parts, [1.0, 1.0, -1.0]), table.flatten(0, 1)


def _values(
    field: Callable[[Tensor], Tensor],
    decay: Decay,
    data: Tensor,
    listed: Mapping[str, Way],
    counts: Sequence[int],
    sizes: tuple[int, int, int],
) -> dict[str, dict[str, dict[str, list[list[float]]]]]:
    """Values (K, N) by measure, way and count.

    reached: 1 where a start ends at the point of the fine solution; distance: RMS from the nearest point.
    """
    repeats, starts, seed = sizes
    values: dict[str, dict[str, dict[str, list[list[float]]]]] = {"reached": {}, "distance": {}}
    for repeat in range(repeats):
        noise = torch.randn(starts, NUMBERS, generator=generator(seed, "exact starts", repeat), dtype=torch.float64)
        goal = _nearest(run(field, noise, Multistep(), steps=FINE, decay=decay).latents, data)[1]
        for name, way in listed.items():
            for count in counts:
                how = way.sampling(count)
                if how is None:
                    continue
                sampler = SAMPLERS[how["sampler"]]() if isinstance(how["sampler"], str) else how["sampler"]
                spread = {"warp": Identity()} if "warp" in how else {}
                end = run(field, noise, sampler, steps=how["steps"], decay=decay, **spread).latents
                gap, place = _nearest(end, data)
                for kind, lists in (("reached", (place == goal).double()), ("distance", gap)):
                    values[kind].setdefault(name, {}).setdefault(str(count), []).append(lists.tolist())
    return values


def _nearest(points: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The RMS distance (N,) of points (N, D) from the nearest of `data` (M, D), and its number (N,)."""
    gaps = torch.cdist(points, data) / data.shape[1] ** 0.5
    return gaps.min(dim=1).values, gaps.min(dim=1).indices
