"""The benchmarks run at small sizes, and their numbers agree with each other."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from conftest import ROOT
from numbered import write_numbered

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
import loader
import measuring
import memory
import reading
import resizing
import sample
import tables
import temporal
import train_step

SHAPE = ["--presets", "S/2", "--frames", "1,2", "--size", "4", "--depth", "1", "--repeats", "1"]
PEER = """
import torch

class Peer(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, latents, labels):
        return self.linear(latents.movedim(2, -1)).movedim(-1, 2)

def make(peer, *, width, depth, heads, patch, frames, size, channels, labels):
    assert peer.name == "checkout" and (depth, patch, size, channels) == (1, 2, 4, 4)
    return Peer(width)
"""


def rows_of(module, words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The rows of the record that a benchmark writes."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *words, "--out", str(out)])
    module.main()
    record = json.loads(out.read_text())
    assert record["benchmark"] == module.__name__ and record["machine"]["torch"] == torch.__version__
    assert {"commit", "command", "load"} <= record.keys() and {"processor", "cpu_flags"} <= record["machine"].keys()
    return record["rows"]


def test_a_step_is_timed_beside_a_peer(tmp_path, monkeypatch) -> None:
    (tmp_path / "adapter.py").write_text(PEER)
    words = [*SHAPE, "--peer", str(tmp_path / "checkout"), "--adapter", str(tmp_path / "adapter.py")]
    rows = rows_of(train_step, words, tmp_path / "out.json", monkeypatch)
    assert [(row["module"], row["frames"]) for row in rows] == [
        (m, f) for f in (1, 2) for m in ("eqm-video", "adapter")
    ]
    for row in rows:
        assert row["clips_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["of_peak"] == pytest.approx(row["tflops"] / row["peak_tflops"])
        assert row["tokens_per_second"] == pytest.approx(4 * row["frames"] / row["seconds"])
    one, other, two, _ = rows
    assert 1.5 < two["tflop"] / one["tflop"] < 3 and one["tflop"] > 100 * other["tflop"]  # attention in time, too
    assert two["gib_moved_unfused"] > one["gib_moved_unfused"] and other["gib_moved_unfused"] is None


def test_costs_are_those_of_the_written_out_network() -> None:
    """A training step is 3 forward passes, less the derivative by the latents."""
    shape, network = (1, 1, 4, 4, 4), measuring.build("S/2", depth=1, device="meta", temporal=False)
    found = measuring.costs("S/2", shape, 1, training=False)["flops"]
    tokens, width = 4, 384
    products = 2 * tokens * (16 * width + 12 * width**2 + 16 * width)  # patches, block, head
    condition = 2 * (256 * width + width**2 + (6 + 2) * width**2)
    attention = 2 * 2 * tokens**2 * width
    assert found == products + condition + attention
    training = measuring.costs("S/2", shape, 1, training=True)["flops"]
    assert 2.9 * found < training <= 3 * found
    assert sum(weight.numel() for weight in network.parameters()) > 2e6


def test_a_descent_is_timed_beside_bare_calls(tmp_path, monkeypatch) -> None:
    rows = rows_of(sample, [*SHAPE, "--steps", "2"], tmp_path / "out.json", monkeypatch)
    assert [(row["frames"], row["guidance"]) for row in rows] == [(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)]
    assert rows[1]["tflop"] == pytest.approx(2 * rows[0]["tflop"], rel=0.2)
    assert all(row["of_bare"] > 0 and row["of_anew"] > 0 and math.isfinite(row["clips_per_second"]) for row in rows)


def test_a_case_of_memory_is_measured(capsys) -> None:
    words = ["--presets=S/2", "--frames=2", "--size=4", "--depth=1", "--recompute=selective"]
    memory.one(train_step.parser("").parse_args(words))
    row = json.loads(capsys.readouterr().out)
    assert row["recompute"] == "selective" and row["gib"] >= 0 and 0 < row["counted"] < 1
    assert row["gap"] == pytest.approx(row["gib"] / row["counted"] - 1) and row["counted_heap"] > row["counted"]


def test_batches_of_a_recipe_are_timed(made, tmp_path, monkeypatch, fresh_accelerator) -> None:
    words = ["actions", f"data.root={made / 'videos'}", f"codec.name={made / 'codec'}", "data.size=16", "frames=3"]
    words += ["data.frame_interval=1", "data.split=null", "train.batch_size=2", "data.workers=0", "--batches", "2"]
    (row,) = rows_of(loader, words, tmp_path / "out.json", monkeypatch)
    assert row["clips"] == 4 and row["batch"][:2] == [2, 3] and row["clips_per_second"] > 0


@pytest.fixture
def options(tmp_path) -> argparse.Namespace:
    """The options of `gpu.py --tiny`."""
    return argparse.Namespace(out=tmp_path, device="cpu", tiny=True, size=4, depth=1, peer=None, adapter=None)


def test_numbers_of_precisions_and_kernels_of_a_step(options) -> None:
    exact, rough, compiled, _ = gpu.numbers(options)
    assert all(exact[key] == 0 for key in exact if key.startswith("relative"))
    assert 0 < rough["relative_sample"] < 0.05 and rough["relative_gradient"] < 0.1
    assert compiled["relative_sample"] < 1e-5 and compiled["compiled"]
    whole, *kernels = gpu.profile(options)
    assert sum(row["share"] for row in kernels) <= 1.001 and kernels[0]["milliseconds"] <= whole["milliseconds"]


def test_numbers_that_compile_are_left_when_others_do_not(options, monkeypatch) -> None:
    whole = gpu.values

    def values(options: argparse.Namespace, dtype: str, *given, compiled: bool):
        if compiled:
            raise RuntimeError(f"no compiler for {dtype} (/home/me/file.py:3)\nin {{}}")
        return whole(options, dtype, *given, compiled=False)

    monkeypatch.setattr(gpu, "values", values)
    *good, third, fourth = gpu.numbers(options)
    assert len(good) == 2 and not any("error" in row for row in good)
    assert third["error"] == "compiled blocks cannot run here: no compiler for fp32 in {}" and fourth["compiled"]


def test_a_run_from_the_disk_is_stopped_and_resumed(options, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", warm.python())
    started, resumed = gpu.training(options)
    assert resumed["step"] > started["step"] > 0 and resumed["clips_per_second"] > 0


def test_every_stage_is_a_command_that_can_be_read_and_all_end_in_time(options, tmp_path) -> None:
    for tiny, device in ((True, "cpu"), (False, "cuda")):
        options.tiny, options.device, options.peer, options.adapter = tiny, device, tmp_path, tmp_path / "a.py"
        made = gpu.stages(options)
        assert sum(limit for *_, limit in made) <= 25 * 60 and set(gpu.OWN) <= {name for name, *_ in made}
        for name, words, _ in made:
            assert Path(words[0]).is_file()
            if name not in gpu.OWN:
                parsed, rest = train_step.parser("").parse_known_args(words[1:])
                assert parsed.device == device and rest == (["--modes=selective"] if tiny and name == "memory" else [])


def test_shapes_that_were_measured_are_left_when_a_later_one_fails(tmp_path, capsys) -> None:
    options = train_step.parser("").parse_args([*SHAPE, "--out", str(tmp_path / "out.json")])
    options.frames = "1,2,3"

    def measure(options: argparse.Namespace, preset: str, frames: int) -> list[dict]:
        if frames == 2:
            raise torch.cuda.OutOfMemoryError
        if frames == 3:
            raise RuntimeError("the machine went away")
        return [{"preset": preset, "frames": frames}]

    with pytest.raises(RuntimeError, match="went away"):
        measuring.every_shape("train_step", options, measure)
    first, second = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert first == {"preset": "S/2", "frames": 1} and second["error"] == "out of memory"
    assert capsys.readouterr().out.count("\n") == 2


def test_a_stage_that_takes_too_long_ends_with_its_children_and_good_ones_are_not_repeated(options, tmp_path, capsys):
    long = tmp_path / "long.py"
    long.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)\n"
    )
    good = tmp_path / "good.py"
    good.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n")
    bad = tmp_path / "bad.py"
    bad.write_text("raise ValueError('no data')\n")
    wanted = [("good", [str(good)], 60.0), ("long", [str(long)], 0.75), ("bad", [str(bad)], 60.0)]
    assert not gpu.every_stage(options, wanted) and not gpu.every_stage(options, wanted)
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row.get("error", "") for row in rows] == ["", "it reached its limit", "ValueError: no data"]
    ends = {row["stage"]: row["exit"] for row in rows}
    assert ends == {"good": 0, "long": None, "bad": 1} and (tmp_path / "runs").read_text() == "x"
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"
    assert "good has been measured" in capsys.readouterr().out


def test_predictions_stand_beside_what_was_measured() -> None:
    row = {"preset": "S/2", "frames": 16, "batch": 2, "tflop": 2.0, "module": "eqm-video", "of_peak": 0.6}
    text = gpu.predictions("NVIDIA H100 80GB HBM3", [{**row, "clips_per_second": 321.0}])
    assert text.splitlines()[1].split() == ["eqm-video", "S/2", "16", "396", "321", "60%"]  # .4 of 989 TFLOP/s
    assert "?" in gpu.predictions("Radeon", [{**row, "error": "out of memory"}])


def test_half_of_the_attention_in_time_is_compared_at_equal_computation(tmp_path) -> None:
    whole, half = (temporal.flops("Nano/4", every) for every in (1, 2))
    assert whole / half == pytest.approx(16 / 14, rel=0.01)  # of 16 D^2 products a block, attention in time has 4
    runs = {every: [tmp_path / f"{every}_{seed}" for seed in range(2)] for every in (1, 2)}
    for every, folders in runs.items():
        for seed, folder in enumerate(folders):
            folder.mkdir()
            (folder / "measured_3.json").write_text(json.dumps({"generation": [1.0 * every, 2.0, 3.0]}))
            lines = [{"step": 5, "held_out": {"mean": 9.0}}, {"step": 6, "held_out": {"mean": every + 0.1 * seed}}]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    clips, loss = temporal.summary(runs, 3)
    assert (clips["every block"], clips["every second"]) == pytest.approx((2, 7 / 3))
    assert clips["difference"]["mean"] == pytest.approx(1 / 3) and clips["difference"]["runs"] == 2
    assert (loss["every block"], loss["every second"]) == pytest.approx((1.05, 2.05))  # of the last step
    assert loss["difference"]["mean"] == pytest.approx(1) and loss["difference"]["signs"] == 2
    assert loss["difference"]["high"] - loss["difference"]["low"] < 1e-6


def test_the_documents_have_the_tables_of_the_records() -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.fill(text) == text, f"{page.name}: type python benchmarks/tables.py"
    used = {found[2] for page in tables.PAGES for found in tables.MARK.finditer(page.read_text(encoding="utf-8"))}
    assert used == set(tables.TABLES)


def test_readers_and_ways_to_resize_are_compared(tmp_path) -> None:
    path = write_numbered(tmp_path / "a.avi", 40, codec="mpeg4", options={"g": "8"})
    row = reading.row_of(path, 2, argparse.Namespace(clips=2, repeats=1))
    assert (row["chosen"], row["clips"]) == ("pyav", 2) and row["group"] <= 8 and row["largest difference"] <= 2
    assert all(row[f"ms {name}"] > 0 for name in ("decord", "pyav", "before"))
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for _ in range(6)]
    options = argparse.Namespace(sizes="64,16", splits=2)
    same, _, small, _ = resizing.rows_of("noise", noise, options)
    assert same["gap"] == same["direct"] == 0 and same["scale"] == 1  # nothing is resized
    assert small["direct"] > 0.01 * small["exact"] and small["gap"] != 0  # noise shows how a filter averages
