"""Curl and curvature against explicit Jacobians and known spectra, and against descents that come to rest or do not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_run import tiny_network, write_codec, write_videos

from eqm_video.analysis.curvature import (
    ARRIVED,
    auto_step,
    curl,
    curvature_at,
    largest_curvature,
    ritz_values,
    step_limit,
    steps_to_rest,
    stiffness,
    way,
)
from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, PiecewiseDecay, TruncatedDecay, gamma_path
from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField
from eqm_video.errors import UserError
from eqm_video.randomness import generator, normal
from eqm_video.samplers import NAG, GradientDescent, descend
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.curvature import Curvature


def generators(count: int, name: str = "probe") -> list[torch.Generator]:
    return [generator(name, index) for index in range(count)]


def matrix(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(matrix: torch.Tensor):
    return lambda latents: latents @ matrix.T.to(latents.dtype)


def asymmetry(jacobian: torch.Tensor) -> float:
    return float((jacobian - jacobian.T).norm() / jacobian.norm())


# Curl ---------------------------------------------------------------------------------------------------------------


def test_curl_of_linear_fields():
    a, latents = matrix(12), torch.randn(3, 12, dtype=torch.float64)
    symmetric = curl(linear(a + a.T), latents, probes=3, generators=generators(3))
    assert symmetric.asymmetry.max() < 1e-12
    turning = curl(linear(a - a.T), latents, probes=3, generators=generators(3))
    torch.testing.assert_close(turning.asymmetry, torch.full((3,), 2.0, dtype=torch.float64))
    assert turning.standard_error.max() < 1e-12
    constant = curl(lambda latents: 0 * latents + 3, latents, probes=2, generators=generators(3))
    assert constant.asymmetry.tolist() == [0, 0, 0]


def test_curl_is_right_within_its_standard_error():
    a = matrix(12)
    found = curl(linear(a), torch.randn(40, 12, dtype=torch.float64), probes=24, generators=generators(40))
    off = (found.asymmetry - asymmetry(a)) / found.standard_error
    assert 0.7 < off.square().mean().sqrt() < 1.5  # the errors are as large as they say
    assert abs(found.asymmetry.mean() - asymmetry(a)) < 0.02
    assert curl(linear(a), torch.zeros(1, 12), probes=1, generators=generators(1)).standard_error.isnan().all()


@pytest.mark.parametrize(("size", "gamma", "highest"), [(8, 0.4, 0.3), (64, 0.4, 0.1), (64, 0.95, 1e-6)])
def test_curl_of_the_oracle_is_that_of_its_explicit_jacobian(size, gamma, highest):
    """The exact field of finite data is no gradient: about 0.2 at d = 8, 0.05 at d = 64, none near the data."""
    data = torch.randn(1, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = gamma * data + (1 - gamma) * normal((size,), generators(1, "noise"), dtype=torch.float64)
    field, step = OracleField(data, TruncatedDecay()), 1e-5 * torch.eye(size, dtype=torch.float64)
    jacobian = ((field(point + step) - field(point - step)) / 2e-5).T
    found = curl(field, point, probes=64, generators=generators(1))
    exact = asymmetry(jacobian)
    assert exact < highest and (exact > highest / 5 or highest == 1e-6)
    assert abs(float(found.asymmetry) - exact) < 4 * float(found.standard_error) + 1e-6


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("energy", ["implicit", "dot", "l2"])
def test_explicit_energies_have_no_curl_and_raw_networks_have(energy, guidance):
    field = GuidedField(Field(tiny_network(energy=energy)), torch.tensor([0, 1]), guidance_scale=guidance, null_label=2)
    with torch.no_grad():  # as commands call it
        found = curl(field, torch.randn(2, 3, 2, 4, 4), probes=2, generators=generators(2)).asymmetry
    assert found.min() > 0.1 if energy == "implicit" else found.max() < 1e-5


def test_the_wrong_energy_gradient_would_be_seen():
    """The raw output of an energy network is no gradient: curl tells it from the true one."""
    network = tiny_network(energy="dot")
    assert (
        curl(
            lambda latents: network(latents).sample, torch.randn(1, 3, 2, 4, 4), probes=4, generators=generators(1)
        ).asymmetry.min()
        > 0.1
    )


def test_a_field_that_autograd_cannot_follow_is_refused():
    with pytest.raises(ValueError, match="does not depend on its latents"):
        curl(lambda latents: latents.detach(), torch.randn(1, 4), generators=generators(1))
    with pytest.raises(ValueError, match="2 generators for 1 clips"):
        curl(lambda latents: latents, torch.randn(1, 4), generators=generators(2))
    with pytest.raises(ValueError, match="probes is 0"):
        curl(lambda latents: latents, torch.randn(1, 4), probes=0, generators=generators(1))


# Curvature ----------------------------------------------------------------------------------------------------------


def spectrum(values: list[complex], coupling: float, seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues (conjugates are added), made non-normal by a coupling of neighbours."""
    size = sum(1 if value.imag == 0 else 2 for value in map(complex, values))
    triangular = coupling * torch.triu(matrix(size, seed), diagonal=2)
    row = 0
    for value in map(complex, values):
        triangular[row, row] = value.real
        if value.imag:
            triangular[row + 1, row + 1] = value.real
            triangular[row, row + 1], triangular[row + 1, row] = value.imag, -value.imag
            row += 1
        row += 1
    turn = torch.linalg.qr(matrix(size, seed + 1)).Q
    return turn @ triangular @ turn.T


