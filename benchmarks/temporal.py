"""Attention in time in every block or in every second one, at equal computation, on endless moving shapes.

    python benchmarks/temporal.py --data data/endless_shapes --runs runs/temporal --out temporal.json

Both networks are trained from the recipe `endless` with the same seeds. The one with half of the attention in time
takes more steps, so that both compute as much. Runs that are finished are kept, and interrupted ones go on. The record
has a mean for each, and their differences with 95 % intervals: over runs for the held-out loss (Student's t), over runs
and clips for everything else.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from eqm_video.metrics import intervals
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.demo import write_videos
from eqm_video.studies.forcing import measure, results
from eqm_video.studies.tasks import short
from eqm_video.studies.tasks.clips import Truth, names_of
from eqm_video.system.files import write_json
from eqm_video.training import cache
from eqm_video.training import launch as training

EVERY = (1, 2)
GAMMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
HOW = {"sampler": "multistep", "warp": "identity", "steps": 24, "guidance_scale": 2.0}


def flops(preset: str, every: int) -> float:
    """FLOPs of a training step of one clip of the recipe: 8 frames of 8 x 8 latents."""
    network = measuring.build(preset, device="meta", temporal_every=every)
    latents = torch.zeros(1, 8, measuring.CHANNELS, 8, 8, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(latents, torch.zeros(1, dtype=torch.long, device="meta")).sample.square().mean().backward()
    return counter.get_total_flops()


def train(options: argparse.Namespace, every: int, seed: int, steps: int) -> Path:
    """The folder of a finished run, which is trained if it is not there."""
    run, latents = options.runs / f"every_{every}_seed_{seed}", options.runs / "latents"
    if not (run / "export").is_dir():
        words = ["--config", "endless", f"data.root={options.data}", *options.overrides]
        if not (latents / "cache.json").is_file():
            cache.main([*words, "--out", str(latents)])
        words += [f"model.preset=EqM-{options.preset}", f"model.temporal_every={every}", f"train.seed={seed}"]
        words += [f"train.steps={steps}", f"data.latents=cache:{latents}", f"held_out.every={steps}", f"run.dir={run}"]
        if training.main([*words, "--resume"]) or not (run / "export").is_dir():
            sys.exit(f"{run} did not finish: type the same command again to continue")
    return run


def values_of(run: Path, clips: int) -> dict[str, list[float]]:
    """A value for each clip: of tasks, and of the field's error; kept beside the run."""
    kept = run / f"measured_{clips}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    pipeline = EqMPipeline.from_pretrained(run / "export")
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline.check_frames()
    truth = Truth.render(names_of(pipeline, clips), frames, pipeline.check_size()[0], 0)
    setting, found = short.Setting(truth, 0, 32, Sampling(**HOW)), {}
    for task in short.tasks(frames, 3):
        for key, values in measure.carry_out(pipeline, task, setting).items():
            found[f"{task.name}: {key}"] = values
    errors = measure.field_errors(pipeline, truth, GAMMAS, 0, 32)["velocity"]
    found |= {f"velocity error at gamma {gamma}": values for gamma, values in errors.items()}
    write_json(kept, found)
    return found


def summary(runs: dict[int, list[Path]], clips: int) -> list[dict[str, Any]]:
    """A row for each measure: both means, and the difference of every second block from every block."""
    measured = {every: [values_of(run, clips) if clips else {} for run in these] for every, these in runs.items()}
    rows: list[dict[str, Any]] = []
    for key in measured[1][0]:
        one, two = (torch.tensor([values[key] for values in measured[every]]) for every in EVERY)
        gap = intervals.compare(two, one)
        rows.append({"measure": key, "every block": float(one.mean()), "every second": float(two.mean())})
        rows[-1] |= {"difference": asdict(gap)}
    losses = {e: [max(results.held_out(run / "metrics.jsonl").items())[1] for run in runs[e]] for e in EVERY}
    for key in losses[1][0]:
        one, two = (torch.tensor([loss[key] for loss in losses[every]], dtype=torch.float64) for every in EVERY)
        gaps = two - one
        half = stats.t.ppf(0.975, len(gaps) - 1) * float(gaps.std()) / len(gaps) ** 0.5 if len(gaps) > 1 else None
        mean, signs = float(gaps.mean()), int((gaps.sign() == gaps.mean().sign()).sum())
        rows.append({"measure": f"held-out loss at gamma {key}" if key != "mean" else "held-out loss"})
        rows[-1] |= {"every block": float(one.mean()), "every second": float(two.mean())}
        between = {"low": mean - half, "high": mean + half} if half is not None else {"low": None, "high": None}
        rows[-1] |= {"difference": {"mean": mean, **between, "signs": signs, "runs": len(gaps)}}
    return rows


def main() -> None:
    """Train what is missing, one run of each kind before the second of any, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for all runs")
    parser.add_argument("--data", type=Path, default=Path("data/endless_shapes"))
    parser.add_argument("--runs", type=Path, default=Path("runs/temporal"))
    parser.add_argument("--preset", default="Nano/4")
    parser.add_argument("--steps", type=int, default=1200, help="of the network with all of the attention (1200)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=64, help="clips of the tasks (64); 0 for the loss alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_videos(options.data, endless=True)
    cost = {every: flops(options.preset, every) for every in EVERY}
    steps = {every: round(options.steps * cost[1] / cost[every]) for every in EVERY}
    runs: dict[int, list[Path]] = {every: [] for every in EVERY}
    for seed in range(options.seeds):
        for every in EVERY:
            runs[every].append(train(options, every, seed, steps[every]))
    settings = {"preset": options.preset, "seeds": options.seeds, "clips": options.clips, "sampler": HOW}
    settings |= {"steps": steps, "gflop of a clip's step": {every: value / 1e9 for every, value in cost.items()}}
    rows = [{"settings": settings}, *summary(runs, options.clips)]
    measuring.record("temporal", rows, torch.device("cpu"), options.out)


if __name__ == "__main__":
    main()
