"""Everything that only a GPU can tell, in at most 25 minutes: numbers, times, memory, a profile, and a training run.

    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --out gpu --stages numbers,train_step
    python benchmarks/gpu.py --out gpu --peer ../Latte --adapter benchmarks/peers/latte.py
    python benchmarks/gpu.py --out gpu --predict h100
    python benchmarks/gpu.py --out tiny --tiny

--stages names some of the stages, where a command may not take 25 minutes; --peer measures another checkout beside
ours; --predict prints what arithmetic gives for a GPU, without one; --tiny tries the script itself, on a CPU.

Each stage is a process with a limit of its own, and writes a record into the folder: one that fails or takes too long
costs no other, and leaves the shapes that it has measured. Its messages are in STAGE.log. `summary.json` says how each
ended, and why, after each of them. The same command again runs only those that did not end well. At the end the
measured steps stand beside the predicted ones. With --tiny the limits are four times as long.

Of the package's dependencies it needs those in benchmarks/gpu_wheels.txt, and only `training` needs av. For a machine
without a network, `pip download --no-deps --dest wheels -r benchmarks/gpu_wheels.txt` here and `pip install --no-deps
wheels/*.whl` there leave its torch as it is; for another Python add --python-version and --only-binary=:all:.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import measuring
import torch
import train_step

from eqm_video.core.energy import Field
from eqm_video.training.estimate import REACHED, SPECS

HERE = Path(__file__).resolve().parent
STEPS = 20  # of training, in each precision


def numbers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """bf16 beside float32, and compiled blocks beside plain ones: outputs, gradients and losses of training."""
    device, shape = (
        torch.device(options.device),
        (2, 4 if options.tiny else 16, measuring.CHANNELS, *[options.size] * 2),
    )
    rows, exact = [], {}
    for dtype, compiled in (("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)):
        row = {"dtype": dtype, "compiled": compiled}
        try:
            found = values(options, dtype, shape, device, compiled=compiled)
        except RuntimeError as error:
            if not compiled:
                raise
            rows.append({**row, "error": f"compiled blocks cannot run here: {_short(error)}"})
            continue
        exact = exact or found
        far = {key: float((found[key] - value).norm() / value.norm()) for key, value in exact.items()}
        rows.append({**row, **{f"relative_{key}": value for key, value in far.items()}})
    return rows


def values(
    options: argparse.Namespace, dtype: str, shape: tuple[int, ...], device: torch.device, *, compiled: bool
) -> dict[str, torch.Tensor]:
    """An output of S/2, the gradient of all weights, and the loss after some steps, flat but for the output."""
    network = measuring.build("S/2", depth=options.depth, device=options.device)
    for block in network.blocks if compiled else ():
        block.compile(fullgraph=True, backend="eager" if options.tiny else "inductor")
    torch.manual_seed(1)
    latents, labels = torch.randn(shape, device=device), torch.zeros(2, dtype=torch.long, device=device)
    with measuring.autocast(device, dtype):
        sample = Field(network)(latents, labels).sample.float()
    sample.square().mean().backward()
    gradient = torch.cat([weight.grad.flatten().float() for weight in network.parameters()])
    network.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    step = train_step.step_of(network, lambda *given: Field(network)(*given).sample, shape, device, dtype)
    for _ in range(2 if options.tiny else STEPS):
        step()
    with torch.no_grad():
        trained = Field(network)(latents, labels).sample.square().mean()
    return {"sample": sample.detach(), "gradient": gradient, "trained": trained[None]}


def _short(error: Exception) -> str:
    """The first words of an error on one line, without the places in files that torch adds."""
    return re.sub(r" *\(/[^)]*\)", "", " ".join(str(error).split()))[:300]


def profile(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The kernels of a training step that take the most time."""
    device, preset = torch.device(options.device), "S/2" if options.tiny else "B/2"
    shape = (1 if options.tiny else 8, 4 if options.tiny else 16, measuring.CHANNELS, *[options.size] * 2)
    dtype = "fp32" if options.tiny else "bf16"
    network = measuring.build(preset, depth=options.depth, device=options.device)
    for block in network.blocks if not options.tiny else ():
        block.compile(fullgraph=True)
    step = train_step.step_of(network, lambda *given: Field(network)(*given).sample, shape, device, dtype)
    for _ in range(3):
        step()
    with torch.profiler.profile() as profiler:
        step()
        measuring.machine.synchronise(device)
    events = profiler.key_averages()
    spent, clock = [(event.self_device_time_total, event) for event in events], "device"
    if not any(time for time, _ in spent):
        spent, clock = [(event.self_cpu_time_total, event) for event in events], "host"
        if device.type == "cuda":
            print("the profiler saw no kernel on cuda: times are those of the host", file=sys.stderr)
    total = sum(time for time, _ in spent)
    top = sorted(spent, key=lambda entry: -entry[0])[:30]
    whole = {"kernel": "all", "calls": sum(e.count for _, e in spent), "milliseconds": total / 1000, "share": 1.0}
    return [
        {**whole, "preset": preset, "shape": list(shape), "times of": clock},
        *({"kernel": e.key, "calls": e.count, "milliseconds": time / 1000, "share": time / total} for time, e in top),
    ]


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training from latents on disk, stopped by a signal in the middle and resumed."""
    from eqm_video.data.moving_shapes import write_moving_shapes  # the other stages need no data

    data, run, cache = options.out / "videos", options.out / "run", options.out / "latents"
    shutil.rmtree(run, ignore_errors=True)  # of an earlier try
    if not data.is_dir():
        write_moving_shapes(data, videos=8 if options.tiny else 40, size=32, frames=12, endless=True)
    preset, seconds = ("Nano/4", 1.0) if options.tiny else ("B/4", 200.0)
    command = [sys.executable, "-m", "eqm_video"]
    words = [f"model.preset=EqM-{preset}", f"data.root={data}", "preview.every=0", f"run.dir={run}", "train.lr=1e-4"]
    words += [
        "train.optimizer=adamw",
        "held_out.clips=4",
        "train.log_every=1" if options.tiny else "train.log_every=20",
    ]
    words += [] if options.tiny else ["train.mixed_precision=bf16", "train.compile=true", "train.batch_size=64"]
    words += ["train.batch_size=4"] if options.tiny else []
    done = subprocess.run(
        [*command, "cache", "--config", "endless", "--out", str(cache), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the cache failed: {_last(done.stderr)}")
    words += [f"data.latents=cache:{cache}", "train.steps=100000"]
    log, rows = run / "metrics.jsonl", []
    for part in ("started", "resumed"):
        resume = ["--resume"] if part == "resumed" else []
        trained = subprocess.Popen([*command, "train", "--config", "endless", *words, *resume], stderr=subprocess.PIPE)
        count = _lines(log)
        while trained.poll() is None and _lines(log) <= count:  # the start, and compilation
            time.sleep(0.2)
        time.sleep(0 if trained.poll() is not None else seconds)
        trained.send_signal(signal.SIGTERM)
        errors = trained.communicate(timeout=300)[1].decode(errors="replace")
        if trained.returncode:
            raise RuntimeError(f"the run failed when {part}: {_last(errors)}")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        fastest = max(line["clips_per_second"] for line in lines[count:])
        rows.append({"part": part, "preset": preset, "step": lines[-1]["step"], "loss": lines[-1]["loss"]})
        rows[-1] |= {"clips_per_second": fastest, "seconds": lines[-1]["seconds"]}
    if rows[1]["step"] <= rows[0]["step"]:
        raise RuntimeError(f"the resumed run did not go on: {rows}")
    return rows


def _lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.is_file() else 0


OWN: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "numbers": numbers,
    "profile": profile,
    "training": training,
}


def stages(options: argparse.Namespace) -> list[tuple[str, list[str], float]]:
    """(record, words of a command, limit in seconds) of each stage: 25 minutes in all."""
    this = [str(Path(__file__).resolve()), f"--out={options.out}", f"--device={options.device}"]
    this += ["--tiny"] if options.tiny else []
    large = ["--presets=S/2,B/2,XL/2", "--frames=1,16,32", "--batch=2", "--dtype=bf16"]
    shape = (
        ["--presets=S/2", "--frames=1,2", "--depth=1", "--size=4", "--repeats=1", "--product=64"]
        if options.tiny
        else large
    )
    shape += [f"--device={options.device}"]
    peer = [f"--peer={options.peer}", f"--adapter={options.adapter}"] if options.peer else []
    compiled, few, two = (
        [] if options.tiny else ["--compile"],
        ["--frames=1", "--modes=selective"],
        ["--presets=S/2,XL/2", "--frames=16"],
    )
    return [
        ("numbers", [*this, "--stage=numbers"], 180.0),
        ("train_step", [str(HERE / "train_step.py"), *shape, *peer, *compiled], 420.0),
        ("sample", [str(HERE / "sample.py"), *shape, *([] if options.tiny else ["--frames=1,16"])], 90.0),
        # A process for each of the modes, of 10 seconds or more: two sizes.
        ("memory", [str(HERE / "memory.py"), *shape, *(few if options.tiny else two)], 120.0),
        ("profile", [*this, "--stage=profile"], 120.0),
        ("training", [*this, "--stage=training"], 570.0),
    ]


def run(words: list[str], limit: float, log: Path) -> int | None:
    """The exit status of a stage; None if it reached its limit, at which all processes that it started end with it.

    log: the file that its messages go to.
    """
    with log.open("wb") as messages:
        stage = subprocess.Popen([sys.executable, *words], start_new_session=True, stderr=messages)
    try:
        return stage.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()


def predictions(device: str, rows: list[dict[str, Any]]) -> str:
    """A table of the steps in `rows`, or of all that are to be measured: predicted and measured clips a second.

    The prediction is that of a dry run: FLOPs over 40 % of the data sheet's peak. device: a name that holds a sheet's.
    """
    sheet = next((spec for name, spec in SPECS.items() if name in device.lower()), None)
    rows = rows or [{"preset": name, "frames": frames} for name in ("S/2", "B/2", "XL/2") for frames in (1, 16, 32)]
    lines = ["network              preset  frames  predicted clips/s  measured  of the measured peak"]
    for row in rows:
        shape = (1, row["frames"], measuring.CHANNELS, 32, 32)
        flops = 1e12 * row["tflop"] / row["batch"] if "tflop" in row else _flops(row["preset"], shape)
        said = f"{REACHED['cuda'] * sheet.bf16 / flops:.3g}" if sheet else "?"
        found = f"{row['clips_per_second']:.3g}" if "clips_per_second" in row else row.get("error", "")
        share = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
        name = row.get("module", "eqm-video")
        lines.append(f"{name:20} {row['preset']:7} {row['frames']:6}  {said:>17}  {found:>8}  {share:>20}")
    return "\n".join(lines)


def _flops(preset: str, shape: tuple[int, ...]) -> float:
    return measuring.costs(preset, shape, None, training=True)["flops"]


def main() -> None:
    """Run all stages, or one of this file's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--device", default=None, help="cuda, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--stage", choices=tuple(OWN), help="run this stage here: the script starts itself so")
    parser.add_argument("--stages", help="only these, such as numbers,profile")
    parser.add_argument(
        "--predict", metavar="GPU", choices=tuple(SPECS), help="print the prediction for a GPU, and end"
    )
    options = parser.parse_args()
    if options.predict:
        print(predictions(options.predict, []))
        return
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here: add --tiny to try the script on a CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the stage at hand ends, too
    options.size, options.depth = (4, 1) if options.tiny else (32, None)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        rows = OWN[options.stage](options)
        measuring.record("gpu", rows, torch.device(options.device), options.out / f"{options.stage}.json")
        if any("error" in row for row in rows):
            sys.exit(next(row["error"] for row in rows if "error" in row))
        return
    wanted = [stage for stage in stages(options) if options.stages is None or stage[0] in options.stages.split(",")]
    if not wanted:
        parser.error(
            f"--stages {options.stages} names no stage: take some of {', '.join(n for n, *_ in stages(options))}"
        )
    if not every_stage(options, wanted):
        sys.exit(1)


