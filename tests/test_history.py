"""History guidance: a field with the known frames and one without them, in one weighted sum."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exact_clips import DATA, DECAY, FRAMES, nearest, noise, spread
from tiny_models import tiny_pipeline
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.composition import ScheduledField
from eqm_video.core.guidance import GuidedField, HistoryField
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, descend

KNOWN = torch.tensor([[True, False, False], [True, True, False]])


class Sum:
    """A network whose field is, in every frame, the sum of all frames plus the label, so known frames matter."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, latents, labels, *, times=None, gamma=None):
        self.seen.append(latents)
        field = latents.sum(dim=1, keepdim=True).expand_as(latents) + labels.double()[:, None, None, None, None]
        return SimpleNamespace(sample=field if gamma is None else field + 1000 * gamma[:, :, None, None, None])


def gaussian(seed: int) -> Tensor:
    return torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def guided(scale: float, network: Sum | None = None) -> tuple[HistoryField, GuidedField, Sum]:
    network = network or Sum()
    field = GuidedField(network, torch.tensor([1, 2]), null_label=3)
    return HistoryField(field, KNOWN, gaussian(1), scale), field, network


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_the_sum_is_the_weighted_sum_of_both_fields(scale):
    history, field, _ = guided(scale)
    latents = gaussian(0)
    blinded = torch.where(spread(KNOWN), gaussian(1), latents)
    informed, blind = field(latents), field(blinded)
    torch.testing.assert_close(history(latents), blind + scale * (informed - blind), rtol=1e-12, atol=1e-12)
    assert (informed - blind).abs().min() > 0.01


def test_unknown_frames_are_the_same_in_both():
    history, _, network = guided(2.0)
    latents = gaussian(0)
    history(latents)
    informed, blind = network.seen
    assert torch.equal(informed, latents)
    assert torch.equal(blind[~KNOWN], latents[~KNOWN]) and torch.equal(blind[KNOWN], gaussian(1)[KNOWN])


def test_scale_one_is_the_field_itself_bit_for_bit_at_its_cost():
    history, field, network = guided(1.0)
    latents = gaussian(0)
    found = history(latents)
    assert len(network.seen) == 1 and history.forwards == 1
    assert torch.equal(found, field(latents))


def test_a_part_of_the_batch_takes_its_own_known_frames_and_noise():
    history, _, _ = guided(3.0)
    latents = gaussian(0)
    whole = history(latents)
    for row in (0, 1):
        part = history.select(torch.tensor([row]))
        torch.testing.assert_close(part(latents[row : row + 1]), whole[row : row + 1], rtol=1e-12, atol=1e-12)
    turned = history.select(torch.tensor([1, 0]))
    torch.testing.assert_close(turned(latents.flip(0)), whole.flip(0), rtol=1e-12, atol=1e-12)
    assert history.forwards == 1 * 2 + 3 * 2  # copies share the count, two calls each


def test_labels_are_guided_inside_of_history():
    field = GuidedField(Sum(), torch.tensor([1, 2]), null_label=3, guidance_scale=2.0, interval=(0, 0.5))
    history = HistoryField(field, KNOWN, gaussian(1), 2.0)
    early, late = history.at_progress(0.2)(gaussian(0)), history.at_progress(0.8)(gaussian(0))
    # guidance 2 moves a label l to 3 + 2 (l - 3), by l - 3, in both fields: their weights sum to 1
    torch.testing.assert_close(
        early - late, torch.tensor([-2.0, -1.0]).double()[:, None, None, None, None].expand_as(early)
    )


def test_a_conditioned_network_gets_gamma_0_on_frames_of_noise():
    history, _, network = guided(2.0)
    gammas = torch.full((2, 3), 0.25, dtype=torch.float64).masked_fill(KNOWN, 1.0)
    latents = gaussian(0)
    found = history.at_gamma(gammas)(latents)
    informed = network(latents, torch.tensor([1, 2]), gamma=gammas).sample
    blinded = torch.where(spread(KNOWN), gaussian(1), latents)
    blind = network(blinded, torch.tensor([1, 2]), gamma=gammas.masked_fill(KNOWN, 0.0)).sample
    torch.testing.assert_close(found, 2 * informed - blind, rtol=1e-6, atol=1e-6)


def test_a_single_gamma_is_that_of_the_unknown_frames():
    history, _, _ = guided(2.0)
    gammas = torch.full((2, 3), 0.25, dtype=torch.float64).masked_fill(KNOWN, 1.0)
    expected = history.at_gamma(gammas)(gaussian(0))
    for field in (history.tell(0.25), history.at_gamma(0.25), ScheduledField(history, 2, torch.tensor([0.25, 0.5]))):
        torch.testing.assert_close(field(gaussian(0)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("known", "scale", "words"),
    [
        (KNOWN.float(), 2.0, r"it must be a bool tensor \(B, T\) = \(2, 3\)"),
        (KNOWN[:1], 2.0, r"known is \(1, 3\)"),
        (None, 2.0, "known is None"),
        (KNOWN, float("nan"), "history guidance is nan"),
        (KNOWN, "2", "history guidance is '2'"),
        (KNOWN, True, "history guidance is True"),
    ],
)
def test_wrong_arguments_are_refused(known, scale, words):
    with pytest.raises(ValueError, match=words):
        HistoryField(GuidedField(Sum(), None, null_label=3), known, gaussian(1), scale)


# ------------------------------------------------------------------------------------------------ along exact fields


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_history_decides_which_clip_the_exact_field_ends_at(scale):
    """With weight 0 the known frames have no effect: descents end at clips of the set, and mostly at other ones."""
    known = torch.zeros(16, FRAMES, dtype=torch.bool)
    known[:, :2] = True
    clips = DATA.repeat(2, 1, 1, 1, 1)
    start = torch.where(spread(known), clips, noise(16))
    field = HistoryField(OracleField(DATA, DECAY, frame_wise=True), known, noise(16), scale)
    result = descend(field, start, NAG(0.015, 0.35), steps=60, known=known)
    assert torch.equal(result.latents[known], clips[known])
    later = (result.latents[:, None, 2:] - DATA[:, 2:]).abs().amax(dim=(2, 3, 4, 5))  # (B, M)
    right = later.argmin(dim=1) == torch.arange(8).repeat(2)
    if scale == 0:
        assert right.double().mean() < 0.5 and later.amin(dim=1).max() < 1e-4
    if scale == 1:
        assert right.all() and nearest(result.latents)[1].max() < 1e-4
    if scale > 1:
        assert right.all()


# ------------------------------------------------------------------------------------------------------ the pipeline


def request(**more) -> dict:
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"clips": clips, "known": [0], "seeds": [1, 2], "output_type": "latent", **more}


