"""A descent computes the modulations of its labels and the rotations of its times once, with the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_transformer

from eqm_video.core.composition import ComposedField, ScheduledField
from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField, HistoryField
from eqm_video.models import layers
from eqm_video.models.transformer import EqMTransformer
from eqm_video.samplers import NAG, GradientDescent, descend, run
from eqm_video.samplers.active import frame_rms


def calls_of(network: EqMTransformer) -> list[int]:
    """The number of clips of every call of a modulation or of the label embedding, from now on."""
    calls: list[int] = []
    for name, module in network.named_modules():
        if isinstance(module, layers.Modulation) or name == "label_embed":
            module.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    return calls


@pytest.mark.parametrize("energy", ["implicit", "dot"])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_descent_computes_what_labels_and_times_decide_once(energy: str, guidance: float, mode: Any) -> None:
    network = tiny_transformer(energy=energy, depth=2).eval()
    calls, labels = calls_of(network), torch.tensor([0, 1, 2])
    with mode():
        latents, times = torch.randn(3, 4, 4, 4, 4), torch.arange(4.0).expand(3, 4)
        field = GuidedField(Field(network), labels, guidance_scale=guidance, null_label=3, times=times)
        plain = descend(field, latents, NAG(0.01, 0.3), steps=4).latents
        each, rows = 2 * 2 + 2, 6 if guidance == 2 else 3  # both modulations of a block, the head's, the embedding
        assert calls == [rows] * (4 * each)
        calls.clear()
        kept = run(field, latents, NAG(0.01, 0.3), steps=4).latents
        assert torch.equal(kept, plain) and calls == [rows] * each
        with torch.no_grad():
            network.blocks[0].modulation.linear.bias.add_(1.0)
        assert not torch.equal(run(field, latents, NAG(0.01, 0.3), steps=4).latents, plain)  # a new descent


@torch.no_grad()
def test_what_a_descent_keeps_follows_guidance_that_ends_and_clips_that_stop() -> None:
    network = tiny_transformer(depth=2).eval()
    latents = (
        torch.randn(3, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 3.0, 9.0])[:, None, None, None, None]
    )
    guided = GuidedField(Field(network), torch.tensor([0, 1, 2]), guidance_scale=2.0, null_label=3, interval=(0.0, 0.5))
    known, other = torch.zeros(3, 4, dtype=torch.bool), GuidedField(Field(network), None, null_label=3)
    known[:, 0] = True
    composed = ComposedField([guided, other], [0.4, 0.6])
    for field in (guided, composed, HistoryField(composed, known, torch.randn_like(latents), 1.5)):
        field = ScheduledField(field, 6)
        first = frame_rms(field(latents)).amax(dim=1).sort().values
        how = {"steps": 6, "tolerance": float(first[1])}
        plain, kept = (call(field, latents, GradientDescent(0.01), **how) for call in (descend, run))
        assert torch.equal(plain.latents, kept.latents) and torch.equal(plain.nfe, kept.nfe)
        assert plain.nfe.unique().numel() > 1, plain.nfe


def test_nothing_is_kept_while_weights_are_trained_or_gamma_is_an_input() -> None:
    network, latents = tiny_transformer(depth=1), torch.randn(1, 2, 4, 4, 4)
    kept: dict = {}
    Field(network)(latents, kept=kept).sample.sum().backward()
    assert kept == {} and network.blocks[0].modulation.linear.weight.grad.abs().sum() > 0
    conditioned = tiny_transformer(depth=1, conditioned_on_gamma=True)
    with torch.no_grad():
        Field(conditioned)(latents, gamma=torch.rand(1, 2), kept=kept)
        assert kept == {}
        Field(network)(latents, kept=kept)
    assert list(kept) == [(1, 2)]
