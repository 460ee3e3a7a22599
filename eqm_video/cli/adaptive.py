"""`python -m eqm_video adaptive MODEL --out DIR`: stop when at rest, and what that saves (the paper's Figure 8).

A clip stops once the gradient of every frame has a root mean square below the tolerance, and leaves the batch; with
--per-frame each frame comes to rest by itself. For each fixed setting STEPS:STEP_SIZE, all steps are compared with the
same setting that may stop at each of the tolerances: evaluations, time, quality, and how far the clips are from those
of all steps (root mean squared difference of pixels, of 0 to 255, from the same noise). Beside it stands a descent that
takes for every clip the mean number of steps that the adaptive one took.

Times are of the descents alone. All runs of a fixed setting alternate, --repeats times, in this one process; reported
are medians. CPU seconds are this process's own, which other work on the machine lengthens less.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from eqm_video import files
from eqm_video.cli.adaptive_plot import draw_adaptive
from eqm_video.cli.options import Request, add_model, add_sampling, describe_rule, machine, number, open_model, whole
from eqm_video.cli.outputs import claim_output
from eqm_video.cli.parser import Parser
from eqm_video.cli.quality import Judge, add_data
from eqm_video.cli.walks import Walk, decode, walk
from eqm_video.errors import UserError
from eqm_video.pipeline import EqMPipeline
from eqm_video.samplers import RULES

TOLERANCES = (0.1, 0.2, 0.4, 0.8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    claim_output(options.out, "adaptive")
    pipeline = open_model(options)
    request = Request.of(pipeline, options)
    check_sampler(pipeline, options)
    fixed = options.fixed or own_settings(pipeline)
    judge = Judge.of(pipeline, request, options.data)
    results = []
    runs = len(fixed) * (1 + len(options.tolerances)) * options.repeats
    with tqdm(total=runs, unit="run", disable=None) as bar:
        for steps, step_size in fixed:
            results.append(compare(pipeline, request, options, judge, (steps, step_size), bar))
    record = {
        "settings": {**request.settings(), "repeats": options.repeats, "per_frame": options.per_frame},
        "machine": machine(pipeline),
        **judge.scale,
        "results": results,
    }
    files.write_record(options.out / "adaptive.json", record)
    draw_adaptive(options.out / "adaptive.png", results, judge.headline)
    print(as_table(results, judge.headline))
    print(f"look at {options.out / 'adaptive.png'}; numbers: {options.out}/adaptive.json")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video adaptive", description=__doc__.splitlines()[0])
    add_model(parser)
    add_sampling(parser, num_samples=64, descent=False)
    add = parser.add_argument
    rates = {"nargs": "+", "type": number(0, above=True), "metavar": "R"}
    add("--tolerances", **rates, default=list(TOLERANCES), help="of the gradient's RMS; default: 0.1 0.2 0.4 0.8")
    help_ = "default: the model's own setting, and four times its steps at a quarter of its step size"
    add("--fixed", nargs="+", type=_fixed, metavar="STEPS:STEP_SIZE", help=help_)
    add("--sampler", choices=tuple(RULES), help="default: the model's")
    add("--mu", type=number(0), metavar="M", help="look-ahead of nag, in [0, 1); default: the model's")
    add("--per-frame", action="store_true", help="every frame comes to rest by itself")
    add("--repeats", type=whole(1), default=3, metavar="K", help="of everything that is timed; default: 3")
    add_data(parser)
    return parser.parse_args(arguments)


def _fixed(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+):(.+)", text)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEPS:STEP_SIZE, such as 50:0.02")
    return int(match[1]), number(0, above=True)(match[2])


def check_sampler(pipeline: EqMPipeline, options: argparse.Namespace) -> None:
    """UserError where a model's own sampler is a solver, which has nothing to stop at."""
    kind = options.sampler or pipeline.config.sampler["kind"]
    if kind not in RULES:
        raise UserError(f"the model's own sampler {kind!r} goes all the way: type --sampler {' or '.join(RULES)}")


def own_settings(pipeline: EqMPipeline) -> list[tuple[int, float]]:
    """The model's own steps and step size, and a finer descent of the same length; UserError where it has none."""
    own = pipeline.config.sampler
    if "step_size" not in own:
        raise UserError(
            f"the model's own sampler {own['kind']!r} has no step size: say which descents to compare, such as "
            f"--fixed {own['steps']}:0.01"
        )
    return [(own["steps"], own["step_size"]), (4 * own["steps"], own["step_size"] / 4)]


