"""The loss of an autoencoder alone on a data set: clips are encoded and decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqm_video.codec import BUNDLED, Codec
from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import Arrays
from eqm_video.evaluation.protocol import Protocol
from eqm_video.metrics.fidelity import fidelity
from eqm_video.metrics.psnr import psnr
from eqm_video.options import narrower, option
from eqm_video.output import media
from eqm_video.output.tables import aligned
from eqm_video.sampling.option_groups import Cut, Kind, Measuring, Shaped
from eqm_video.studies.quality import open_evaluation
from eqm_video.studies.request import lists_of
from eqm_video.studies.study import Opening, Report
from eqm_video.system import waits
from eqm_video.system.devices import open_device
from eqm_video.wording import counted

SHOWN = 16  # pairs in the picture, at most


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Opening, Shaped, Cut, Kind, Measuring, group="use", record="numbers.json"):
    """Put your data through a codec and back, before any training.

    A model cannot restore details that its codec loses: first look at the pairs, and at PSNR and SSIM. The --metrics
    say what the codec costs in the numbers by which models are compared: reconstructions of one half of the clips
    against the other half, beside that half itself. The standard deviation of the latents should be near 1, that of the
    noise in training.
    """

    root: Path = option(positional=True, metavar="ROOT", help="folder of videos or images, as for training")
    codec: str | None = BUNDLED
    kind: str | None = "videos"
    frames: int | None = narrower(None, unset="16, for images 1")
    size: tuple[int, int] = (64, 64)
    frame_interval: int | None = 3
    count: int = option(8, least=0, metavar="N", help="number of files, spread evenly over the set; 0 = all")

    def run(self) -> Report:
        """Open the data and the codec, and compare each clip with its reconstruction."""
        frames = self.frames or (1 if self.kind == "images" else 16)
        cut = {"frame_interval": self.frame_interval, **lists_of(self.split or "all", self.fold)}
        data = open_data(self.kind, self.root, frames=frames, size=self.size, **cut)
        codec = Codec.load(self.codec).to(open_device(self.device))
        height, width = self.size
        shown = f"{height}" if height == width else f"{height}x{width}"
        if height % codec.downsampling or width % codec.downsampling:
            raise UserError(f"--size {shown} is not divisible by {codec.downsampling}, the codec's downsampling")
        clips, originals, rebuilt = reconstruct(data, codec, self.count or len(data))
        errors = [clip["psnr"] for clip in clips]
        quality = fidelity(torch.from_numpy(rebuilt)[None], torch.from_numpy(originals))
        protocol = Protocol(window="central", order="sorted", frames=frames, size=self.size)
        evaluation = open_evaluation(self, protocol, codec.device, permutations=0)
        blank = [None] * len(clips)
        costs = evaluation.of_codec(Arrays(originals, blank), Arrays(rebuilt, blank))
        numbers = {
            "codec": self.codec,
            "size": height if height == width else [height, width],
            "clips": clips,
            "psnr_mean": float(np.mean(errors)),
            "psnr_lowest": float(np.min(errors)),
            "latent_std": float(np.mean([clip["latent_std"] for clip in clips])),
            "fidelity": quality,
            "metrics": costs,
        }
        table = (
            f"{counted(len(clips), self.kind[:-1])} of {shown} px through {self.codec}: the lowest PSNR is "
            f"{numbers['psnr_lowest']:.2f} dB, the standard deviation of the latents {numbers['latent_std']:.2f}; "
            f"the picture shows originals above their reconstructions\n\n"
            f"{aligned(rows_of(numbers))}"
        )
        pairs = [np.concatenate(pair, axis=1) for pair in zip(originals[:SHOWN], rebuilt[:SHOWN], strict=True)]
        name = "pairs.gif" if pairs[0].shape[0] > 1 else "pairs.png"
        return Report(numbers, table, {name: lambda path: draw_pairs(path, pairs, data)})

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table of PSNR, SSIM and the metrics, for documents."""
        return {"table": aligned(rows_of(numbers))}


def rows_of(numbers: Mapping[str, Any]) -> list[list[str]]:
    """PSNR, SSIM and each metric as the cells of a line, the header first."""
    rows = [["measure", "codec", "95 % interval, or range of 8 halvings", "real clips"]]
    for name, value in numbers["fidelity"].items():
        title = {"psnr": "PSNR (dB)", "ssim": "SSIM"}[name]
        rows.append([title, f"{value['mean']:.4g}", f"{value['low']:.4g} to {value['high']:.4g}", ""])
    for cost in numbers["metrics"].values():
        codec, floor = cost["codec"], cost["floor"]
        spread = f"{codec['min']:.4g} to {codec['max']:.4g}"
        own = f"{floor['value']:.4g} ({floor['min']:.4g} to {floor['max']:.4g})"
        rows.append([cost["title"], f"{codec['value']:.4g}", spread, own])
    return rows


def reconstruct(data: ClipSet, codec: Codec, count: int) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """(numbers, originals, reconstructions) of the central clips of `count` files, both uint8 (N, T, H, W, 3)."""
    numbers, originals, rebuilt = [], [], []
    indices = dict.fromkeys(k * len(data) // count for k in range(count))
    for index in waits.bar(indices, "reconstructing", unit="file"):
        clip = data.clip(index)
        pixels = clip.pixels[None].to(codec.device).float() / 127.5 - 1
        latents = codec.encode(pixels)
        again = codec.decode(latents)
        quality = float(psnr(again, pixels, span=2).mean())  # over the frames
        numbers.append({"name": clip.name, "psnr": quality, "latent_std": float(latents.std())})
        originals.append(media.to_uint8(pixels)[0])
        rebuilt.append(media.to_uint8(again)[0])
    return numbers, np.stack(originals), np.stack(rebuilt)


def draw_pairs(path: Path, pairs: list[np.ndarray], data: ClipSet) -> None:
    """Write the pairs as a picture: a PNG, or a GIF at the speed of the first clip."""
    grid = media.grid(np.stack(pairs), columns=min(8, len(pairs)), scale=max(1, 128 // data.size[1]))
    if path.suffix == ".png":
        media.write_png(path, grid[0])
    else:
        seconds = data.clip(0).times
        media.write_gif(path, grid, 1 / float(seconds.diff().median()))
