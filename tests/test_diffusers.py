"""A diffusers citizen: storage in small dtypes, weights of a variant, and a pipeline made from another's parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import latents, tiny_pipeline, tiny_transformer

from eqm_video.sampling.pipeline import EqMPipeline


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_may_be_stored_in_fewer_bits_than_they_compute_in(storage: torch.dtype) -> None:
    """Layerwise casting: hidden layers are kept in `storage`, and every product is of float32."""
    plain, cast = tiny_transformer(), tiny_transformer()
    cast.load_state_dict(plain.state_dict())
    cast.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    kept = {name: weight.dtype for name, weight in cast.named_parameters()}
    assert storage in kept.values()
    clips = torch.randn(2, 3, plain.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = plain(clips).sample, cast(clips).sample
    assert theirs.dtype == torch.float32 and not torch.equal(ours, theirs)
    error = (ours - theirs).square().mean().sqrt() / ours.square().mean().sqrt()
    assert error < {torch.bfloat16: 0.02, torch.float8_e4m3fn: 0.2}[storage]


def test_a_variant_of_half_the_size_samples_nearly_the_same(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    before = latents(pipeline, seeds=[0], steps=2)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    again = EqMPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float32)
    assert again.transformer.dtype == torch.float32
    assert torch.allclose(latents(again, seeds=[0], steps=2), before, atol=0.02)
    assert (tmp_path / "transformer/diffusion_pytorch_model.fp16.safetensors").is_file()
