"""Update rules and the loop, against closed forms: quadratics, and one data point on the straight path."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from eqm_video.core.decay import TruncatedDecay
from eqm_video.randomness import generator
from eqm_video.samplers import NAG, RULES, SIZED, DivergenceError, GradientDescent, descend

SHAPE = (4, 3, 2, 2, 2)  # B, T, C, H, W


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Quadratic:
    """The gradient curvature * (x - centre) of a quadratic energy, without `select`; it records its batches."""

    centre: Tensor
    curvature: Tensor
    batches: list[int] = field(default_factory=list)

    def __call__(self, latents: Tensor) -> Tensor:
        self.batches.append(latents.shape[0])
        return self.curvature * (latents - self.centre)


class SelectableQuadratic(Quadratic):
    def select(self, indices: Tensor) -> SelectableQuadratic:
        return SelectableQuadratic(self.centre[indices], self.curvature[indices], self.batches)


def quadratic(kind: type = Quadratic) -> Quadratic:
    curvature = 0.2 + 1.8 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return kind(normal(*SHAPE, seed=2), curvature)


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int64)


# ------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_gradient_descent_on_a_quadratic(steps):
    energy, start = quadratic(), normal(*SHAPE)
    result = descend(energy, start, GradientDescent(0.3), steps=steps)
    exact = energy.centre + (1 - 0.3 * energy.curvature) ** steps * (start - energy.centre)
    torch.testing.assert_close(result.latents, exact, rtol=1e-11, atol=1e-13)
    assert result.nfe.tolist() == [steps] * 4
    assert result.nfe.dtype == torch.int64
    assert energy.batches == [4] * steps


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_nag_on_a_quadratic(steps):
    """e_{k+1} = (1 - p (1 + mu)) e_k + p mu e_{k-1} with p = step_size * curvature: two geometric sequences."""
    energy, start, mu = quadratic(), normal(*SHAPE), 0.35
    pull = 0.3 * energy.curvature
    half = (1 - pull * (1 + mu)) / 2
    spread = (half.square() + pull * mu).sqrt()
    high, low = half + spread, half - spread
    share = (1 - pull - low) / (high - low)  # e_1 = (1 - p) e_0: no displacement before the first step
    exact = energy.centre + (start - energy.centre) * (share * high**steps + (1 - share) * low**steps)
    result = descend(energy, start, NAG(0.3, mu), steps=steps)
    torch.testing.assert_close(result.latents, exact, rtol=1e-11, atol=1e-13)


def test_nag_without_look_ahead_is_gradient_descent():
    start = normal(*SHAPE)
    plain = descend(quadratic(), start, GradientDescent(0.3), steps=9).latents
    assert torch.equal(descend(quadratic(), start, NAG(0.3, 0.0), steps=9).latents, plain)
    assert not torch.allclose(descend(quadratic(), start, NAG(0.3, 0.35), steps=9).latents, plain)


@dataclass
class SinglePoint:
    """The field of one data clip where gamma is known: it is read off the line from `noise` to `clean`."""

    clean: Tensor
    noise: Tensor
    decay: TruncatedDecay = TruncatedDecay(a=0.8, gain=4.0)  # noqa: RUF009

    def distance(self, latents: Tensor) -> Tensor:
        """1 - gamma (B,); negative beyond the data."""
        line = (self.noise - self.clean).flatten(1)
        return ((latents - self.clean).flatten(1) * line).sum(1) / line.square().sum(1)

    def __call__(self, latents: Tensor) -> Tensor:
        distance = self.distance(latents)
        strength = self.decay(1 - distance.abs()) * distance.sign()  # the field is odd about the data
        return (self.noise - self.clean) * strength[:, None, None, None, None]


def test_single_point_trajectory_has_its_closed_form():
    """1 - gamma falls by eta * lambda a step until gamma reaches a, then shrinks by 1 - eta * lambda / (1 - a)."""
    truth = SinglePoint(normal(*SHAPE, seed=3), normal(*SHAPE, seed=4))
    seen = [truth.distance(truth.noise)]
    descend(
        truth,
        truth.noise,
        GradientDescent(0.003),
        steps=150,
        callback=lambda step, latents, gradient: seen.append(truth.distance(latents)),
    )
    distances = torch.stack(seen)
    assert int((1 - distances[:, 0] >= 0.8).nonzero()[0]) == 67
    falling = [1 - 0.012 * step for step in range(68)]
    shrinking = [falling[-1] * (1 - 0.06) ** step for step in range(1, 84)]
    exact = torch.tensor(falling + shrinking, dtype=torch.float64)[:, None].expand(151, 4)
    torch.testing.assert_close(distances, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "limit"), [(GradientDescent, 2.0), (lambda eta: NAG(eta, 0.35), 2 / (1 + 2 * 0.35))])
def test_stability_ends_where_the_theory_says(rule, limit):
    """With slope lambda / (1 - a) = 20 at the data: eta * 20 < 2 for GD, < 2 / (1 + 2 mu) for NAG."""
    truth = SinglePoint(normal(*SHAPE, seed=3), normal(*SHAPE, seed=4))
    start = truth.clean + 0.01 * (truth.noise - truth.clean)
    below = descend(truth, start, rule(0.99 * limit / 20), steps=600)
    assert truth.distance(below.latents).abs().max() < 1e-4
    above = descend(truth, start, rule(1.01 * limit / 20), steps=600)
    assert truth.distance(above.latents).abs().min() > 0.1  # no further: the decay is constant away from the data
    unbounded = Quadratic(torch.zeros(SHAPE).double(), torch.full(SHAPE, 20.0).double())
    with pytest.raises(DivergenceError):
        descend(unbounded, start, rule(1.5 * limit / 20), steps=2000)


# --------------------------------------------------------------------------------------------------- known frames


@pytest.mark.parametrize("rule", [GradientDescent(0.3), NAG(0.3, 0.35)])
@pytest.mark.parametrize("kind", [Quadratic, SelectableQuadratic])
def test_known_frames_stay_bit_for_bit(rule, kind):
    energy, start = quadratic(kind), normal(*SHAPE)
    start[0, 0] = -0.0  # a sum with 0 would turn it into +0.0
    known = torch.tensor([[True, False, False], [False, True, True], [False] * 3, [True, False, True]])
    untouched = start.clone()
    points = []

    def watched(latents):
        points.append(latents)
        return energy(latents).masked_fill(known[:, :, None, None, None], torch.nan)  # must not be used

    result = descend(watched, start, rule, steps=20, known=known)
    assert torch.equal(bits(result.latents[known]), bits(untouched[known]))
    assert torch.equal(bits(start), bits(untouched))
    assert all(torch.equal(point[known], untouched[known]) for point in points)  # no look-ahead on known frames
    free = descend(energy, start, rule, steps=20).latents
    torch.testing.assert_close(result.latents[~known], free[~known], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Quadratic, SelectableQuadratic])
def test_clips_known_as_a_whole_take_no_evaluation(kind):
    energy, start = quadratic(kind), normal(*SHAPE)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[1] = True
    result = descend(energy, start, GradientDescent(0.3), steps=5, known=known)
    assert result.nfe.tolist() == [5, 0, 5, 5]
    assert torch.equal(result.latents[1], start[1])
    free = descend(energy, start, GradientDescent(0.3), steps=5).latents
    assert torch.equal(result.latents[[0, 2, 3]], free[[0, 2, 3]])
    energy.batches.clear()
    result = descend(energy, start, NAG(0.3, 0.35), steps=5, known=torch.ones_like(known), tolerance=1.0)
    assert result.nfe.tolist() == [0, 0, 0, 0]
    assert energy.batches == []
    assert torch.equal(result.latents, start)


# ------------------------------------------------------------------------------------------------------- stopping


def even(kind: type = SelectableQuadratic) -> tuple[Quadratic, Tensor]:
    """Curvature 1 about 0, clips whose distance from it is 1, 8, 64, 512: with eta = 1/2, 3 steps apart."""
    energy = kind(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    return energy, torch.ones(SHAPE).double() * 8.0 ** torch.arange(4)[:, None, None, None, None]


@pytest.mark.parametrize("kind", [Quadratic, SelectableQuadratic])
def test_a_clip_stops_before_the_update_and_that_evaluation_counts(kind):
    energy, start = even(kind)
    result = descend(energy, start, GradientDescent(0.5), steps=100, tolerance=0.3)
    # the gradient equals the latents: 1, 1/2, 1/4 < 0.3 at the third evaluation, after two updates
    assert result.nfe.tolist() == [3, 6, 9, 12]
    assert torch.equal(result.latents, torch.full_like(start, 0.25))
    # a stopped clip leaves the batch where the gradient can select; else it stays and costs time
    shrinking = [4] * 3 + [3] * 3 + [2] * 3 + [1] * 3
    assert energy.batches == (shrinking if kind is SelectableQuadratic else [4] * 12)


def test_the_largest_unknown_frame_decides():
    energy, start = even()
    start = torch.ones_like(start)
    start[0, 1] = 64.0
    start[1, 0] = 64.0
    start[1, 0, 0] = -64.0
    start[2, 2] = 0.0
    start[3] = 0.01
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[1, 0] = True
    result = descend(energy, start, GradientDescent(0.5), steps=100, known=known, tolerance=0.3)
    assert result.nfe.tolist() == [9, 3, 3, 1]
    assert torch.equal(result.latents[3], start[3])


def test_the_size_is_a_root_mean_square_over_a_frame():
    energy, start = even()
    start = torch.zeros_like(start)
    start[:, 1, 0, 0, 0] = 1.0  # one of 8 numbers: RMS 0.3536
    above = descend(energy, start, GradientDescent(0.5), steps=1, tolerance=0.353)
    below = descend(energy, start, GradientDescent(0.5), steps=1, tolerance=0.354)
    assert torch.equal(above.latents, start / 2)
    assert torch.equal(below.latents, start)


def test_nag_stops_on_the_gradient_at_the_look_ahead():
    energy, start = even()
    start = torch.ones_like(start)
    # latents 1, 1/2; look-ahead 1/2 - 0.5 * 1/2 = 1/4 < 0.3 already at the second evaluation
    result = descend(energy, start, NAG(0.5, 0.5), steps=100, tolerance=0.3)
    assert result.nfe.tolist() == [2] * 4
    assert torch.equal(result.latents, start / 2)


@pytest.mark.parametrize("rule", [GradientDescent(0.3), NAG(0.3, 0.35)])
def test_stopped_clips_do_not_change_the_others(rule):
    known = torch.tensor([[True, False, False], [False] * 3, [False, False, True], [False] * 3])
    start = normal(*SHAPE) * 10.0 ** torch.arange(4)[[2, 0, 3, 1], None, None, None, None]
    options = {"steps": 200, "tolerance": 0.05}
    compacted = descend(quadratic(SelectableQuadratic), start, rule, known=known, **options)
    frozen = descend(quadratic(), start, rule, known=known, **options)
    assert len(compacted.nfe.unique()) == 4
    assert compacted.nfe.max() < 200
    assert torch.equal(compacted.latents, frozen.latents)
    assert torch.equal(compacted.nfe, frozen.nfe)
    for clip in range(4):
        one = slice(clip, clip + 1)
        energy = quadratic()
        alone = Quadratic(energy.centre[one], energy.curvature[one])
        result = descend(alone, start[one], rule, known=known[one], **options)
        assert torch.equal(result.latents[0], compacted.latents[clip])
        assert result.nfe[0] == compacted.nfe[clip]
        plain = descend(alone, start[one], rule, known=known[one], steps=int(result.nfe) - 1)
        assert torch.equal(plain.latents, result.latents)


# ------------------------------------------------------------------ fields of the step, callbacks, random generators


class Ramp:
    """A field of the step: `slope` * (step + 1), the same everywhere; alone, without a step, it is not to be called."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope

    def __call__(self, latents):
        raise AssertionError("called without a step")

    def at_step(self, step):
        return lambda latents: torch.ones_like(latents) * (step + 1) * self.slope[:, None, None, None, None]