@pytest.mark.parametrize("coupling", [0.0, 2.0])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([20, 5, 3, 1, 0.5], 20),
        ([8, 5, -30, 1, 0.2], 8),  # what the descent leaves does not bind, however large
        ([10 + 2j, 4, 1, -3], 104 / 10),  # |lambda|^2 / Re(lambda)
        ([10, 6 + 6j, 1], 72 / 6),  # a stiff direction that turns binds more than a larger real one
        ([-1, -2, -0.5], 0),
    ],
)
def test_largest_curvature_of_known_spectra(values, expected, coupling):
    field, latents = linear(spectrum(values, coupling)), torch.randn(2, 1, 1, 1, 1).double()
    size = len(spectrum(values, coupling))
    latents = torch.randn(2, size, dtype=torch.float64)
    found = largest_curvature(field, latents, iterations=size, generators=generators(2))
    torch.testing.assert_close(found, torch.full((2,), float(expected), dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_few_iterations_find_the_end_of_a_long_spectrum():
    values = torch.cat([torch.linspace(-8, 15, 300), torch.tensor([20.0])]).double()
    turn = torch.linalg.qr(matrix(301)).Q
    field = linear(turn @ values.diag() @ turn.T)
    found = largest_curvature(field, torch.zeros(4, 301), iterations=16, generators=generators(4))  # float32
    assert found.max() < 20.01
    assert found.min() > 0.95 * 20


def test_a_whole_space_ends_the_iteration_and_clips_keep_their_own_values():
    field = lambda latents: latents * torch.tensor([[2.0], [7.0]])  # noqa: E731
    values = ritz_values(field, torch.ones(2, 9), iterations=9, generators=generators(2))
    torch.testing.assert_close(values[:, 0].real, torch.tensor([2.0, 7.0]).double(), rtol=1e-5, atol=0)
    assert values[:, 1:].abs().max() < 1e-4


def test_one_point_near_rest_has_the_closed_form():
    """gain / (1 - a) once gamma is past a, and 1 / (1 - gamma) of the gain before, across the way."""
    data = torch.randn(1, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = normal((256,), generators(2, "noise"), dtype=torch.float64)
    field = OracleField(data, TruncatedDecay(a=0.8, gain=4.0))
    near = largest_curvature(field, 0.97 * data + 0.03 * noise, iterations=6, generators=generators(2))
    torch.testing.assert_close(near, torch.full((2,), 20.0, dtype=torch.float64), rtol=1e-3, atol=0)
    early = largest_curvature(field, 0.5 * data + 0.5 * noise, iterations=6, generators=generators(2))
    torch.testing.assert_close(early, torch.full((2,), 8.0, dtype=torch.float64), rtol=0.15, atol=0)


@pytest.mark.parametrize(("kind", "mu"), [("gd", 0.0), ("nag", 0.35), ("nag", 0.7)])
@pytest.mark.parametrize("share", [0.95, 1.05])
def test_the_limit_parts_descents_that_come_to_rest_from_those_that_do_not(kind, mu, share):
    a = spectrum([12, 7, 3, 1], 0.3)
    largest = largest_curvature(linear(a), torch.zeros(1, 4).double(), iterations=4, generators=generators(1))
    step = share * step_limit({"largest": float(largest), "guidance_scale": 1.0}, kind, mu)
    rule = NAG(step, mu) if kind == "nag" else GradientDescent(step)
    end = descend(linear(a), torch.ones(1, 4, dtype=torch.float64), rule, steps=150).latents
    assert (end.norm() < 0.05) == (share < 1)
    assert (end.norm() > 10) == (share > 1)


# Automatic steps ----------------------------------------------------------------------------------------------------

SIZE = 256  # numbers of a point
MEASURED = {"largest": 20.0, "guidance_scale": 2.0, "by_guidance": [[1.0, 16.0], [2.0, 20.0], [4.0, 30.0]], "mu": 0.35}


def test_limits_are_the_closed_forms_of_the_design():
    assert step_limit(MEASURED, "gd") == pytest.approx(0.1)
    assert step_limit(MEASURED, "nag", 0.35) == pytest.approx(2 / (20 * 1.7))  # 0.0588
    assert step_limit(MEASURED, "langevin", 0.35) == pytest.approx(0.1)
    assert step_limit({"largest": 0.0, "guidance_scale": 1.0}, "gd") == math.inf
    with pytest.raises(ValueError, match="'adam' has no step limit"):
        step_limit(MEASURED, "adam")


def test_curvature_between_and_beyond_measured_guidance_scales():
    found = [curvature_at(MEASURED, scale) for scale in (None, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, -1.0)]
    assert found == pytest.approx([20, 16, 16, 16, 18, 20, 25, 30, 60, 90])
    only = {"largest": 20.0, "guidance_scale": 0.0}
    assert curvature_at(only, 0.0) == 20 and curvature_at(only, 2.0) == pytest.approx(100)


def test_way_is_the_integral_of_the_closed_form_descent():
    rest = 1 - ARRIVED
    assert way(TruncatedDecay(a=0.8, gain=4.0)) == pytest.approx(0.8 / 4 + 0.2 / 4 * math.log(0.2 / rest), rel=1e-5)
    assert way(LinearDecay(gain=2.0)) == pytest.approx(-math.log(rest) / 2, rel=1e-5)
    for decay in (TruncatedDecay(), LinearDecay(), PiecewiseDecay()):
        path = gamma_path(decay, way(decay) / 4000, 4001)
        assert float(path[-1]) == pytest.approx(ARRIVED, abs=1e-4)
    with pytest.raises(ValueError, match="comes to rest at gamma 1 and nowhere before"):
        way(ConstantDecay())


def test_an_automatic_step_travels_as_far_as_it_must_and_never_beyond_half_the_limit():
    decay = TruncatedDecay()
    assert auto_step(MEASURED, "nag", 0.35, 250, decay) == pytest.approx(0.0023, rel=0.01)
    assert auto_step(MEASURED, "gd", 0.0, 5, decay) == pytest.approx(0.05)
    assert auto_step(MEASURED, "gd", 0.0, 5, decay, 4.0) == pytest.approx(1 / 30)
    assert steps_to_rest(auto_step(MEASURED, "gd", 0.0, 250, decay), decay) == 250
    assert steps_to_rest(0.05, decay) == math.ceil(1.5 * way(decay) / 0.05) > 5
    with pytest.raises(ValueError, match="steps is 0"):
        auto_step(MEASURED, "gd", 0.0, 0, decay)


@pytest.mark.parametrize(("kind", "mu"), [("gd", 0.0), ("nag", 0.35)])
def test_auto_comes_to_rest_on_the_oracle_and_twice_the_limit_does_not(kind, mu):
    data = normal((SIZE,), generators(2, "data"), dtype=torch.float64)
    start, decay = normal((SIZE,), generators(3, "start"), dtype=torch.float64), TruncatedDecay()
    field = OracleField(data, decay)
    near = 0.97 * data + 0.03 * start[:2]
    measured = {
        "largest": float(largest_curvature(field, near, iterations=6, generators=generators(2)).max()),
        "guidance_scale": 1.0,
    }
    make = (lambda step: NAG(step, mu)) if kind == "nag" else GradientDescent
    for steps in (16, 60):
        auto = auto_step(measured, kind, mu, steps, decay)
        end = descend(field, start, make(auto), steps=max(steps, steps_to_rest(auto, decay))).latents
        assert torch.cdist(end, data).amin(dim=1).max() < 0.02 * SIZE**0.5  # noise was 1.4 * SIZE^0.5 away
    seen = []
    far = make(2 * step_limit(measured, kind, mu))
    descend(field, start, far, steps=50, callback=lambda step, latents, _: seen.append(torch.cdist(latents, data)))
    swings = torch.stack(seen[-10:]).amin(dim=2).amax(dim=0)  # of each clip, in its last ten steps
    # a truncated field is no stronger far out than near: it does not blow up, it swings for ever
    assert swings.min() > 0.1 * SIZE**0.5 and swings.max() < 10 * SIZE**0.5


# Command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path: Path) -> Path:
    made = EqMPipeline(
        tiny_network(),
        AutoencoderKL.from_pretrained(write_codec(tmp_path / "codec")),
        ["left", "right"],
        decay={"kind": "truncated", "a": 0.8, "gain": 4.0},
        sampler={"kind": "nag", "step_size": 0.02, "steps": 6, "guidance_scale": 2.0},
        frames=3,
        fps=4.0,
        reference_fps=4.0,
        size=32,
    )
    made.save_pretrained(tmp_path / "export")
    assert EqMPipeline.from_pretrained(tmp_path / "export").config.curvature is None
    return tmp_path / "export"


def test_command_measures_and_writes_what_auto_reads(export, tmp_path, capsys):
    words = [str(export), "--out", str(tmp_path / "out"), "--num-samples", "2", "--stages", "3", "--iterations", "4"]
    assert Curvature.main([*words, "--probes", "2", "--device", "cpu", "--write"]) == 0
    record = json.loads((tmp_path / "out" / "curvature.json").read_text())
    kept = json.loads((export / "model_index.json").read_text())["curvature"]
    assert kept == record["curvature"]
    assert [scale for scale, _ in kept["by_guidance"]] == [1.0, 2.0, 4.0]
    assert kept["samples"] == 2 and kept["points"] == "descent" and 0.1 < kept["curl"]["rest"] < 2
    assert len(record["stages"][1]["curl_mean"]) == 3 and "curl_mean" not in record["stages"][0]
    assert (tmp_path / "out" / "curvature.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "not the gradient of any energy" in out and "by guidance scale" in out
    pipeline = EqMPipeline.from_pretrained(export)
    rule = pipeline.rule(step_size="auto", steps=50)
    assert rule.step_size == pytest.approx(auto_step(kept, "nag", 0.35, 50, TruncatedDecay(), 2.0))


def test_command_descends_with_samplers_that_draw_noise(export, tmp_path):
    words = f"{export} --out {tmp_path / 'out'} --num-samples 2 --stages 2 --iterations 2 --probes 2 --device cpu"
    for sampler in ("langevin", "sde"):
        assert Curvature.main([*words.split(), "--sampler", sampler, "--guidance-scales", "2"]) == 0
        record = json.loads((tmp_path / "out" / "curvature.json").read_text())
        assert math.isfinite(record["curvature"]["largest"])


def test_command_measures_at_data(export, tmp_path):
    videos = write_videos(tmp_path / "videos", each=1)
    words = [str(export), "--out", str(tmp_path / "out"), "--data", str(videos), "--num-samples", "2", "--stages", "2"]
    assert Curvature.main([*words, "--iterations", "2", "--probes", "2", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "out" / "curvature.json").read_text())
    assert record["curvature"]["points"] == "data" and record["progress"] == [0.0, 1.0]
    assert "curvature" not in json.loads((export / "model_index.json").read_text()) or (
        json.loads((export / "model_index.json").read_text())["curvature"] is None
    )


def test_command_writes_into_exports_only(export, tmp_path):
    words = [str(export / "transformer"), "--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--write keeps the result in an export"):
        Curvature.main([*words, "--write", "--device", "cpu"])


def test_stiffness_of_a_pure_rotation_is_none():
    assert stiffness(torch.tensor([[3j, -3j, 0]], dtype=torch.complex128)).tolist() == [0.0]
