"""Long videos measured while they are made: levels that are watched, schedules, spans, the command."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from tiny_models import tiny_pipeline, tiny_transformer

from eqm_video import cli
from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.objective import interpolate
from eqm_video.data.moving_shapes import label_names
from eqm_video.samplers import ClosedLoop, Multistep, run
from eqm_video.samplers.warp import Identity
from eqm_video.sampling.launch import fingerprint
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.studies.rollouts import measure
from eqm_video.studies.rollouts import study as rollouts


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("decay", [TruncatedDecay(), LinearDecay(), ConstantDecay()])
@pytest.mark.parametrize("loop", [None, ClosedLoop()])
def test_a_watched_descent_is_the_same_and_sees_a_wrong_level(decay, loop) -> None:
    data, noise = normal(6, 2, 4, 16, 16), normal(2, 2, 4, 16, 16, seed=1)
    start = interpolate(data[:2], noise, torch.full((2, 2), 0.3, dtype=noise.dtype))
    field = OracleField(data, decay)
    for assumed, gap in ((0.3, 0.0), (0.5, -0.2)):
        watch = measure.Watch(loop=loop)
        how = {"steps": 4, "decay": decay, "warp": Identity(), "start_gamma": assumed}
        plain = run(field, start, Multistep(), **how, loop=loop)
        watched = run(field, start, Multistep(), **how, loop=watch)
        assert torch.equal(plain.latents, watched.latents)
        used, alone = watch.estimates[0]
        assert (used - assumed).abs().max() < (1e-12 if loop is None else 0.21)
        assert (alone - assumed - gap).abs().max() < 0.1  # the noise of 1,024 numbers has a size of its own
        found = watch.gaps()
        assert found.shape == (2, 2) and watch.estimates == []
        if loop is None:
            assert (found[1] < 0.1).all() if gap == 0 else (found[0] < -0.05).all()


def test_spans_double_and_end_with_the_video() -> None:
    assert measure.spans(100, 4) == [8, 16, 32, 100] and measure.spans(8, 4) == [8] and measure.spans(64, 4)[-1] == 64


def test_schedules_know_a_part_of_the_window() -> None:
    known = {name: one.known(8, None) for name, one in measure.SCHEDULES.items()}
    assert known == {"overlap": 4, "chunk": 2, "rolling": 4, "bake-in": 4}
    assert measure.SCHEDULES["overlap"].known(8, 3) == 3 and measure.SCHEDULES["chunk"].known(8, 3) == 2


def test_baked_in_frames_were_pixels() -> None:
    pipeline = tiny_pipeline()
    more = {"length": 5, "overlap": 1, "seeds": [3], "steps": 2}
    plain = list(roll_out(pipeline, ["up"], **more))
    baked = list(roll_out(pipeline, ["up"], **more, bake_in=True))
    assert torch.equal(plain[0].latents, baked[0].latents)
    assert torch.equal(plain[1].latents[:, 0], plain[0].latents[:, -1])
    again = pipeline.encode(pipeline.decode(baked[0].latents[:, -1:]))
    torch.testing.assert_close(baked[1].latents[:, :1], again)
    assert not torch.equal(baked[1].latents[:, 0], plain[1].latents[:, 0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run on two tiny models, and its words."""
    folder = tmp_path_factory.mktemp("rollouts")
    options = {"id2label": label_names(("Disc", "Square")), "frames": 4}
    tiny_pipeline(tiny_transformer(num_labels=8), **options).save_pretrained(folder / "eqm")
    flow = tiny_transformer(num_labels=8, conditioned_on_gamma=True)
    tiny_pipeline(flow, **options, decay={"kind": "constant", "gain": 1.0}).save_pretrained(folder / "flow")
    words = ["rollouts", str(folder / "eqm"), str(folder / "flow"), "--out", str(folder / "out"), "--length", "18"]
    words += ["--steps", "2", "--num-samples", "2", "--schedules", "overlap", "rolling", "--closed-loop", "field"]
    assert cli.main(words) == 0
    return folder / "out", words


def test_every_cell_is_measured_span_by_span(finished) -> None:
    out, _ = finished
    numbers = json.loads((out / "rollouts.json").read_text())
    assert set(numbers["models"].values()) == {"EqM, truncated, gain 4", "flow matching"} == set(numbers["cells"])
    assert numbers["ends"] == [8, 18] and numbers["settings"]["overlap"] == 2
    for cells in numbers["cells"].values():
        assert set(cells) == {
            f"{schedule}, {loop}" for schedule in ("overlap", "rolling") for loop in ("open", "field")
        }
        for cell in cells.values():
            assert all(len(cell[name]) == 2 for name in (*measure.MEASURES, "memory"))
            assert cell["right"][0]["clips"] == 2 and 0 <= cell["right"][0]["mean"] <= 1
            assert cell["memory"][1] >= cell["memory"][0] > 10 and cell["seconds"][0] > 0
    closed = [row for row in numbers["differences"] if row["one"][0] == row["other"][0]]
    assert len(closed) == 4 * len(measure.MEASURES) and {row["other"][1] for row in closed} == {
        "overlap, open",
        "rolling, open",
    }
    assert {path.name for path in out.glob("*.png")} == {"rollouts.png", "rollouts_rolling.png"}
    views = rollouts.Rollouts.views(numbers)
    assert "single" not in views["differences"]
    alone = rollouts.Rollouts.views({**numbers, "differences": []})["differences"]
    assert alone == "a single model in a single loop: no difference to measure"
    assert "1 (n = 1)" in views["summary"] and "| flow matching" in views["level"] and "MiB" in views["settings"]


def test_finished_videos_are_not_made_again(finished, capsys, monkeypatch) -> None:
    out, words = finished
    before = json.loads((out / "rollouts.json").read_text())
    monkeypatch.setattr(measure, "roll", None)
    assert cli.main(words) == 0
    assert json.loads((out / "rollouts.json").read_text())["cells"] == before["cells"]


def test_a_key_that_a_model_s_files_do_not_have_leaves_its_measurements_valid(tmp_path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    new = fingerprint(EqMPipeline.from_pretrained(tmp_path))
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "temporal_every"}))
    older = EqMPipeline.from_pretrained(tmp_path)
    before = fingerprint(older)
    plain = {k: v for k, v in older.transformer.config.items() if k != "temporal_every"}
    older.transformer._internal_dict = FrozenDict(plain)  # as it was when the network had no such key
    assert fingerprint(older) == before != new
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_base": 100.0}))
    assert fingerprint(EqMPipeline.from_pretrained(tmp_path)) != before
