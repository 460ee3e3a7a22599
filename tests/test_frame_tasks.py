"""One frame-wise field, every video task, on clips that share frames: proven with the exact field, without training.

The clips are the command's own (`eqm-video oracle`), small: a shape starts in the middle of a torus and goes
half the world to the right, left, down or up. All clips of a shape share the first frame, opposite ways the last too.
Turning the picture by 90 degrees turns one way into the next, and start noise is the same from all sides: where several
clips agree with the known frames, each must be reached equally often. Counts are held to 4 standard deviations.
"""

from __future__ import annotations

import pytest
import torch
from exact_clips import DATA, DECAY, FRAMES, nearest, noise, spread
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.analysis.gamma_estimate import frame_rms
from eqm_video.samplers import NAG, Descent, GradientDescent, descend, frame_moves

FIELD = OracleField(DATA, DECAY, frame_wise=True)
STEPS = 40
RULE = NAG(0.02, 0.35)
EXACT = 3e-5  # after 40 steps: at least 25 of them in the geometric part, a factor of about 0.6 each


def frames_known(count: int, frames: list[int]) -> Tensor:
    known = torch.zeros(count, FRAMES, dtype=torch.bool)
    known[:, frames] = True
    return known


def walk(clips: Tensor, known: Tensor, field: OracleField = FIELD, *, held: bool = True, **how) -> Descent:
    """A descent from noise for each of the clips (B, ...), whose frames `known` (B, T) are given."""
    start = torch.where(spread(known), clips, noise(len(clips)))
    return descend(field, start, RULE, steps=STEPS, known=known if held else None, **how)


def assert_equally_often(chosen: Tensor, allowed: list[int]) -> None:
    """Every allowed clip, and no other, within 4 standard deviations of the binomial count."""
    counts = torch.bincount(chosen, minlength=len(DATA)).double()
    assert counts[allowed].sum() == len(chosen)
    share = 1 / len(allowed)
    deviation = (len(chosen) * share * (1 - share)) ** 0.5
    assert (counts[allowed] - len(chosen) * share).abs().max() <= 4 * deviation
    assert counts[allowed].min() > 0


# ------------------------------------------------------------------------------------------------------------ the clips


