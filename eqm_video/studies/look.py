"""The clips of a recipe's first step, as a network will see them, before any training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.codec import Codec
from eqm_video.core.gamma import draw_gamma
from eqm_video.names import shown
from eqm_video.options import option
from eqm_video.output import media
from eqm_video.output.overlays import draw_gamma_bars
from eqm_video.output.tables import aligned
from eqm_video.randomness import generator
from eqm_video.sampling.option_groups import Recipe
from eqm_video.studies.study import Report, Study
from eqm_video.training import build
from eqm_video.training.config import Config, RunConfig, load_config
from eqm_video.training.data import LatentCaches, TrainingData, cache_folder, open_training_data

STEP = 1  # the first step of a run
FRAMES = 16  # of a clip that are shown, evenly spread
SIDE = 64  # pixels to which small frames are enlarged


@dataclass(frozen=True)
class Seen:
    """A clip of the first step: its label and file, what is given to the network, and how the frames look.

    times (T,) are in seconds, gammas (T,) between noise (0) and data (1); pixels uint8 (T, H, W, 3) went through crop,
    resize, flip, codec and back.
    """

    label: str
    name: str
    times: list[float]
    gammas: list[float]
    pixels: np.ndarray

    def caption(self, number: int) -> str:
        """The line above the clip in the picture."""
        length = f" · {len(self.times)} frames, {self.times[-1]:.2f} s" if len(self.times) > 1 else ""
        return f"{number} · {self.label} · {shown(self.name)}{length}"


@dataclass(frozen=True, kw_only=True)
class Look(Study, Recipe, group="look"):
    """Show what a recipe trains on: the clips of its first step, their gammas, and which files are passed over.

    The pictures show the frames as the network gets them, after crop, resize, flip and a pass through the codec, one
    clip in a row. The bar below a frame is its gamma, from noise (empty) to data (full, orange); how much noise is
    added depends on it. Numbers: label, file, times and gammas of each clip, and for every shape of clips how many
    videos are long enough.
    """

    rows: int = option(8, least=1, most=64, metavar="N", help="clips in a picture")

    def run(self) -> Report:
        """Read the first step's clips as training does. UserError for what training would refuse too."""
        config = load_config(self.recipe, self.changes)
        disk = cache_folder(config) is not None
        config = replace(
            config,
            run=RunConfig(str(self.out)),
            data=replace(config.data, workers=0, latents=config.data.latents if disk else "online"),
        )
        accelerator = build.make_accelerator(config)
        data = open_training_data(config, accelerator)
        codec = build.open_codec(config).to(accelerator.device)
        build.check_size(config, codec.downsampling, 1)
        if disk:
            data = data.cached(LatentCaches.of(config, codec))
        clips, images = first_clips(config, data, codec, accelerator, self.rows)
        shapes = counts(config, data)
        pictures = {"look.png": clips, "look_images.png": images}
        return Report(
            {"clips": [_row(seen) for seen in (*clips, *images)], "shapes": shapes, "files": data.notes},
            "\n".join([*data.notes, *_tables(clips, images, shapes)]),
            {name: _drawing(seen) for name, seen in pictures.items() if seen},
        )


def first_clips(
    config: Config, data: TrainingData, codec: Codec, accelerator: Any, most: int
) -> tuple[list[Seen], list[Seen]]:
    """The clips and the images of the first step, `most` of each at most, as the trainer draws them."""
    batches = data.batches(accelerator, codec)
    encode, plan = build.make_encode(codec, accelerator.device), batches.plan
    views: tuple[list[Seen], list[Seen]] = ([], [])
    for number, batch in zip(range(plan.passes), batches.between(0, 1), strict=True):
        seen = views[plan.view(0, number) == len(plan.weights) or config.data.frames == 1]
        positions = list(plan.positions(number))[: max(0, most - len(seen))]
        if positions:
            part = {key: value[: len(positions)] for key, value in batch.items()}
            seen += _seen(config, data, codec, encode, part, positions, accelerator.device)
    return views


