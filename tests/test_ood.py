"""Scores whose order the theory fixes, AUROC against all pairs, sets that change one thing, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import cifar_files, random_pictures, write_archive, write_folder
from PIL import Image
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import TruncatedDecay
from eqm_video.core.energy import Field
from eqm_video.core.guidance import GuidedField
from eqm_video.data.moving_shapes import measure_motion, render_clip, write_moving_shapes
from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.metrics.ood import auroc, auroc_error, frame_scores, largest_jump
from eqm_video.output import media
from eqm_video.studies.ood import study as module
from eqm_video.studies.ood.sets import diagonal, made_sets, orders, other_labels, splice

FRAMES, SIZE = 8, 16


# Scores -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_auroc_counts_pairs(levels):
    generator = torch.Generator().manual_seed(levels)
    inside = torch.randint(0, levels, (37,), generator=generator)
    outside = torch.randint(0, levels + levels // 2, (23,), generator=generator).double()
    pairs = (outside[None] > inside[:, None]).sum() + 0.5 * (outside[None] == inside[:, None]).sum()
    assert auroc(inside, outside) == float(pairs) / (37 * 23)
    assert auroc(outside, inside.double()) == pytest.approx(1 - auroc(inside, outside), abs=1e-15)


def test_auroc_at_its_ends():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, torch.inf])
    assert (auroc(low, high), auroc(high, low), auroc(low, low)) == (1, 0, 0.5)
    for wrong in (torch.zeros(0), torch.tensor([torch.nan]), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="in_scores"):
            auroc(wrong, low)
        with pytest.raises(ValueError, match="out_scores"):
            auroc(low, wrong)


def test_the_standard_error_is_that_of_exponential_scores():
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(3000, 50).exponential_(generator=generator)
    areas = torch.tensor([auroc(row[:30], 2.0 * row[30:]) for row in draws])  # P(out > in) is 2/3
    assert auroc_error(2 / 3, 30, 20) == pytest.approx(float(areas.std()), rel=0.05)
    assert auroc_error(1.0, 5, 5) == 0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        auroc_error(1.2, 5, 5)


def test_the_standard_error_in_closed_form():
    """In-scores of mean 1 and out-scores of mean 2, exponential.

    P(an out is above an in) = 2/3; P(two outs are above one in): the smaller of them has mean 1, so 1/2; P(an out is
    above two ins) = E (1 - exp(-out))^2 = 1 - 2/3 + 1/5 = 8/15.
    """
    for ins, outs in ((30, 20), (2, 50), (50, 2)):
        pairs = 2 / 3 * 1 / 3 + (outs - 1) * (1 / 2 - 4 / 9) + (ins - 1) * (8 / 15 - 4 / 9)
        assert auroc_error(2 / 3, ins, outs) == pytest.approx((pairs / (ins * outs)) ** 0.5, rel=1e-12)


def test_scores_of_a_known_field():
    latents = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    scores = frame_scores(lambda x: 2 * x, latents, "implicit")
    squares = latents.square().sum(dim=(2, 3, 4))
    assert torch.allclose(scores["gradient_norm"], 2 * (squares / 120).sqrt())
    assert torch.allclose(scores["energy"], 2 * squares)
    half = frame_scores(lambda x: 2 * x, latents.bfloat16(), "implicit")
    assert all(value.dtype == torch.float32 and value.shape == (2, 3) for value in half.values())


@pytest.mark.parametrize("energy", ["dot", "l2"])
def test_an_explicit_energy_is_its_own_score(energy):
    network = tiny_transformer(energy=energy)
    field = GuidedField(Field(network), torch.tensor([0, 2]), null_label=network.null_label)
    latents = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = frame_scores(field, latents, energy)
    with torch.no_grad():
        raw = network(latents, torch.tensor([0, 2])).sample
    products = latents * raw if energy == "dot" else raw.square() / 2
    assert torch.allclose(scores["energy"], products.sum(dim=(2, 3, 4)), rtol=1e-5, atol=1e-5)
    lower = latents - 1e-3 * field(latents)
    assert bool((frame_scores(field, lower, energy)["energy"].sum(1) < scores["energy"].sum(1)).all())


def test_the_exact_field_scores_data_below_everything_else():
    """The stated sign, on the field that perfect training gives: no result is needed to choose it."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(6, 2, 4, 8, 8, generator=generator)
    noise = torch.randn(6, 2, 4, 8, 8, generator=generator)
    field = OracleField(data, TruncatedDecay(), frame_wise=True)
    near = frame_scores(field, 0.999 * data + 0.001 * noise, "implicit")
    for outside in (noise, data + 0.3 * noise, data.flip(0) + data):
        far = frame_scores(field, outside, "implicit")
        assert all(auroc(near[key].mean(1), far[key].mean(1)) == 1 for key in near)


def test_the_largest_jump_is_the_frame_of_the_largest_change():
    scores = torch.tensor([[0.0, 0.1, 0.9, 0.8], [3.0, 1.0, 0.0, 0.5]])
    assert largest_jump(scores).tolist() == [2, 1]
    with pytest.raises(ValueError, match="2 frames"):
        largest_jump(torch.zeros(3, 1))


