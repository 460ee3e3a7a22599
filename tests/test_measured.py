"""Measurements that are kept: found again with the same settings, made again with others, and damage is said."""

from __future__ import annotations

import numpy as np
import pytest

from eqm_video.errors import UserError
from eqm_video.studies.measured import Measured


def test_a_measurement_is_kept_until_its_settings_change(tmp_path):
    calls, clips = [], np.zeros((2, 3, 4, 4, 3), np.uint8)

    def measure():
        calls.append(1)
        return {"found": len(calls), "reference": {"a": float("nan")}}, (clips, np.array([0, 1]))

    measured = Measured(tmp_path)
    assert measured.keep("base_gd", {"seeds": (0, 1)}, measure)["found"] == 1
    again = measured.keep("base_gd", {"seeds": [0, 1]}, measure)  # a list is how JSON keeps a tuple
    assert again["found"] == 1 and np.isnan(again["reference"]["a"]) and len(calls) == 1
    assert measured.clips("base_gd").shape == clips.shape
    assert measured.keep("base_gd", {"seeds": (0, 2)}, measure)["found"] == 2
    assert Measured(tmp_path, again=True).keep("base_gd", {"seeds": (0, 2)}, measure)["found"] == 3


@pytest.mark.parametrize(("text", "words"), [("{", "is damaged"), ("[]", "is no record of a measurement")])
def test_a_damaged_record_is_one_sentence(tmp_path, text, words):
    measured = Measured(tmp_path)
    measured.file("a").parent.mkdir()
    measured.file("a").write_text(text)
    with pytest.raises(UserError, match=f"a.json {words}.*; type --again to measure it again"):
        measured.keep("a", {}, lambda: ({}, None))
