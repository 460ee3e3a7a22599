"""Known regions and loops as a study: exact fields, seams, and the command on a tiny model."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video import cli
from eqm_video.data.moving_shapes import label_names
from eqm_video.studies import regions


def test_on_exact_fields_tokens_ahead_lead_to_the_right_clip_and_rings_to_loops():
    found = {name: float(values.mean()) for name, values in regions.exact_regions(24, 0).items()}
    own, ahead, _ = found.values()
    assert ahead == 1.0 > own > 1 / 12
    row, _, ring, wrong = (float(values.mean()) for values in regions.exact_loops(24, 0).values())
    assert ring > 0.4 > row and wrong == 0


def test_a_round_has_a_seam_like_its_other_steps_and_a_row_has_not():
    column = np.zeros((1, 8, 4, 8, 3), np.uint8)
    for frame in range(8):
        column[0, frame, :, frame] = 255
    np.testing.assert_allclose(regions.seam(column), 1.0)
    assert regions.seam(column[:, [0, 0, 0, 1, 1, 4, 4, 4]])[0] > 2


def test_the_command_measures_both(tmp_path, capsys):
    names = label_names(("Disc", "Square"))
    tiny_pipeline(tiny_transformer(num_labels=8), id2label=names, frames=4).save_pretrained(tmp_path / "export")
    words = ["regions", str(tmp_path / "export"), "--out", str(tmp_path / "out"), "--num-samples", "2", "--steps", "2"]
    assert cli.main([*words, "--exact-starts", "4", "--lengths", "4"]) == 0
    found = json.loads((tmp_path / "out" / "regions.json").read_text())["found"]
    assert len(found) == 11 and found["exact field, half known, tokens half-way ahead: the right clip"]["mean"] == 1
    assert "| a hole in the middle unknown: frames with the shape in its place" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "regions.png") as picture:
        assert picture.width == 2 * 5 * 16 and picture.height == 8 * 2 * 18
