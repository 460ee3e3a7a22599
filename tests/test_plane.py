"""The plane: walks along exact fields, small networks against the exact field, pictures, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eqm_video.analysis.exact_field import OracleField
from eqm_video.errors import UserError
from eqm_video.studies.plane import pictures as plane_pictures
from eqm_video.studies.plane import worlds as plane
from eqm_video.studies.plane.pictures import HOLD, Scene, arrows, draw_film, draw_moment, sampled
from eqm_video.studies.plane.study import Plane

POINTS = plane.data_points(2)


def exact(name: str, points: torch.Tensor = POINTS) -> plane.Method:
    decay = {"flow": plane.FLOW, "equilibrium": plane.EQUILIBRIUM}[name]
    return plane.Method(name, OracleField(points, decay), decay)


# ------------------------------------------------------------------------------------------------------------ points


def test_data_lie_on_a_ring_or_two_moons():
    torch.testing.assert_close(POINTS, torch.tensor([[-1.5, 0.0], [1.5, 0.0]]))
    ring = plane.data_points(5)
    torch.testing.assert_close(ring.norm(dim=1), torch.full((5,), 1.5))
    torch.testing.assert_close((ring - ring.roll(1, 0)).norm(dim=1), torch.full((5,), 3 * np.sin(np.pi / 5)).float())
    moons = plane.data_points("moons")
    assert moons.shape == (32, 2)
    torch.testing.assert_close(moons[:16], -moons[16:])
    for wrong in (0, 65, 2.0, True, "sun"):
        with pytest.raises(ValueError, match="from 1 to 64, or moons"):
            plane.data_points(wrong)


def test_starts_do_not_depend_on_how_many_there_are():
    assert torch.equal(plane.start_points(4, seed=1), plane.start_points(9, seed=1)[:4])
    assert not torch.equal(plane.start_points(4, seed=1), plane.start_points(4, seed=2))
    assert plane.start_points(2000, seed=0).std() == pytest.approx(1, abs=0.05)


# ------------------------------------------------------------------------------------------------------------- walks


@pytest.mark.parametrize("name", ["flow", "equilibrium"])
def test_both_take_the_same_steps_down_their_fields(name):
    method, start = exact(name), plane.start_points(6, seed=0)
    path = method.walk(start, steps=20, total=24)
    assert path.shape == (25, 6, 2)
    assert torch.equal(path[0], start)
    for step in (0, 7, 20, 23):
        field = method.field.at_gamma(min(step / 20, 1)) if name == "flow" else method.field
        torch.testing.assert_close(path[step + 1], path[step] - field(path[step]) / 20)


def test_an_equilibrium_rests_and_a_flow_moves_on():
    start = plane.start_points(64, seed=0)
    flow, equilibrium = (
        plane.measure(exact(name).walk(start, steps=40, total=80), POINTS, steps=40, within=0.1)
        for name in ("flow", "equilibrium")
    )
    for numbers in (flow, equilibrium):
        assert numbers["after 40 steps"]["share_within"] == 1
        assert numbers["after 40 steps"]["median_distance"] < 1e-6
    assert equilibrium["after 80 steps"]["median_distance"] < 1e-6
    # at gamma = 1 the flow's field is -x_i: in as many steps again it walks by |x_i|
    assert flow["after 80 steps"]["share_within"] == 0
    assert flow["after 80 steps"]["median_distance"] == pytest.approx(1.5, abs=1e-5)


def test_an_equilibrium_is_near_the_data_long_before_a_flow():
    start = plane.start_points(64, seed=0)
    away = {
        name: plane.distances(exact(name).walk(start, steps=50, total=15)[-1], POINTS).median()
        for name in ("flow", "equilibrium")
    }
    assert away["equilibrium"] < 0.1
    assert away["flow"] > 1


def test_distances_and_shares_are_counted():
    path = torch.tensor([[[0.0, 0.0], [9.0, 0.0]], [[1.45, 0.0], [-1.5, 0.3]], [[1.5, 0.0], [-1.5, 0.05]]])
    torch.testing.assert_close(plane.distances(path, POINTS)[1], torch.tensor([0.05, 0.3]))
    numbers = plane.measure(path, POINTS, steps=1, within=0.1)
    assert numbers["after 1 steps"] == {"share_within": 0.5, "median_distance": pytest.approx(0.05)}
    assert numbers["after 2 steps"]["share_within"] == 1.0


def test_a_flow_has_no_field_without_its_clock():
    clocked = plane.Clocked(OracleField(POINTS, plane.FLOW), steps=4)
    start = plane.start_points(3, seed=0)
    for step, gamma in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        assert torch.equal(clocked.at_step(step)(start), clocked.field.at_gamma(gamma)(start))
    with pytest.raises(ValueError, match="changes with gamma"):
        clocked(start)


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["flow", "equilibrium"])
def test_training_nears_the_exact_field(name):
    truth = exact(name)
    errors = []
    for steps in (1, 150):
        network = plane.train(POINTS, truth.decay, told_gamma=name == "flow", steps=steps, seed=0)
        errors.append(plane.misfit(plane.Method(name, network, truth.decay), truth, POINTS))
    assert errors[0] > 0.8
    assert errors[1] < 0.6
    assert plane.misfit(truth, truth, POINTS) == 0


def test_training_repeats_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    weights = [
        next(plane.train(POINTS, plane.EQUILIBRIUM, told_gamma=False, steps=3, seed=seed).network.parameters())
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.rand(2), expected)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_arrows_go_down_the_field_that_is_drawn():
    places, slope = sampled(exact("equilibrium"), 0.0, 9, 7)
    assert places.shape == slope.shape == (2, 7, 9)
    at = torch.from_numpy(places.reshape(2, -1).T)
    field = OracleField(POINTS, plane.EQUILIBRIUM)(at) / plane.EQUILIBRIUM.gain
    np.testing.assert_allclose(slope.reshape(2, -1).T, field, atol=1e-5)
    moved = arrows(slope)
    assert (np.sum(moved * slope, axis=0) <= 0).all()
    size = np.hypot(*moved)
    np.testing.assert_allclose(size[np.hypot(*slope) > 0.2], 1)


def scene(steps: int) -> Scene:
    pair = [exact("flow"), exact("equilibrium")]
    start = plane.start_points(3, seed=0)
    walks = [method.walk(start, steps=steps, total=2 * steps) for method in pair]
    return Scene(POINTS, {"exact": pair, "trained": pair}, {"exact": walks, "trained": walks}, steps)


def test_the_film_changes_while_they_walk_and_holds_its_turning_points(tmp_path: Path, monkeypatch):
    shown = []

    def grey(scene: Scene, step: int) -> np.ndarray:
        shown.append(step)
        return np.full((4, 4, 3), 5 * step, np.uint8)

    monkeypatch.setattr(plane_pictures, "draw_moment", grey)
    draw_film(tmp_path / "film.gif", scene(steps=5))
    assert shown == [0, 2, 4, 6, 8, 10]
    with Image.open(tmp_path / "film.gif") as film:
        durations = []
        for index in range(film.n_frames):
            film.seek(index)
            durations.append(film.info["duration"] / 80)
    # held: the start, the first picture at or after the flow's end, and, twice as long, the end
    assert durations == [HOLD + 1, 1, 1, HOLD + 1, 1, 2 * HOLD + 1]


def test_a_moment_shows_the_walks_up_to_it():
    whole = scene(steps=12)
    early, late = draw_moment(whole, 0), draw_moment(whole, 24)
    assert early.dtype == np.uint8 and early.shape == late.shape
    orange = [(np.abs(one.astype(int) - (213, 94, 0)).sum(axis=2) < 60).sum() for one in (early, late)]
    assert orange[1] > 1.4 * orange[0] > 0


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_pictures_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--out", tmp_path, "--steps", 12, "--starts", 16, "--train-steps", 2, "--points", 3, "--no-film"]
    assert Plane.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "exact equilibrium" in said and "plane.png" in said and "plane.gif" not in said
    numbers = json.loads((tmp_path / "plane.json").read_text())
    assert numbers["settings"]["points"] == 3 and numbers["settings"]["step_size"] == 1 / 12
    assert len(numbers["settings"]["data"]) == 3
    for kind in ("exact", "trained"):
        for name in ("flow", "equilibrium"):
            assert set(numbers[kind][name]) >= {"after 12 steps", "after 24 steps", "gradient_at_data"}
    assert numbers["exact"]["equilibrium"]["gradient_at_data"] < 1e-6
    assert numbers["exact"]["flow"]["gradient_at_data"] == pytest.approx(1.5)
    assert numbers["exact"]["flow"]["after 12 steps"]["share_within"] == 1
    assert numbers["trained"]["flow"]["misfit"] > 0
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "plane.gif").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--points 0", "--points is 0: it must be moons or a whole number from 1 to 64"),
        ("--points sun", "--points is sun: it must be moons or"),
        ("--points 65", "--points is 65: it must be"),
        ("--steps 11", "--steps is 11: it must be a whole number from 12 to"),
        ("--within 0", "--within is 0: it must be a number above 0"),
    ],
)
def test_wrong_words_are_refused(words: str, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=says):
        Plane.main([*words.split(), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="--out must be given"):
        Plane.main([])