class SelectableRamp(Ramp):
    def select(self, indices):
        return SelectableRamp(self.slope[indices])


@pytest.mark.parametrize("kind", [Ramp, SelectableRamp])
def test_fields_may_depend_on_the_step(kind):
    slope = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[2] = True  # one clip leaves: the others keep their own slopes
    result = descend(kind(slope), torch.zeros(SHAPE).double(), GradientDescent(0.5), steps=4, known=known)
    exact = torch.tensor([-5.0, -10.0, 0.0, -20.0]).double()  # -0.5 * (1 + 2 + 3 + 4) * slope
    torch.testing.assert_close(result.latents, exact[:, None, None, None, None].expand(SHAPE))


@pytest.mark.parametrize("kind", [Quadratic, SelectableQuadratic])
def test_callback_sees_the_whole_batch_after_each_update(kind):
    energy, start = even(kind)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[:, 0] = True
    seen = []
    result = descend(
        energy,
        start,
        GradientDescent(0.5),
        steps=100,
        tolerance=0.3,
        known=known,
        callback=lambda step, latents, gradient: seen.append((step, latents.clone(), gradient.clone())),
    )
    assert [step for step, _, _ in seen] == list(range(11))  # the 12th evaluation stops the last clip
    for step, latents, gradient in seen:
        # clip k stops after 2 + 3 k updates; its last gradient is the one that stopped it
        made = torch.tensor([min(step + 1, 2 + 3 * clip) for clip in range(4)])
        used = torch.tensor([min(step, 2 + 3 * clip) for clip in range(4)])
        size = start[:, 1, 0, 0, 0]
        torch.testing.assert_close(latents[:, 1, 0, 0, 0], size * 0.5**made, rtol=0, atol=0)
        torch.testing.assert_close(gradient[:, 2, 1, 1, 1], size * 0.5**used, rtol=0, atol=0)
        assert torch.equal(latents[:, 0], start[:, 0])
        assert (gradient[:, 0] == 0).all()
    assert torch.equal(seen[-1][1], result.latents)


