"""Labels: names before numbers, one form for accents, none without a name, and any name can be typed."""

from __future__ import annotations

import os

import pytest
from tiny_models import tiny_pipeline

from eqm_video.errors import UserError
from eqm_video.sampling.arguments import label_ids
from eqm_video.sampling.labels import captions, choose_labels, names
from eqm_video.sampling.options import parse

NUMBERS = {0: "0", 1: "1", 2: "10", 3: "2"}


def test_a_name_that_is_a_number_is_a_name() -> None:
    assert label_ids(["2", "10", 2], NUMBERS, 4) == [3, 2, 2]  # an int is a number, in Python
    with pytest.raises(UserError, match=r"unknown label '3'; .*known labels: 0, 1, 10, 2"):
        label_ids(["3"], NUMBERS, 4)
    with pytest.raises(UserError, match="unknown label '0'"):  # one such name is enough
        label_ids(["0"], {0: "walk", 1: "101"}, 2)
    assert label_ids(["1", "walk"], {0: "walk", 1: "run"}, 2) == [1, 0]


def test_accents_are_compared_in_one_form() -> None:
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    for stored in (composed, apart):
        assert label_ids([composed, apart], {0: "Tea", 1: stored}, 2) == [1, 1]
        assert set(tiny_pipeline(id2label={0: stored, 1: "Tea"}).labels.values()) == {composed, "Tea"}
    raw = os.fsdecode(b"caf\xe9")  # as a terminal hands it over
    assert label_ids([raw, r"caf\xe9"], {0: r"caf\xe9"}, 1) == [0, 0]
    assert label_ids(["a\nb", r"a\nb"], {0: r"a\nb"}, 1) == [0, 0]


def test_numbers_without_a_name_are_refused_and_never_drawn() -> None:
    known = {0: "up", 2: "down"}
    for label in (1, "1", 4):
        with pytest.raises(UserError, match=rf"label {label} has no name"):
            label_ids([label], known, 5)
    with pytest.raises(UserError, match="out of range"):
        label_ids([5], known, 5)
    assert label_ids([4], {}, 5) == [4]  # a model without names, such as a converted one
    pipeline = tiny_pipeline()
    total = pipeline.transformer.null_label
    pipeline.register_to_config(id2label={"0": "up", str(total - 1): "down"})
    assert choose_labels(pipeline, None, 4, 0) == [0, total - 1] * 2 == choose_labels(pipeline, ["all"], 4, 0)
    assert set(choose_labels(pipeline, ["random"], 40, 0)) == {0, total - 1}


@pytest.mark.parametrize("typed", ["pose=left up", "-minus", "--dashes", "a, b", "a\nb", "-1", "=", "x=1", "frames"])
def test_every_label_can_be_typed(typed: str) -> None:
    words = ["model", "--out", "o", "--labels", "up", typed, "down", "--num-samples", "3"]
    assert parse(words).labels == ("up", typed, "down") and parse(words).num_samples == 3
    assert parse(["model", "--out", "o", f"--labels={typed}"]).labels == (typed,)
    composed = parse(["model", "--out", "o", "--compose", f"{typed}:2", "up", "frames=1"])
    assert composed.composition == ((typed, 2.0), ("up", 1.0)) and composed.frames == 1


def test_options_and_overrides_end_a_list_of_labels() -> None:
    options = parse(["m", "--out", "o", "--labels", "up", "frames=1", "sampler.steps=5", "--start-gamma", "0.5"])
    assert (options.labels, options.frames, options.steps, options.start_gamma) == (("up",), 1, 5, 0.5)
    assert parse(["m", "--out", "o", "--lab", "-x", "--seed", "4"]).labels == ("-x",)
    with pytest.raises(UserError, match="unknown override 'pose=up'"):
        parse(["m", "pose=up", "--out", "o"])


def test_captions_are_short_where_that_is_enough() -> None:
    known = {0: "tench, Tinca tinca", 1: "red, big", 2: "red, small", 3: "shark"}
    assert captions(known, [0, 1, 2, 3, None, 9]) == ["tench", "red, big", "red, small", "shark", "unlabelled", "9"]
    assert names(tiny_pipeline(), [None, None]) is None
