"""Networks, codecs, pipelines and checkpoints that are small enough to build for every test."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL

from eqm_video.models.transformer import EqMTransformer
from eqm_video.sampling.pipeline import EqMPipeline

NAMES = ["up", "down", "left"]


def tiny_transformer(**options) -> EqMTransformer:
    """A network whose output is not zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 2, "num_labels": 3, **options}
    network = EqMTransformer(**sizes)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return network.eval()


def tiny_vae(**options) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **{"scaling_factor": 0.5, "shift_factor": 0.1, **options},
    )


def tiny_pipeline(network=None, **options) -> EqMPipeline:
    settings = {
        "id2label": NAMES,
        "decay": {"kind": "truncated", "a": 0.8, "gain": 4.0},
        "sampler": {"kind": "nag", "step_size": 0.05, "mu": 0.3, "steps": 4, "guidance_scale": 1.0},
        "frames": 3,
        "fps": 10.0,
        "reference_fps": 8.0,
        "size": 16,
        **options,
    }
    made = EqMPipeline(network or tiny_transformer(), tiny_vae(), **settings)
    made.set_progress_bar_config(disable=True)
    return made


def save_checkpoint(folder, pipe: EqMPipeline, codec: str) -> None:
    pipe.transformer.save_pretrained(folder / "ema")
    keys = ("id2label", "decay", "sampler", "frames", "fps", "reference_fps", "size")
    settings = {**{key: pipe.config[key] for key in keys}, "codec": codec}
    (folder / "pipeline.json").write_text(json.dumps(settings))
    step = int(folder.name.removeprefix("step_")) if folder.name.startswith("step_") else 100
    (folder / "checkpoint.json").write_text(json.dumps({"step": step}))


def latents(pipe, *arguments, **options):
    return pipe(*arguments, output_type="latent", **options).frames
