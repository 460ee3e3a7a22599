"""Guided fields: against the reference's numbers, and against a network that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from reference_network import ReferenceNetwork, expected, settings
from tiny_models import tiny_transformer
from toy_fields import LABELS, NULL, Toy, offsets

from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField, weighted_sum
from eqm_video.samplers import NAG, GradientDescent, Heun, descend, run


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_labels_only_at_scale_one_and_null_only_at_scale_zero(latents):
    network = Toy()
    field = GuidedField(network, LABELS, null_label=NULL)
    torch.testing.assert_close(offsets(field, latents)[:, 0], LABELS.double())
    field = GuidedField(network, LABELS, guidance_scale=0, null_label=NULL)
    torch.testing.assert_close(offsets(field, latents)[:, 0], torch.full((3,), 7.0, dtype=torch.float64))
    assert network.batches == [3, 3]


@pytest.mark.parametrize("scale", [4.0, 0.5, -1.0])
def test_guidance_moves_from_null_towards_the_label_on_all_channels(latents, scale):
    network = Toy()
    field = GuidedField(network, LABELS, guidance_scale=scale, null_label=NULL)
    wanted = (NULL + scale * (LABELS.double() - NULL))[:, None].expand(3, 4)
    torch.testing.assert_close(offsets(field, latents), wanted)
    assert network.batches == [6]
    assert field.forwards == 1


@pytest.mark.parametrize("scale", [4.0, 0.0])
def test_guided_channels_leave_the_rest_to_the_labelled_field(latents, scale):
    found = offsets(GuidedField(Toy(), LABELS, guidance_scale=scale, null_label=NULL, channels=3), latents)
    wanted = (NULL + scale * (LABELS.double() - NULL))[:, None].expand(3, 3)
    torch.testing.assert_close(found[:, :3], wanted)
    torch.testing.assert_close(found[:, 3], LABELS.double())


def test_without_labels_every_scale_is_the_null_field(latents):
    field = GuidedField(Toy(), None, guidance_scale=4.0, null_label=NULL)
    assert (offsets(field, latents) - NULL).abs().max() < 1e-12


def test_times_are_doubled_with_the_batch_and_shrink_with_it(latents):
    times = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)
    field = GuidedField(Toy(), LABELS, guidance_scale=2.0, null_label=NULL, times=times)
    whole = field(latents)
    wanted = latents + 100 * times[:, :, None, None, None] + (2 * LABELS - NULL)[:, None, None, None, None]
    torch.testing.assert_close(whole, wanted)
    chosen = torch.tensor([2, 0])
    assert torch.equal(field.select(chosen)(latents[chosen]), whole[chosen])


def test_forwards_are_counted_over_selected_copies(latents):
    field = GuidedField(Toy(), LABELS, guidance_scale=2.0, null_label=NULL)
    chosen = field.select(torch.tensor([1]))
    field(latents)
    chosen(latents[1:2])
    chosen.select(torch.tensor([0]))(latents[1:2])
    assert field.forwards == chosen.forwards == 3


@pytest.mark.parametrize(("name", "channels"), [("forward_cfg4_allchannels", None), ("forward_cfg4_first3channels", 3)])
def test_guided_field_equals_the_reference(name, channels):
    data = expected()
    field = GuidedField(
        ReferenceNetwork(), data["y"], guidance_scale=4.0, null_label=ReferenceNetwork.null_label, channels=channels
    )
    found = -field(rearrange(data["x"], "b c h w -> b 1 c h w")).squeeze(1)
    torch.testing.assert_close(found, data[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["gd", "nag"])
@pytest.mark.parametrize("scale", [1, 4])
def test_trajectories_equal_the_reference(kind, scale):
    data, run = expected(), settings()
    states = rearrange(data[f"sample_{kind}_cfg{scale}"], "s b c h w -> s b 1 c h w")
    field = GuidedField(ReferenceNetwork(), data["y"], guidance_scale=float(scale), null_label=10, channels=3)
    rule = GradientDescent(run["eta"]) if kind == "gd" else NAG(run["eta"], run["mu"])
    found = []
    with torch.no_grad():
        result = descend(
            field, states[0], rule, steps=run["updates"], callback=lambda step, latents, gradient: found.append(latents)
        )
    torch.testing.assert_close(torch.stack(found), states[1:], rtol=1e-9, atol=1e-9)
    assert torch.equal(result.latents, found[-1])
    assert result.nfe.tolist() == [11, 11, 11]
    assert field.forwards == 11


def test_weighted_sum():
    one, two = torch.ones(2, 3), torch.full((2, 3), 5.0)
    assert (weighted_sum([one, two], [0.25, 0.75]) == 4).all()
    assert (weighted_sum([one, two], [1, 1], plain_sum=True) == 6).all()
    assert (weighted_sum([one, two, two], [3, -1, -1]) == -7).all()


@pytest.mark.parametrize(
    ("gradients", "weights", "words"),
    [
        ([torch.ones(2)], [0.5], "sum to 0.5"),
        ([torch.ones(2), torch.ones(2)], [1, 1], "plain_sum=True"),
        ([torch.ones(2), torch.ones(3)], [0.5, 0.5], "different shapes"),
        ([torch.ones(2)], [0.5, 0.5], "one weight for each"),
        ([], [], "one weight for each"),
        ([torch.ones(2)], [float("nan")], "sum to nan"),
    ],
)
def test_weighted_sum_refuses(gradients, weights, words):
    with pytest.raises(ValueError, match=words):
        weighted_sum(gradients, weights)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": [1, 2, 3]}, "labels"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"guidance_scale": "4"}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"null_label": -1}, "null_label"),
        ({"times": torch.zeros(2)}, "times"),
        ({"channels": 0}, "channels"),
    ],
)
def test_guided_field_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        GuidedField(Toy(), **({"labels": LABELS, "null_label": NULL} | arguments))


def test_guided_field_refuses_latents_that_do_not_fit(latents):
    field = GuidedField(Toy(), LABELS, null_label=NULL, times=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="labels"):
        field(latents[:2])
    with pytest.raises(ValueError, match="times"):
        field(latents[:, :1])
    with pytest.raises(ValueError, match="B, T, C, H, W"):
        field(latents[:, 0])
    with pytest.raises(ValueError, match="channels=5"):
        GuidedField(Toy(), LABELS, null_label=NULL, channels=5)(latents)


class ToyEnergies(Toy):
    """As Toy, with an energy for each frame: the label plus the frame's number."""

    def energies(self, latents, labels, *, times=None, energy=None):
        return labels.double()[:, None] + torch.arange(latents.shape[1])


@pytest.mark.parametrize("scale", [4.0, 0.5, -1.0])
def test_energies_are_guided_as_the_fields_are(latents, scale):
    found = GuidedField(ToyEnergies(), LABELS, guidance_scale=scale, null_label=NULL).energies(latents)
    wanted = (NULL + scale * (LABELS.double() - NULL))[:, None] + torch.arange(2)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("sampler", [Heun(), NAG(0.05, 0.3)])
def test_a_bare_network_without_gamma_can_be_solved(sampler):
    network, start = tiny_transformer(), torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    ends = []
    for field in (network, Field(network)):
        guided = GuidedField(field, labels, guidance_scale=2.0, null_label=network.null_label)
        with torch.no_grad():
            ends.append(run(guided, start, sampler, steps=2).latents)
    assert torch.equal(*ends)