@dataclass(frozen=True)
class NoisyDescent(GradientDescent):
    """Gradient descent pushed about by a random walk of each clip's own generator, kept as the state."""

    def start(self, latents):
        return {"walk": torch.zeros_like(latents)}

    def update(self, latents, gradient, state, generators=None):
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one, dtype=torch.float64) for one in generators])
        walk = state["walk"] + noise
        return latents - self.step_size * gradient + 1e-3 * walk, {"walk": walk}


@pytest.mark.parametrize("kind", [Quadratic, SelectableQuadratic])
def test_each_clip_keeps_its_own_generator(kind):
    energy, start = even(kind)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[3, 1] = True
    options = {"steps": 40, "tolerance": 0.3}
    rule = NoisyDescent(0.5)
    result = descend(energy, start, rule, known=known, generators=[generator(clip) for clip in range(4)], **options)
    assert len(result.nfe.unique()) == 4
    assert torch.equal(result.latents[known], start[known])  # noise does not move known frames either
    for clip in range(4):
        one = slice(clip, clip + 1)
        alone = Quadratic(energy.centre[one], energy.curvature[one])
        lonely = descend(alone, start[one], rule, known=known[one], generators=[generator(clip)], **options)
        assert torch.equal(lonely.latents[0], result.latents[clip])


