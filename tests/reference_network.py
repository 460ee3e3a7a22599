"""A second, plain implementation of the reference network, for tests alone: it reads the reference's own weights.

Written from the architecture's description (DiT/SiT: sin-cos positions, adaLN-Zero blocks), in our sign: it returns the
gradient that points from data to noise, (B, C, H, W). It shares no code with the package, so that parity of objective,
guidance and samplers with the recorded numbers does not lean on the package's own network.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu

FOLDER = Path(__file__).resolve().parent / "fixtures" / "official_eqm"


def expected() -> dict[str, Tensor]:
    return load_file(FOLDER / "expected.safetensors")


def settings() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


class ReferenceNetwork:
    """Called as `network(latents (B, 1, C, H, W), labels, times=None)`; the result has `.sample`."""

    null_label = 10

    def __init__(self) -> None:
        weights = load_file(FOLDER / "official_state_dict.safetensors")
        self.weights = {name: value.double() for name, value in weights.items()}
        self.sizes = settings()["model"]

    def __call__(self, latents: Tensor, labels: Tensor, *, times: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(sample=-self.ascent(latents.squeeze(1), labels).unsqueeze(1))

    def linear(self, name: str, values: Tensor) -> Tensor:
        return linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def modulation(self, name: str, condition: Tensor, parts: int) -> list[Tensor]:
        return list(self.linear(f"{name}.adaLN_modulation.1", silu(condition))[:, None].chunk(parts, dim=-1))

    def attention(self, name: str, tokens: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.linear(f"{name}.qkv", tokens), "b n (three h d) -> three b h n d", three=3, h=self.sizes["num_heads"]
        )
        mixed = scaled_dot_product_attention(query, key, value)
        return self.linear(f"{name}.proj", rearrange(mixed, "b h n d -> b n (h d)"))

    def ascent(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The reference's field (B, C, H, W), from noise to data; the network is told a gamma of 0."""
        patch, width, height = self.sizes["patch_size"], self.sizes["hidden_size"], latents.shape[-2]
        patches = rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        tokens = linear(
            patches, self.weights["x_embedder.proj.weight"].flatten(1), self.weights["x_embedder.proj.bias"]
        )
        tokens = tokens + self.weights["pos_embed"]
        waves = torch.cat([torch.ones(1, 128), torch.zeros(1, 128)], dim=1).double()  # cosines and sines of 0
        condition = self.linear("t_embedder.mlp.2", silu(self.linear("t_embedder.mlp.0", waves)))
        condition = condition + self.weights["y_embedder.embedding_table.weight"][labels]
        for index in range(self.sizes["depth"]):
            name = f"blocks.{index}"
            shift, scale, gate, shift2, scale2, gate2 = self.modulation(name, condition, 6)
            normed = layer_norm(tokens, (width,), eps=1e-6) * (1 + scale) + shift
            tokens = tokens + gate * self.attention(f"{name}.attn", normed)
            normed = layer_norm(tokens, (width,), eps=1e-6) * (1 + scale2) + shift2
            inner = gelu(self.linear(f"{name}.mlp.fc1", normed), approximate="tanh")
            tokens = tokens + gate2 * self.linear(f"{name}.mlp.fc2", inner)
        shift, scale = self.modulation("final_layer", condition, 2)
        out = self.linear("final_layer.linear", layer_norm(tokens, (width,), eps=1e-6) * (1 + scale) + shift)
        out = rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=height // patch, p=patch, q=patch)
        return out[:, : self.sizes["in_channels"]]  # the reference drops the second half
