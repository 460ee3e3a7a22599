"""Metrics of samples against data: closed forms, other people's implementations, error bars that cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from eqm_video.data.moving_shapes import DIRECTIONS, label_names, render_clip
from eqm_video.errors import UserError
from eqm_video.evaluation.report import Judgement
from eqm_video.metrics.fidelity import ssim
from eqm_video.metrics.frechet import Moments, frechet_distance, frechet_of_sets, gaussian_of
from eqm_video.metrics.inception_score import inception_score
from eqm_video.metrics.measured import Measured
from eqm_video.metrics.metric import Metric, Statistics
from eqm_video.metrics.mmd import MMD, kernel, mmd, weighted_mmd
from eqm_video.metrics.precision_recall import within
from eqm_video.metrics.registry import find_metric, metrics, title_of
from eqm_video.randomness import generator

PLAIN = Statistics()


def points(count: int, dimensions: int = 6, *parts: int | str) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=generator("points", count, dimensions, *parts))


# MMD ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
def test_mmd_is_the_mean_over_all_pairs(biased):
    left, right = points(7, 3).double(), points(5, 3).double()

    def mean(one, other, same):
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if biased or not same or i != j]
        return sum(((one[i] @ other[j] / 3 + 1) ** 3).item() for i, j in pairs) / len(pairs)

    expected = mean(left, left, True) + mean(right, right, True) - 2 * mean(left, right, False)
    assert mmd(left, right, 3, 1.0, biased) == pytest.approx(expected, rel=1e-12)
    pooled, first = torch.cat([left, right]), torch.zeros(1, 12, dtype=torch.float64)
    first[:, :7] = 1
    weighted = weighted_mmd(kernel(pooled, pooled, 3, 1.0), first, 1 - first, biased)
    assert float(weighted) == pytest.approx(expected, rel=1e-12)


def test_mmd_of_the_polynomial_kernel_of_degree_2_is_a_distance_of_second_moments():
    """<x, y>² = <x xᵀ, y yᵀ>: the squared MMD is the squared distance of E x xᵀ / D, which is known for Gaussians."""
    scale = 1.5
    left, right = points(4_000, 4), points(4_000, 4, "other") * scale
    assert mmd(left, right, 2, 0.0) == pytest.approx(4 * (scale**2 - 1) ** 2 / 16, rel=0.1)


def test_mmd_has_no_bias_and_its_p_value_is_uniform_where_both_sets_are_of_one_kind():
    values, chances = [], []
    for trial in range(60):
        left, right = (Measured.of(points(24, 5, name, trial)) for name in ("left", "right"))
        values.append(metrics()["mmd"].value(left, right, PLAIN))
        extras = metrics()["mmd"].extras(left, right, PLAIN, 99, generator("test", trial))
        chances.append(extras["p_value"])
    values, chances = torch.tensor(values), torch.tensor(chances)
    assert abs(float(values.mean())) < 3 * float(values.std()) / 60**0.5
    assert 0.35 < float(chances.mean()) < 0.65 and float(chances.min()) > 0
    moved = Measured.of(points(24, 5, "right", 0) * 1.8)
    extras = metrics()["mmd"].extras(left, moved, PLAIN, 199, generator("test"))
    assert extras["p_value"] == pytest.approx(1 / 200)


# Fréchet ------------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_that_are_known():
    left, right = points(50_000, 3), points(50_000, 3, "other") * 2 + torch.tensor([1.0, 0, 0])
    assert frechet_of_sets(left, right) == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.02)


def test_moments_do_not_depend_on_parts_or_processes():
    features = points(101, 7) + 100
    whole = gaussian_of(features)
    moments, others = Moments(), Moments()
    for part in features[:60].split(9):
        moments.update(part)
    others.update(features[60:])
    moments.merge(others)
    for one, other in zip(moments.gaussian(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.gaussian(0)[1] * 101, whole[1] * 100, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole[1], torch.cov(features.double().T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
def test_frechet_distance_is_that_of_the_published_formula(ddof):
    """StyleGAN-V's and cd-fvd's: |m - m'|² + tr(A + B - 2 sqrtm(A B)), with scipy's general root."""
    left, right = points(60, 8).double().numpy(), (points(50, 8, "other") * 1.3 + 0.2).double().numpy()
    covs = [np.cov(side, rowvar=False, ddof=ddof) for side in (left, right)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1])
    expected = np.square(left.mean(0) - right.mean(0)).sum() + np.trace(covs[0] + covs[1] - 2 * np.real(root))
    mine = metrics()["frechet"].value(
        Measured.of(torch.from_numpy(left)), Measured.of(torch.from_numpy(right)), Statistics(ddof=ddof)
    )
    assert mine == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_points_than_dimensions_is_the_same():
    left, right = points(9, 30), points(12, 30, "other") + 0.5
    whole = frechet_distance(*gaussian_of(left), *gaussian_of(right))
    assert frechet_of_sets(left, right) == pytest.approx(whole, rel=1e-5)
    warning = metrics()["frechet"].warning(Measured.of(left), Measured.of(right))
    assert warning.startswith("9 clips give singular covariances in 30 dimensions") and "mmd" in warning
    assert metrics()["frechet"].warning(Measured.of(points(31, 30)), Measured.of(points(31, 30))) is None


class Unused(nn.Module):
    """A feature network that is never called: the states of torchmetrics' metrics are filled with features."""

    num_features = 6

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_agreement_with_torchmetrics_on_the_same_features():
    pytest.importorskip("torchmetrics", reason="needs the extra [evaluate]")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import poly_mmd

    real, fake = points(80, 6).double(), (points(70, 6, "other") * 1.2 + 0.3).double()
    sets = Measured.of(fake), Measured.of(real)
    fid = FrechetInceptionDistance(feature=Unused(), normalize=True, input_img_size=(3, 4, 4))
    fid.orig_dtype = torch.float64
    for side, features in (("real", real), ("fake", fake)):
        setattr(fid, f"{side}_features_sum", features.sum(0))
        setattr(fid, f"{side}_features_cov_sum", features.T @ features)
        setattr(fid, f"{side}_features_num_samples", torch.tensor(len(features)))
    assert metrics()["frechet"].value(*sets, PLAIN) == pytest.approx(float(fid.compute()), rel=1e-6)
    kid = metrics()["kid"].value(sets[0], Measured.of(real[:70]), PLAIN)
    assert kid == pytest.approx(float(poly_mmd(real[:70], fake)), rel=1e-6)  # of sets of one size, as theirs are
    score = InceptionScore(feature=Unused(), normalize=True, splits=1)
    score.features = [fake]
    one_split = metrics()["is"].value(Measured.of(fake, logits=fake), sets[1], Statistics(splits=1))
    assert one_split == inception_score(fake) == pytest.approx(float(score.compute()[0]), rel=1e-6)