def test_the_pipeline_guides_by_history_with_the_noise_that_the_frames_would_have():
    pipe = tiny_pipeline()
    labels, plain = ["up", "left"], request()
    base = pipe(labels, **plain).frames
    assert torch.equal(pipe(labels, history_guidance=1.0, **plain).frames, base)
    found = pipe(labels, history_guidance=2.5, **plain)
    assert not torch.allclose(found.frames, base, atol=1e-4)
    start = pipe(labels, **{**plain, "steps": 0}).frames
    fresh = pipe(labels, seeds=[1, 2], steps=0, output_type="latent").frames
    known = torch.tensor([[True, False, False]] * 2)

    def by_hand(latents: Tensor) -> Tensor:
        field = pipe.field(labels, num_frames=3)
        blind = field(torch.where(spread(known), fresh, latents))
        return blind + 2.5 * (field(latents) - blind)

    with torch.no_grad():
        expected = descend(by_hand, start, NAG(0.05, 0.3), steps=4, known=known)
    torch.testing.assert_close(found.frames, expected.latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.frames[:, 0], pipe.encode(plain["clips"])[:, 0])
    assert found.nfe.tolist() == [4, 4]  # a guided evaluation counts once


def test_a_sample_guided_by_history_does_not_depend_on_its_batch():
    pipe, whole = tiny_pipeline(), request(history_guidance=2.0)
    together = pipe(["up", "left"], **whole).frames
    for row in range(2):
        one = {**whole, "clips": whole["clips"][row : row + 1], "seeds": whole["seeds"][row : row + 1]}
        alone = pipe([["up", "left"][row]], **one).frames
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


class Bowl:
    """A network that pulls every frame to 0, and a little to the mean of all: descents of it come to rest."""

    def __call__(self, latents, labels, *, times=None, gamma=None):
        return SimpleNamespace(sample=0.5 * latents + 0.2 * latents.mean(dim=1, keepdim=True))


def test_clips_that_stop_leave_the_others_their_own_known_frames_and_noise():
    start, noise_shown = gaussian(0) * torch.tensor([0.3, 30.0])[:, None, None, None, None], gaussian(1)
    how = {"steps": 60, "tolerance": 0.05}

    def field(rows: list[int]) -> HistoryField:
        return HistoryField(
            GuidedField(Bowl(), torch.tensor([1, 2])[rows], null_label=3), KNOWN[rows], noise_shown[rows], 2.0
        )

    whole = descend(field([0, 1]), start, NAG(0.3, 0.3), known=KNOWN, **how)
    assert 0 < whole.nfe[0] < whole.nfe[1] < 60
    for row in (0, 1):
        alone = descend(field([row]), start[[row]], NAG(0.3, 0.3), known=KNOWN[[row]], **how)
        assert alone.nfe[0] == whole.nfe[row]
        torch.testing.assert_close(alone.latents[0], whole.latents[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"known": None, "history_guidance": 2.0}, "are about known frames: give known="),
        ({"known": None, "context_gamma": 0.9}, "are about known frames: give known="),
        ({"context_gamma": 0.0}, "context_gamma is 0.0: it must be a number above 0 and at most 1"),
        ({"context_gamma": 1.5}, "context_gamma is 1.5"),
        ({"history_guidance": float("inf")}, "history_guidance is inf: it must be a number"),
        ({"history_guidance": 2.0, "step_size": "auto"}, "auto was measured without history guidance"),
    ],
)
def test_the_pipeline_refuses_wrong_arguments(given, words):
    with pytest.raises(UserError, match=words):
        tiny_pipeline()(["up", "left"], **request(**given))


def test_context_gamma_shows_known_frames_through_noise_and_returns_them_unchanged():
    pipe, plain = tiny_pipeline(), request()
    clean, seen = pipe.encode(plain["clips"]), []
    result = pipe(
        ["up", "left"], context_gamma=0.9, callback=lambda step, latents, slope: seen.append(latents), **plain
    ).frames
    fresh = pipe(["up", "left"], seeds=[1, 2], steps=0, output_type="latent").frames
    for latents in seen:
        torch.testing.assert_close(latents[:, 0], 0.9 * clean[:, 0] + 0.1 * fresh[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(result[:, 0], clean[:, 0])
    assert torch.equal(pipe(["up", "left"], context_gamma=1.0, **plain).frames, pipe(["up", "left"], **plain).frames)
    assert not torch.allclose(result[:, 1:], pipe(["up", "left"], **plain).frames[:, 1:], atol=1e-4)