# Sets ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """8 labels, 3 videos of 12 frames each, the last one for test."""
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_moving_shapes(folder, videos=3, held_out=1, shapes=("Disc", "Square"), size=SIZE, fps=8)
    return folder


def source(data: Path, **options) -> Source:
    return Source(data, **{"frames": FRAMES, "size": (SIZE, SIZE), "fps": 8, "count": 99, "split": "test", **options})


def test_sets_change_one_thing(data):
    source_ = source(data)
    clips = source_.read()
    assert clips.pixels.shape == (8, FRAMES, SIZE, SIZE, 3) and len(set(clips.labels)) == 8
    sets, left_out = made_sets(clips, source_, seed=0)
    assert left_out == ["double speed"] and all(one.shape == clips.pixels.shape for one in sets.values())
    assert np.array_equal(sets["frozen"], np.repeat(clips.pixels[:, :1], FRAMES, axis=1))
    assert np.array_equal(sets["reversed"][:, ::-1], clips.pixels)
    assert np.array_equal(sets["there and back"][:, :4], clips.pixels[:, ::2])
    assert np.array_equal(sets["there and back"][:, ::-1], sets["there and back"])
    for one, other in zip(sets["shuffled"], clips.pixels, strict=True):
        assert sorted(frame.tobytes() for frame in one) == sorted(frame.tobytes() for frame in other)
        assert not np.array_equal(one, other) and not np.array_equal(one, other[::-1])
    whole = [source_.data.whole(index)[0] for index in range(8)]
    assert np.array_equal(sets["jump cut"], np.stack([video[[0, 1, 2, 3, 8, 9, 10, 11]] for video in whole]))
    assert np.ptp(sets["constant colour"], axis=(1, 2, 3)).max() == 0 and np.ptp(sets["constant colour"]) > 0
    assert abs(sets["Gaussian noise"].mean() - clips.pixels.mean()) < 3
    again, _ = made_sets(clips, source_, seed=0)
    other, _ = made_sets(clips, source_, seed=1)
    assert all(np.array_equal(sets[name], again[name]) for name in sets)
    seeded = [name for name in sets if not np.array_equal(sets[name], other[name])]
    assert {"constant colour", "uniform noise", "Gaussian noise", "shuffled", "spliced"} <= set(seeded)


def test_slower_clips_can_be_read_at_double_speed(data):
    slow = source(data, frames=4)
    sets, left_out = made_sets(slow.read(), slow, seed=0)
    assert not left_out
    whole = slow.data.whole(0)[0]
    assert np.array_equal(sets["double speed"][0], whole[slow.windows[0][1] :][0:8:2])


def test_a_splice_joins_clips_of_other_files_and_labels():
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None, None] * np.ones((4, 6, 2, 2, 3), np.uint8)
    clips = Clips(pixels, ["a", "a", "b", "c"], ["one", "one", "one", "two"])
    chosen = clips.partners(seed=0)
    assert chosen[:3] == [3, 3, 3] and chosen[3] in (0, 1, 2)
    spliced = splice(clips, seed=0)
    assert (spliced[0, :3] == 0).all() and (spliced[0, 3:] == 3).all()
    alike = Clips(pixels, ["a", "a", "b", "b"], [None] * 4)
    assert [file in (0, 1) for file in alike.partners(seed=0)] == [False, False, True, True]
    with pytest.raises(UserError, match="all are of the same file"):
        Clips(pixels, ["a"] * 4, [None] * 4).partners(seed=0)


def test_diagonal_paths_move_along_both_axes():
    rng = np.random.default_rng(0)
    names = ("Right", "Left", "Down", "Up")
    clips = np.stack([render_clip("Disc", name, frames=12, size=48, rng=rng) for name in names])[:, :8]
    for one, other in zip(diagonal(clips, rng), clips, strict=True):
        before, after = np.abs(measure_motion(other).velocity), np.abs(measure_motion(one).velocity)
        assert before.min() < 0.1 * before.max() and after.min() > 0.7 * after.max()
        assert after.max() == pytest.approx(before.max(), rel=0.1)


def test_orders_and_wrong_labels():
    drawn = orders((400, 4), np.random.default_rng(0))
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn) and len({tuple(order) for order in drawn}) == 22
    labels = ["a", "b", "c"] * 5
    assert all(one != other for one, other in zip(labels, other_labels(labels, 0), strict=True))
    with pytest.raises(UserError, match="second one"):
        other_labels(["a", "a"], 0)


