"""The contract of all samplers, rules and solvers: one set of tests, run over each of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, TruncatedDecay
from eqm_video.randomness import generator
from eqm_video.samplers import (
    NAG,
    RULES,
    SAMPLER_PRESETS,
    SAMPLERS,
    SDE,
    STOP,
    Adam,
    DivergenceError,
    Dopri5,
    Euler,
    GradientDescent,
    Heun,
    Langevin,
    Multistep,
    run,
)

SHAPE = (3, 2, 2, 2, 2)  # B, T, C, H, W
STEPS = 6
CASES = {
    "gd": GradientDescent(0.1),
    "nag": NAG(0.1, 0.35),
    "multistep": Multistep(),
    "adam": Adam(0.1),
    "adam-memory": Adam(0.1, beta1=0.9, beta2=0.99),
    "langevin": Langevin(0.1, temperature=0.1),
    "euler": Euler(),
    "heun": Heun(),
    "dopri5": Dopri5(1e-3, 1e-3),
    "sde": SDE(),
    "sde-euler": SDE("euler", "sbdm", norm=0.5),
}
NFE = dict.fromkeys(CASES, STEPS) | {"heun": 2 * STEPS, "sde": 2 * STEPS - 1}
every_sampler = pytest.mark.parametrize("name", CASES)
KNOWN = torch.tensor([[True, False], [True, True], [False, False]])


class Pull:
    """The gradient strength * (x - centre) of clips distinguished by number; it counts the evaluations of each."""

    def __init__(self, clips: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.clips = torch.arange(SHAPE[0]) if clips is None else clips
        self.counts = torch.zeros(SHAPE[0], dtype=torch.long) if counts is None else counts

    def __call__(self, latents: Tensor) -> Tensor:
        assert len(latents) == len(self.clips)
        self.counts[self.clips] += 1
        strength = (1.0 + self.clips)[:, None, None, None, None]
        return (strength * (latents - 0.25)).to(latents.dtype)


class SelectablePull(Pull):
    def select(self, indices: Tensor) -> SelectablePull:
        return SelectablePull(self.clips[indices], self.counts)


def start_of(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def sources(clips: range = range(SHAPE[0])) -> list[torch.Generator]:
    return [generator("contract", clip) for clip in clips]


def sample(name: str, gradient=None, start: Tensor | None = None, **options):
    given = {"steps": STEPS, "generators": sources(), "decay": ConstantDecay()} | options
    start = start_of() if start is None else start
    return run(SelectablePull() if gradient is None else gradient, start, CASES[name], **given)


def test_the_contract_covers_every_sampler():
    assert {type(sampler) for sampler in CASES.values()} == set(SAMPLERS.values())
    assert set(SAMPLERS) == {"gd", "nag", "multistep", "adam", "langevin", "euler", "heun", "dopri5", "sde"}
    assert all(SAMPLERS[name] is kind for name, kind in RULES.items())
    for kind in SAMPLERS.values():
        assert kind() == kind()  # values, with defaults


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_keep_shape_dtype_and_device_and_the_start_stays(name, dtype):
    start = start_of(dtype)
    before = start.clone()
    result = sample(name, start=start, known=KNOWN)
    assert (result.latents.shape, result.latents.dtype, result.latents.device) == (start.shape, dtype, start.device)
    assert result.nfe.shape == (3,)
    assert result.frame_nfe.shape == (3, 2)
    result.latents.add_(1)
    assert torch.equal(start, before)


@every_sampler
@pytest.mark.parametrize("kind", [Pull, SelectablePull])
def test_known_frames_stay_bit_for_bit(name, kind):
    start, seen = start_of(), []
    start[0, 0] = -0.0  # a sum with 0 would turn it into +0.0

    class Watched(kind):
        def __call__(self, latents):
            assert torch.equal(latents[KNOWN[self.clips]], start[self.clips][KNOWN[self.clips]])  # and no noise on them
            return super().__call__(latents)

        def select(self, indices):
            return Watched(self.clips[indices], self.counts)

    if kind is Pull:
        del Watched.select
    result = sample(name, Watched(), start, known=KNOWN, callback=lambda *arguments: seen.append(arguments))
    for latents in [result.latents, *(latents for _, latents, _ in seen)]:
        assert torch.equal(latents[KNOWN].view(torch.int64), start[KNOWN].view(torch.int64))
        assert (latents[~KNOWN] != start[~KNOWN]).all()
    assert all((slope[KNOWN] == 0).all() and (slope[~KNOWN] != 0).all() for _, _, slope in seen)
    free = sample(name)  # frames of this field do not see each other
    torch.testing.assert_close(result.latents[2], free.latents[2], rtol=0, atol=0)


@every_sampler
def test_samples_repeat_with_the_same_generators(name):
    one, same = sample(name), sample(name)
    assert torch.equal(one.latents, same.latents)
    assert torch.equal(one.nfe, same.nfe)
    other = sample(name, generators=[generator("another", clip) for clip in range(3)])
    assert torch.equal(one.latents, other.latents) == (name not in ("langevin", "sde", "sde-euler"))


@every_sampler
def test_a_clip_does_not_depend_on_its_batch(name):
    together = sample(name, known=KNOWN)
    for clip in range(3):
        one = slice(clip, clip + 1)
        field = SelectablePull(torch.tensor([clip]))
        alone = sample(name, field, start_of()[one], known=KNOWN[one], generators=sources(range(clip, clip + 1)))
        assert torch.equal(alone.latents[0], together.latents[clip])
        assert alone.nfe[0] == together.nfe[clip]


@every_sampler
def test_fields_with_and_without_select_give_the_same(name):
    one, other = sample(name, Pull(), known=KNOWN), sample(name, SelectablePull(), known=KNOWN)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.frame_nfe, other.frame_nfe)


@every_sampler
def test_evaluations_are_counted(name):
    field = SelectablePull()
    result = sample(name, field, known=KNOWN)
    assert torch.equal(result.nfe, field.counts)
    assert result.nfe.dtype == torch.int64
    assert torch.equal(result.frame_nfe, result.nfe[:, None] * ~KNOWN)
    assert result.nfe[1] == 0
    if name == "dopri5":
        assert result.nfe[2] > result.nfe[0] > 6  # the third clip is pulled harder
    else:
        assert result.nfe.tolist() == [NFE[name], 0, NFE[name]]


@every_sampler
def test_callbacks_come_once_for_each_step(name):
    seen = []
    result = sample(name, callback=lambda step, latents, slope: seen.append((step, latents.clone(), slope.clone())))
    assert [step for step, _, _ in seen] == list(range(STEPS))
    assert torch.equal(seen[-1][1], result.latents)
    assert torch.equal(sample(name).latents, result.latents) or name == "dopri5"  # that one stops at other points
    assert all(latents.shape == slope.shape == SHAPE for _, latents, slope in seen)
    if name in ("gd", "euler", "heun", "dopri5"):  # each step goes against the gradient shown
        moves = torch.stack([seen[k][1] - seen[k + 1][1] for k in range(STEPS - 1)])
        slopes = torch.stack([slope for _, _, slope in seen[1:]])
        torch.testing.assert_close(moves, slopes * (0.1 if name == "gd" else 1 / STEPS), rtol=1e-9, atol=1e-12)


@every_sampler
def test_no_steps_give_the_start_back(name):
    field, start = SelectablePull(), start_of()
    result = sample(name, field, start, steps=0, callback=lambda *_: pytest.fail("no step was taken"))
    assert torch.equal(result.latents, start)
    assert result.latents is not start
    assert result.nfe.tolist() == [0, 0, 0]
    assert result.frame_nfe.tolist() == [[0, 0]] * 3
    assert field.counts.tolist() == [0, 0, 0]


@every_sampler
def test_points_are_sampled_too(name):
    how = {"steps": STEPS, "generators": sources(), "decay": ConstantDecay()}
    result = run(lambda points: points, torch.ones(3, 5), CASES[name], **how)
    assert result.latents.shape == (3, 5)
    assert result.frame_nfe.shape == (3, 1)
    assert torch.equal(result.frame_nfe[:, 0], result.nfe)


@every_sampler
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_an_error_that_names_the_sampler(name, value):
    def broken(latents):
        slope = latents.clone()
        slope[1] = value
        return slope

    kind = type(CASES[name]).__name__
    with pytest.raises(DivergenceError, match=rf"diverged.*in 1 clips \(the first is clip 1\), with {kind}\(.*; use"):
        sample(name, broken)


@every_sampler
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"known": torch.zeros(3, 2)}, "known must be a bool tensor"),
        ({"known": torch.zeros(2, 3, dtype=torch.bool)}, r"\(3, 2\), got torch.bool \(2, 3\)"),
        ({"generators": sources(range(2))}, "2 generators for 3 clips"),
        ({"start": torch.zeros(SHAPE, dtype=torch.long)}, "floating-point"),
        ({"start": torch.full(SHAPE, torch.inf)}, "infinite or NaN"),
        ({"gradient": 3}, "gradient must be a callable"),
        ({"gradient": lambda latents: latents[:, :1]}, "keep the shape"),
        ({"gradient": lambda latents: None}, "NoneType out"),
        ({"per_frame": True}, "tolerance"),
        ({"schedule": "cosinus"}, "schedule"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        sample(name, **arguments)


@pytest.mark.parametrize("name", ["euler", "heun", "dopri5", "sde"])
def test_solvers_refuse_options_of_rules(name):
    rules = "for the rules gd, nag, multistep, adam, langevin; leave it out"
    for words, wrong in {
        f"tolerance is {rules}": {"tolerance": 0.1},
        f"a schedule is {rules}": {"schedule": "linear"},
        "start_gamma is 1.0": {"start_gamma": 1.0},
        "start_gamma is -0.1": {"start_gamma": -0.1},
        "start_gamma is '0'": {"start_gamma": "0"},
    }.items():
        with pytest.raises(ValueError, match=words):
            sample(name, **wrong)
    assert torch.equal(sample(name, schedule="constant").latents, sample(name).latents)


def test_only_samplers_are_run():
    for wrong in (0.003, "nag", NAG):
        with pytest.raises(ValueError, match="sampler must be such as"):
            run(Pull(), start_of(), wrong, steps=1)


@every_sampler
def test_samples_end_at_the_only_data_point(name):
    """Far from the data every sampler walks there: rules down the equilibrium field, solvers along the flow's."""
    data = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sampler, solver = CASES[name], hasattr(CASES[name], "solve")
    rules = {
        "gd": GradientDescent(0.02),
        "nag": NAG(0.02, 0.35),
        "adam": Adam(0.15),
        "adam-memory": Adam(0.15, beta1=0.8, beta2=0.99),
        "langevin": Langevin(0.02, temperature=1e-4),
    }
    decay = ConstantDecay(gain=1.0) if solver else TruncatedDecay(a=0.8, gain=4.0)
    schedule = "linear" if name.startswith("adam") else None
    how = {"steps": 80, "schedule": schedule, "generators": sources(range(2)), "decay": decay}
    result = run(OracleField(data, decay), start, rules.get(name, sampler), **how)
    before, after = ((latents - data).square().mean().sqrt() for latents in (start, result.latents))
    assert before > 1.3
    # what stays: the step before the end of an SDE (0.04), the noise of Langevin (sqrt(1e-4 / 20)), h / 2 for Heun
    assert after < {"sde": 0.06, "sde-euler": 0.06}.get(name, 0.02)


