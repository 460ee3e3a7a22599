"""Named sizes of networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eqm_video.models.presets import PRESETS, UNET_PRESETS, build_model, preset_name
from eqm_video.models.transformer import EqMTransformer
from eqm_video.models.unet import EqMUNet
from eqm_video.training.build import make_network
from eqm_video.training.config import load_config


def parameters(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(name, **options).parameters())


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_image_presets_have_the_papers_sizes(size: str, millions: int) -> None:
    assert round(parameters(f"EqM-{size}/2", num_labels=1000, temporal=False) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "millions", "labels", "channels"),
    [(f"imagenet_{size}2", count, 1000, 4) for size, count in (("s", 33), ("b", 130), ("l", 458), ("xl", 675))]
    + [("cifar10_unet", 56, 0, 3)],
)
def test_the_papers_recipes_build_its_networks(
    root: Path, name: str, millions: int, labels: int, channels: int
) -> None:
    config = load_config(root / "configs" / f"{name}.yaml")
    with torch.device("meta"):
        network = make_network(config, labels, channels)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6) == millions
    assert config.run.dir == f"runs/{name}"


def test_temporal_layers_are_counted() -> None:
    width, depth = 384, 12
    attention = 4 * width * width + 4 * width
    modulation = 3 * (width * width + width)
    added = parameters("EqM-S/2", temporal=True) - parameters("EqM-S/2", temporal=False)
    assert added == depth * (attention + modulation)


def test_every_preset_builds_and_runs() -> None:
    assert {f"EqM-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)} < PRESETS.keys()
    assert {f"EqM-{size}/{patch}" for size in ("Nano", "Tiny", "XS") for patch in (1, 2, 4, 8)} < PRESETS.keys()
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            model = build_model(name, num_labels=3, temporal=True)
        assert model.config.patch_size == preset.patch_size == int(name.split("/")[1])
        assert (model.config.hidden_size // model.config.num_heads) % 8 == 0  # fast attention kernels want that
    with torch.device("meta"):
        model = build_model("EqM-Nano/4", num_labels=3, in_channels=16, temporal=True, rope_base=50.0)
        sample = model(torch.empty(2, 3, 16, 8, 16), times=torch.empty(2, 3)).sample
    assert sample.shape == (2, 3, 16, 8, 16)
    assert (model.config.in_channels, model.config.rope_base, model.null_label) == (16, 50.0, 3)


def test_sizes_give_back_their_names() -> None:
    for name, preset in PRESETS.items():
        assert preset_name(**vars(preset)) == name
    assert preset_name(384, 12, 12, 2) is None


def test_a_name_decides_the_class_and_its_channels() -> None:
    for name in UNET_PRESETS:
        with torch.device("meta"):
            model = build_model(name, num_labels=3, energy="dot")
            sample = model(torch.empty(2, 1, 3, 8, 16)).sample
            assert build_model(name, in_channels=4).config.in_channels == 4
        assert isinstance(model, EqMUNet) and sample.shape == (2, 1, 3, 8, 16)
        assert (model.config.energy, model.config.num_labels, model.config.patch_size) == ("dot", 3, 4)
        with pytest.raises(ValueError, match="image network"):
            build_model(name, temporal=True)
    assert 0.9e6 < parameters("EqM-UNet-Tiny") < 1.5e6
    with torch.device("meta"):
        model = build_model("EqM-Nano/2")
    assert isinstance(model, EqMTransformer) and model.config.in_channels == 4
    assert not PRESETS.keys() & UNET_PRESETS.keys()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("EqM-S2", "EqM-S/2"),
        ("eqm-xl/2", "EqM-XL/2"),
        ("EqM-B/3", "EqM-B/"),
        ("EqM-Unet", "EqM-UNet"),
        ("unet-tiny", "EqM-UNet-Tiny"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(typed: str, meant: str) -> None:
    listed = r"EqM-XL/\{2,4,8\}, and for images EqM-UNet, EqM-UNet-Tiny$"
    with pytest.raises(ValueError, match=rf"unknown preset '{typed}'; did you mean {meant}.*{listed}"):
        build_model(typed)


def test_nonsense_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"unknown preset '\?'; The presets are EqM-Nano/"):
        build_model("?")
