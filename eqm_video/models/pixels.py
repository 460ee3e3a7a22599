"""Pixel space: an autoencoder whose latents are the pixels, to train on small images without a codec.

B images, H W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # by name: diffusers looks it up in this module on loading
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class PixelLatents(BaseOutput):
    """The result of `encode`: latents (B, 3, H, W)."""

    latents: Tensor


@dataclass
class Pixels(BaseOutput):
    """The result of `decode`: sample (B, 3, H, W)."""

    sample: Tensor


class PixelAutoencoder(ModelMixin, ConfigMixin):
    """The identity, with the interface of diffusers' AutoencoderTiny: 3 channels, no downsampling, scaling 1.

    It has no weights, only a placeholder of a single number: diffusers reads a model's device and dtype off its
    tensors, and a saved folder must contain a tensor.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, latent_channels: int = 3, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        if (in_channels, out_channels, latent_channels, scaling_factor) != (3, 3, 3, 1.0):
            raise ValueError("pixels are 3 channels, and are not scaled: leave the arguments of PixelAutoencoder out")
        self.register_buffer("place", torch.zeros(1))

    def encode(self, pixels: Tensor) -> PixelLatents:
        """The pixels (B, 3, H, W) as they are, under `latents`."""
        return PixelLatents(latents=pixels)

    def decode(self, latents: Tensor) -> Pixels:
        """The latents (B, 3, H, W) as they are, under `sample`."""
        return Pixels(sample=latents)
