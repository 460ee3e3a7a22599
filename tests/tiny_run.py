"""Small things that the training tests share: clips in memory, a network, a codec folder, a folder of videos."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL

from eqm_video.cli import main as command_line
from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.energy import Field
from eqm_video.core.gamma import SharedGamma
from eqm_video.core.objective import EqMObjective
from eqm_video.models.transformer import EqMTransformer
from eqm_video.training.batches import Batches, BatchPlan
from eqm_video.training.checkpoint import Checkpoints
from eqm_video.training.config import TrainConfig
from eqm_video.training.ema import Ema
from eqm_video.training.optim import OPTIMIZERS, Schedule
from eqm_video.training.tracking import RunLog
from eqm_video.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Moments:
    """A clip of moments: its frames depend on the index, its noise on the seed."""

    index: int
    seed: int
    frames: int = 3


class MemoryClips:
    """A data set in memory with the interface of the real ones: (index, seed) -> clip."""

    labels = ("left", "right")

    def __init__(self, size: int = 6, frames: int = 3) -> None:
        self.size, self.frames = size, frames

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, request: tuple[int, int]) -> Moments:
        return Moments(*request, self.frames)

    def clip(self, index: int, generator: torch.Generator | None) -> Moments:
        return Moments(index, 0, self.frames)

    def collate(self, clips: list[Moments]) -> dict:
        moments = []
        for clip in clips:
            generator = torch.Generator().manual_seed(clip.index * 1000 + clip.seed % 7)
            moments.append(torch.randn(clip.frames, 4, 4, 4, generator=generator))
        return {
            "moments": torch.stack(moments),
            "labels": torch.tensor([clip.index % 2 for clip in clips]),
            "times": torch.arange(clips[0].frames).float().expand(len(clips), -1) / 8,
            "names": [f"clip-{clip.index}" for clip in clips],
        }


def encode(batch: dict, generators: list | None) -> torch.Tensor:
    """The mean of the moments: two channels of latents."""
    return batch["moments"][:, :, :2].clone()


def tiny_network(seed: int = 0, **options: object) -> EqMTransformer:
    """Hidden size 32, two blocks, with weights that are not zero anywhere, so that every path counts."""
    sizes = {"in_channels": 2, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_labels": 2}
    torch.manual_seed(seed)
    network = EqMTransformer(**{**sizes, **options})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def tiny_trainer(folder: Path, network: EqMTransformer | None = None, **options: object) -> Trainer:
    """A trainer on `MemoryClips`; keywords replace its settings or parts.

    `clips` may be a list of sets, one for each shape; `images` of the samples of a step are of one frame.
    """
    network = network if network is not None else tiny_network()
    accelerator = options.pop("accelerator", None) or Accelerator(cpu=True)
    clips = options.pop("clips", None) or MemoryClips()
    sets = list(clips) if isinstance(clips, list) else [clips]
    clips, images = sets[0], options.pop("images", 0)
    names = ("steps", "seed", "clip_norm", "label_dropout", "log_every", "save_every", "save_every_minutes")
    settings = TrainConfig(**{"steps": 4, "log_every": 2, **{k: options.pop(k) for k in names if k in options}})
    plan = BatchPlan(
        size=len(clips),
        batch_size=options.pop("batch_size", 4),
        seed=settings.seed,
        accumulation=options.pop("accumulation", 1),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        weights=(1.0,) * len(sets),
        images=images,
        image_size=5 if images else 0,
    )
    sets += [MemoryClips(size=5, frames=1)] if images else []
    lr = options.pop("lr", 1e-3)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        Field(network),
        options.pop("objective", EqMObjective(TruncatedDecay(a=0.8, gain=4.0))),
        options.pop("gamma", SharedGamma()),
        Batches(sets, clips.collate, plan),
        encode=options.pop("encode", encode),
        optimizer=OPTIMIZERS[options.pop("optimizer", "adamw")](network, lr=lr),
        schedule=options.pop("schedule", Schedule(lr, settings.steps)),
        ema=Ema(network, 0.9),
        accelerator=accelerator,
        settings=settings,
        checkpoints=Checkpoints(folder / "checkpoints", options.pop("keep", 3)),
        log=RunLog(folder, accelerator),
        **options,
    )


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's parameters."""
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def write_codec(folder: Path, seed: int = 0, **options: object) -> Path:
    """A random autoencoder that divides height and width by 4; `options` are more of its sizes."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=2,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        **options,
    )
    vae.save_pretrained(folder)
    return folder


def write_videos(folder: Path, size: int = 32, frames: int = 10, each: int = 3) -> Path:
    """Two class folders of a bright bar that moves left or right."""
    from eqm_video.output.media import write_mp4

    for label, direction in (("left", -1), ("right", 1)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            video = np.full((frames, size, size, 3), 40 * index, dtype=np.uint8)
            for frame in range(frames):
                place = (8 + 2 * direction * frame) % size
                video[frame, :, place : place + 6] = 220
            write_mp4(folder / label / f"{index}.mp4", video, 8)
    return folder


def write_images(folder: Path, labels: tuple[str, ...] = ("right", "still"), each: int = 2, size: int = 20) -> Path:
    """Class folders of noise."""
    from PIL import Image

    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(each):
            pixels = np.random.default_rng(index).integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def command(*arguments: object) -> list[str]:
    """`python train_video.py ...` from the top of the repository."""
    return [sys.executable, str(ROOT / "train_video.py"), *map(str, arguments)]


def run_command(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run `train_video.py` to its end."""
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def run_here(*arguments: object) -> SimpleNamespace:
    """`run_command` without its imports: in this process, as if it were new to Accelerate."""
    out, err = io.StringIO(), io.StringIO()
    AcceleratorState._reset_state(reset_partial_state=True)
    with redirect_stdout(out), redirect_stderr(err):
        status = main(list(map(str, arguments)))
    AcceleratorState._reset_state(reset_partial_state=True)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def read_metrics(folder: Path) -> list[dict]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main(arguments: list[str]) -> int:
    """`train_video.py` in this process."""
    return command_line(["train", *arguments])


def recipe(made: Path, run: Path, kind: str = "videos") -> list[str]:
    common = [f"data.root={made / kind}", f"codec.name={made / 'codec'}", f"run.dir={run}", f"data.kind={kind}"]
    common += ["model.preset=EqM-Nano/2", "data.size=16", "data.workers=0", "train.batch_size=2", "train.steps=4"]
    common += ["data.latents=online", "run.report=false"]
    common += ["train.log_every=2", "train.save_every=2", "preview.every=4", "preview.samples=5", "sampler.steps=2"]
    return [*common, *(["frames=3", "data.frame_interval=2"] if kind == "videos" else ["frames=1"])]
