"""Fields made of fields: weights, plain sums, selection, and the field along a descent."""

from __future__ import annotations

import pytest
import torch
from toy_fields import LABELS, NULL, Toy, offsets

from eqm_video.core.composition import ComposedField, ScheduledField
from eqm_video.core.decay import ConstantDecay, TruncatedDecay, gamma_path
from eqm_video.core.guidance import GuidedField
from eqm_video.samplers import GradientDescent, descend


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Told(Toy):
    """As Toy, plus 1000 * gamma."""

    def __call__(self, latents, labels, *, times=None, gamma=None):
        output = super().__call__(latents, labels, times=times)
        if gamma is not None:
            output.sample = output.sample + 1000 * gamma[:, :, None, None, None]
        return output


def test_guidance_is_a_composition(latents):
    network = Toy()
    guided = GuidedField(network, LABELS, guidance_scale=3.0, null_label=NULL)
    parts = [GuidedField(network, LABELS, null_label=NULL), GuidedField(network, None, null_label=NULL)]
    torch.testing.assert_close(ComposedField(parts, [3.0, -2.0])(latents), guided(latents))


def test_weights_sum_to_one_unless_a_plain_sum_is_allowed(latents):
    parts = [GuidedField(Toy(), LABELS, null_label=NULL), GuidedField(Toy(), LABELS + 1, null_label=NULL)]
    with pytest.raises(ValueError, match="sum to 2; they must sum to 1"):
        ComposedField(parts, [1.0, 1.0])
    total = ComposedField(parts, [1.0, 1.0], plain_sum=True)
    torch.testing.assert_close(total(latents), parts[0](latents) + parts[1](latents))
    with pytest.raises(ValueError, match="2 gradients and 1 weights"):
        ComposedField(parts, [1.0])


def test_selected_clips_keep_their_labels_and_the_count_is_shared(latents):
    parts = [GuidedField(Toy(), LABELS, null_label=NULL), GuidedField(Toy(), LABELS * 2, null_label=NULL)]
    whole = ComposedField(parts, [0.5, 0.5])
    chosen = whole.select(torch.tensor([2, 0]))
    torch.testing.assert_close(chosen(latents[[2, 0]]), whole(latents)[[2, 0]])
    assert whole.forwards == chosen.forwards == 4


def test_gamma_is_set_by_step_and_guidance_ends_with_its_interval(latents):
    field = GuidedField(Told(), LABELS, guidance_scale=2.0, null_label=NULL, interval=(0, 0.5))
    path = gamma_path(ConstantDecay(1.0), 0.25, 4)
    assert path.tolist() == [0, 0.25, 0.5, 0.75]
    scheduled = ScheduledField(field, 4, path)
    for step in range(4):
        wanted = LABELS if step >= 2 else NULL + 2 * (LABELS - NULL)
        found = offsets(scheduled.at_step(step), latents)[:, 0]
        torch.testing.assert_close(found, wanted.double() + 1000 * step / 4)
    torch.testing.assert_close(scheduled(latents), scheduled.at_step(0)(latents))  # called alone: its first step
    with pytest.raises(ValueError, match=r"gammas have shape \(3,\)"):
        ScheduledField(field, 4, path[:3])


def test_a_solver_sets_gamma_as_a_number_or_for_each_frame(latents):
    field = GuidedField(Told(), LABELS, guidance_scale=2.0, null_label=NULL, interval=(0, 0.5))
    torch.testing.assert_close(offsets(field.at_gamma(0.75), latents)[:, 0], LABELS.double() + 750)
    gammas = torch.tensor([[0.25, 1.0]] * 3).double()  # the last frame is known
    found = field.at_gamma(gammas)(latents) - latents
    wanted = (NULL + 2 * (LABELS - NULL))[:, None] + 1000 * gammas
    torch.testing.assert_close(found[:, :, 0, 0, 0], wanted)
    torch.testing.assert_close(field.at_gamma(gammas).select(torch.tensor([2]))(latents[2:]), latents[2:] + found[2:])
    torch.testing.assert_close(
        field.at_gamma(0.25).select(torch.tensor([2]))(latents[2:])[0, 0], (latents + found)[2, 0]
    )


def test_a_descent_walks_through_the_schedule(latents):
    field = GuidedField(Told(), LABELS, null_label=NULL)
    path = torch.tensor([0.0, 0.5])
    result = descend(ScheduledField(field, 2, path), latents, GradientDescent(0.1), steps=2)
    first = latents - 0.1 * (latents + LABELS[:, None, None, None, None])
    second = first - 0.1 * (first + LABELS[:, None, None, None, None] + 500)
    torch.testing.assert_close(result.latents, second)


def test_gamma_path_is_the_closed_form_of_one_data_point():
    eta, gain, a = 0.01, 4.0, 0.8
    path = gamma_path(TruncatedDecay(a, gain), eta, 60)
    torch.testing.assert_close(path[:21], torch.arange(21, dtype=torch.float64) * eta * gain)
    torch.testing.assert_close(1 - path[21:], 0.2 * (1 - eta * gain / (1 - a)) ** torch.arange(1, 40).double())
    assert gamma_path(TruncatedDecay(), 0.1, 1, start=0.3).tolist() == [0.3]
    with pytest.raises(ValueError, match="one each"):
        gamma_path(TruncatedDecay(), [0.1, 0.2], 3)


def test_matched_norms_rest_where_the_labelled_field_rests(latents):
    field = GuidedField(Toy(), LABELS, guidance_scale=4.0, null_label=NULL, match_norm=True)
    plain = GuidedField(Toy(), LABELS, null_label=NULL)
    norms = field(latents).square().sum(dim=(2, 3, 4))
    torch.testing.assert_close(norms, plain(latents).square().sum(dim=(2, 3, 4)))
    at_rest = -LABELS.double()[:, None, None, None, None].expand_as(latents)  # where latents + label is 0
    assert field(at_rest).abs().max() == 0


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1), (0, 2), (0.5,), "early"])
def test_wrong_intervals(interval):
    with pytest.raises(ValueError, match="0 <= first < last <= 1"):
        GuidedField(Toy(), LABELS, null_label=NULL, interval=interval)


def test_an_interval_inside_a_composition_is_kept(latents):
    guided = GuidedField(Toy(), LABELS, guidance_scale=3.0, null_label=NULL, interval=(0.0, 0.5))
    plain = GuidedField(Toy(), LABELS, null_label=NULL)
    composed = ComposedField([guided, plain], [0.5, 0.5])
    inside, outside = NULL + 2.0 * (LABELS.double() - NULL), LABELS.double()
    for field in (composed, ScheduledField(composed, 4)):
        torch.testing.assert_close(offsets(field.at_progress(0.25), latents)[:, 0], inside)
        torch.testing.assert_close(offsets(field.at_progress(0.75), latents)[:, 0], outside)
    scheduled = ScheduledField(composed, 4)
    torch.testing.assert_close(offsets(scheduled.at_step(1), latents)[:, 0], inside)
    torch.testing.assert_close(offsets(scheduled.at_step(2), latents)[:, 0], outside)
    assert plain.settled and not guided.settled and not composed.settled
    assert composed.at_progress(0.75).settled and composed.at_progress(0.75).at_progress(0.25).settled
