"""Compositions: what is summed, what is judged, and what the command writes; and shapes filed under one attribute."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_models import tiny_pipeline, tiny_transformer
from tiny_run import tiny_network, write_codec
from video_files import decode

from eqm_video.core.decay import gamma_path
from eqm_video.data.moving_shapes import DIRECTIONS, attribute_names, measure_motion, render_clip, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.samplers import Euler, GradientDescent
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.studies.compose import study as compose
from eqm_video.studies.compose.report import Samples, means
from eqm_video.studies.compose.study import Compose, Term, Variant, read_term

ATTRIBUTES = ["Disc", "Square", "Right", "Left", "Down", "Up"]


def make(folder: Path, name: str, labels: list[str], seed: int = 0) -> Path:
    """An export of an untrained network; all share one codec."""
    codec = folder / "codec"
    if not codec.is_dir():
        write_codec(codec)
    pipeline = EqMPipeline(
        tiny_network(seed, num_labels=len(labels)),
        AutoencoderKL.from_pretrained(codec),
        labels,
        decay={"kind": "truncated", "a": 0.8, "gain": 4.0},
        sampler={"kind": "gd", "step_size": 0.05, "steps": 3, "guidance_scale": 2.0},
        frames=3,
        fps=4.0,
        reference_fps=4.0,
        size=16,
    )
    pipeline.save_pretrained(folder / name)
    return folder / name


# Data ---------------------------------------------------------------------------------------------------------------


def test_a_video_shows_the_attribute_it_is_filed_under_and_the_other_one_in_turn(tmp_path):
    root = tmp_path / "attributes"
    write_moving_shapes(root, attributes=True, videos=8, held_out=4)
    names = [line.split()[1] for line in (root / "splits/classInd.txt").read_text().splitlines()]
    assert names == attribute_names(("Disc", "Square")) == ATTRIBUTES
    for name in names:
        motions = [measure_motion(decode(path), ("Disc", "Square")) for path in sorted((root / name).glob("*.avi"))]
        shown = Counter((motion.shape, motion.direction) for motion in motions)
        assert all(name in pair for pair in shown)
        assert set(shown.values()) == ({2} if name in ("Disc", "Square") else {4})  # every other attribute as often
    train = (root / "splits/trainlist01.txt").read_text().splitlines()
    assert len(train) == 6 * 4 and train[0].endswith(" 1") and train[-1].endswith(" 6")


# Terms --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return make(folder, "attributes", ATTRIBUTES), make(folder, "pairs", ["DiscLeft", "SquareUp"], seed=1)


@pytest.fixture(scope="module")
def models(exports) -> list[EqMPipeline]:
    loaded = [EqMPipeline.from_pretrained(path) for path in exports]
    for one in loaded:
        one.set_progress_bar_config(disable=True)
    return loaded


def test_terms_are_read_and_named(models):
    terms = compose.check_terms(tuple(map(read_term, ("Disc:2", "2/DiscLeft:-0.5", "none:1"))), models)
    assert terms == (Term("Disc", 2.0), Term("DiscLeft", -0.5, 1), Term(None, 1.0))
    assert Variant("composed", terms).name == "Disc + 2/DiscLeft"
    assert [str(term) for term in terms] == ["1/Disc:2.0", "2/DiscLeft:-0.5", "1/none:1.0"]
    for word in ("Disc", "Disc:much", "Disc:inf"):
        with pytest.raises(UserError, match=rf"--terms is {word}: it must be \[M/\]LABEL:WEIGHT"):
            Compose.main(["MODEL", "--out", "nowhere", "--terms", word])
    for word, message in (
        ("3/Disc:1", "asks for model 3, but there are 2"),
        ("0/Disc:1", "asks for model 0"),
        ("Dics:1", "did you mean Disc"),
        ("2/Disc:1", "unknown label 'Disc'"),
    ):
        with pytest.raises(UserError, match=message):
            compose.check_terms((read_term(word),), models)


def test_what_a_composition_shall_show():
    assert compose.target([Term("Disc", 2), Term("Left", 2)]) == "DiscLeft"
    assert compose.target([Term("DiscLeft", 1, 1), Term("Left", 2)]) == "DiscLeft"
    assert compose.target([Term("Disc", 2), Term("Square", -1), Term("Up", 1)]) == "DiscUp"
    assert compose.target([Term("Disc", 2), Term("Square", 2), Term("Up", 1)]) is None
    assert compose.target([Term("Disc", 2)]) is None


class Requested:
    """The part of a request that a field needs."""

    frames, guidance_scale = 3, 2.0


def test_variants_are_the_sums_they_say(models):
    first, second = models
    latents = torch.randn(2, 3, 2, 4, 4)
    terms = (Term("Disc", 2.0), Term("DiscLeft", 3.0, 1))
    made = {one.kind: one for one in compose.variants(terms, Requested())}
    assert list(made) == ["alone", "composed", "mean", "plain sum"]  # of two "alone", the dictionary keeps the last

    def plain(pipeline: EqMPipeline, label: str | None) -> torch.Tensor:
        return pipeline.field([label] * 2, guidance_scale=1.0)(latents)

    disc, both, nothing = plain(first, "Disc"), plain(second, "DiscLeft"), plain(first, None)
    expected = {
        "composed": nothing + 2 * (disc - nothing) + 3 * (both - nothing),
        "mean": (disc + both) / 2,
        "plain sum": disc + both,
        "alone": plain(second, None) + 2 * (both - plain(second, None)),
    }
    with torch.no_grad():
        for kind, value in expected.items():
            found = compose.field(models, Requested(), made[kind], 2)(latents)
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    assert (disc - both).abs().max() > 1e-3


def test_a_single_term_has_no_mean_and_no_plain_sum():
    assert [one.kind for one in compose.variants((Term("Disc", 2.0),), Requested())] == ["alone", "composed"]


# Command ------------------------------------------------------------------------------------------------------------


def test_all_pairs_of_attributes(exports, tmp_path, capsys):
    words = [str(exports[0]), "--out", str(tmp_path), "--num-samples", "2", "--columns", "1", "--device", "cpu"]
    assert Compose.main(words) == 0
    record = json.loads((tmp_path / "compose.json").read_text())
    targets = [row["target"] for row in record["rows"]]
    assert list(dict.fromkeys(targets)) == [shape + way for shape in ("Disc", "Square") for way in DIRECTIONS]
    kinds = ["shape alone", "direction alone", "composed", "mean", "plain sum"]
    assert [row["kind"] for row in record["rows"]] == 8 * kinds
    assert record["settings"]["terms"][0] == [
        {"label": "Disc", "weight": 2.0, "model": 0},
        {"label": "Right", "weight": 2.0, "model": 0},
    ]
    assert all(0 <= row["both_accuracy"] <= 1 and row["samples"] == 2 for row in record["rows"])
    out = capsys.readouterr().out
    assert "| composed  " in out and "both are right (chance 12.5 %)" in out and "| mean, 2 samples of each |" in out
    for name in ("compose.gif", "compose.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_terms_of_two_models_and_a_model_without_attributes(exports, tmp_path):
    words = ["--out", str(tmp_path), "--num-samples", "2", "--device", "cpu"]
    terms = ["--with", str(exports[0]), "--terms", "DiscLeft:1", "2/Disc:1"]
    assert Compose.main([str(exports[1]), *words, *terms]) == 0
    rows = json.loads((tmp_path / "compose.json").read_text())["rows"]
    assert [row["composition"] for row in rows[:3]] == ["DiscLeft", "2/Disc", "DiscLeft + 2/Disc"]
    with pytest.raises(UserError, match=r"no labels of single attributes .* --terms DiscLeft:1 SquareUp:1"):
        Compose.main([str(exports[1]), *words])
    with pytest.raises(UserError, match="leave --labels out"):
        Compose.main([str(exports[0]), *words, "--labels", "Disc"])
    with pytest.raises(UserError, match="--columns is 0: it must be"):
        Compose.main([str(exports[0]), *words, "--columns", "0"])
    with pytest.raises(UserError, match="--weight is for the pairs"):
        Compose.main([str(exports[0]), *words, "--terms", "Disc:1", "--weight", "2"])


def test_a_composition_that_diverges_is_a_row_like_any_other(exports, tmp_path):
    words = [str(exports[0]), "--out", str(tmp_path), "--num-samples", "2", "--device", "cpu", "--steps", "2"]
    assert Compose.main([*words, "--terms", "Disc:1e30", "Left:1"]) == 0
    rows = {row["kind"]: row for row in json.loads((tmp_path / "compose.json").read_text())["rows"]}
    assert rows["composed"]["diverged"] == 2 and rows["composed"]["both_accuracy"] == 0
    assert rows["mean"]["diverged"] == 0


@pytest.mark.parametrize("sampler", ["langevin", "sde"])
def test_a_sampler_that_draws_noise_composes_too(exports, tmp_path, sampler):
    words = [str(exports[0]), "--out", str(tmp_path), "--num-samples", "3", "--batch-size", "2", "--steps", "2"]
    assert Compose.main([*words, "--device", "cpu", "--terms", "Disc:1", "Left:1", "--sampler", sampler]) == 0
    record = json.loads((tmp_path / "compose.json").read_text())
    assert all(row["samples"] == 3 for row in record["rows"] if row["target"])


def test_conditioned_networks_get_the_closed_form_of_their_variant(models):
    told = tiny_pipeline(tiny_transformer(conditioned_on_gamma=True))
    pair, steps = (Term("up", 1.0), Term("left", 1.0)), 4
    rule = GradientDescent(0.04)
    for kind, step_size in (("composed", 0.04), ("mean", 0.04), ("plain sum", 0.08)):
        found = compose.network_gammas([told], Variant(kind, pair), rule, steps)
        assert torch.equal(found, gamma_path(told.decay, step_size, steps))
    assert compose.network_gammas([told], Variant("composed", pair), Euler(), steps) is None
    assert compose.network_gammas(models, Variant("composed", (Term("Disc", 1.0),)), rule, steps) is None
    other = tiny_pipeline(decay={"kind": "linear"})
    with pytest.raises(UserError, match="another decay"):
        compose.network_gammas([told, other], Variant("mean", (Term("up", 0.5), Term("left", 0.5, 1))), rule, steps)


def test_a_network_that_is_conditioned_on_gamma_is_descended(tmp_path):
    tiny_pipeline(tiny_transformer(conditioned_on_gamma=True)).save_pretrained(tmp_path / "told")
    words = [str(tmp_path / "told"), "--out", str(tmp_path / "out"), "--num-samples", "2", "--device", "cpu"]
    assert Compose.main([*words, "--terms", "up:1", "left:1", "--sampler", "gd"]) == 0
    assert len(json.loads((tmp_path / "out" / "compose.json").read_text())["rows"]) == 5


def test_shares_are_those_of_the_clips(tmp_path):
    rng = np.random.default_rng(0)
    clips = np.stack([render_clip("Disc", way, frames=8, size=32, rng=rng) for way in ("Left", "Left", "Up", "Down")])
    network = EqMPipeline.from_pretrained(make(tmp_path, "export", ATTRIBUTES))
    rows = [
        compose.row(Samples("composed", "Disc + Left", "DiscLeft", clips, 0), [network]),
        compose.row(Samples("composed", "Square + Left", "SquareLeft", clips, 0), [network]),
        compose.row(Samples("alone", "Disc", None, clips, 0), [network]),
    ]
    assert means(rows) == {"composed": {"shape_accuracy": 0.5, "direction_accuracy": 0.5, "both_accuracy": 0.25}}
    assert means(rows[2:]) == {}


def test_data_are_written_by_the_command(tmp_path, capsys):
    compose.VIDEOS, before = 2, compose.VIDEOS
    held_out, compose.HELD_OUT = compose.HELD_OUT, 1
    try:
        assert Compose.main(["--write-data", str(tmp_path / "data")]) == 0
    finally:
        compose.VIDEOS, compose.HELD_OUT = before, held_out
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([*ATTRIBUTES, "splits"])
    assert "eqm-video train --config attributes data.root=" in capsys.readouterr().out