def every_stage(options: argparse.Namespace, wanted: list[tuple[str, list[str], float]]) -> bool:
    """Run the stages that have not ended well before, and print steps beside predictions; whether all are well."""
    summary, device = options.out / "summary.json", torch.device(options.device)
    ends = {end["stage"]: end for end in _rows(summary)}
    for name, words, limit in wanted:
        if ends.get(name, {}).get("exit") == 0:
            print(f"{name} has been measured; remove {summary} to measure it again", flush=True)
            continue
        words = words if "--stage" in words[-1] else [*words, f"--out={options.out / f'{name}.json'}"]
        limit *= 4 if options.tiny else 1  # nobody waits for the CPU, and others may use it
        began, log = time.monotonic(), options.out / f"{name}.log"
        end, spent = run(words, limit, log), time.monotonic() - began
        ends[name] = {"stage": name, "exit": end, "limit": limit, "seconds": spent}
        if end != 0:
            ends[name]["error"] = "it reached its limit" if end is None else _last(log.read_text(errors="replace"))
            print(f"{name} did not end well: {ends[name]['error']}", flush=True)
        measuring.write("gpu", list(ends.values()), device, summary)
    measuring.show(list(ends.values()))
    if not options.tiny and _rows(options.out / "train_step.json"):
        print(predictions(measuring.machine.device_name(device), _rows(options.out / "train_step.json")))
    return all(ends[name]["exit"] == 0 for name, *_ in wanted)


def _last(messages: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in messages.splitlines() if line.strip(" ^")]
    return lines[-1][:500] if lines else "it said nothing"


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []


if __name__ == "__main__":
    main()
