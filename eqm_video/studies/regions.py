"""Known regions of frames, and seamless loops: measured on exact fields, then on a model of moving shapes.

Legend: N descents or clips, T frames, C h w latents, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.field import GradientField
from eqm_video.core.region import AHEAD, RegionField
from eqm_video.core.ring import RingField
from eqm_video.metrics.intervals import estimate
from eqm_video.options import narrower, option, same
from eqm_video.output.media import write_png
from eqm_video.output.tables import aligned
from eqm_video.randomness import generator
from eqm_video.samplers import Multistep, run
from eqm_video.sampling.option_groups import Batched, Guided, Many, Rendered, Seeded, Stepped
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches
from eqm_video.studies.few_steps.study import FewSteps
from eqm_video.studies.request import own_scale
from eqm_video.studies.study import OneModel, Report
from eqm_video.studies.tasks.clips import NEAR, Truth, errors_of, is_centred, names_of, said_centred, tracks
from eqm_video.system import waits

CLIPS, LOOPS = 12, 4  # clips of the exact fields; loops among the latter
STEPS = 24  # on exact fields
ARRIVED = 0.2  # RMS from a clip below which a descent on the ring ends at it
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Regions(OneModel, Rendered, Many, Guided, Stepped, Seeded, Batched, group="look"):
    """Known regions of frames and seamless loops, on exact fields and on a model of moving shapes.

    On the exact field of 12 random clips one half of every frame is known: the share of descents that end at the right
    clip, with the known tokens at the level of their frame, half-way ahead of it (as --known-mask does it), and clean.
    On the exact field of 4 clips that are loops and 12 that are not: the share that ends at a loop, in a row and with
    --loop. On the model: the share of frames whose shape is near its true place, with a hole in the middle and with the
    right half unknown; and the change over the seam, from the last frame to the first, over the mean change between
    neighbours, in a row and with --loop. regions.png shows the clips.
    """

    num_samples: int = narrower(16, least=1)
    steps: int = narrower(12, least=1)
    exact_starts: int = same(FewSteps, "exact_starts")
    lengths: tuple[int, ...] = option((8, 16), least=3, most=1000, metavar="T", help="frames of the loops")

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables by name: results, settings."""
        cells = [["measured", "mean", "95 %"]]
        for name, value in numbers["found"].items():
            share = "times" not in name
            texts = [f"{100 * value[k]:.0f} %" if share else f"{value[k]:.2f}" for k in ("mean", "low", "high")]
            cells.append([name, texts[0], f"{texts[1]} to {texts[2]}"])
        settings = numbers["settings"]
        said = (
            f"{settings['exact starts']} descents on each exact field, {settings['clips']} clips of the model, "
            f"{settings['steps']} multistep steps, guidance {settings['guidance scale']:g}, seed {settings['seed']}; "
            f"intervals over descents and clips.{said_centred(settings)}"
        )
        return {"results": aligned(cells), "settings": said}

    def run(self, pipeline: EqMPipeline) -> Report:
        """Descend the exact fields, then sample the model."""
        scale = own_scale(self, pipeline)
        how = Sampling(sampler="multistep", steps=self.steps, guidance_scale=scale)
        values = {**exact_regions(self.exact_starts, self.seed), **exact_loops(self.exact_starts, self.seed)}
        shown: list[NDArray[np.uint8]] = []
        values |= self.holes(pipeline, how, shown) | self.seams(pipeline, how, shown)
        numbers = {
            "settings": {
                "clips": self.num_samples,
                "exact starts": self.exact_starts,
                "steps": self.steps,
                "lengths": list(self.lengths),
                "seed": self.seed,
                "guidance scale": scale,
                "centred": is_centred(self, pipeline),
            },
            "found": {name: asdict(estimate(each[None].double())) for name, each in values.items()},
        }
        text = "\n\n".join(self.views(numbers).values())
        return Report(numbers, text, {"regions.png": partial(draw, shown)})

    def holes(self, pipeline: EqMPipeline, how: Sampling, shown: list[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """The share of each clip's frames (N,) with the shape near its place, by region; two clips of each to show."""
        frames, size = pipeline.check_frames(), pipeline.check_size()[0]
        names, centred = names_of(pipeline, self.num_samples), is_centred(self, pipeline)
        truth = Truth.render(names, frames, size, self.seed, centred=centred)
        hole, half = (np.ones((size, size), bool) for _ in range(2))
        hole[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = False
        half[:, size // 2 :] = False
        values = {}
        for name, mask in (("a hole in the middle", hole), ("the right half", half)):
            made = []
            for part in batches(self.num_samples, self.batch_size):
                begin = {"clips": truth.clips[part], "known_mask": mask, "output_type": "uint8"}
                seeds = [self.seed + k for k in range(part.start, part.stop)]
                made.append(pipeline.sample(how, truth.names[part], seeds=seeds, **begin).frames)
            clips = np.concatenate(made)
            near = errors_of(tracks(clips), truth, range(frames)) < NEAR
            values[f"{name} unknown: frames with the shape in its place"] = torch.from_numpy(near.mean(axis=1))
            shown += [np.where(mask[:, :, None], truth.clips[0], 128).astype(np.uint8), clips[0], truth.clips[0]]
        return values

    def seams(self, pipeline: EqMPipeline, how: Sampling, shown: list[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """The change over the seam of each clip (N,), over the mean change between its neighbours."""
        names, values = names_of(pipeline, self.num_samples), {}
        for frames in self.lengths:
            for loop in (False, True):
                made = []
                for part in batches(self.num_samples, self.batch_size):
                    seeds = [self.seed + k for k in range(part.start, part.stop)]
                    options: Values = {"num_frames": frames, "output_type": "uint8"}
                    shape = Sampling(**{**vars(how), "loop": loop})
                    made.append(pipeline.sample(shape, names[part], seeds=seeds, **options).frames)
                clips = np.concatenate(made)
                kind = "a loop" if loop else "a row"
                values[f"{frames} frames in {kind}: the change over the seam, times that between neighbours"] = (
                    torch.from_numpy(seam(clips))
                )
                shown.append(clips[0])
        return values


def seam(clips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The RMS change (N,) from the last frame to the first, over the mean of those between neighbours."""
    steps = np.diff(clips.astype(np.float64), axis=1, append=clips[:, :1].astype(np.float64))
    sizes = np.sqrt((steps**2).mean(axis=(2, 3, 4)))
    return sizes[:, -1] / np.maximum(sizes[:, :-1].mean(axis=1), 1e-9)


class Untold(GradientField):
    """An exact field without `at_gamma`, like a network that has no input for gamma."""

    def __init__(self, field: OracleField) -> None:
        self.field = field

    def __call__(self, latents: Tensor) -> Tensor:
        """The field at latents (B, T, C, h, w)."""
        return self.field(latents)


def exact_regions(starts: int, seed: int) -> dict[str, Tensor]:
    """1 for each of N descents that ends at the clip whose half is known, by how far ahead the known tokens are."""
    decay = TruncatedDecay()
    data = 0.8 * _normal(seed, "region clips", CLIPS, 2, 4, 4, 4)
    noise = _normal(seed, "region starts", starts, 2, 4, 4, 4)
    mask = torch.zeros(starts, 2, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    goal = torch.arange(starts) % CLIPS
    ways = {"at the level of their frame": 0.0, "half-way ahead": AHEAD, "clean": 1.0}
    values = {}
    for name, ahead in waits.bar(ways.items(), "an exact field, half known", unit="way", total=len(ways)):
        exact = Untold(OracleField(data, decay, frame_wise=True))
        field = RegionField(exact, mask, data[goal], noise, decay, ahead=ahead)
        end = run(ScheduledField(field, STEPS), noise, Multistep(), steps=STEPS, decay=decay).latents
        nearest = torch.cdist(end.flatten(1), data.flatten(1)).argmin(dim=1)
        values[f"exact field, half known, tokens {name}: the right clip"] = (nearest == goal).double()
    return values


def exact_loops(starts: int, seed: int) -> dict[str, Tensor]:
    """1 for each of N descents that ends at a clip that is a loop, in a row and on the ring."""
    decay = TruncatedDecay()
    places = _normal(seed, "loop frames", LOOPS, 2, 3, 3)
    loops = torch.stack([places.roll(-k, dims=0) for k in range(LOOPS)])
    data = torch.cat([loops, _normal(seed, "other clips", CLIPS, LOOPS, 2, 3, 3)])
    noise = _normal(seed, "loop starts", starts, LOOPS, 2, 3, 3)
    exact = Untold(OracleField(data, decay, frame_wise=True))
    ring = RingField(exact, STEPS, torch.arange(starts) % LOOPS, LOOPS)
    values = {}
    fields = {"in a row": exact, "on a ring": ring}
    for name, field in waits.bar(fields.items(), "an exact field with loops", unit="way", total=len(fields)):
        end = run(ScheduledField(field, STEPS), noise, Multistep(), steps=STEPS, decay=decay).latents
        gaps, nearest = (torch.cdist(end.flatten(1), data.flatten(1)) / data[0].numel() ** 0.5).min(dim=1)
        near = gaps < ARRIVED
        values[f"exact field, {name}: a loop"] = (near & (nearest < LOOPS)).double()
        values[f"exact field, {name}: a clip that is none"] = (near & (nearest >= LOOPS)).double()
    return values


def _normal(seed: int, name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, name, 0), dtype=torch.float64)


def draw(rows: Sequence[NDArray[np.uint8]], path: Path) -> Path:
    """Clips (T, H, W, 3) as rows of frames: what is known, the result and the truth, for each region; then the loops.

    A loop's row ends with its first frame again.
    """
    longest = max(len(row) for row in rows) + 1
    lines = []
    for row in rows:
        strip = np.concatenate([*row, row[0]], axis=1)
        strip = np.pad(strip, [(1, 1), (0, (longest - len(row) - 1) * row.shape[2]), (0, 0)], constant_values=255)
        lines.append(strip)
    picture = np.concatenate(lines)
    write_png(path, picture.repeat(2, axis=0).repeat(2, axis=1))
    return path
