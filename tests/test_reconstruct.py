"""`reconstruct`: what a codec costs in PSNR, SSIM and metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from eqm_video import cli
from eqm_video.evaluation.clips import Arrays
from eqm_video.evaluation.protocol import Protocol
from eqm_video.evaluation.run import Evaluation
from eqm_video.features.feature import Input
from eqm_video.features.registry import open_feature
from eqm_video.metrics.registry import find_metric


def test_the_command_writes_psnr_ssim_and_metrics_beside_real_clips(made, tmp_path, capsys):
    words = [
        str(made / "videos"),
        "--out",
        str(tmp_path),
        "--codec",
        str(made / "codec"),
        "--size",
        "16",
        "--frames",
        "3",
    ]
    assert cli.main(["reconstruct", *words, "--frame-interval", "1", "--features", "pixels", "--count", "6"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["clips"]) == 6
    for name in ("psnr", "ssim"):
        found = numbers["fidelity"][name]
        assert found["low"] < found["mean"] < found["high"]
    assert numbers["fidelity"]["psnr"]["mean"] == pytest.approx(numbers["psnr_mean"], abs=0.5)  # of 8 bits; of frames
    mmd = numbers["metrics"]["mmd"]
    assert mmd["title"] == "MMD (pixels)" and mmd["n"] == [3, 3] and mmd["codec"]["splits"] == 8
    said = capsys.readouterr().out
    assert f"{mmd['codec']['value']:.4g}" in said and (tmp_path / "pairs.gif").is_file()


def test_a_perfect_codec_costs_nothing_and_a_grey_one_much():
    feature, cpu = open_feature("pixels", Input()), torch.device("cpu")
    evaluation = Evaluation(Protocol(feature="pixels"), (find_metric("mmd", "pixels"),), feature, cpu)
    clips = np.random.default_rng(0).integers(200, 256, (12, 1, 1, 1, 3)).repeat(4, 1).repeat(8, 2).repeat(8, 3)
    clips = clips.astype(np.uint8)
    real, blank = Arrays(clips, [None] * 12), [None] * 12
    perfect = evaluation.of_codec(real, Arrays(clips.copy(), blank))["mmd"]
    grey = evaluation.of_codec(real, Arrays(np.full_like(clips, 128), blank))["mmd"]
    assert perfect["codec"] == perfect["floor"] == grey["floor"] and grey["codec"]["min"] > grey["floor"]["max"]