# Others -------------------------------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    assert within(torch.tensor([[0.5], [3.9], [5.0], [13.5]]), real, 2).tolist() == [True, True, False, True]
    samples = Measured.of(torch.tensor([[0.5], [0.6], [0.7], [0.8], [100.0]]))
    settings = Statistics(neighbours=1)
    assert metrics()["precision"].value(samples, Measured.of(real), settings) == pytest.approx(4 / 5)
    assert metrics()["recall"].value(samples, Measured.of(real), settings) == pytest.approx(5 / 6)  # |100 - 1| < 99.2
    assert metrics()["recall"].value(samples.take(torch.arange(4)), Measured.of(real), settings) == 0


def test_copies_and_nearest_classes_by_hand():
    features = torch.tensor([[0.0], [0.1], [4.0], [8.0]])
    real = Measured.of(features, sources=torch.tensor([0, 0, 1, 2]), labels=torch.tensor([0, 0, 1, -1]))
    samples = Measured.of(torch.tensor([[0.05], [2.2], [3.9], [8.0]]), labels=torch.tensor([0, 0, -1, 1]))
    assert metrics()["copies"].per_clip(samples, real, PLAIN).tolist() == [True, False, True, True]
    assert metrics()["accuracy"].value(samples, real, PLAIN) == pytest.approx(2 / 3)


