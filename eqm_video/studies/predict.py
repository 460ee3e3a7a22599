"""`python -m eqm_video predict`: the frames that a model is not shown of real clips, against what they really were.

For each choice of known frames (image-to-video, continuation, in-betweening as you name them) the other frames of real
clips are sampled and compared with the true ones: root mean square error of every frame in pixel values, beside what
needs no network: the nearest known frame held, and known frames faded into each other. Videos have many futures, so
with several samples for each clip the best counts too. Whether predictions move at all is told by their motion, the
mean change from frame to frame in units of the true clips' own.

Legend: N clips, S samples of each, T frames, H W pixels.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.output import plots
from eqm_video.output.outputs import claim_output
from eqm_video.output.tables import aligned
from eqm_video.randomness import fold
from eqm_video.sampling.known import parse_known
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import read_frame_schedule
from eqm_video.studies import request as options
from eqm_video.studies.tasks.pictures import draw_clips, draw_strips, without_known
from eqm_video.system import files, machine
from eqm_video.system.parser import Parser
from eqm_video.wording import counted

KNOWN = ("first", "first:4", "ends")


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample, compare, write; returns the exit status."""
    given = parse(arguments)
    claim_output(given.out, "predict")
    pipeline = options.open_model(given)
    frames, size, fps = pipeline.check_frames(given.frames), pipeline.check_size(), float(pipeline.config.fps)
    lists = options.choose_split(given, given.data)
    source = Source(given.data, frames=frames, size=size, fps=fps, count=given.clips, **lists)
    if source.data.frames == 1:
        raise UserError(
            f"--data {given.data} holds images: predictions are of frames of videos, give a folder of those"
        )
    choices = {str(choice): choice.of(frames) for choice in given.known}  # all, before any is sampled
    clips = source.read()
    truth = rebuild(pipeline, clips.pixels, given.batch_size)
    labels = [label if given.labels == "own" and label in pipeline.labels.values() else None for label in clips.labels]
    found, rows = {}, {}
    for name, known in choices.items():
        samples = predict(pipeline, clips, labels, known, given)
        found[name] = {"known": known, **compare(samples, truth, known)}
        rows[name] = (samples[0], known)
    record = {
        "command": shlex.join(["python", "-m", "eqm_video", "predict", *map(str, arguments or [])]),
        "clips": len(truth),
        "files": clips.files,
        "fps": clips.rates,
        "labelled": sum(label is not None for label in labels),
        "codec": float(rms(truth, clips.pixels).mean()),
        "machine": machine.describe(pipeline.device),
        "predictions": found,
    }
    files.write_record(given.out / "predict.json", record)
    print(table(record))
    names = [draw(found, given.out / "predict.png")]
    shown, rows = (None, without_known(rows)) if given.predictions_only else (truth, rows)
    names.append(draw_clips(given.out / "predict.gif", shown, rows, statistics.median(clips.rates)))
    names.append(draw_strips(given.out / "predict_strips.png", shown, rows))
    print(f"look at {', '.join(path.name for path in names)} in {given.out}; numbers: predict.json")
    return 0


def worded(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type that keeps the sentence of `read`."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m eqm_video predict",
        description="Predict frames of real clips that the model is not shown, and compare them with the true ones.",
        epilog="Example: python -m eqm_video predict runs/actions --data FOLDER --split test --known first:4 ends "
        "--out samples/predict",
    )
    add = parser.add_argument
    options.add_model(parser)
    add("--data", type=Path, required=True, metavar="FOLDER", help="videos, as for training")
    options.add_split(parser)
    add("--known", nargs="+", type=worded(parse_known), default=[parse_known(text) for text in KNOWN], metavar="FRAMES",
        help="what the model is shown: first, first:4, ends, 0-2,5 ...; default: first first:4 ends")  # fmt: skip
    add("--frames", type=options.whole(2), metavar="T", help="frames of a clip; default: as trained")
    add("--clips", type=options.whole(1), default=16, metavar="N", help="spread evenly over the folder; default: 16")
    add("--samples", type=options.whole(1), default=1, metavar="S", help="predictions of each clip; default: 1")
    add("--labels", choices=("own", "none"), default="own", help="tell each clip's label where the model knows it")
    add("--steps", type=options.whole(1), metavar="N", help="updates; default: the model's")
    add("--guidance-scale", type=options.number(), metavar="G", help="1 = no guidance; default: the model's")
    add("--frame-schedule", type=worded(read_frame_schedule), default="joint", metavar="ORDER",
        help="joint (default), pyramid, autoregressive, or a delay in steps")  # fmt: skip
    add("--context-gamma", type=options.number(0, above=True), default=1.0, metavar="C", help="default: 1")
    add("--history-guidance", type=options.number(), default=1.0, metavar="S", help="default: 1, none")
    add("--seed", type=options.whole(0), default=0, metavar="K", help="default: 0")
    add("--predictions-only", action="store_true", help="pictures without true and known frames, to show to others")
    add("--batch-size", type=options.whole(1), default=16, metavar="B", help="clips at once; default: 16")
    return parser.parse_args(arguments)


# Measuring ----------------------------------------------------------------------------------------------------------


