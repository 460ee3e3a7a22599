"""The named sizes."""

from __future__ import annotations

import pytest
import torch

from eqm_video.models.presets import PRESETS, build_model, preset_name


def parameters(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(name, **options).parameters())


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_image_presets_have_the_papers_sizes(size: str, millions: int) -> None:
    assert round(parameters(f"EqM-{size}/2", num_labels=1000, temporal=False) / 1e6) == millions


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


def test_names_are_found_again() -> None:
    for name, preset in PRESETS.items():
        assert preset_name(**vars(preset)) == name
    assert preset_name(384, 12, 12, 2) is None


@pytest.mark.parametrize(("typed", "meant"), [("EqM-S2", "EqM-S/2"), ("eqm-xl/2", "EqM-XL/2"), ("EqM-B/3", "EqM-B/")])
def test_unknown_names_are_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown preset '{typed}'; did you mean {meant}.*EqM-XL/{{2,4,8}}"):
        build_model(typed)


def test_nonsense_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"unknown preset '\?'; The presets are EqM-Nano/"):
        build_model("?")