# ---------------------------------------------------------------------------------------------- tensors and errors


def test_inputs_are_not_modified_and_the_result_is_another_tensor():
    start, known = normal(*SHAPE), torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    before, marks = start.clone(), known.clone()
    for steps in (0, 3):
        result = descend(quadratic(SelectableQuadratic), start, NAG(), steps=steps, known=known, tolerance=1.0)
        result.latents.add_(1)
        assert torch.equal(start, before)
        assert torch.equal(known, marks)
    energy = quadratic()
    result = descend(energy, start, NAG(), steps=0)
    assert torch.equal(result.latents, start)
    assert result.nfe.tolist() == [0] * 4
    assert energy.batches == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_latents_keep_their_dtype_whatever_the_field_computes_in(dtype):
    start = torch.ones(1, 1, 1, 2, 2)
    result = descend(lambda latents: latents.to(dtype), start, NAG(0.25, 0.35), steps=3)
    assert result.latents.dtype == torch.float32


def test_points_without_frames_count_as_one_frame():
    start = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    result = descend(lambda latents: latents, start, GradientDescent(0.5), steps=20, tolerance=0.36)
    assert result.nfe.tolist() == [5, 1]  # RMS 3.54, 1.77, 0.88, 0.44, 0.22; and 0.354


def test_no_graph_is_kept_unless_the_start_requires_a_gradient():
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    modes = []

    def learned(latents):
        modes.append(torch.is_grad_enabled())
        return weight * latents

    start = normal(*SHAPE)
    assert not descend(learned, start, NAG(0.3, 0.35), steps=4).latents.requires_grad
    with torch.no_grad():
        descend(learned, start, NAG(0.3, 0.35), steps=4)
    assert modes == [True] * 4 + [False] * 4  # the caller's mode is left alone
    start.requires_grad_()
    descend(learned, start, GradientDescent(0.3), steps=4).latents.sum().backward()
    torch.testing.assert_close(start.grad, torch.full(SHAPE, 0.7**4).double())
    assert weight.grad is not None