def predict(
    pipeline: EqMPipeline, clips: Clips, labels: Sequence[str | None], known: list[int], given: argparse.Namespace
) -> NDArray[np.uint8]:
    """Predictions (S, N, T, H, W, 3) from the known frames of each clip; sample s of clip k has a seed of its own."""
    found = []
    for sample in range(given.samples):
        parts = []
        for first in range(0, len(labels), given.batch_size):
            batch = range(first, min(first + given.batch_size, len(labels)))
            result = pipeline(
                [labels[k] for k in batch],
                clips=clips.pixels[first : batch.stop],
                known=known,
                seeds=[fold("predict", given.seed, sample, k) for k in batch],
                fps=clips.rates[first : batch.stop],  # the true ones: what is known stands so far apart
                steps=given.steps,
                guidance_scale=given.guidance_scale,
                frame_schedule=given.frame_schedule,
                context_gamma=given.context_gamma,
                history_guidance=given.history_guidance,
                output_type="uint8",
            )
            parts.append(result.frames)
        found.append(np.concatenate(parts))
    return np.stack(found)


def rebuild(pipeline: EqMPipeline, clips: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
    """Clips (N, T, H, W, 3) as the codec keeps them: what a prediction could be at its best."""
    starts = range(0, len(clips), batch_size)
    return np.concatenate([pipeline.decode(pipeline.encode(clips[k : k + batch_size])) for k in starts])


def compare(samples: NDArray[np.uint8], truth: NDArray[np.uint8], known: Sequence[int]) -> dict[str, Any]:
    """Samples (S, N, T, H, W, 3) against the truth (N, T, H, W, 3): errors of each frame (T,), of unknown ones in all.

    mean: of all samples; best: of each clip's best one; held, faded: without a network. motion: of the predictions,
    in units of the truth's.
    """
    unknown = [frame for frame in range(truth.shape[1]) if frame not in known]
    errors = np.stack([rms(one, truth) for one in samples])  # (S, N, T)
    best = errors[..., unknown].mean(axis=-1).argmin(axis=0)
    found = {
        "mean": errors.mean(axis=0),
        "best": errors[best, np.arange(len(truth))],
        "held": rms(hold(truth, known), truth),
        "faded": rms(fade(truth, known), truth),
    }
    by_frame = {name: values.mean(axis=0).tolist() for name, values in found.items()}
    overall = {name: float(values[:, unknown].mean()) for name, values in found.items()}
    moved = float(np.mean([motion(one) for one in samples]) / max(motion(truth), 1e-6))
    return {"error": overall, "error by frame": by_frame, "motion": moved, "samples": len(samples)}


def rms(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """(N, T, H, W, 3) twice -> (N, T): the root mean square difference, of 255."""
    return np.sqrt(np.square(one.astype(np.float32) - other.astype(np.float32)).mean(axis=(2, 3, 4), dtype=np.float64))


def motion(clips: NDArray[np.uint8]) -> float:
    """Mean absolute change from frame to frame of clips (N, T, H, W, 3), of 255."""
    return float(np.abs(np.diff(clips.astype(np.float32), axis=1)).mean())


def hold(clips: NDArray[np.uint8], known: Sequence[int]) -> NDArray[np.uint8]:
    """Every frame is the nearest known one, of two the earlier."""
    nearest = [min(known, key=lambda frame: (abs(frame - place), frame)) for place in range(clips.shape[1])]
    return clips[:, nearest]


def fade(clips: NDArray[np.uint8], known: Sequence[int]) -> NDArray[np.uint8]:
    """Frames between two known ones are mixed from both, by their distance; outside of them the nearest is held."""
    every = np.arange(clips.shape[1])
    place = np.interp(every, known, np.arange(len(known)))
    before, after = np.floor(place).astype(int), np.ceil(place).astype(int)
    share = (place - before)[None, :, None, None, None]
    ends = clips[:, list(known)].astype(np.float32)
    return np.rint((1 - share) * ends[:, before] + share * ends[:, after]).astype(np.uint8)


# Reports ------------------------------------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> str:
    """The errors of the unknown frames, as Markdown."""
    rows = [["known frames", "error", "best sample", "held", "faded", "motion"]]
    for name, one in record["predictions"].items():
        error = one["error"]
        numbers = [f"{error[key]:.1f}" for key in ("mean", "best", "held", "faded")]
        rows.append([name, *numbers, f"{one['motion']:.2f}"])
    return (
        f"{aligned(rows)}\n\nRMS of 255 on {counted(record['clips'], 'clip')}; the codec alone: {record['codec']:.1f}"
    )


def draw(found: dict[str, Any], path: Path) -> Path:
    """The error of every frame, a panel for each choice of known frames."""
    figure = plots.figure(3.2 * len(found), 3.2)
    for place, (name, one) in enumerate(found.items(), 1):
        axes = plots.axes(
            figure, 1, len(found), place, xlabel="frame", ylabel="error (RMS of 255)", title=f"known: {name}"
        )
        lines = {"prediction": "mean", "best sample": "best", "nearest held": "held", "faded": "faded"}
        for index, (label, key) in enumerate(lines.items()):
            if key == "best" and one["samples"] == 1:
                continue
            axes.plot(one["error by frame"][key], label=label, markersize=4, **plots.style(index))
        plots.legend(axes)
    return plots.save(figure, path)