def test_presets_make_samplers():
    for preset in SAMPLER_PRESETS.values():
        numbers = {key: value for key, value in preset.items() if key not in ("kind", "steps", "guidance_scale")}
        assert SAMPLERS[preset["kind"]](**numbers).step_size == preset["step_size"]
        assert preset["steps"] == 249  # the public code's 250 count the start
    assert SAMPLERS["nag"](0.0017, 0.3) == NAG(SAMPLER_PRESETS["paper-xl2"]["step_size"], 0.3)


def test_dopri5_brings_its_library_only_when_it_runs():
    code = (
        "import sys, torch; from eqm_video.samplers import NAG, Dopri5, Euler, run\n"
        "def load(sampler): run(lambda x: x, torch.ones(1, 1), sampler, steps=1); print('torchdiffeq' in sys.modules)\n"
        "load(NAG()); load(Euler()); load(Dopri5())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "True"]


@every_sampler
def test_a_callback_ends_the_descent(name):
    """`STOP` of a callback: the latents are those that it saw, and no later step was made."""
    seen = []

    def stop(step, latents, gradient):
        seen.append(latents.clone())
        return STOP if step == 2 else True

    found = sample(name, start=start_of(), callback=stop)
    assert len(seen) == 3 and torch.equal(found.latents, seen[-1])
    if name != "dopri5":  # it reports after all its steps
        assert int(found.nfe.max()) <= NFE[name] - 3