def compare(
    pipeline: EqMPipeline,
    request: Request,
    options: argparse.Namespace,
    judge: Judge,
    fixed: tuple[int, float],
    bar: tqdm,
) -> dict[str, Any]:
    """All steps, and the same descent with each tolerance, in turn; then the fixed descents of as many evaluations."""
    steps, step_size = fixed
    rule = pipeline.rule(options.sampler, step_size, options.mu)
    walk(pipeline, request, rule, steps=1)  # the first evaluation of a process is slower than all others
    tolerances: list[float | None] = [None, *sorted(options.tolerances)]
    walks: dict[float | None, list[Walk]] = {tolerance: [] for tolerance in tolerances}
    for repeat in range(options.repeats):
        # Every second time backwards, so that what slows the machine down for a while is shared.
        for tolerance in tolerances if repeat % 2 == 0 else tolerances[::-1]:
            how = {} if tolerance is None else {"tolerance": tolerance, "per_frame": options.per_frame}
            walks[tolerance].append(walk(pipeline, request, rule, steps=steps, **how))
            bar.update()
    whole_ = summary(pipeline, request, judge, walks[None])
    reference = decode(pipeline, walks[None][0].latents)
    rows = []
    for tolerance in tolerances[1:]:
        row = {"tolerance": tolerance, **summary(pipeline, request, judge, walks[tolerance], reference)}
        for name in ("nfe", "seconds", "cpu_seconds"):
            row[f"{name}_ratio"] = row[name] / whole_[name] if whole_[name] else None
        fewer = max(1, round(row["nfe"]))
        same = [walk(pipeline, request, rule, steps=fewer)]
        row["fixed with as many"] = {"steps": fewer, **summary(pipeline, request, judge, same, reference)}
        rows.append(row)
    sampler = options.sampler or pipeline.config.sampler["kind"]
    setting = {"sampler": sampler, "steps": steps, "step_size": step_size, "rule": describe_rule(rule)}
    return {**setting, "all steps": whole_, "adaptive": rows}


def summary(
    pipeline: EqMPipeline, request: Request, judge: Judge, walks: Sequence[Walk], reference: np.ndarray | None = None
) -> dict[str, Any]:
    """What repeated walks took and made; the walks are equal but for their times."""
    one = walks[0]
    clips, kept = decode(pipeline, one.latents), one.rms.amax(1)[~one.diverged]
    found = {
        "nfe": float(one.nfe.double().mean()),
        "nfe_of_clips": one.nfe.tolist(),
        "nfe_of_frames": float(one.frame_nfe.double().mean()),
        "seconds": statistics.median(each.seconds for each in walks),
        "cpu_seconds": statistics.median(each.cpu_seconds for each in walks),
        "all_seconds": [each.seconds for each in walks],
        "gradient_rms": float(kept.mean()) if len(kept) else None,
        "diverged": float(one.diverged.double().mean()),
        **judge(clips, request.names),
    }
    if reference is not None:
        difference = clips.astype(np.float32) - reference
        found["pixels_from_all_steps"] = float(np.sqrt(np.square(difference).mean()))
    return found


def as_table(results: Sequence[dict[str, Any]], headline: str | None) -> str:
    """The results for the screen; shares are of all steps."""
    lines = []
    for one in results:
        names = [
            "tolerance",
            "nfe",
            "seconds",
            "CPU s",
            "of nfe",
            "of time",
            "of CPU",
            *([headline] if headline else []),
        ]
        lines.append(f"{one['sampler']}, {one['steps']} steps of {one['step_size']:g}")
        lines.append("  ".join(f"{name:>9}" for name in names))
        lines.append(_line("-", one["all steps"], headline))
        lines += [_line(f"{row['tolerance']:g}", row, headline) for row in one["adaptive"]]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], headline: str | None) -> str:
    cells = [name, f"{row['nfe']:.1f}", f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}"]
    shares = [row.get(f"{each}_ratio", 1.0) for each in ("nfe", "seconds", "cpu_seconds")]
    cells += ["-" if share is None else f"{share:.0%}" for share in shares]
    if headline is not None:
        cells.append(f"{row[headline]:.3g}".rjust(len(headline)))
    far = f"  {row['pixels_from_all_steps']:.1f} of 255 from all steps" if "pixels_from_all_steps" in row else ""
    return "  ".join(f"{cell:>9}" for cell in cells) + far
