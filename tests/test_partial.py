"""Partial denoising: what each variant is told, the pipeline's own way as the measure, and the whole command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shape_models import FRAMES, SIZE, pipeline

from eqm_video.data.moving_shapes import render_clip, write_moving_shapes
from eqm_video.data.source import Clips
from eqm_video.errors import UserError
from eqm_video.metrics.psnr import psnr
from eqm_video.studies.partial import Pairs, Partial, denoise, measure, references, variants

FLOW = {"decay": {"kind": "constant", "gain": 1.0}}
OPTIONS = argparse.Namespace(steps=None, guidance_scale=None, batch_size=2)


def shapes(count: int = 5) -> Clips:
    rng, labels = np.random.default_rng(0), [f"Disc{name}" for name in ("Right", "Left", "Down", "Up", "Right")]
    clips = [render_clip("Disc", label[4:], frames=FRAMES, size=SIZE, rng=rng) for label in labels[:count]]
    return Clips(np.stack(clips), [str(k) for k in range(count)], labels[:count])


@pytest.fixture(scope="module")
def clips() -> Clips:
    return shapes()


def test_variants_are_conditioned_on_their_gammas():
    eqm, flow = pipeline(), pipeline(**FLOW, told=True)
    found = variants({"a": eqm, "b": flow, "c": pipeline(told=True), "d": pipeline(**FLOW)})
    assert [(path, one.name, one.told) for path, one in found] == [
        ("a", "EqM a, told nothing", "nothing"),
        ("b", "FM b, told the start", "the start"),
        ("b", "FM b, told 0", "0"),
        ("c", "EqM c, told the start", "the start"),
        ("c", "EqM c, told 0", "0"),
        ("d", "FM d, told the start", "the start"),
        ("d", "FM d, told 0", "0"),
    ]
    assert [type(one.sampler).__name__ for _, one in found] == ["NAG", "Euler", "Euler", "NAG", "NAG", "Euler", "Euler"]
    assert [one.name for _, one in variants({"a": eqm, "b": flow})][:2] == ["EqM, told nothing", "FM, told the start"]


@pytest.mark.parametrize("made", [{}, {"told": True}, {**FLOW, "told": True}, FLOW])
@pytest.mark.parametrize("labelled", [False, True])
def test_with_the_true_start_it_equals_the_pipeline(clips, made, labelled):
    pipe = pipeline(**made)
    _, variant = variants({"m": pipe})[0]
    labels = clips.labels if labelled else [None] * 5
    pairs = Pairs.of(pipe, clips, seed=7, batch_size=2)
    expected = pipe(
        labels,
        clips=clips.pixels,
        start_gamma=0.4,
        sampler=variant.sampler,
        seeds=range(7, 12),
        output_type="latent",
    ).frames
    assert torch.allclose(denoise(variant, pairs, labels, 0.4, OPTIONS), expected, atol=1e-5)


def test_noise_of_a_sampler_is_the_pipelines_at_every_start(clips):
    rule = {"kind": "langevin", "step_size": 0.05, "temperature": 0.1, "steps": 4, "guidance_scale": 1.0}
    pipe = pipeline(sampler=rule)
    ((_, variant),) = variants({"m": pipe})
    pairs = Pairs.of(pipe, clips, seed=7, batch_size=2)
    for gamma in (0.4, 0.2):
        expected = pipe(
            [None] * 5, clips=clips.pixels, start_gamma=gamma, seeds=range(7, 12), output_type="latent"
        ).frames
        assert torch.allclose(denoise(variant, pairs, [None] * 5, gamma, OPTIONS), expected, atol=1e-5)


def test_a_descent_that_diverges_is_explained(clips):
    pipe = pipeline(sampler={"kind": "gd", "step_size": 1e38, "steps": 4, "guidance_scale": 1.0})
    ((_, variant),) = variants({"m": pipe})
    with pytest.raises(UserError, match=r"EqM, told nothing, from gamma 0.5: .*diverged"):
        denoise(variant, Pairs.of(pipe, clips, 0, 2), [None] * 5, 0.5, OPTIONS)


def test_a_flow_conditioned_on_0_is_integrated_from_0(clips):
    pipe = pipeline(**FLOW, told=True)
    right, wrong = (variant for _, variant in variants({"m": pipe}))
    pairs = Pairs.of(pipe, clips, 0, 2)
    times, null = torch.arange(4.0).expand(5, -1), torch.full((5,), 8)
    for variant, low in ((right, 0.5), (wrong, 0.0)):
        latents, step = pairs.start(0.5), (1 - low) / 4
        for number in range(4):
            gamma = torch.full((5, FRAMES), low + number * step)
            with torch.no_grad():
                latents = latents - step * pipe.transformer(latents, null, times=times, gamma=gamma).sample
        assert torch.allclose(denoise(variant, pairs, [None] * 5, 0.5, OPTIONS), latents, atol=1e-5)
    assert not torch.allclose(
        denoise(right, pairs, [None] * 5, 0.5, OPTIONS), denoise(wrong, pairs, [None] * 5, 0.5, OPTIONS), atol=1e-3
    )


def test_starts_lie_on_the_straight_path(clips):
    pipe = pipeline()
    pairs = Pairs.of(pipe, clips, seed=3, batch_size=2)
    assert torch.allclose(pairs.clean, pipe.encode(clips.pixels), atol=1e-5)
    assert torch.equal(pairs.noise, pipe.start_noise([3, 4, 5, 6, 7]))
    for gamma in (0.0, 0.3, 0.9):
        apart = measure(clips, clips.pixels, pairs.start(gamma), pairs.clean)["rms"]
        whole = measure(clips, clips.pixels, pairs.noise, pairs.clean)["rms"]
        assert apart == pytest.approx((1 - gamma) * whole, rel=1e-5)


def test_measures_by_hand():
    rng = np.random.default_rng(0)
    pixels = np.stack([render_clip("Disc", name, frames=8, size=32, rng=rng) for name in ("Right", "Left", "Up")])
    clips, latents = Clips(pixels, ["a", "b", "c"], ["DiscRight", "DiscLeft", "DiscUp"]), torch.zeros(3, 8, 4, 2, 2)
    found = measure(clips, pixels[[1, 0, 2]], latents + 0.5, latents)
    assert found["rms"] == 0.5 and found["motion"] == pytest.approx(1 / 3) and found["shape"] == 1
    assert set(measure(Clips(pixels, ["a", "b", "c"], ["x"] * 3), pixels, latents, latents)) == {"rms", "psnr"}


def test_references(clips):
    pipe = pipeline()
    clean = pipe.encode(clips.pixels)
    found = references(pipe, clips, clean)
    assert found["codec alone"]["rms"] == 0 and found["another clip"]["rms"] > 0
    assert found["codec alone"]["psnr"] == pytest.approx(
        float(psnr(torch.from_numpy(pipe.decode(clean)), torch.from_numpy(clips.pixels), span=255, dims=4).mean())
    )
    assert found["another clip"]["motion"] < 1


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_moving_shapes(folder, videos=3, held_out=1, size=SIZE, shapes=("Disc", "Square"), fps=8)
    return folder


def test_the_command(data, tmp_path, capsys):
    for name, made in (("eqm", {}), ("flow", {**FLOW, "told": True})):
        pipeline(**made).save_pretrained(tmp_path / name)
    words = [tmp_path / "eqm", tmp_path / "flow", "--data", data, "--out", tmp_path / "out", "--start-gammas", 0.5, 0]
    assert Partial.main([str(word) for word in [*words, "--clips", 4, "--steps", 2]]) == 0
    numbers = json.loads((tmp_path / "out" / "partial.json").read_text())
    names = ["EqM, told nothing", "FM, told the start", "FM, told 0", "the start itself"]
    assert list(numbers["measured"]) == names and numbers["start_gammas"] == [0, 0.5]
    measured = numbers["measured"]
    assert all(set(row) == {"rms", "psnr", "motion", "shape"} for rows in measured.values() for row in rows)
    assert measured["FM, told the start"][0] == measured["FM, told 0"][0]
    assert measured["FM, told the start"][1] != measured["FM, told 0"][1]
    ends = [row["rms"] for row in measured["the start itself"]]
    assert ends[1] == pytest.approx(ends[0] / 2, rel=1e-5)
    model = numbers["settings"]["models"][str(tmp_path / "flow")]
    assert model["steps"] == 2 and model["sampler"] == {"kind": "Euler"} and model["told_gamma"] is True
    assert numbers["settings"]["clips"] == 4
    assert "FM, told 0" in capsys.readouterr().out
    for name in ("partial.png", "partial_examples.png"):
        assert Image.open(tmp_path / "out" / name).width > 400


def test_mistakes_are_explained(data, tmp_path):
    pipeline().save_pretrained(tmp_path / "eqm")
    words = [str(tmp_path / "eqm"), "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--start-gammas is 1"):
        Partial.main([*words, "--start-gammas", "1"])
    pipeline(frames=3).save_pretrained(tmp_path / "shorter")
    with pytest.raises(UserError, match="different clips"):
        Partial.main([str(tmp_path / "shorter"), *words])
    pipeline(id2label=["left", "right", *"abcdef"]).save_pretrained(tmp_path / "labels")
    with pytest.raises(UserError, match="does not know the label 'DiscDown'"):
        Partial.main([str(tmp_path / "labels"), *words[1:], "--labels", "given"])
