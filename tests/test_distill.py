"""The student: what it is to learn is known on exact fields; a tiny one is trained, saved and sampled."""

from __future__ import annotations

import json

import torch
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video import cli
from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import LinearDecay, TruncatedDecay
from eqm_video.samplers import GradientDescent, Multistep, run
from eqm_video.sampling.loading import load_pipeline
from eqm_video.studies.distill.paths import Paths, loss_of, step_ahead
from eqm_video.studies.distill.student import DECAY


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_to_a_single_clip_the_student_is_the_field_of_the_linear_decay():
    """All paths lead straight to the clip: x - r = (1 - gamma) (noise - clean), which a step of size 1 goes."""
    clip, noise, decay = normal(1, 2, 4, 4, 4, seed=1), normal(5, 2, 4, 4, 4), TruncatedDecay()
    paths = Paths.of_field(lambda x: OracleField(clip, decay)(x), noise, 40, decay, [None] * 5)
    torch.testing.assert_close(paths.states[:, -1], clip.expand(5, -1, -1, -1, -1), rtol=0, atol=1e-3)
    states, rests, labels = paths.draw(64, seed=0, step=1)
    student = OracleField(clip, LinearDecay(gain=1.0)).at_gamma
    gamma = (1 - (states - rests).square().mean(dim=(1, 2, 3, 4)).sqrt() / 1.41).clamp(0, 1)
    assert float(gamma.max()) == 1 and float(gamma.min()) < 0.1 and labels == [None] * 64
    assert loss_of(lambda x: x - clip, states, rests) < 1e-4 < loss_of(lambda x: 0.9 * (x - clip), states, rests)
    one = run(lambda x: student(0.0)(x), noise, GradientDescent(1.0), steps=1).latents
    torch.testing.assert_close(one, clip.expand_as(one), rtol=0, atol=1e-6)
    assert DECAY == {"kind": "linear", "gain": 1.0}


def test_of_many_clips_every_state_rests_at_its_paths_end_and_stays_there():
    """The teacher's descent from any state of a path ends where the path ends: the map needs no time."""
    data, noise, decay = normal(12, 2, 3, 4, 4, seed=3), normal(6, 2, 3, 4, 4), TruncatedDecay()
    field = OracleField(data, decay)
    paths = Paths.of_field(lambda x: field(x), noise, 24, decay, ["a"] * 6)
    ends = paths.states[:, -1]
    chosen = torch.cdist(ends.flatten(1), data.flatten(1)).argmin(dim=1)
    torch.testing.assert_close(ends, data[chosen], rtol=0, atol=1e-2)
    for place in (6, 12, 18):
        state, gamma = paths.states[:, place], place / 24
        again = run(lambda x: field(x), state, Multistep(), steps=24 - place, decay=decay, start_gamma=gamma).latents
        assert torch.equal(torch.cdist(again.flatten(1), data.flatten(1)).argmin(dim=1), chosen)
    exact = lambda x: x - data[field.posterior(x).argmax(dim=1)]  # noqa: E731
    near = step_ahead(exact, paths.states[:, 12])
    assert torch.equal(near[:3], paths.states[:3, 12])  # the first half stays
    torch.testing.assert_close(near[3:], data[chosen[3:]], rtol=0, atol=1e-9)
    assert float(loss_of(exact, near, data[chosen])) < 1e-12


def test_a_draw_begins_at_noise_and_depends_on_seed_and_step_alone():
    paths = Paths(torch.arange(5.0)[None, :, None].expand(3, 5, 2), ["a", "b", None])
    states, rests, labels = paths.draw(40, seed=1, step=7)
    assert (states[:10] == 0).all() and set(states.unique().tolist()) == {0, 1, 2, 3, 4} and (rests == 4).all()
    assert set(labels) == {"a", "b", None}
    assert torch.equal(states, paths.draw(40, seed=1, step=7)[0])
    assert not torch.equal(states, paths.draw(40, seed=1, step=8)[0])


def test_the_command_writes_a_student_that_samples_in_a_step(tmp_path, capsys):
    """From a told flow, too: the student has no input for gamma."""
    flow = {"decay": {"kind": "constant", "gain": 1.0}, "objective": {"name": "flow"}}
    names = ["DiscUp", "SquareUp", "DiscLeft"]
    teacher = tiny_pipeline(tiny_transformer(conditioned_on_gamma=True), **flow, id2label=names)
    teacher.save_pretrained(tmp_path / "teacher")
    words = [
        "distill",
        str(tmp_path / "teacher"),
        "--out",
        str(tmp_path / "out"),
        "--noises",
        "8",
        "--path-steps",
        "3",
    ]
    words += ["--fit-steps", "60", "--batch", "8", "--num-samples", "4", "--reference", "4", "--evaluations", "1", "2"]
    assert cli.main([*words, "--guidance-scale", "2"]) == 0
    assert "| student" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "distill.json").read_text())
    assert numbers["loss"]["last"] < numbers["loss"]["first"]
    assert set(numbers["found"]) == {"right", "distance"} and numbers["found"]["distance"]["student"]["1"]["clips"] == 4
    assert numbers["found"]["distance"]["teacher"]["4"]["mean"] == 0
    student, folder = load_pipeline(tmp_path / "out")
    assert folder.endswith("export") and not student.transformer.config.conditioned_on_gamma
    sampler = student.config.sampler
    assert (sampler["kind"], sampler["step_size"], sampler["steps"], sampler["guidance_scale"]) == ("gd", 1.0, 2, 1.0)
    student.set_progress_bar_config(disable=True)
    one = student(["DiscUp"], seeds=[3], steps=1, output_type="latent").frames
    noise = student.start_noise([3])
    with torch.no_grad():
        assert torch.equal(one, noise - student.field(["DiscUp"])(noise))
    tiny_pipeline(tiny_transformer(energy="dot")).save_pretrained(tmp_path / "energy")
    assert cli.main([words[0], str(tmp_path / "energy"), *words[2:]]) == 2
    assert "the teacher has an explicit energy (dot)" in capsys.readouterr().err
