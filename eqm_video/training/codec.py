"""Training of the small autoencoder that ships with the package.

A KL autoencoder (diffusers' `AutoencoderKL`, downsampling 4, four channels, 1.6 M parameters) learns to reconstruct
procedural still images (`data/dead_leaves.py`). No photograph is involved, so the weights carry this project's licence
alone.

loss = mean |x - y| + mean (x - y)^2 + kl_weight · KL / (values per image), plus an L1 on horizontal and vertical
differences, which keeps edges crisp without a perceptual network, plus an L1 on 4×4 averages, without which colour is
learned last. With a `perceptual` weight also an L1 on the maps of an untrained convolutional network.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from eqm_video.codec import Codec
from eqm_video.data.dead_leaves import dead_leaves
from eqm_video.features.untrained import Random
from eqm_video.metrics.psnr import psnr
from eqm_video.system import files, waits
from eqm_video.system.machine import note_bf16
from eqm_video.training.ema import Ema

CROP_SIZES = (32, 48, 64)  # normalisation statistics depend on size, so training sees several
PIXELS_PER_STEP = 16 * 32 * 32
CANVAS = 128  # pixels
CANVASES = 256
REPLACE_EVERY = 4  # steps
HELD_OUT = 32  # canvases that are measured


def new_autoencoder() -> AutoencoderKL:
    """The architecture of the bundled codec, freshly initialised."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def difference_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of two batches (B, C, H, W)."""
    return l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def reconstruction_loss(a: Tensor, b: Tensor) -> Tensor:
    """The distance between two batches (B, C, H, W): in values, in edges, and in means over 4×4 pixels."""
    means = l1_loss(avg_pool2d(a, 4), avg_pool2d(b, 4))
    return l1_loss(a, b) + mse_loss(a, b) + difference_loss(a, b) + 4 * means


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


class CanvasPool:
    """A pool of procedural canvases for random crops. Every few batches the oldest canvas is replaced."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.canvases = [
            dead_leaves(self.rng, CANVAS, CANVAS) for _ in waits.bar(range(size), "drawing canvases", unit="canvas")
        ]
        self.drawn = 0

    def batch(self) -> Tensor:
        """Random crops of one random size, randomly mirrored and transposed: float (B, 3, H, W) in [-1, 1]."""
        self.drawn += 1
        if self.drawn % REPLACE_EVERY == 0:  # drawing a canvas costs about half a training step
            oldest = self.drawn // REPLACE_EVERY % len(self.canvases)
            self.canvases[oldest] = dead_leaves(self.rng, CANVAS, CANVAS)
        size = int(self.rng.choice(CROP_SIZES))
        crops = []
        for _ in range(PIXELS_PER_STEP // size**2):
            top, left = self.rng.integers(CANVAS - size + 1, size=2)
            crop = self.canvases[self.rng.integers(len(self.canvases))][top : top + size, left : left + size]
            crop = crop[:, ::-1] if self.rng.random() < 0.5 else crop
            crops.append(crop.transpose(1, 0, 2) if self.rng.random() < 0.5 else crop)
        return to_pixels(np.stack(crops))


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """The settings of a training: `steps` updates, or as many as fit in `seconds`.

    perceptual: weight of the L1 on an untrained network's maps. init: a folder of weights to continue from. bf16:
    bfloat16 autocast.
    """

    steps: int
    seed: int
    lr: float
    kl_weight: float
    bf16: bool = False
    seconds: float | None = None
    init: Path | None = None
    perceptual: float = 0.0

    def run(self, out: Path) -> dict[str, float]:
        """Train and write the averaged weights to `out` in float16; returns the numbers of `evaluate`."""
        torch.manual_seed(self.seed)
        model = new_autoencoder()  # also with init: its draws come before those of the latents
        if self.init is not None:
            model = Codec.load(str(self.init)).vae
        model.train().requires_grad_(True).to(memory_format=torch.channels_last)
        average = Ema(model, 0.999)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        pool = CanvasPool(CANVASES, self.seed)
        rng = np.random.default_rng(2**31)
        held_out = to_pixels(np.stack([dead_leaves(rng, CANVAS, CANVAS) for _ in range(HELD_OUT)]))
        for note in note_bf16("cpu", "--bf16", "the command without it") if self.bf16 else ():
            print(note)
        start, step, progress, numbers = time.monotonic(), 0, 0.0, {}
        bar = waits.bar(what="training the codec", total=self.steps, unit="step", delay=0, keep=True)
        while progress < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step, progress)
            loss = self.loss(model, pool.batch().to(memory_format=torch.channels_last))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(model)
            step += 1
            bar.update()
            elapsed = time.monotonic() - start
            progress = elapsed / self.seconds if self.seconds else step / self.steps
            if step % 1000 == 0 or progress >= 1.0:
                numbers = evaluate(average.network, held_out)
                at = f"step {step}  {elapsed:.0f} s"
                waits.say(f"{at}  loss {loss.item():.4f}  held-out PSNR {numbers['psnr']:.2f} dB")
                save(average.network, numbers, out)
        bar.close()
        return numbers

    def rate(self, step: int, progress: float) -> float:
        """The learning rate after `step` updates: 200 updates of warm-up, and a cosine over `progress` from 0 to 1."""
        return self.lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))

    def loss(self, model: AutoencoderKL, pixels: Tensor) -> Tensor:
        """The loss of a batch (B, 3, H, W) in [-1, 1]; it draws the latents from torch's global generator."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            posterior = model.encode(pixels).latent_dist
            decoded = model.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / pixels[0].numel()
        loss = reconstruction_loss(decoded.float(), pixels) + self.kl_weight * kl
        if self.perceptual:
            pairs = zip(untrained().maps(decoded.float()), untrained().maps(pixels), strict=True)
            loss = loss + self.perceptual * sum(l1_loss(ours, theirs) for ours, theirs in pairs)
        return loss


@cache
def untrained() -> Random:
    """The network of the perceptual term."""
    return Random()


@torch.inference_mode()
def evaluate(model: AutoencoderKL, pictures: Tensor) -> dict[str, float]:
    """PSNR of held-out pictures and the statistics of their latents."""
    posterior = model.encode(pictures).latent_dist
    latents = posterior.mode()
    return {
        "psnr": float(psnr(model.decode(latents).sample.clamp(-1, 1), pictures, span=2).mean()),
        "latent_mean": latents.mean().item(),
        "latent_std": latents.std().item(),
        "posterior_std": posterior.std.mean().item(),
    }


def save(model: AutoencoderKL, numbers: dict[str, float], out: Path) -> None:
    """Write the autoencoder with the scaling and shift that give unit-variance latents."""
    model.register_to_config(
        scaling_factor=round(1.0 / numbers["latent_std"], 6), shift_factor=round(numbers["latent_mean"], 6)
    )
    half = new_autoencoder().half()
    half.load_state_dict({name: value.half() for name, value in model.state_dict().items()})
    half.register_to_config(scaling_factor=model.config.scaling_factor, shift_factor=model.config.shift_factor)
    with files.writing_folder(out) as aside:
        half.save_pretrained(aside)
        files.write_record(aside / "numbers.json", numbers)