def test_readings_of_motion():
    still = torch.full((1, 6, 4, 4, 3), 100, dtype=torch.uint8)
    ramp = (torch.arange(6, dtype=torch.uint8) * 10)[None, :, None, None, None].expand(1, 6, 4, 4, 3).contiguous()
    blink = still.clone()
    blink[:, ::2] = 120
    clips = torch.cat([still, ramp, blink])
    every = metrics()
    assert every["motion"].read(clips).tolist() == [0, 10, 20]
    assert every["frozen"].read(clips).tolist() == [1, 0, 0]
    assert every["flicker"].read(clips) == pytest.approx(torch.tensor([0, 0, 40.0]), abs=1e-4)


def test_fidelity():
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=generator("fidelity"))
    other = clips.clone()
    other[1] = (other[1].int() + 5).clamp(max=255)
    decibels = metrics()["psnr"].compare(other, clips)
    error = (other[1].double() - clips[1].double()).square().mean()
    assert decibels.tolist() == pytest.approx([100, float(10 * torch.log10(255**2 / error))])
    pytest.importorskip("torchmetrics", reason="needs the extra [evaluate]")
    values = ssim(other, clips)
    assert float(values[0]) == pytest.approx(1) and 0.9 < float(values[1]) < 1
    with pytest.raises(UserError, match="11x11 pixels at least, and these have 8x8: take psnr"):
        ssim(clips[:, :, :8, :8], clips[:, :, :8, :8])


def test_the_curve_over_time_sees_where_a_video_goes_astray():
    real = points(40 * 4, 5).unflatten(0, (40, 4))
    samples = points(30 * 3, 5, "samples").unflatten(0, (30, 3)).clone()
    samples[:, 2] += 3
    measured = [Measured.of(side[:, 0], windows=side) for side in (samples, real)]
    curve = metrics()["over-time"].extras(*measured, PLAIN, 0, generator("test"))["by_window"]
    assert max(curve[:2]) < 1 < 40 < curve[2] and metrics()["over-time"].value(*measured, PLAIN) == pytest.approx(
        sum(curve) / 3
    )


@pytest.mark.parametrize("name", ["mmd", "frechet", "precision", "motion"])
def test_intervals_are_as_wide_as_values_of_new_samples_scatter(name):
    """The half-width of the redraws' interval against 1.96 standard deviations over new draws of both sets."""
    metric = metrics()[name]

    def draw(*parts):
        sides = [points(48, 4, name, *parts) * scale for name, scale in (("samples", 1.4), ("real", 1.0))]
        return [Measured.of(side, readings={"motion": side[:, 0].abs().double()}) for side in sides]

    values = torch.tensor([metric.value(*draw(trial), PLAIN) for trial in range(80)])
    judgement = Judgement(PLAIN, "random", 16, redraws=100, permutations=0, floors=False)
    widths = []
    for trial in range(6):
        low, high = judgement.judge(metric, *draw("other", trial))["interval"]
        widths.append((high - low) / 2)
    ratio = sum(widths) / len(widths) / (1.96 * float(values.std()))
    assert (0.4 if name == "precision" else 0.65) < ratio < 1.5, ratio  # precision redraws its samples alone


def test_windows_of_one_file_are_drawn_together():
    """Six copies of each of 8 clips know no more than 8 clips: the interval is as wide, and p is of 8 clips."""
    judgement = Judgement(PLAIN, "random", 16, redraws=400, permutations=99, floors=False)
    few, other = points(8, 4, "few") * 1.5, points(30, 4, "other")
    values = few[:, 0].abs().double()
    copied = {"sources": torch.arange(8).repeat_interleave(6), "readings": {"motion": values.repeat_interleave(6)}}
    single = Measured.of(few, readings={"motion": values})
    windows, samples = Measured.of(few.repeat_interleave(6, 0), **copied), Measured.of(other)
    mmd, motion = metrics()["mmd"], metrics()["motion"]

    def width(result: dict) -> float:
        return result["interval"][1] - result["interval"][0]

    once, often = (judgement.judge(mmd, samples, side) for side in (single, windows))
    assert 0.7 < width(often) / width(once) < 1.6
    assert often["p_value_of"] == {"samples": 30, "real": 8} and often["p_value"] == once["p_value"]
    widths = [width(judgement.judge(motion, side, None)) for side in (single, windows)]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    frechet = [width(judgement.judge(metrics()["frechet"], samples, side)) for side in (single, windows)]
    assert 0.6 < frechet[1] / frechet[0] < 1.6