def test_divergence_is_noticed_early_and_names_step_and_step_size():
    energy = Quadratic(torch.zeros(SHAPE), torch.full(SHAPE, 1e4))
    with pytest.raises(DivergenceError, match=r"after step 15 of 1000.*GradientDescent\(step_size=0\.5\).*than 0\.5"):
        descend(energy, torch.ones(SHAPE), GradientDescent(0.5), steps=1000)
    assert len(energy.batches) == 16
    with pytest.raises(ValueError, match="after the last of 12 steps"):
        descend(energy, torch.ones(SHAPE), GradientDescent(0.5), steps=12)
    bad = torch.ones(SHAPE)
    bad[2] = 1e-30  # stays finite
    with pytest.raises(DivergenceError, match=r"in 3 clips \(the first is clip 0\)"):
        descend(energy, bad, GradientDescent(0.5), steps=12)


def test_a_gradient_that_is_not_a_number_is_not_taken_for_rest():
    def broken(latents):
        return torch.where(latents < 0.3, torch.nan, latents)

    with pytest.raises(DivergenceError, match="the gradient at step 2 of 50"):
        descend(broken, torch.ones(2, 1, 1, 1, 1), GradientDescent(0.5), steps=50, tolerance=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"steps": True}, "steps is True"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": "0.1"}, "tolerance is '0.1'"),
        ({"known": torch.zeros(4, 3)}, "known must be a bool tensor"),
        ({"known": torch.zeros(4, dtype=torch.bool)}, r"\(4, 3\), got torch.bool \(4,\)"),
        ({"known": torch.zeros(3, 4, dtype=torch.bool)}, r"got torch.bool \(3, 4\)"),
        ({"known": [[True] * 3] * 4}, "got list"),
        ({"generators": [generator(1)]}, "1 generators for 4 clips"),
        ({"rule": 0.003}, "rule must be"),
        ({"start": torch.zeros(SHAPE, dtype=torch.long)}, "floating-point"),
        ({"start": torch.full(SHAPE, torch.inf)}, "infinite or NaN"),
        ({"start": [1.0]}, "got list"),
        ({"gradient": 3}, "gradient must be a callable"),
        ({"gradient": lambda latents: latents[:, :1]}, "keep the shape"),
        ({"gradient": lambda latents: None}, "NoneType out"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    given = {"gradient": lambda latents: latents, "start": torch.ones(SHAPE), "rule": NAG(), "steps": 2} | arguments
    with pytest.raises(ValueError, match=words):
        descend(given.pop("gradient"), given.pop("start"), given.pop("rule"), **given)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.1", None, True])
def test_rules_refuse_wrong_step_sizes(value):
    for rule in [rule for name, rule in RULES.items() if name in SIZED]:
        with pytest.raises(ValueError, match=f"{rule.__name__}: step_size"):
            rule(step_size=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0.1"])
def test_nag_refuses_wrong_look_ahead(value):
    with pytest.raises(ValueError, match="mu is"):
        NAG(0.003, mu=value)


def test_rules_are_named_and_are_values():
    assert RULES["gd"](0.1) == GradientDescent(step_size=0.1)
    assert RULES["nag"](0.003, 0.35) == NAG()