def _seen(
    config: Config,
    data: TrainingData,
    codec: Codec,
    encode: Any,
    batch: dict[str, Any],
    positions: list[int],
    device: Any,
) -> list[Seen]:
    """The clips of a batch with the draws of their positions: those of `Trainer`, held equal by a test."""
    seed = config.train.seed
    noise = [generator(seed, "noise", STEP, position, device=device) for position in positions]
    clean = encode(batch, noise)
    gammas = first_gammas(config, positions, clean.shape[1])
    pixels = media.to_uint8(codec.decode(clean))
    labels = [data.labels[label] if label >= 0 else "no label" for label in batch["labels"].tolist()]
    times, gammas = batch["times"].tolist(), gammas.tolist()
    return [Seen(*row) for row in zip(labels, batch["names"], times, gammas, pixels, strict=True)]


def first_gammas(config: Config, positions: list[int], frames: int) -> Tensor:
    """Gammas (B, T) of the first step's clips at these positions of the batch."""
    generators = [generator(config.train.seed, "gamma", STEP, position) for position in positions]
    for source in generators:
        torch.rand((), generator=source)  # whether the label is dropped
    return draw_gamma(config.gamma, frames, generators)


def counts(config: Config, data: TrainingData) -> list[dict[str, Any]]:
    """For each shape of clips how many videos have a part in it, and how many are passed over as too short."""
    if config.data.kind == "images":
        return []
    rows = []
    for shape in config.data.shapes:
        kept = len(data.videos.view(shape).members())
        rows.append({"shape": str(shape), "span": shape.span, "kept": kept, "passed_over": len(data.videos) - kept})
    return rows


def _row(seen: Seen) -> dict[str, Any]:
    return {"label": seen.label, "name": seen.name, "times": seen.times, "gammas": seen.gammas}


def _tables(clips: list[Seen], images: list[Seen], shapes: list[dict[str, Any]]) -> list[str]:
    """The table of shapes, a warning for those that lose more than a hundredth of the videos, and that of clips."""
    lines = []
    if shapes:
        rows = [[row["shape"], str(row["span"]), str(row["kept"]), str(row["passed_over"])] for row in shapes]
        lines += [aligned([["shape", "source frames", "videos", "passed over"], *rows])]
    for row in shapes:
        every = row["kept"] + row["passed_over"]
        if row["passed_over"] > 0.01 * every:
            lines.append(
                f"note: clips of {row['shape']} leave out {row['passed_over']} of {every} videos "
                f"({row['passed_over'] / every:.1%}), which have fewer than {row['span']} frames"
            )
    rows = [[seen.label, shown(seen.name), f"{seen.times[-1]:.2f}", _runs(seen.gammas)] for seen in (*clips, *images)]
    return [*lines, aligned([["label", "file", "seconds", "gamma"], *rows], left=2)]


def _runs(gammas: list[float]) -> str:
    """Gammas in words: "1.00 x 4, 0.30 x 12" where they are few, else the range "0.02 to 0.96"."""
    runs = [(f"{gamma:.2f}", len(list(same))) for gamma, same in groupby(gammas)]
    if len(runs) > 3:
        return f"{min(gammas):.2f} to {max(gammas):.2f}"
    return ", ".join(f"{gamma} x {count}" if len(runs) > 1 else gamma for gamma, count in runs)


def _drawing(seen: list[Seen]) -> Any:
    """A function that writes the clips as a picture, one in a row with a bar of gamma below each frame."""

    def draw(path: Path) -> None:
        frames, height = seen[0].pixels.shape[:2]
        chosen, scale = np.linspace(0, frames - 1, min(frames, FRAMES)).round().astype(int), max(1, SIDE // height)
        clips = np.stack([clip.pixels[chosen] for clip in seen]).repeat(scale, axis=2).repeat(scale, axis=3)
        strips = media.filmstrips(draw_gamma_bars(clips, np.array([clip.gammas for clip in seen])[:, chosen]))
        if clips.shape[1] == 1:  # images: several in a row
            captions, columns = [clip.label for clip in seen], 8
        else:
            captions, columns = [clip.caption(number) for number, clip in enumerate(seen, 1)], 1
        media.write_png(path, media.grid(strips, captions, columns)[0])

    return draw
