"""Parity with the reference implementation, whose numbers are in fixtures/official_eqm (its sign is the other one).

Everything runs in float64 through the converter and `from_pretrained`; images are clips of one frame.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eqm_video.commands.convert import main
from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField
from eqm_video.core.objective import EqMObjective, dispersive_loss, interpolate
from eqm_video.models.layers import position_table
from eqm_video.models.transformer import EqMTransformer
from eqm_video.samplers import NAG, GradientDescent, descend

FIXTURE = Path(__file__).parent / "fixtures" / "official_eqm"
SETTINGS = json.loads((FIXTURE / "config.json").read_text())
EXACT = 1e-9  # relative error where the reference computed in float64 throughout
ROUNDING = 1e-12  # and where nothing but the order of its sums may differ
FLOAT32_INSIDE = 1e-5  # where it computed its sinusoids in float32


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FIXTURE / "expected.safetensors")


def converted(folder: Path, *flags: str) -> EqMTransformer:
    main([str(FIXTURE / "official_state_dict.safetensors"), str(folder), "--num-heads", "4", *flags])
    return EqMTransformer.from_pretrained(folder, torch_dtype=torch.float64)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> EqMTransformer:
    return converted(tmp_path_factory.mktemp("parity") / "out")


@pytest.fixture(scope="module")
def frames(expected: dict[str, Tensor]) -> Tensor:
    return expected["x"][:, None]


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_forward_and_hidden(network: EqMTransformer, frames: Tensor, expected: dict[str, Tensor]) -> None:
    output = network(frames, expected["y"])
    assert error(-output.sample[:, 0], expected["forward"]) <= EXACT
    assert error(output.hidden[:, 0], expected["last_block_activation"]) <= EXACT


@torch.no_grad()
def test_null_label(network: EqMTransformer, frames: Tensor, expected: dict[str, Tensor]) -> None:
    for labels in (None, torch.full((3,), network.null_label)):
        assert error(-network(frames, labels).sample[:, 0], expected["forward_null_label"]) <= EXACT


@torch.no_grad()
def test_an_image_through_a_temporal_network(tmp_path: Path, frames: Tensor, expected: dict[str, Tensor]) -> None:
    video = converted(tmp_path / "out", "--temporal")
    assert error(-video(frames, expected["y"]).sample[:, 0], expected["forward"]) <= EXACT
    same = video(frames[:2].transpose(0, 1), expected["y"][:1]).sample  # two images as frames of one clip
    assert error(-same[0, :1], expected["forward"][:1]) <= EXACT


@torch.no_grad()
def test_time_conditioned_forward(tmp_path: Path, frames: Tensor, expected: dict[str, Tensor]) -> None:
    """The reference feeds its time as it is, 0 at noise and 1 at data: our gamma."""
    told = converted(tmp_path / "out", "--conditioned-on-gamma")
    sample = told(frames, expected["y"], gamma=expected["t"][:, None]).sample
    assert error(-sample[:, 0], expected["forward_time_conditioned"]) <= FLOAT32_INSIDE
    silent = told(frames, expected["y"], gamma=torch.zeros(3, 1)).sample
    assert error(-silent[:, 0], expected["forward"]) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize(("channels", "name"), [(None, "forward_cfg4_allchannels"), (3, "forward_cfg4_first3channels")])
def test_guidance(
    network: EqMTransformer, frames: Tensor, expected: dict[str, Tensor], channels: int | None, name: str
) -> None:
    field = GuidedField(
        network, expected["y"], guidance_scale=SETTINGS["cfg_scale"], null_label=network.null_label, channels=channels
    )
    assert error(-field(frames)[:, 0], expected[name]) <= EXACT


@torch.no_grad()
def test_training_loss(network: EqMTransformer, frames: Tensor, expected: dict[str, Tensor]) -> None:
    objective = EqMObjective(TruncatedDecay(a=SETTINGS["c"]["a"], gain=SETTINGS["c"]["lam"]))
    noise, gamma = expected["loss_noise"][:, None], expected["loss_gamma"][:, None]
    sample = network(interpolate(frames, noise, gamma), expected["y"]).sample
    assert error(objective.loss(sample, frames, noise, gamma)[:, 0], expected["loss_per_sample"]) <= EXACT


def test_decay(expected: dict[str, Tensor]) -> None:
    decay = TruncatedDecay(a=SETTINGS["c"]["a"], gain=SETTINGS["c"]["lam"])
    assert error(decay(expected["c_gamma_grid"]), expected["c_gamma"]) <= EXACT


@torch.no_grad()
def test_dispersive_loss(network: EqMTransformer, frames: Tensor, expected: dict[str, Tensor]) -> None:
    loss = dispersive_loss(network(frames, expected["y"]).hidden)
    assert error(loss, expected["dispersive_loss"]) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("rule", [GradientDescent(SETTINGS["eta"]), NAG(SETTINGS["eta"], SETTINGS["mu"])])
def test_trajectories(
    network: EqMTransformer,
    frames: Tensor,
    expected: dict[str, Tensor],
    rule: GradientDescent | NAG,
    guidance_scale: float,
) -> None:
    recorded = expected[f"sample_{'nag' if isinstance(rule, NAG) else 'gd'}_cfg{guidance_scale:.0f}"]
    assert recorded.shape[0] == SETTINGS["updates"] + 1
    field = GuidedField(
        network,
        expected["y"],
        guidance_scale=guidance_scale,
        null_label=network.null_label,
        channels=3 if guidance_scale != 1 else None,
    )
    states = [recorded[0][:, None]]
    result = descend(
        field, states[0], rule, steps=SETTINGS["updates"], callback=lambda step, latents, _: states.append(latents)
    )
    assert error(torch.stack(states)[:, :, 0], recorded) <= EXACT
    assert error(result.latents[:, 0], recorded[-1]) <= EXACT
    assert result.nfe.tolist() == [SETTINGS["updates"]] * 3


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), [("dot", "dot"), ("l2", "l2"), ("dot", "mean")])
def test_explicit_energies(
    network: EqMTransformer, tmp_path: Path, frames: Tensor, expected: dict[str, Tensor], kind: str, name: str
) -> None:
    """Our energies are the reference's as they stand, +x f(x) and +|f(x)|^2 / 2; its field ascends, ours descends."""
    network.save_pretrained(tmp_path)
    field = Field(EqMTransformer.from_pretrained(tmp_path, torch_dtype=torch.float64, energy=kind))
    output = field(frames, expected["y"])
    assert error(-output.sample[:, 0], expected[f"ebm_{name}_field"]) <= ROUNDING
    for energy in (output.energy, field.energies(frames, expected["y"])):
        assert error(energy[:, 0], expected[f"ebm_{name}_energy"]) <= ROUNDING


def test_position_table_is_the_references_bit_for_bit() -> None:
    table = load_file(FIXTURE / "official_state_dict.safetensors")["pos_embed"][0]
    assert torch.equal(position_table(4, 4, 48, torch.device("cpu"), torch.float32), table)
    assert torch.equal(position_table(4, 4, 48, torch.device("cpu"), torch.float64), table.double())