def test_sources_fit_rate_and_kind(data, tmp_path):
    assert source(data, fps=4, frames=4).data.frame_interval == 2
    assert source(data, fps=4, frame_interval=1).data.frame_interval == 1
    assert len(source(data, split=None, count=10).windows) == 10
    for number in range(3):
        media.write_png(tmp_path / f"{number}.png", np.full((20, 20, 3), 80 * number, np.uint8))
    still = source(tmp_path, split=None).read()
    assert still.pixels.shape == (3, FRAMES, SIZE, SIZE, 3) and still.labels == [None] * 3
    assert (still.pixels == still.pixels[:, :1]).all() and [int(clip.max()) for clip in still.pixels] == [0, 80, 160]
    files = cifar_files(*random_pictures(12), tests=2)
    for place in (write_folder(tmp_path / "published", files), write_archive(tmp_path / "cifar.tar.gz", files)):
        published = source(place)
        assert len(published.windows) == 2 and published.read().pixels.shape == (2, FRAMES, SIZE, SIZE, 3)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "clip.avi").touch()
    with pytest.raises(UserError, match="videos and images"):
        source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither"):
        source(tmp_path / "empty")


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "export"
    labels = source(data).data.labels
    settings = {"id2label": labels, "frames": FRAMES, "fps": 8.0, "size": SIZE}
    tiny_pipeline(tiny_transformer(num_labels=len(labels)), **settings).save_pretrained(folder)
    return folder


def test_the_command_measures_every_set(data, export, tmp_path, capsys):
    words = [export, "--data", data, "--out", tmp_path / "out", "--also", data / "DiscUp", "--batch-size", 3]
    assert module.Ood.main([str(word) for word in words]) == 0
    numbers = json.loads((tmp_path / "out" / "ood.json").read_text())
    assert numbers["sets"]["held-out clips"] == 8 and numbers["sets"]["DiscUp"] == 3
    made = set(numbers["sets"]) - {"held-out clips"}
    assert {"diagonal", "spliced", "jump cut", "frozen", "uniform noise"} <= made
    for mode, extra in (("none", set()), ("given", {"wrong label"})):
        for table in numbers["auroc"][mode].values():
            assert set(table) == made | extra | {"average"}
            mean = np.mean([one["auroc"] for name, one in table.items() if name != "average"])
            assert table["average"]["auroc"] == pytest.approx(mean)
    said = capsys.readouterr().out
    assert "wrong label" in said and "double speed" in said and "chance 14%" in said
    for name in ("ood.png", "ood_sets.png", "ood_frames.png"):
        assert Image.open(tmp_path / "out" / name).width > 400


def test_scores_of_the_command_are_those_of_the_field(data, export):
    pipeline = tiny_pipeline(tiny_transformer(num_labels=8), id2label=source(data).data.labels, frames=8, fps=8.0)
    clips = source(data).read()
    latents = pipeline.encode(clips.pixels)
    found = module.score(pipeline, latents, clips.labels, batch_size=3)
    labels = torch.tensor(pipeline.label_ids(clips.labels))
    with torch.no_grad():
        expected = pipeline.transformer(latents, labels, times=torch.arange(8.0).expand(8, -1)).sample
    assert torch.allclose(found["gradient_norm"], expected.square().mean(dim=(2, 3, 4)).sqrt(), rtol=1e-4)
    assert torch.allclose(found["energy"], (latents * expected).sum(dim=(2, 3, 4)), rtol=1e-3, atol=1e-3)


def test_an_explicit_energy_is_scored_by_the_command(data):
    network = tiny_transformer(num_labels=8, energy="l2")
    pipeline = tiny_pipeline(network, id2label=source(data).data.labels, frames=8, fps=8.0)
    clips = source(data).read()
    latents = pipeline.encode(clips.pixels)
    found = module.score(pipeline, latents, clips.labels, batch_size=5)
    field = pipeline.field(clips.labels, guidance_scale=1.0)
    assert torch.allclose(found["energy"], field.energies(latents), rtol=1e-3, atol=1e-3)
    raw = (field.network.network(latents, field.labels, times=field.times).sample).square().mean(dim=(2, 3, 4)).sqrt()
    assert not torch.allclose(found["gradient_norm"], raw, rtol=0.05)  # the true gradient, not the raw output


def test_images_have_fewer_sets(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        media.write_png(tmp_path / "photos" / f"{number}.png", rng.integers(0, 256, (20, 20, 3), np.uint8))
    tiny_pipeline(tiny_transformer(temporal=False), frames=1).save_pretrained(tmp_path / "export")
    words = [tmp_path / "export", "--data", tmp_path / "photos", "--out", tmp_path / "out"]  # no lists: all files
    assert module.Ood.main([str(word) for word in words]) == 0
    numbers = json.loads((tmp_path / "out" / "ood.json").read_text())
    assert set(numbers["sets"]) == {"held-out clips", "constant colour", "uniform noise", "Gaussian noise"}
    assert list(numbers["auroc"]) == ["none"] and numbers["breaks"] == {}
    assert not (tmp_path / "out" / "ood_frames.png").exists()


def test_mistakes_are_explained(data, export, tmp_path):
    words = [str(export), "--data", str(data), "--out", str(tmp_path)]
    with pytest.raises(UserError, match="repeats a name"):
        module.Ood.main([*words, "--also", str(data), str(data)])
    tiny_pipeline(frames=FRAMES, fps=8.0).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="does not know the label 'DiscDown'"):
        module.Ood.main([str(tmp_path / "other"), *words[1:], "--labels", "given"])
