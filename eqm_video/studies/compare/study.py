"""`python -m eqm_video compare SAMPLES --data ROOT`: does the model memorise, and how far are samples from the data?

Two measures on pixels, for small sets, each beside the same measure between real clips:

* The training clip nearest to each sample, by root mean squared pixel difference (RMS, of 0 to 255). A copy of a
  training clip has an RMS near 0. The scale is the RMS of a real clip to the nearest one of another file. A small RMS
  alone proves no copy (what is still, dark or blurred is near to everything): look at the pairs in nearest.gif. Fast
  motion makes windows two source frames apart as different as two people, so --stride above 1 misses copies. Windows
  are not mirrored. A sample counts as memorised where that RMS is below a third of the RMS to the nearest clip of any
  other file (`compare_memorisation` names the source); held-out clips show what the criterion says of clips that no
  model made. See memorisation.png.
* The Fréchet distance in a few random projections of the pixels, between Gaussians. There are no learned features in
  it: it compares means and covariances of pixels, and says little about quality beyond such low-order statistics. It
  grows as points get fewer, so every row of the table compares equally many of them. Its scale is one half of the data
  against the other, halved by group (UCF names, v_Class_gXX_cYY), or else by file.

Legend: N samples, W windows, T frames, H W pixels, D dimensions of the projection; pixels uint8, channels last.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eqm_video.data.datasets import ClipSet, open_data
from eqm_video.errors import UserError
from eqm_video.metrics.frechet import frechet_distance, gaussian_of, random_projection
from eqm_video.metrics.nearest import NearestClips
from eqm_video.output.outputs import PARTS, claim_output
from eqm_video.randomness import generator
from eqm_video.studies.compare import memorisation
from eqm_video.studies.compare.report import Samples, describe, spread, summarise_nearest, table, write
from eqm_video.studies.compare.windows import Search, Windows, halves, look, project, real_searches, some_windows, thin
from eqm_video.studies.request import add_split, choose_split, whole
from eqm_video.system.parser import Parser

MOST_DIMENSIONS = 32
OVERRIDES = ("kind", "split", "fold", "frame_interval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, write."""
    options = parse(arguments)
    out = claim_output(options.out or options.samples / "compare", "compare")
    samples = read_samples(options.samples)
    windows = Windows(open_set(samples, options), options.stride)
    print(windows.data.report.summary())
    splits = halves(windows.groups, generator("compare halves", options.seed))
    fewest, half = choose_counts(len(samples.pixels), splits, options.dimensions)
    values = samples.pixels[0].numel()
    projection = random_projection(values, options.dimensions, generator("compare projection", options.seed))
    searches = every_search(samples, windows, options)
    features = look(windows, searches.values(), projection)
    found = {name: one.nearest for name, one in searches.items()}
    ordered = project(samples.pixels, projection)[by_label(samples.labels)]
    pairs = [(thin(features[one], fewest), thin(features[other], half)) for one, other in splits]
    summary = {
        "samples": {"folder": str(options.samples), "count": len(samples.pixels), "fps": samples.fps},
        "clips": dict(zip(("frames", "height", "width"), samples.shape, strict=True)),
        "data": describe(windows, options),
        "nearest": summarise_nearest(found),
        "memorisation": memorisation.summarise(found),
        "frechet": {
            "unit": "squared distance of flattened clips, pixels in [-1, 1]",
            "dimensions": options.dimensions,
            "seed": options.seed,
            "clips": [fewest, half],
            "halved by": "group" if windows.grouped else "file",
            "samples": frechet(thin(ordered, fewest), thin(features, half)),
            "real clips": spread([frechet(one, other) for one, other in pairs]),
        },
    }
    print(table(summary))
    memorisation.draw(found, summary["memorisation"], out / "memorisation.png")
    write(out, samples, windows, found["samples"], summary, options.columns)
    return 0


# Command line -------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `data.split=null` is the same as `--split all`, `data.frame_interval=3` as an option."""
    parser = Parser(
        prog="python -m eqm_video compare",
        description="Compare samples with the data that the model was trained on: the training clip nearest to each, "
        "and a Fréchet distance in random projections of the pixels, beside the same between real clips.",
    )
    add = parser.add_argument
    add("samples", type=Path, metavar="SAMPLES", help="a folder that sample_video.py wrote")
    add("--data", type=Path, required=True, metavar="ROOT", help="the folder of the training data")
    add("--kind", choices=("videos", "images"), help="default: videos, and images for samples of one frame")
    add_split(parser, "train")
    add("--frame-interval", type=whole(1), metavar="K", help="default: by the fps of data and samples")
    add("--stride", type=whole(1), default=1, metavar="S", help="source frames from window to window; default: 1")
    add("--dimensions", type=whole(1, MOST_DIMENSIONS), default=32, metavar="D", help="of the projection; default: 32")
    add("--seed", type=whole(0), default=0, metavar="K", help="of the projection and the halves; default: 0")
    add("--columns", type=whole(1), help="pairs in a row of the grid; default: about as wide as high")
    add("--out", type=Path, metavar="DIR", help="for the pictures and numbers; default: SAMPLES/compare")
    return parser.parse_args([_as_option(one) for one in (sys.argv[1:] if arguments is None else arguments)])