def test_the_clips_share_frames_and_are_turns_of_each_other():
    right, left, down, up = DATA[:4]
    assert torch.equal(right[0], left[0]) and torch.equal(right[0], up[0]) and torch.equal(right[0], down[0])
    torch.testing.assert_close(right[-1], left[-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(down[-1], up[-1], rtol=0, atol=1e-12)
    assert (right[-1] - up[-1]).abs().max() > 0.5
    assert (right[1] - left[1]).abs().max() > 0.5
    for way, turned in ((right, up), (up, left), (left, down), (down, right)):  # rot90 turns x towards -y, upwards
        torch.testing.assert_close(way.rot90(1, (2, 3)), turned, rtol=0, atol=1e-12)
    assert (DATA[0] - DATA[4]).abs().max() > 0.3  # a square is no disc


# ------------------------------------------------------------------------------------------------------------ the tasks


def test_generation_ends_at_clips_of_the_set_all_of_them():
    result = walk(DATA[:1].expand(80, -1, -1, -1, -1), frames_known(80, []))
    chosen, away = nearest(result.latents)
    assert away.max() < EXACT
    counts = torch.bincount(chosen, minlength=8)
    assert counts.min() > 0
    # the four ways of one shape are equally likely; how the shapes share the rest is not given by symmetry
    for shape in (chosen[chosen < 4], chosen[chosen >= 4] - 4):
        assert_equally_often(shape, [0, 1, 2, 3])


@pytest.mark.parametrize("shape", [0, 4], ids=["disc", "square"])
def test_image_to_video_reaches_every_clip_with_that_first_frame_equally_often(shape):
    result = walk(DATA[shape].expand(96, -1, -1, -1, -1), frames_known(96, [0]))
    chosen, away = nearest(result.latents)
    assert away.max() < EXACT
    assert_equally_often(chosen, [shape, shape + 1, shape + 2, shape + 3])
    assert (result.latents[:, 0] == DATA[shape, 0]).all()
    assert result.frame_nfe[0].tolist() == [0] + [STEPS] * (FRAMES - 1)


@pytest.mark.parametrize(("clip", "partners"), [(0, [0, 1]), (3, [2, 3])], ids=["across", "along"])
def test_in_betweening_goes_both_ways_round_and_no_other(clip, partners):
    result = walk(DATA[clip].expand(64, -1, -1, -1, -1), frames_known(64, [0, FRAMES - 1]))
    chosen, away = nearest(result.latents)
    assert away.max() < EXACT
    assert_equally_often(chosen, partners)


def test_what_came_before_is_found_as_what_comes_after():
    result = walk(DATA[5].expand(48, -1, -1, -1, -1), frames_known(48, [FRAMES - 1]))
    chosen, away = nearest(result.latents)
    assert away.max() < EXACT
    assert_equally_often(chosen, [4, 5])


@pytest.mark.parametrize("frames", [[0, 1], [0, 1, 2, 3], [1, 3], [2], [0, 2, 4]], ids=str)
def test_frames_that_determine_a_clip_end_at_exactly_that_clip(frames):
    """Continuation and inpainting in time: from every clip of the set, two noises each."""
    clips = DATA.repeat(2, 1, 1, 1, 1)
    known = frames_known(16, frames)
    result = walk(clips, known)
    torch.testing.assert_close(result.latents, clips, rtol=0, atol=EXACT)
    assert torch.equal(result.latents[known], clips[known])


def test_each_row_of_a_batch_has_its_own_task():
    known = frames_known(5, [])
    known[1, 0], known[2, [0, -1]], known[3, 1:3], known[4] = True, True, True, True
    clips = DATA[[0, 1, 2, 6, 7]]
    result = walk(clips, known)
    chosen, away = nearest(result.latents)
    assert away.max() < EXACT
    assert chosen[1] in (0, 1, 2, 3) and chosen[2] in (2, 3) and chosen[3:].tolist() == [6, 7]
    assert torch.equal(result.latents[known], clips[known])
    assert result.nfe.tolist() == [STEPS] * 4 + [0]
    start = torch.where(spread(known), clips, noise(5))
    for row in range(5):
        alone = descend(FIELD, start[row : row + 1], RULE, steps=STEPS, known=known[row : row + 1])
        torch.testing.assert_close(alone.latents[0], result.latents[row], rtol=0, atol=1e-9)


def test_nearly_clean_frames_are_known_well_enough():
    """Partial denoising by frames: a first pair at gamma 0.9 tells the clip, and is cleaned itself."""
    gammas = torch.tensor([0.9, 0.9, 0.0, 0.0, 0.0]).double().expand(16, -1)
    clips = DATA.repeat(2, 1, 1, 1, 1)
    start = spread(gammas) * clips + (1 - spread(gammas)) * noise(16)
    result = descend(FIELD, start, RULE, steps=STEPS)
    torch.testing.assert_close(result.latents, clips, rtol=0, atol=EXACT)


# ------------------------------------------------------------------------------------------ why a gamma for each frame


def test_known_frames_stay_at_rest_even_when_nobody_holds_them():
    """The exact frame-wise field vanishes on clean frames beside noise: that is what clean frames in training give."""
    known = frames_known(8, [0, 2])
    start = torch.where(spread(known), DATA, noise(8))
    assert frame_rms(FIELD(start))[known].max() < 1e-6
    assert frame_rms(FIELD(start))[~known].min() > 2
    free, held = walk(DATA, known, held=False), walk(DATA, known)
    torch.testing.assert_close(free.latents[known], DATA[known], rtol=0, atol=1e-6)
    torch.testing.assert_close(free.latents, held.latents, rtol=0, atol=EXACT)


def test_one_gamma_for_the_clip_does_not_hold_known_frames():
    """The exact field of a shared gamma pulls clean frames away, and hears them too little where it must hold them."""
    shared, known = OracleField(DATA, DECAY), frames_known(40, [0, 1])
    clips = DATA.repeat(5, 1, 1, 1, 1)
    truth = torch.arange(8).repeat(5)
    start = torch.where(spread(known), clips, noise(40))
    pulled = frame_rms(shared(start))[known].mean()
    assert pulled > 0.1 and frame_rms(FIELD(start))[known].mean() < 1e-6 * pulled
    right = {
        (kind, held): (nearest(walk(clips, known, field, held=held).latents)[0] == truth).double().mean()
        for kind, field in (("frame-wise", FIELD), ("shared", shared))
        for held in (True, False)
    }
    assert right["frame-wise", True] == right["frame-wise", False] == 1
    assert right["shared", True] < 0.9  # the known frames are held by force, the others become another clip
    assert right["shared", False] < right["shared", True]
    moved = walk(clips, known, shared, held=False).latents[known] - clips[known]
    assert moved.abs().max() > 0.5
    # to generate, one gamma for all is as good: the difference is in the tasks
    assert nearest(walk(clips, frames_known(40, []), shared).latents)[1].max() < EXACT


# ------------------------------------------------------------------------------------------------- per-frame stopping


def test_frames_of_a_task_stop_alone_and_stay_near_their_clip():
    """RMS below tolerance is a distance below tolerance (1 - a) / gain, measured at NAG's look-ahead: within 1.3."""
    tolerance, known = 0.1, frames_known(16, [0, 1])
    clips = DATA.repeat(2, 1, 1, 1, 1)
    full = walk(clips, known)
    result = walk(clips, known, tolerance=tolerance, per_frame=True)
    assert result.nfe.max() < 0.6 * STEPS  # of clips that start at noise
    assert (result.frame_nfe[:, :2] == 0).all() and (result.frame_nfe[:, 2:] > 10).all()
    assert torch.equal(result.nfe, result.frame_nfe.amax(dim=1))
    assert frame_rms(result.latents - full.latents).max() < 1.3 * tolerance * 0.2 / 4
    assert torch.equal(result.latents[known], clips[known])


def test_frames_that_start_nearer_stop_sooner_and_the_clip_is_the_same():
    gammas = torch.tensor([0.95, 0.7, 0.45, 0.2, 0.0]).double().expand(8, -1)
    start = spread(gammas) * DATA + (1 - spread(gammas)) * noise(8)
    alone, together = (
        descend(FIELD, start, RULE, steps=STEPS, tolerance=0.1, per_frame=per_frame) for per_frame in (True, False)
    )
    assert (alone.frame_nfe.diff(dim=1) > 0).all()
    for result in (alone, together):
        assert frame_rms(result.latents - DATA).max() < 1.3 * 0.1 * 0.2 / 4
    assert alone.frame_nfe.sum() < 0.75 * together.frame_nfe.sum()
    assert (alone.nfe <= together.nfe + 1).all()


# -------------------------------------------------------------------------------------------------------- in turn


@pytest.mark.parametrize("schedule", ["pyramid", "autoregressive", 7])
@pytest.mark.parametrize("frames", [[], [0], [0, 1]], ids=str)
def test_frames_that_move_in_turn_end_at_a_clip_of_the_set(schedule, frames):
    known = frames_known(8, frames)
    start = torch.where(spread(known), DATA, noise(8))
    moves = frame_moves(schedule, STEPS, ~known)
    result = descend(FIELD, start, RULE, steps=len(moves), known=known, moves=moves)
    chosen, away = nearest(result.latents)
    assert away.max() < 1e-4
    assert (result.frame_nfe == torch.where(known, 0, STEPS)).all()
    if len(frames) == 2:
        assert torch.equal(chosen, torch.arange(8))
    elif frames:
        assert torch.equal(chosen // 4, torch.arange(8) // 4)  # the shape of the first frame
        assert len(chosen.unique()) > 3


def test_the_first_of_frames_in_turn_hears_nothing_of_those_to_come_but_their_noise():
    """Autoregressive: while frame 1 moves, frames 2, 3, 4 still are the noise they started from."""
    known = frames_known(4, [0])
    start = torch.where(spread(known), DATA[:4], noise(4))
    moves = frame_moves("autoregressive", 40, ~known)
    seen: list[Tensor] = []
    descend(
        FIELD,
        start,
        GradientDescent(0.02),
        steps=160,
        known=known,
        moves=moves,
        callback=lambda step, latents, slope: seen.append(latents),
    )
    for turn in range(4):
        latents = seen[40 * (turn + 1) - 1]
        assert torch.equal(latents[:, turn + 2 :], start[:, turn + 2 :])
        done = latents[:, : turn + 2]
        away = (done[:, None] - DATA[:, : turn + 2]).abs().amax(dim=(2, 3, 4, 5)).amin(dim=1)
        assert away.max() < 1e-4  # a beginning of some clip
