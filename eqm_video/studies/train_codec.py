"""Training of the small autoencoder that ships with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eqm_video.options import narrower, option
from eqm_video.sampling.option_groups import Seeded
from eqm_video.studies.study import Report, Study
from eqm_video.training.codec import CodecTraining


@dataclass(frozen=True, kw_only=True)
class TrainCodec(Study, Seeded, group="use", record="numbers.json"):
    """Train the small autoencoder that ships with the package.

    It learns to reconstruct procedural pictures ("dead leaves"); no photograph is involved. DIR becomes a folder for
    --codec, with the PSNR of held-out pictures in numbers.json.
    """

    out: Path = narrower(positional=True, help="folder for the codec and its numbers")
    steps: int = option(15_000, least=1, metavar="N", help="updates of the weights")
    seconds: float | None = option(None, above=0, metavar="S", help="stop after S seconds instead", unset="by --steps")
    lr: float = option(1e-3, above=0, metavar="RATE", help="the highest learning rate")
    kl_weight: float = option(1e-4, least=0, metavar="W", help="weight of the KL divergence in the loss")
    bf16: bool = option(False, help="bfloat16 autocast")
    perceptual: float = option(
        0.0, least=0, metavar="W", help="weight of an L1 on the maps of an untrained network in the loss"
    )
    init: Path | None = option(None, metavar="FOLDER", help="continue from the weights in this folder")

    def run(self) -> Report:
        """Train. The folder with its numbers.json is replaced as a whole at every save."""
        names = ("steps", "seed", "lr", "kl_weight", "bf16", "seconds", "init", "perceptual")
        numbers = CodecTraining(**{name: getattr(self, name) for name in names}).run(self.out)
        return Report(None, f"held-out PSNR {numbers['psnr']:.2f} dB; use it with --codec {self.out}")