def _as_option(argument: str) -> str:
    """`data.key=value`, as messages about data sets advise, as `--key=value`."""
    match = re.fullmatch(r"(?:data\.)?([a-z_]+)=(.*)", argument)
    if match is None or Path(argument).exists():
        return argument
    key, value = match.groups()
    if key not in OVERRIDES:
        allowed = ", ".join(f"data.{name}" for name in OVERRIDES)
        raise UserError(f"unknown override {argument!r}; type one of {allowed}: frames and size are the samples' own")
    return f"--{key.replace('_', '-')}={'all' if key == 'split' and value in ('null', 'none') else value}"


# Samples and data ---------------------------------------------------------------------------------------------------


def read_samples(folder: Path) -> Samples:
    """samples.npz and samples.json of a folder by `sample_video.py`; images are clips of one frame."""
    npz, record = folder / "samples.npz", folder / "samples.json"
    for file in (npz, record):
        if not file.is_file():
            hint = f"(an unfinished run? {folder / PARTS} is there)" if (folder / PARTS).is_dir() else ""
            raise UserError(f"there is no {file}; give a folder that sample_video.py finished {hint}".rstrip())
    try:
        with np.load(npz, allow_pickle=False) as file:
            pixels = file["arr_0"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{npz} is damaged ({error}); sample again with --overwrite") from error
    pixels = pixels[:, None] if pixels.ndim == 4 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"{npz} holds {pixels.dtype} {pixels.shape}; samples are uint8 (N, T, H, W, 3), or (N, H, W, 3)"
        )
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        labels, fps = content["labels"], float(content["settings"]["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error!r}); sample again with --overwrite") from error
    labels = [None] * len(pixels) if labels is None else list(labels)
    if len(labels) != len(pixels) or not fps > 0:
        raise UserError(f"{record} ({len(labels)} labels, {fps:g} fps) does not fit the {len(pixels)} samples of {npz}")
    return Samples(torch.from_numpy(pixels), labels, fps)


def open_set(samples: Samples, options: argparse.Namespace) -> ClipSet:
    """The data, as clips of the samples' frames and size; both frame rates give the interval, where it is not given."""
    frames, height, width = samples.shape
    kind = options.kind or ("images" if frames == 1 else "videos")
    if kind == "images" and frames > 1:
        raise UserError(f"the samples are clips of {frames} frames, and compare with videos only: type --kind videos")
    lists = choose_split(options, options.data, "train")

    def opened(interval: int) -> ClipSet:
        return open_data(
            kind,
            options.data,
            **lists,
            frames=frames,
            frame_interval=interval,
            size=(height, width),
        )

    data = opened(options.frame_interval or 1)
    if len(data) < 2:
        raise UserError(
            f"{data.root} has one usable file only, and real clips are compared with those of another: add some"
        )
    if options.frame_interval is None and kind == "videos" and frames > 1:
        rate = statistics.median(info.fps for _, _, info in data.files)
        data = opened(max(1, round(rate / samples.fps)))
    return data


def every_search(samples: Samples, windows: Windows, options: argparse.Namespace) -> dict[str, Search]:
    """Whose nearest windows are looked for: the samples', held-out clips' where there are any, and real clips'."""
    values = samples.pixels[0].numel()
    searches = {"samples": Search(NearestClips(samples.pixels), windows.files)}
    if (held_out := memorisation.open_held_out(windows.data, options)) is not None:
        _, queries = some_windows(Windows(held_out, options.stride), values)
        searches["held-out clips"] = Search(NearestClips(queries), windows.files)
    return searches | real_searches(windows, values)


def choose_counts(samples: int, splits: Sequence[tuple[Tensor, Tensor]], dimensions: int) -> tuple[int, int]:
    """How many clips stand on either side in each comparison. UserError where covariances would be singular."""
    half = min(len(part) for split in splits for part in split)
    fewest = min(samples, half)
    if dimensions < fewest:
        return fewest, half
    given = f"{samples} samples and {half} windows in the smaller half of the data"
    if fewest < 2:
        raise UserError(f"there are {given}, and a covariance needs 2: sample more, or give more data or --stride 1")
    raise UserError(
        f"--dimensions {dimensions} needs more clips than that on each side, and there are {given}: covariances would "
        f"be singular; type --dimensions {max(1, fewest // 2)} or less, or compare more samples"
    )


# Measures -----------------------------------------------------------------------------------------------------------


def by_label(labels: Sequence[str | None]) -> list[int]:
    """The samples in the order of their labels: `thin` then keeps each label's share, though labels come in turn."""
    return sorted(range(len(labels)), key=lambda index: labels[index] or "")


def frechet(one: Tensor, other: Tensor) -> float:
    """Between Gaussians of features (N, D) and (M, D)."""
    return frechet_distance(*gaussian_of(one), *gaussian_of(other))
