"""The U-Net: the blocks in the order of diffusers' own forward, the paper's size, the interface of the transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from tiny_run import MemoryClips, equal, tiny_trainer, weights
from torch import nn

from eqm_video.codec import Codec
from eqm_video.core.energy import Field, checkpoint_block
from eqm_video.errors import UserError
from eqm_video.models.loading import load_transformer
from eqm_video.models.presets import UNET_PRESETS, build_model
from eqm_video.models.unet import EqMUNet
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.training.optim import OPTIMIZERS

TINY = {"base_channels": 8, "multipliers": (1, 2), "patch_size": 2, "depth": 1, "norm_groups": 4, "num_labels": 3}


def tiny_unet(seed: int = 0, **options) -> EqMUNet:
    """A network with weights that are zero nowhere, so that every path counts."""
    torch.manual_seed(seed)
    network = EqMUNet(**{**TINY, "dropout": 0.0, **options})
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    return network.eval()


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(4, 1, 3, 8, 12, generator=torch.Generator().manual_seed(1))


# ---- architecture ----------------------------------------------------------------------------------------------------


def test_the_preset_is_the_published_setting() -> None:
    with torch.device("meta"):
        network = build_model("EqM-UNet", num_labels=10)
        default = EqMUNet()
    labels = 11 * 512  # the published network is told no label
    assert sum(weight.numel() for weight in network.parameters()) == 55_676_419 + labels
    both = (network.config, default.config)
    first, second = ({key: value for key, value in config.items() if key[0] != "_"} for config in both)
    assert first == second
    assert set(vars(UNET_PRESETS["EqM-UNet"])) < set(network.config)


def test_attention_works_at_half_resolution_and_in_the_middle_alone() -> None:
    network, sizes = build_model("EqM-UNet-Tiny", num_labels=3).eval(), []
    modules = [module for module in network.modules() if isinstance(module, Attention)]
    for module in modules:
        module.register_forward_hook(lambda module, given, output: sizes.append((module.heads, *output.shape[2:])))
    output = network(torch.zeros(1, 1, 3, 32, 32))
    assert sizes == [(1, 16, 16), (1, 8, 8), (1, 16, 16), (1, 16, 16)]
    assert all(module.group_norm is not None for module in modules)
    assert output.hidden.shape == (1, 1, 64, 64)
    assert len(network.blocks) == 7  # what train.compile compiles: three down, the middle, three up


def test_resizing_has_no_weights_and_the_condition_scales_and_shifts() -> None:
    shapes = {name: tuple(value.shape) for name, value in EqMUNet(**TINY).named_parameters()}
    assert not [name for name in shapes if "sampler" in name]
    assert shapes["down_blocks.0.resnets.0.time_emb_proj.weight"] == (2 * 8, 4 * 8)


def test_it_computes_what_diffusers_does(latents: torch.Tensor) -> None:
    network = tiny_unet(multipliers=(1, 2, 2), patch_size=4, attention_levels=(1, 2), depth=2)
    body = UNet2DModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=4,
        time_embedding_dim=32,
        class_embed_type="identity",
    ).eval()
    for name in ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out"):
        setattr(body, name, getattr(network, name))
    body.conv_norm_out = network.norm_out
    for value in body.time_embedding.linear_2.parameters():
        nn.init.zeros_(value)  # the whole condition goes in beside it
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        condition = network.label_embed(labels) + network.gamma_embed(torch.zeros(4), torch.float32)
        expected = body(latents[:, 0], 0, class_labels=condition).sample
        output = network(latents, labels)
    torch.testing.assert_close(output.sample[:, 0], expected)
    assert expected.std() > 0.01 and output.hidden.shape == (4, 1, 2 * 3, 16)


def test_it_starts_at_zero_with_branches_that_add_nothing(latents: torch.Tensor) -> None:
    network = EqMUNet(**TINY).eval()
    assert not network(latents).sample.any()
    nn.init.normal_(network.conv_out.weight)
    sample = network(latents, torch.tensor([0, 1, 2, 3])).sample
    assert sample.std() > 0.1 and torch.equal(sample, network(latents).sample)  # labels enter through the branches
    assert network.null_label == 3 and 0.01 < float(network.label_embed.weight.detach().std()) < 0.03


# ---- interface -------------------------------------------------------------------------------------------------------


def test_labels_and_gamma_change_the_result(latents: torch.Tensor) -> None:
    network = tiny_unet()
    with torch.no_grad():
        null = network(latents).sample
        assert torch.equal(null, network(latents, torch.full((4,), 3)).sample)
        assert torch.equal(null, network(latents, times=torch.rand(4, 1)).sample)
        mixed = network(latents, torch.tensor([3, 3, 0, 3])).sample
        assert torch.equal(mixed[:2], null[:2]) and (mixed[2] - null[2]).abs().max() > 1e-3
        told = tiny_unet(conditioned_on_gamma=True)
        first, second = (told(latents, gamma=torch.full((4, 1), gamma)).sample for gamma in (0.0, 0.8))
    torch.testing.assert_close(first, null)
    assert (second - first).abs().max() > 100 * (first - null).abs().max() + 1e-4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latents": torch.zeros(4, 2, 3, 8, 12)}, "clips of 1 frame, not of 2"),
        ({"latents": torch.zeros(4, 3, 8, 12)}, r"\(B,T,C,H,W\) with C = 3"),
        ({"latents": torch.zeros(4, 1, 4, 8, 12)}, "C = 3"),
        ({"latents": torch.zeros(4, 1, 3, 8, 13)}, "divisible by the patch size 2"),
        ({"labels": torch.tensor([0, 1, 2, 4])}, "0…3"),
        ({"labels": torch.zeros(4)}, "integers"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"\(4,\) integers"),
        ({"gamma": torch.zeros(4, 1)}, "not conditioned on gamma"),
        ({"times": torch.zeros(4)}, r"times must be \(B,T\)"),
    ],
)
def test_wrong_inputs_are_sentences(latents: torch.Tensor, change: dict, says: str) -> None:
    given = {"latents": latents, **change}
    with pytest.raises(ValueError, match=says):
        tiny_unet()(given.pop("latents"), given.pop("labels", None), **given)
    with pytest.raises(ValueError, match="pass gamma"):
        tiny_unet(conditioned_on_gamma=True)(latents)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temporal": True}, "image network.*temporal=False"),
        ({"patch_size": 4}, "2 levels halve the image 1 times: patch_size must be 2"),
        ({"attention_levels": (2,)}, r"\[2\] must be among the levels 0 to 1"),
        ({"norm_groups": 3}, "divisible by norm_groups 3"),
        ({"energy": "l3"}, "implicit, dot, l2"),
    ],
)
def test_wrong_sizes_are_sentences(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EqMUNet(**{**TINY, **options})


def test_half_precision_serves_full_latents(latents: torch.Tensor) -> None:
    network = tiny_unet()
    expected = network(latents).sample
    sample = nn.Module.to(network, torch.bfloat16)(latents).sample
    assert sample.dtype == torch.float32
    assert (sample - expected).square().mean() < 0.01 * expected.square().mean()


@pytest.mark.parametrize("energy", ["implicit", "dot", "l2"])
def test_checkpointing_changes_no_gradient(latents: torch.Tensor, energy: str) -> None:
    gradients = []
    for memory in (False, True):
        network = tiny_unet(energy=energy).train()
        if memory:
            network.enable_gradient_checkpointing(checkpoint_block if energy != "implicit" else None)
        Field(network)(latents).sample.square().mean().backward()
        gradients.append([weight.grad for weight in network.parameters() if weight.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("energy", ["dot", "l2"])
def test_explicit_energies_have_their_true_gradient(energy: str) -> None:
    field = Field(tiny_unet(energy=energy).double())
    latents = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction = torch.randn(latents.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        gradient = field(latents).sample
    step = 1e-5
    slope = (field.energies(latents + step * direction) - field.energies(latents - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(dim=(2, 3, 4)), slope, rtol=1e-6, atol=1e-8)


# ---- saved, loaded, trained ------------------------------------------------------------------------------------------


def settings(**options) -> dict:
    sampler = {"kind": "gd", "step_size": 0.05, "steps": 3, "guidance_scale": 2.0}
    return {"id2label": ["a", "b", "c"], "sampler": sampler, "frames": 1, "size": 8, **options}


def test_exports_in_pixel_space_come_back(latents: torch.Tensor, tmp_path: Path, caplog) -> None:
    network = tiny_unet()
    pipeline = EqMPipeline(network, Codec.load("pixels").vae, **settings())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "export")
    assert (tmp_path / "export" / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size < 1000
    loaded, _ = load_pipeline(tmp_path / "export")
    assert not caplog.messages  # diffusers warns of parts that it does not expect
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.transformer, EqMUNet) and loaded.transformer.config.energy == "implicit"
    assert equal(weights(loaded.transformer), weights(network))
    labels = ["a", "c", None]
    found, expected = (one(labels, seeds=[1, 2, 3], output_type="uint8") for one in (loaded, pipeline))
    assert found.frames.shape == (3, 1, 8, 8, 3) and (found.frames == expected.frames).all()
    raw = pipeline(labels, seeds=[1, 2, 3], output_type="latent").frames
    assert (((raw.clamp(-1, 1) + 1) * 127.5).round().byte()[:, :, 0].numpy() == expected.frames[..., 0]).all()
    with pytest.raises(UserError, match="image model"):
        loaded(["a"], num_frames=2)
    with pytest.raises(UserError, match=r"9x9.*not divisible by 2"):
        loaded(["a"], size=9)


def test_a_network_alone_is_loaded_by_its_class(tmp_path: Path) -> None:
    network = tiny_unet()
    network.save_pretrained(tmp_path / "network")
    loaded = load_transformer(tmp_path / "network", torch.float64)
    assert isinstance(loaded, EqMUNet) and loaded.dtype == torch.float64
    assert loaded.config.multipliers == network.config.multipliers  # both lists: init_from compares them
    pipeline, _ = load_pipeline(tmp_path / "network", codec="pixels")
    assert pipeline.config.frames == 1 and equal(weights(pipeline.transformer), weights(network))
    file = tmp_path / "network" / "config.json"
    config = json.loads(file.read_text())
    for change, says in (
        ({"_class_name": "UNet2DModel"}, "holds a UNet2DModel.*needed is an EqMTransformer or an EqMUNet"),
        ({"depth": 2}, "another architecture|cannot load"),
        ({"multipliers": [1, 2, 2]}, "patch_size must be 4"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=says):
            load_transformer(tmp_path / "network", None)


def test_training_with_dropout_resumes_bit_for_bit(tmp_path: Path) -> None:
    def trainer(folder: str, steps: int):
        network = tiny_unet(in_channels=2, num_labels=2, dropout=0.3).train()
        return tiny_trainer(tmp_path / folder, network, clips=MemoryClips(frames=1), steps=steps, save_every=2)

    straight = trainer("straight", 4)
    straight.run()
    trainer("halves", 2).run()
    torch.manual_seed(123)  # another process, which has drawn other numbers
    second = trainer("halves", 4)
    second.resume(tmp_path / "halves" / "checkpoints" / "step_00000002")
    second.run()
    assert equal(weights(second.network), weights(straight.network))
    assert equal(weights(second.ema.network), weights(straight.ema.network))
    assert not equal(weights(straight.network), weights(tiny_unet(in_channels=2, num_labels=2)))


def test_muon_has_nothing_to_do_here() -> None:
    with pytest.raises(UserError, match=r"type train\.optimizer=adamw"):
        OPTIMIZERS["muon"](tiny_unet(), lr=1e-3)
