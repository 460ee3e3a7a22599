"""Target and losses, against the reference's numbers and by their definitions."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from reference_network import ReferenceNetwork, expected
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.objective import EqMObjective, dispersive_loss, frame_loss, interpolate


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, 5, 5, generator=random, dtype=torch.float64)
    gamma = torch.tensor([[0.0, 0.5, 1.0], [0.9, 0.25, 0.8]], dtype=torch.float64)
    return clean, noise, gamma


def test_loss_equals_the_reference():
    data = expected()
    clean, noise = (rearrange(data[name], "b c h w -> b 1 c h w") for name in ("x", "loss_noise"))
    gamma = data["loss_gamma"][:, None]
    sample = ReferenceNetwork()(interpolate(clean, noise, gamma), data["y"]).sample
    loss = EqMObjective(TruncatedDecay(a=0.8, gain=4.0)).loss(sample, clean, noise, gamma)
    assert loss.shape == (3, 1)
    torch.testing.assert_close(loss[:, 0], data["loss_per_sample"], rtol=1e-9, atol=0)


def test_dispersive_loss_equals_the_reference():
    data = expected()
    hidden = rearrange(data["last_block_activation"], "b n d -> b 1 n d")
    torch.testing.assert_close(dispersive_loss(hidden), data["dispersive_loss"], rtol=1e-9, atol=0)


def test_interpolation_goes_from_noise_to_data_frame_by_frame(clips):
    clean, noise, gamma = clips
    noisy = interpolate(clean, noise, gamma)
    assert torch.equal(noisy[0, 0], noise[0, 0])
    assert torch.equal(noisy[0, 2], clean[0, 2])
    torch.testing.assert_close(noisy[1, 1], 0.25 * clean[1, 1] + 0.75 * noise[1, 1])


def test_clean_frames_are_exactly_clean_in_float32(clips):
    clean, noise, _ = (tensor.float() for tensor in clips)
    assert torch.equal(interpolate(clean, noise, torch.ones(2, 3)), clean)


def test_target_points_from_data_to_noise_and_rests_at_data(clips):
    clean, noise, gamma = clips
    target = EqMObjective(LinearDecay(gain=2.0)).target(clean, noise, gamma)
    torch.testing.assert_close(target[0, 0], 2 * (noise[0, 0] - clean[0, 0]))
    torch.testing.assert_close(target[0, 1], 1 * (noise[0, 1] - clean[0, 1]))
    assert (target[0, 2] == 0).all()
    # a step against the target goes towards the data
    noisy = interpolate(clean, noise, gamma)
    moving = gamma < 1
    before, after = frame_loss(noisy, clean), frame_loss(noisy - 0.1 * target, clean)
    assert (after < before)[moving].all()


def test_loss_is_the_mean_square_of_each_frame(clips):
    clean, noise, gamma = clips
    objective = EqMObjective(TruncatedDecay())
    target = objective.target(clean, noise, gamma)
    assert (objective.loss(target, clean, noise, gamma) == 0).all()
    sample = target.clone()
    sample[1, 2] += 3.0
    assert objective.loss(sample, clean, noise, gamma).flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 9])


def test_half_precision_predictions_are_compared_in_float32():
    prediction = torch.full((1, 1, 1, 1, 2), 300.0, dtype=torch.float16)  # the square overflows float16
    loss = frame_loss(prediction, torch.zeros_like(prediction))
    assert loss.dtype == torch.float32
    assert loss.item() == 90000


def test_dispersive_loss_by_its_definition():
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 2, 3, 4, generator=random, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for one in hidden:
        for other in hidden:
            total = total + torch.exp(-(one - other).square().sum() / 24)
    by_hand = torch.log(total / 25)
    torch.testing.assert_close(dispersive_loss(hidden), by_hand)
    ours, theirs = (torch.autograd.grad(value, hidden)[0] for value in (dispersive_loss(hidden), by_hand))
    torch.testing.assert_close(ours, theirs)


def test_dispersive_loss_at_its_ends():
    assert dispersive_loss(torch.randn(1, 2, 3, 4)).item() == 0
    same = torch.ones(4, 2, 3, 4, requires_grad=True)
    loss = dispersive_loss(same)
    loss.backward()
    assert loss.item() == 0
    assert (same.grad == 0).all()  # and not NaN
    far = 100 * torch.eye(4).reshape(4, 1, 1, 4)
    assert dispersive_loss(far).item() == pytest.approx(-1.3862944)  # -log 4


def test_dispersive_loss_keeps_its_digits_under_autocast():
    hidden = 30 + torch.randn(6, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    exact = dispersive_loss(hidden.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = dispersive_loss(hidden)
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-4)


def test_dispersive_gradient_is_finite_and_exact_for_equal_and_nearly_equal_rows():
    random = torch.Generator().manual_seed(2)
    hidden = 30 + torch.randn(3, 1, 2, 4, generator=random)
    hidden = torch.cat((hidden, hidden[:2], hidden[:1] + 1e-4)).requires_grad_()
    dispersive_loss(hidden).backward()
    exact = hidden.detach().double().requires_grad_()
    distance = (exact.flatten(1)[:, None] - exact.flatten(1)).square().sum(-1) / 8
    torch.exp(-distance).mean().log().backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-9)


def test_dispersive_loss_keeps_no_more_than_a_few_copies_of_its_rows():
    """Forward and backward alike: nothing of the size B x B x dimension."""
    hidden = torch.randn(24, 1, 8, 16, requires_grad=True)
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            largest.extend(one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor))
            return result

    with Sizes():
        dispersive_loss(hidden).backward()
    assert max(largest) == hidden.numel()


def test_wrong_shapes_and_values_are_refused(clips):
    clean, noise, gamma = clips
    with pytest.raises(ValueError, match="gamma has shape"):
        interpolate(clean, noise, gamma[:, 0])
    with pytest.raises(ValueError, match="shapes differ"):
        interpolate(clean, noise[:, :1], gamma)
    with pytest.raises(ValueError, match="shapes differ"):
        frame_loss(clean[:, 0], noise[:, 0])
    with pytest.raises(ValueError, match="hidden"):
        dispersive_loss(torch.zeros(3))
    with pytest.raises(ValueError, match="at gamma 1"):
        EqMObjective(lambda gamma: gamma + 1)
    with pytest.raises(ValueError, match="dispersion_weight"):
        EqMObjective(TruncatedDecay(), dispersion_weight=-0.5)


def test_the_flow_baseline_has_a_constant_target(clips):
    clean, noise, gamma = clips
    target = EqMObjective(ConstantDecay()).target(clean, noise, gamma)
    torch.testing.assert_close(target, noise - clean)
