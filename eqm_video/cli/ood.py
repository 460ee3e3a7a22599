"""`python -m eqm_video ood MODEL --data FOLDER --out DIR`: does the field know what it was trained on?

Held-out clips of FOLDER are in distribution. Beside them stand sets that are not: flat colours and noise, the same
clips with their frames frozen, reversed, shuffled, cut or spliced, and the clips of other folders (--also). Each clip
has two scores, taken at the clip itself without noise: the RMS of the gradient, and the energy (`metrics/ood.py` says
why higher means more out of distribution). The AUROC of a set is the chance that one of its clips scores higher than a
held-out one: 1 is always, 0.5 tells nothing, below 0.5 the set looks more at home than the data.

Scores are of single frames first, so a spliced clip shows where it breaks: how often is the largest jump of the score,
or its peak, at the splice?
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eqm_video import files
from eqm_video.cli import ood_report as report
from eqm_video.cli.ood_sets import made_sets, other_labels
from eqm_video.cli.options import add_model, add_split, choose_split, open_model, whole
from eqm_video.cli.outputs import claim_output
from eqm_video.cli.parser import Parser
from eqm_video.cli.sources import Clips, Source
from eqm_video.errors import UserError
from eqm_video.metrics.ood import SCORES, auroc, auroc_error, frame_scores, largest_jump
from eqm_video.pipeline import EqMPipeline

Scores = dict[str, Tensor]  # score -> (N, T)
SPLIT = "test"  # what a model was not trained on, where there are lists
CUTS = ("spliced", "jump cut")  # sets that break at frame T // 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, build the sets, score, write."""
    options = parse(arguments)
    claim_output(options.out, "ood")
    pipeline = open_model(options)
    frames, size = pipeline.check_frames(), pipeline.check_size()
    common = {"frames": frames, "size": size, "fps": pipeline.config.fps, "count": options.clips}
    lists = choose_split(options, options.data, SPLIT)
    source = Source(options.data, frame_interval=options.frame_interval, **lists, **common)
    clips = source.read()
    modes = label_modes(options.labels, clips, pipeline)
    made, left_out = made_sets(clips, source, options.seed)
    sets = {"held-out clips": clips.pixels, **made}
    sets |= {name: Source(folder, **common).read().pixels for name, folder in by_name(options.also).items()}
    scores = score_sets(pipeline, sets, clips.labels, modes, options)
    numbers = {
        "settings": settings(options, pipeline, source),
        "sets": {name: len(pixels) for name, pixels in sets.items()},
        "left out, files too short": left_out,
        "auroc": {mode: areas(scores[mode]) for mode in modes},
        "mean scores": {
            mode: {name: {key: float(one[key].mean()) for key in SCORES} for name, one in scores[mode].items()}
            for mode in modes
        },
        "breaks": {mode: breaks(scores[mode]) for mode in modes} if "spliced" in sets else {},
    }
    files.write_record(options.out / "ood.json", numbers)
    report.draw_areas(numbers["auroc"], options.out / "ood.png")
    report.draw_examples(sets, options.out / "ood_sets.png")
    pictures = "ood.png; examples of the sets: ood_sets.png"
    if "spliced" in sets:
        report.draw_frames(scores, options.out / "ood_frames.png", CUTS)
        pictures += "; scores frame by frame: ood_frames.png"
    print(report.table(numbers), f"look at {options.out}/{pictures}; numbers: ood.json", sep="\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m eqm_video ood", description=__doc__.splitlines()[0])
    add_model(parser)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="videos or images like those it was trained on")
    add_split(parser, SPLIT)
    add("--also", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of other videos or images")
    add("--labels", choices=("none", "given", "both"), help="tell the model the labels; default: both where it can be")
    add("--clips", type=whole(2), default=256, metavar="N", help="of each set, at most; default: 256")
    add("--frame-interval", type=whole(1), metavar="K", help="of --data; default: by the fps of data and model")
    add("--batch-size", type=whole(1), default=32, metavar="B", help="default: 32")
    add("--seed", type=whole(0), default=0, metavar="K", help="of the sets that are made; default: 0")
    return parser.parse_args(arguments)


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their last names; UserError where two are the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"--also names the sets after the folders, and {', '.join(names)} repeats a name: rename one")
    return dict(zip(names, folders, strict=True))