def test_a_share_has_no_interval_beyond_1_and_a_single_clip_has_none():
    judgement = Judgement(PLAIN, "random", 16, redraws=50, permutations=0, floors=False)
    motion = metrics()["motion"]
    for seed in range(5):
        side = Measured.of(points(20, 2), readings={"motion": (torch.arange(20) > 0).double()})
        low, high = replace(judgement, seed=seed).judge(motion, side, None)["interval"]
        assert 0 <= low < high <= 1
    single = Measured.of(points(1, 2), readings={"motion": torch.ones(1).double()})
    assert judgement.judge(motion, single, None)["interval"] is None


def test_the_inception_score_of_real_clips_is_of_as_many_clips():
    real, samples = (Measured.of(side, logits=side * 3) for side in (points(90, 5), points(20, 5, "samples")))
    judgement = Judgement(PLAIN, "inception", 1, redraws=10, permutations=0)
    own = judgement.judge(metrics()["is"], samples, real)["real"]
    assert own["n"] == {"real": 20} and own["value"] == metrics()["is"].value(real.thinned(20), real, PLAIN)


def test_names_are_those_of_networks():
    every = metrics()
    assert {"mmd", "kid", "frechet", "sfid", "is", "precision", "recall", "copies", "accuracy"} <= every.keys()
    assert all(metric.says() and metric.better in ("lower", "higher", "real") for metric in every.values())
    assert find_metric("fvd", "i3d") is every["frechet"] is find_metric("fid", "inception")
    with pytest.raises(UserError, match="--metrics fvd is a number of the feature i3d, and the feature is transnet"):
        find_metric("fvd", "transnet")
    with pytest.raises(UserError, match=r"no such metric \(did you mean frechet\?\)"):
        find_metric("frecht", "transnet")
    named = [
        title_of(every["frechet"], *of) for of in (("i3d", 16), ("inception", 1), ("inception", 16), ("random", 1))
    ]
    assert named == ["FVD", "FID", "Fréchet distance (inception)", "Fréchet distance (random)"]


@pytest.mark.parametrize("endless", [False, True])
def test_moving_shapes_are_measured_against_their_labels(endless) -> None:
    labels, rng = label_names(("Disc", "Square")), np.random.default_rng(0)
    pairs = [(shape, direction) for shape in ("Disc", "Square") for direction in DIRECTIONS]
    clips = torch.from_numpy(
        np.stack([render_clip(*pair, frames=8, size=32, rng=rng, endless=endless) for pair in pairs])
    )
    every, settings = metrics(), Statistics()
    for name, wrong in (("direction", 0.0), ("shape", 0.75), ("label", 0.0)):
        readings = {name: every[name].read(clips)}
        right = torch.arange(8)
        parts = {"readings": readings, "label_names": tuple(labels)}
        good, other = (Measured.of(torch.zeros(8, 1), labels=place, **parts) for place in (right, (right + 1) % 8))
        assert every[name].value(good, good, settings) == 1.0
        assert every[name].value(other, other, settings) == wrong  # one direction on; two shapes change
        assert every[name].redraws(good, good, settings, 3, torch.Generator()).tolist() == [1.0] * 3
    zero = torch.zeros(8, dtype=torch.int64)
    alone = Measured.of(torch.zeros(8, 1), labels=zero, readings=readings, label_names=("a",))
    with pytest.raises(UserError, match="--metrics label needs labels of moving shapes, such as DiscRight"):
        every["label"].value(alone, alone, settings)
    with pytest.raises(UserError, match="is square, and the clips have 16x32"):
        every["label"].read(clips[:, :, :16])


def test_a_large_set_says_of_how_many_clips_interval_and_p_value_are(monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.metrics.mmd.MOST", 8)
    left, right = (Measured.of(torch.randn(12, 3, generator=torch.Generator().manual_seed(k))) for k in range(2))
    found = MMD().extras(left, right, Statistics(), 10, torch.Generator())
    assert found["interval_and_p_value_of"] == {"samples": 8, "real": 8}
    few = left.thinned(8)
    assert "interval_and_p_value_of" not in MMD().extras(few, few, Statistics(), 10, torch.Generator())


def test_metrics_have_a_keyword_name_on_every_python() -> None:
    assert type(Metric) is type  # before Python 3.11 a class of ABCMeta cannot have one
