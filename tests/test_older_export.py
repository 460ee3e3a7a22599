"""An export of commit 6902fd2, and what that commit sampled from it: the same today, by both entries.

samples.safetensors and command.npz were written by that commit's own `EqMPipeline` and `sample_video.py`, on a CPU with
AVX-512. On such a CPU, with that release of torch, equality is bitwise; others add and round in another order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sample_command import run
from torch import Tensor

from eqm_video.sampling.pipeline import EqMPipeline

EXPORT = Path(__file__).resolve().parent / "data" / "export_6902fd2"
SAME = torch.__version__.startswith("2.13.0") and torch.backends.cpu.get_cpu_capability() == "AVX512"
CLIPS = (torch.arange(2 * 3 * 16 * 16 * 3) % 251).to(torch.uint8).reshape(2, 3, 16, 16, 3).numpy()
TWO = {"labels": ["up", "left"], "seeds": [0, 1], "output_type": "latent"}
CALLS = {
    "guided": TWO,
    "euler": {**TWO, "sampler": "euler"},
    "schedule": {
        **TWO,
        **{"labels": ["down", None], "seeds": [2, 3]},
        **{"sampler": "gd", "step_size": 0.03, "step_schedule": "cosine", "steps": 6},
    },
    "continued": {**TWO, "clips": CLIPS, "known": [0]},
    "composed": {
        **{"num_samples": 2, "seeds": [4, 5], "output_type": "latent"},
        "composition": [("up", 1.5), ("down", 0.5), (None, -1.0)],
    },
}


@pytest.fixture(scope="module")
def pipe() -> EqMPipeline:
    loaded = EqMPipeline.from_pretrained(EXPORT)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(EXPORT / "samples.safetensors")


def assert_the_same(now: Tensor, then: Tensor) -> None:
    if SAME:
        assert torch.equal(now, then)
    torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CALLS)
def test_latents_are_those_that_were_recorded(pipe, recorded, name):
    assert_the_same(pipe(**CALLS[name]).frames, recorded[name])


def test_the_codec_encodes_and_decodes_as_it_did(pipe, recorded):
    assert_the_same(pipe.encode(CLIPS), recorded["moments_of_clips"])
    frames = pipe(["up", "left"], seeds=[0, 1], output_type="uint8").frames
    assert np.abs(frames.astype(int) - recorded["frames"].numpy()).max() <= (0 if SAME else 1)


def test_the_command_writes_the_samples_that_it_wrote(tmp_path):
    words = ("--out", tmp_path / "out", "--num-samples", 4, "--batch-size", 3, "--format", "png")
    assert run(EXPORT, *words) == 0
    with np.load(tmp_path / "out" / "samples.npz") as now, np.load(EXPORT / "command.npz") as then:
        assert now["labels"].tolist() == then["labels"].tolist()
        assert np.abs(now["arr_0"].astype(int) - then["arr_0"]).max() <= (0 if SAME else 1)