def label_modes(asked: str | None, clips: Clips, pipeline: EqMPipeline) -> list[str]:
    """Whether the model is told the clips' labels: "none", "given" or both. UserError where it does not know them."""
    unknown = sorted({str(label) for label in clips.labels} - set(pipeline.labels.values()))
    if asked in ("given", "both") and unknown:
        raise UserError(f"the model does not know the label {unknown[0]!r} of the data: type --labels none")
    asked = asked or ("none" if unknown or len(set(clips.labels)) < 2 else "both")
    return ["none", "given"] if asked == "both" else [asked]


# Measures -----------------------------------------------------------------------------------------------------------


def score_sets(
    pipeline: EqMPipeline,
    sets: Mapping[str, np.ndarray],
    labels: Sequence[str | None],
    modes: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, dict[str, Scores]]:
    """Frame scores, mode -> set -> score -> (N, T).

    With labels given, each set takes those of the held-out clips in turn, and "wrong label" is a set of its own: the
    held-out clips under other labels.
    """
    found: dict[str, dict[str, Scores]] = {mode: {} for mode in modes}
    for name, pixels in tqdm(sets.items(), desc="scoring", unit="set", leave=False, disable=None):
        latents = torch.cat([pipeline.encode(part) for part in batches(pixels, options.batch_size)])
        for mode in modes:
            told = [labels[k % len(labels)] if mode == "given" else None for k in range(len(pixels))]
            found[mode][name] = score(pipeline, latents, told, options.batch_size)
            if mode == "given" and name == "held-out clips":
                wrong = other_labels(told, options.seed)
                found[mode]["wrong label"] = score(pipeline, latents, wrong, options.batch_size)
    return found


@torch.no_grad()
def score(pipeline: EqMPipeline, latents: Tensor, labels: Sequence[str | None], batch_size: int) -> Scores:
    """Frame scores (N, T) of latents (N, T, C, H, W), on the CPU, by the plain field of the labels (no guidance)."""
    parts = []
    for first in range(0, len(latents), batch_size):
        batch = latents[first : first + batch_size]
        field = pipeline.field(
            list(labels[first : first + batch_size]), num_frames=latents.shape[1], guidance_scale=1.0
        )
        parts.append(frame_scores(field.at_gamma(1.0), batch, pipeline.transformer.config.energy))
    return {key: torch.cat([part[key] for part in parts]).cpu() for key in SCORES}


def batches(values: Any, size: int) -> list[Any]:
    """Slices of at most `size` rows."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def areas(scores: Mapping[str, Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """AUROC and its standard error of every set against the held-out clips, score -> set; "average" over the sets."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for key in SCORES:
        held_out = scores["held-out clips"][key].mean(dim=1)
        table[key] = {}
        for name, one in scores.items():
            if name != "held-out clips":
                area = auroc(held_out, one[key].mean(dim=1))
                table[key][name] = {"auroc": area, "error": auroc_error(area, len(held_out), len(one[key]))}
        mean = sum(one["auroc"] for one in table[key].values()) / len(table[key])
        table[key]["average"] = {"auroc": mean}
    return table


def breaks(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """How often frame scores point at the cut before frame T // 2, in clips with that cut and in intact ones.

    "jump": the largest change from frame to frame is there. "peak": the highest frame is one of the two beside it.
    """
    names = [name for name in (*CUTS, "held-out clips") if name in scores]
    frames = scores["held-out clips"]["energy"].shape[1]
    middle = frames // 2
    found = {
        "jump": lambda one: largest_jump(one) == middle,
        "peak": lambda one: (one.argmax(dim=1) - middle + 0.5).abs() < 1,
    }
    shares = {
        kind: {name: {key: float(test(scores[name][key]).float().mean()) for key in SCORES} for name in names}
        for kind, test in found.items()
    }
    return {"frame": middle, "chance": {"jump": 1 / (frames - 1), "peak": 2 / frames}, **shares}


def settings(options: argparse.Namespace, pipeline: EqMPipeline, source: Source) -> dict[str, Any]:
    """For the record beside the numbers."""
    return {
        "model": str(options.model),
        "energy": pipeline.transformer.config.energy,
        "data": str(options.data),
        "split": options.split,
        "also": [str(folder) for folder in options.also],
        "seed": options.seed,
        "frames": source.frames,
        "size": list(source.data.size),
        "fps": pipeline.config.fps,
        "frame_interval": source.data.frame_interval,
    }
