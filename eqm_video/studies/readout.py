"""A learned readout of each frame's level: trained on the frozen network, compared with the training-free estimate.

Legend: N clips, K noisy copies of each, T frames, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqm_video.analysis.gamma_estimate import calibrate
from eqm_video.core.objective import interpolate
from eqm_video.errors import UserError
from eqm_video.metrics.intervals import estimate
from eqm_video.models.readout import LevelReadout, save_readout
from eqm_video.options import option
from eqm_video.output.tables import aligned
from eqm_video.randomness import generator, normal
from eqm_video.sampling.folders import find_model, holds_model
from eqm_video.sampling.option_groups import Batched, HeldOut, Seeded, WritesBack
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.batches import batches, encode
from eqm_video.studies.forcing.measure import GAMMAS, estimated
from eqm_video.studies.request import open_source
from eqm_video.studies.study import OneModel, Report
from eqm_video.system import waits


@dataclass(frozen=True, kw_only=True)
class Readout(OneModel, HeldOut, Seeded, Batched, WritesBack, group="look"):
    """Train a small head that reads each frame's level from the frozen network, beside the training-free estimate.

    The head reads the tokens after the last block. It is trained on half of the clips of --data, noised at random
    levels, of their own for each frame or one for the clip. The other half measures the error by level, of the head and
    of the estimate from the gradient alone. --write keeps the head in the export, for `--closed-loop readout`.
    """

    copies: int = option(8, least=1, metavar="K", help="copies of each clip, with levels and noise of their own")
    fit_steps: int = option(1000, least=1, metavar="N", help="training steps of the head")

    def run(self, pipeline: EqMPipeline) -> Report:
        """Train the head, measure, and with --write keep it."""
        if pipeline.transformer.config.conditioned_on_gamma:
            raise UserError("gamma is an input of this network, so there is no level to read: give a model without it")
        folder = Path(find_model(self.model)) if self.write else self.out
        if self.write and not ((folder / "model_index.json").is_file() or holds_model(folder)):
            raise UserError(
                f"--write keeps the head in an export or a checkpoint, and {folder} is neither: give the folder of one"
            )
        clips, labels = self.read(pipeline)
        if len(clips) < 4:
            raise UserError(f"{self.data} gives {len(clips)} clips, too few to train and to measure: give --clips 64")
        half = len(clips) // 2
        features, levels = self.seen(pipeline, clips[:half], labels[:half])
        head = fit(features, levels, self.fit_steps, self.seed)
        errors = self.errors(pipeline, head, clips[half:], labels[half:], calibrate(clips[:half]))
        numbers = {"settings": {"clips": [half, len(clips) - half], "copies": self.copies, "seed": self.seed}, **errors}
        save_readout(head, folder)
        return Report(numbers, self.views(numbers)["errors"])

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table by name: errors."""
        cells = [["mean error of the level at", *numbers["errors"]["learned"]]]
        for name, row in numbers["errors"].items():
            cells.append([name, *(f"{cell['mean']:.3f}" for cell in row.values())])
        return {"errors": aligned(cells)}

    def read(self, pipeline: EqMPipeline) -> tuple[Tensor, list[str | None]]:
        """Latents (N, T, C, h, w) of the clips, and the labels that the model knows."""
        clips, known = open_source(self, pipeline).read(), set(pipeline.labels.values())
        order = torch.randperm(len(clips.pixels), generator=generator(self.seed, "readout clips", 0)).tolist()
        labels = [clips.labels[k] if clips.labels[k] in known else None for k in order]
        return encode(pipeline, clips.pixels[order], self.batch_size), labels

    @torch.no_grad()
    def look(self, pipeline: EqMPipeline, clean: Tensor, labels: list[str | None], gamma: Tensor, name: str) -> Any:
        """(noisy latents, gradient, features) of clips at levels gamma (N, T)."""
        noisy, gradients, features = [], [], []
        for part in batches(len(clean), self.batch_size):
            x = clean[part].to(pipeline.device)
            sources = [generator(self.seed, "readout noise", name, k) for k in range(part.start, part.stop)]
            noise = normal(x.shape[1:], sources, device=x.device, dtype=x.dtype)
            point = interpolate(x, noise, gamma[part].to(x))
            field = pipeline.field(labels[part], guidance_scale=1.0, num_frames=x.shape[1])
            kept: list[Tensor] = []

            def keep(hidden: Tensor, kept: list[Tensor] = kept) -> tuple[Tensor, Tensor]:
                kept.append(LevelReadout.features(hidden))
                return hidden[:, :, 0, 0], hidden[:, :, 0, 0]

            field.readout = keep
            gradient = field.observed(point)[0]
            noisy.append(point)
            gradients.append(gradient)
            features.append(kept[0])
        return torch.cat(noisy), torch.cat(gradients), torch.cat(features)

    def seen(self, pipeline: EqMPipeline, clean: Tensor, labels: list[str | None]) -> tuple[Tensor, Tensor]:
        """Features (K N T, F) and levels (K N T,) to train on: half of the copies have one level for the whole clip."""
        features, levels = [], []
        for copy in waits.bar(range(self.copies), "features to train on", unit="copy"):
            gamma = torch.rand(clean.shape[:2], generator=generator(self.seed, "readout levels", copy))
            gamma = gamma if copy % 2 == 0 else gamma[:, :1].expand_as(gamma)
            features.append(self.look(pipeline, clean, labels, gamma, f"train {copy}")[2].flatten(0, 1))
            levels.append(gamma.flatten())
        return torch.cat(features).cpu(), torch.cat(levels)

    def errors(
        self, pipeline: EqMPipeline, head: LevelReadout, clean: Tensor, labels: list[str | None], scale: float
    ) -> dict[str, Any]:
        """Mean errors by level, with intervals over clips: learned, and from the gradient (training-free)."""
        rows: dict[str, dict[str, Any]] = {"learned": {}, "training-free": {}}
        for gamma in GAMMAS:
            levels = torch.full(clean.shape[:2], gamma)
            noisy, gradient, features = self.look(pipeline, clean, labels, levels, f"test {gamma:g}")
            with torch.no_grad():
                learned = head.read(features.cpu())[0]
            free = estimated(noisy, gradient, pipeline.decay, scale).cpu()
            for name, values in (("learned", learned), ("training-free", free)):
                rows[name][f"{gamma:g}"] = asdict(estimate((values - gamma).abs().mean(dim=1)[None].double()))
        return {"errors": rows}


def fit(features: Tensor, levels: Tensor, steps: int, seed: int) -> LevelReadout:
    """A readout trained on features (M, F) and levels (M,) by the likelihood of a normal error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LevelReadout(features.shape[1] // 2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = generator(seed, "readout batches", 0)
    for _ in waits.bar(range(steps), "training the readout", unit="step"):
        rows = torch.randint(len(levels), (256,), generator=order)
        level, spread = head.read(features[rows])
        loss = (((level - levels[rows]) / spread).square() / 2 + spread.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()
