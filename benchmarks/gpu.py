"""Everything that only a GPU can tell, in at most 25 minutes: numbers, times, memory, a profile, and a training run.

    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --out gpu --peer ../Latte --adapter benchmarks/peers/latte.py
    python benchmarks/gpu.py --out tiny --tiny

--peer measures another checkout beside ours; --tiny tries the script itself, on a CPU.

Each stage is a process with a limit of its own, and writes a record into the folder: one that fails or takes too long
costs no other. `summary.json` says how each ended.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
import train_step

from eqm_video.core.energy import Field
from eqm_video.data.moving_shapes import write_moving_shapes

HERE = Path(__file__).resolve().parent
STEPS = 20  # of training, in each precision


def numbers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """bf16 beside float32, and compiled blocks beside plain ones: outputs, gradients and losses of training."""
    device, shape = (
        torch.device(options.device),
        (2, 4 if options.tiny else 16, measuring.CHANNELS, *[options.size] * 2),
    )
    rows, found = [], {}
    for dtype, compiled in (("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)):
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
        step = train_step.step_of(network, lambda *given, net=network: Field(net)(*given).sample, shape, device, dtype)
        for _ in range(2 if options.tiny else STEPS):
            step()
        with torch.no_grad():
            trained = Field(network)(latents, labels).sample.square().mean()
        values = {"sample": sample.detach(), "gradient": gradient, "trained": trained[None]}
        found.setdefault("exact", values)
        far = {key: float((values[key] - exact).norm() / exact.norm()) for key, exact in found["exact"].items()}
        rows.append({"dtype": dtype, "compiled": compiled, **{f"relative_{key}": value for key, value in far.items()}})
    return rows


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
    on_gpu = device.type == "cuda"
    spent = [(e.self_device_time_total if on_gpu else e.self_cpu_time_total, e) for e in profiler.key_averages()]
    total = sum(time for time, _ in spent)
    top = sorted(spent, key=lambda entry: -entry[0])[:30]
    whole = {"kernel": "all", "calls": sum(e.count for _, e in spent), "milliseconds": total / 1000, "share": 1.0}
    return [
        {**whole, "preset": preset, "shape": list(shape)},
        *({"kernel": e.key, "calls": e.count, "milliseconds": time / 1000, "share": time / total} for time, e in top),
    ]


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training from latents on disk, stopped by a signal in the middle and resumed."""
    data, run, cache = options.out / "videos", options.out / "run", options.out / "latents"
    write_moving_shapes(data, videos=8 if options.tiny else 40, size=32, frames=12, endless=True)
    preset, seconds = ("Nano/4", 1.0) if options.tiny else ("B/4", 300.0)
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
        raise RuntimeError(f"the cache failed: {done.stderr[-500:]}")
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
            raise RuntimeError(f"the run failed when {part}: {errors[-500:]}")
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
    large = ["--presets=S/2,B/2,XL/2", "--frames=1,16,32", "--batch=4", "--dtype=bf16"]
    shape = ["--presets=S/2", "--frames=1,2", "--depth=1", "--size=4", "--repeats=1"] if options.tiny else large
    shape += [f"--device={options.device}"]
    peer = [f"--peer={options.peer}", f"--adapter={options.adapter}"] if options.peer else []
    compiled = [] if options.tiny else ["--compile"]
    return [
        ("numbers", [*this, "--stage=numbers"], 180.0),
        ("train_step", [str(HERE / "train_step.py"), *shape, *peer, *compiled], 420.0),
        ("sample", [str(HERE / "sample.py"), *shape], 90.0),
        ("memory", [str(HERE / "memory.py"), *shape, *(["--frames=1"] if options.tiny else [])], 120.0),
        ("profile", [*this, "--stage=profile"], 90.0),
        ("training", [*this, "--stage=training"], 600.0),
    ]


def main() -> None:
    """Run all stages, or one of this file's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--device", default=None, help="cuda, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--stage", choices=tuple(OWN))
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here: add --tiny to try the script on a CPU")
    options.size, options.depth = (4, 1) if options.tiny else (32, None)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        rows = OWN[options.stage](options)
        measuring.record("gpu", rows, torch.device(options.device), options.out / f"{options.stage}.json")
        return
    ends = []
    for name, words, limit in stages(options):
        words = words if "--stage" in words[-1] else [*words, f"--out={options.out / f'{name}.json'}"]
        began = time.monotonic()
        try:
            code = subprocess.run([sys.executable, *words], timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = None
        ends.append({"stage": name, "exit": code, "limit": limit, "seconds": time.monotonic() - began})
    measuring.record("gpu", ends, torch.device(options.device), options.out / "summary.json")
    if any(end["exit"] != 0 for end in ends):
        sys.exit(1)


if __name__ == "__main__":
    main()
