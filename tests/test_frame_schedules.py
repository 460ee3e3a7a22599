"""Frames that move in turn: their steps, their paths, which equal those of single frames, counts and refusals."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_pipeline
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.randomness import generator
from eqm_video.samplers import NAG, Adam, GradientDescent, Heun, Langevin, descend, frame_moves, run
from eqm_video.samplers.frame_schedule import frame_delay

KNOWN = torch.tensor([[True, False, False, True, False], [False] * 5, [True] * 5, [True, True, True, True, False]])
RULES = [GradientDescent(0.3), NAG(0.3, 0.5), Adam(0.1, beta1=0.9, beta2=0.99)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Bowls:
    """The gradient of a bowl for each frame, of its own steepness: frames do not depend on each other."""

    steepness = torch.tensor([0.4, 0.7, 1.0, 1.3, 1.6], dtype=torch.float64)[None, :, None, None, None]

    def __call__(self, latents: Tensor) -> Tensor:
        return self.steepness[:, : latents.shape[1]] * latents

    def frame(self, index: int):
        return lambda latents: self.steepness[:, index : index + 1] * latents


class SelectableBowls(Bowls):
    def select(self, indices: Tensor) -> SelectableBowls:
        return self


# -------------------------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize("schedule", ["joint", "pyramid", "autoregressive", 0, 1, 3, 8])
def test_every_unknown_frame_makes_exactly_its_steps_one_after_the_other(schedule):
    steps, unknown = 8, ~KNOWN
    counts = [int(count) for count in unknown.sum(dim=1)]
    pyramid = [8 // count if count else 8 for count in counts]  # a clip's own: 8 steps over its unknown frames
    delays = {"joint": [0] * 4, "pyramid": pyramid, "autoregressive": [8] * 4}.get(schedule, [schedule] * 4)
    assert [frame_delay(schedule, steps, count) for count in counts] == delays
    moves = frame_moves(schedule, steps, unknown)
    if not any(delays):
        assert moves is None
        return
    longest = max(delay * (count - 1) for delay, count in zip(delays, counts, strict=True))
    assert moves.shape == (steps + longest, 4, 5) and moves.dtype == torch.bool
    for clip, delay in enumerate(delays):
        alone = frame_moves(schedule, steps, unknown[clip : clip + 1])
        assert alone is None or torch.equal(moves[: len(alone), clip], alone[:, 0])  # whatever else is in the batch
        order = unknown[clip].nonzero().flatten().tolist()
        for frame in range(5):
            found = moves[:, clip, frame].nonzero().flatten().tolist()
            first = delay * order.index(frame) if frame in order else None
            assert found == ([] if first is None else list(range(first, first + steps)))


@pytest.mark.parametrize("unknown", [1, 2, 7, 16, 100])
def test_a_pyramid_takes_less_than_twice_the_steps_where_it_has_as_many_as_frames(unknown):
    steps = 100
    delay = frame_delay("pyramid", steps, unknown)
    assert steps + delay * (unknown - 1) < 2 * steps
    assert delay >= 1 and frame_delay("autoregressive", steps, unknown) == steps


@pytest.mark.parametrize("schedule", ["diagonal", -1, 9, 1.5, True, None])
def test_unknown_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match=r"joint, pyramid, autoregressive.*from 0 \(joint\) to 8"):
        frame_moves(schedule, 8, ~KNOWN)


def test_one_unknown_frame_or_none_is_a_joint_descent():
    assert frame_moves("autoregressive", 8, torch.tensor([[False, True], [False, False]])) is None


# -------------------------------------------------------------------------------------------------------- the walks


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kind", [Bowls, SelectableBowls])
@pytest.mark.parametrize("schedule", ["pyramid", "autoregressive", 3])
def test_each_frame_walks_bit_for_bit_as_it_would_alone(rule, kind, schedule):
    """A frame that enters later has no momentum: its path is that of a descent that begins there."""
    steps, start = 8, gaussian(4, 5, 2, 3, 3)
    moves, seen = frame_moves(schedule, steps, ~KNOWN), []
    result = descend(
        kind(),
        start,
        rule,
        steps=len(moves),
        known=KNOWN,
        moves=moves,
        callback=lambda step, latents, slope: seen.append((latents, slope)),
    )
    for frame in range(5):
        alone = descend(Bowls().frame(frame), start[:, frame : frame + 1], rule, steps=steps)
        expected = torch.where(KNOWN[:, frame, None, None, None], start[:, frame], alone.latents[:, 0])
        assert torch.equal(result.latents[:, frame], expected)
    assert torch.equal(result.frame_nfe, torch.where(KNOWN, 0, steps))
    # a clip is evaluated from its first frame's first step to its last frame's last
    counts = [int(count) for count in (~KNOWN).sum(dim=1)]
    assert result.nfe.tolist() == [
        steps + frame_delay(schedule, steps, count) * (count - 1) if count else 0 for count in counts
    ]
    before = start
    for step, (latents, slope) in enumerate(seen):
        still = ~moves[step]
        assert torch.equal(latents[still], before[still])
        running = (moves[step:].any(dim=0)).any(dim=1)  # (B,) clips that still have a move
        assert (slope[running & still.all(dim=1)] == 0).all()
        assert (slope[still & running[:, None]] == 0).all()
        before = latents


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_frame_that_pauses_goes_on_without_momentum(rule):
    start = gaussian(2, 3, 1, 2, 2)
    moves = torch.ones(9, 3, dtype=torch.bool)
    moves[3:5, 1] = False
    result = descend(Bowls(), start, rule, steps=9, moves=moves)
    one = Bowls().frame(1)
    paused = descend(one, descend(one, start[:, 1:2], rule, steps=3).latents, rule, steps=4)
    assert torch.equal(result.latents[:, 1], paused.latents[:, 0])
    whole = descend(Bowls(), start, rule, steps=9)
    assert torch.equal(result.latents[:, [0, 2]], whole.latents[:, [0, 2]])
    assert result.frame_nfe.tolist() == [[9, 7, 9]] * 2 and result.nfe.tolist() == [9, 9]


@pytest.mark.parametrize("rule", [*RULES, Langevin(0.1, temperature=0.01)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("how", [{}, {"tolerance": 0.2, "per_frame": True}], ids=["all", "stopping"])
def test_moving_all_frames_at_every_step_is_the_plain_descent_bit_for_bit(rule, how):
    start = gaussian(4, 5, 2, 3, 3)
    results = [
        descend(
            SelectableBowls(),
            start,
            rule,
            steps=12,
            known=KNOWN,
            moves=moves,
            generators=[generator("moves", clip) for clip in range(4)],
            **how,
        )
        for moves in (None, torch.ones(12, 5, dtype=torch.bool), torch.ones(12, 4, 5, dtype=torch.bool))
    ]
    for other in results[1:]:
        assert torch.equal(other.latents, results[0].latents)
        assert torch.equal(other.nfe, results[0].nfe) and torch.equal(other.frame_nfe, results[0].frame_nfe)


def test_randomness_moves_no_paused_frame():
    start, moves = gaussian(2, 3, 1, 2, 2), frame_moves("autoregressive", 4, torch.ones(2, 3, dtype=torch.bool))
    seen = []
    descend(
        Bowls(),
        start,
        Langevin(0.1, temperature=0.1),
        steps=12,
        moves=moves,
        generators=[generator("waits", clip) for clip in range(2)],
        callback=lambda step, latents, slope: seen.append(latents),
    )
    assert torch.equal(seen[3][:, 1:], start[:, 1:]) and (seen[3][:, 0] != start[:, 0]).any()
    assert torch.equal(seen[11][:, 0], seen[3][:, 0]) and (seen[11][:, 2] != start[:, 2]).any()


@pytest.mark.parametrize("kind", [Bowls, SelectableBowls])
def test_frames_in_turn_stop_as_they_would_alone(kind):
    """Halving at each step, with a tolerance: a frame at rest before its turn is over waits no longer."""
    start = gaussian(4, 5, 2, 3, 3) * torch.tensor([1.0, 4.0, 0.05, 1.0])[:, None, None, None, None]
    how = {"tolerance": 0.1, "per_frame": True}
    for schedule in ("pyramid", "autoregressive"):
        moves = frame_moves(schedule, 20, ~KNOWN)
        result = descend(kind(), start, NAG(0.3, 0.3), steps=len(moves), known=KNOWN, moves=moves, **how)
        for frame in range(5):
            alone = descend(Bowls().frame(frame), start[:, frame : frame + 1], NAG(0.3, 0.3), steps=20, **how)
            free = ~KNOWN[:, frame]
            assert torch.equal(result.latents[free, frame], alone.latents[free, 0])
            assert torch.equal(result.frame_nfe[free, frame], alone.frame_nfe[free, 0])
        assert (result.frame_nfe[KNOWN] == 0).all()
        assert result.nfe[2] == 0 and (result.frame_nfe[~KNOWN] < 20).sum() == 8  # the ninth takes all its steps
        if schedule == "autoregressive":  # a frame at rest hands its turn on: nothing is evaluated for nobody
            assert torch.equal(result.nfe, result.frame_nfe.sum(dim=1))
        else:
            assert (result.nfe >= result.frame_nfe.amax(dim=1)).all() and result.nfe.max() < len(moves)


def test_steps_at_which_no_frame_moves_cost_nothing():
    start, moves = gaussian(2, 3, 1, 2, 2), torch.zeros(12, 3, dtype=torch.bool)
    moves[2:4, 0], moves[9:12, 1] = True, True
    calls = []
    result = descend(lambda x: calls.append(len(x)) or x, start, GradientDescent(0.1), steps=12, moves=moves)
    assert calls == [2] * 5 and result.nfe.tolist() == [5, 5] and result.frame_nfe.tolist() == [[2, 3, 0]] * 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moves": torch.ones(5, 3)}, r"moves must be a bool tensor .*got torch.float32 \(5, 3\)"),
        ({"moves": torch.ones(4, 3, dtype=torch.bool)}, r"\(S, T\) = \(5, 3\) or \(S, B, T\) = \(5, 2, 3\)"),
        ({"moves": torch.ones(5, 3, 3, dtype=torch.bool)}, "moves must be"),
        ({"moves": [True]}, "got list"),
        ({"tolerance": 0.1}, "a tolerance needs per_frame=True"),
        ({"schedule": "cosine"}, "leave one of the two out"),
    ],
)
def test_wrong_moves_are_refused(given, words):
    arguments = {"steps": 5, "moves": torch.ones(5, 3, dtype=torch.bool), **given}
    with pytest.raises(ValueError, match=words):
        descend(Bowls(), gaussian(2, 3, 1, 2, 2), GradientDescent(0.1), **arguments)


def test_points_without_frames_and_solvers_have_no_turns():
    with pytest.raises(ValueError, match="moves must be"):
        descend(lambda x: x, gaussian(2, 3), GradientDescent(0.1), steps=5, moves=torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="frames that move in turn are for the rules"):
        run(Bowls(), gaussian(2, 3, 1, 2, 2), Heun(), steps=5, moves=torch.ones(5, 3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------------ the pipeline


@pytest.mark.parametrize("schedule", ["pyramid", "autoregressive", 2])
def test_the_pipeline_descends_its_field_in_turn(schedule):
    pipe = tiny_pipeline()
    clips = torch.randint(0, 256, (2, 4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = {"known": [0], "clips": clips, "seeds": [1, 2], "steps": 4, "output_type": "latent"}
    result = pipe(["up", None], frame_schedule=schedule, **how)
    start = pipe(["up", None], **{**how, "steps": 0}).frames
    known = torch.zeros(2, 4, dtype=torch.bool)
    known[:, 0] = True
    moves = frame_moves(schedule, 4, ~known)
    with torch.no_grad():
        field = pipe.field(["up", None], num_frames=4)
        expected = descend(field, start, NAG(0.05, 0.3), steps=len(moves), known=known, moves=moves)
    torch.testing.assert_close(result.frames, expected.latents, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.frames[:, 0], pipe.encode(clips)[:, 0])
    assert result.frame_nfe.tolist() == [[0, 4, 4, 4]] * 2
    assert result.nfe.tolist() == [len(moves)] * 2
    joint = pipe(["up", None], **how)
    assert torch.equal(pipe(["up", None], frame_schedule="joint", **how).frames, joint.frames)
    assert not torch.equal(joint.frames, result.frames)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"frame_schedule": "diagonal"}, "frame_schedule is 'diagonal': it must be joint or pyramid"),
        ({"frame_schedule": "pyramid", "tolerance": 0.1}, "per_frame=True"),
        ({"frame_schedule": "pyramid", "step_schedule": "cosine"}, "leave one of the two out"),
        ({"frame_schedule": "pyramid", "guidance_scale": 2.0, "guidance_interval": (0, 0.5)}, "guidance_interval"),
        ({"frame_schedule": "pyramid", "sampler": "heun"}, "frames that move in turn are for the rules"),
    ],
)
def test_the_pipeline_refuses_options_that_do_not_go_together(given, words):
    with pytest.raises(UserError, match=words):
        tiny_pipeline()("up", seeds=[0], **given)


@pytest.mark.parametrize("rule", [NAG(0.1, 0.9), NAG(0.1, 0.35)])
def test_a_frame_after_its_moves_is_evaluated_at_its_latents(rule):
    """And not at its look-ahead, from the first step at which it stands still."""
    start = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    moves = torch.zeros(6, 2, dtype=torch.bool)
    moves[:3, 0] = moves[3:, 1] = True
    points, ends = [], []

    def field(latents: torch.Tensor) -> torch.Tensor:
        points.append(latents.clone())
        return 2 * latents

    descend(field, start, rule, steps=6, moves=moves, callback=lambda _, latents, __: ends.append(latents.clone()))
    assert not torch.equal(points[2][:, 0], ends[1][:, 0])  # on its way it is
    for step in (3, 4, 5):
        assert torch.equal(points[step][:, 0], ends[2][:, 0])
    for step in (0, 1, 2, 3):
        assert torch.equal(points[step][:, 1], start[:, 1])
