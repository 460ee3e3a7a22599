"""`python -m eqm_video reconstruct ROOT --out DIR`: your data through a codec and back, before any training.

What the codec loses no model can give back: look at the pairs, and at the PSNR of each clip, first. The latents'
standard deviation should be near 1, because the noise that training mixes in has 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from eqm_video.codec import BUNDLED, Codec
from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.output.outputs import claim_output
from eqm_video.system import files
from eqm_video.system.parser import Parser
from eqm_video.wording import counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(prog="python -m eqm_video reconstruct", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of videos or images, as for training")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs and numbers.json")
    parser.add_argument("--codec", default=BUNDLED, help="bundled, a folder or a hub id; default: bundled")
    parser.add_argument("--kind", choices=("videos", "images"), default="videos")
    parser.add_argument("--size", type=int, default=64, help="pixels; default: 64")
    parser.add_argument("--frames", type=int, help="of a clip; default: 16, for images 1")
    parser.add_argument("--frame-interval", type=int, default=3)
    parser.add_argument("--count", type=int, default=8, help="files, spread evenly over the set; 0: all; default: 8")
    options = parser.parse_args(arguments)
    frames = options.frames or (1 if options.kind == "images" else 16)
    claim_output(options.out, "reconstruct")
    data = open_data(
        options.kind, options.root, frames=frames, frame_interval=options.frame_interval, size=options.size
    )
    codec = Codec.load(options.codec)
    if options.size % codec.downsampling:
        raise UserError(f"--size {options.size} is not divisible by {codec.downsampling}, the codec's downsampling")
    clips, pairs = reconstruct(data, codec, options.count or len(data))
    errors = [clip["psnr"] for clip in clips]
    numbers = {
        "codec": options.codec,
        "size": options.size,
        "clips": clips,
        "psnr_mean": float(np.mean(errors)),
        "psnr_lowest": float(np.min(errors)),
        "latent_std": float(np.mean([clip["latent_std"] for clip in clips])),
    }
    files.write_record(options.out / "numbers.json", numbers)
    picture = show(options.out, pairs, data)
    print(
        f"{counted(len(clips), options.kind[:-1])} of {options.size} px through {options.codec}: PSNR "
        f"{numbers['psnr_mean']:.2f} dB (lowest {numbers['psnr_lowest']:.2f}), latents' deviation "
        f"{numbers['latent_std']:.2f}\n"
        f"look at {picture}: originals above their reconstructions"
    )
    return 0


def reconstruct(data: ClipSet, codec: Codec, count: int) -> tuple[list[dict], list[np.ndarray]]:
    """Central clips of `count` files: numbers of each, and (original above reconstruction) as uint8 (T, 2H, W, 3)."""
    numbers, pairs = [], []
    indices = dict.fromkeys(k * len(data) // count for k in range(count))
    for index in tqdm(indices, desc="reconstructing", unit="file"):
        clip = data.clip(index)
        pixels = clip.pixels[None].float() / 127.5 - 1
        latents = codec.encode(pixels)
        again = codec.decode(latents)
        error = (again - pixels).square().mean(dim=(0, 2, 3, 4))  # of each frame
        psnr = (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()
        numbers.append({"name": clip.name, "psnr": float(psnr), "latent_std": float(latents.std())})
        if len(pairs) < 16:
            pairs.append(np.concatenate([media.to_uint8(pixels)[0], media.to_uint8(again)[0]], axis=1))
    return numbers, pairs


def show(out: Path, pairs: list[np.ndarray], data: ClipSet) -> Path:
    """Write the pairs as one picture, moving where the clips do."""
    grid = media.grid(np.stack(pairs), columns=min(8, len(pairs)), scale=max(1, 128 // data.size[1]))
    if len(grid) == 1:
        media.write_png(out / "pairs.png", grid[0])
        return out / "pairs.png"
    seconds = data.clip(0).times
    media.write_gif(out / "pairs.gif", grid, 1 / float(seconds.diff().median()))
    return out / "pairs.gif"
