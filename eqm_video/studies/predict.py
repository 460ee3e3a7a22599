"""Predictions of hidden frames of real clips, compared with the true frames.

Legend: N clips, S samples of each, T frames, H W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqm_video.data.source import Clips, Source
from eqm_video.errors import UserError
from eqm_video.metrics.fidelity import fidelity
from eqm_video.options import narrower, option, same
from eqm_video.output import plots
from eqm_video.output.tables import aligned
from eqm_video.randomness import fold
from eqm_video.sampling.known import KnownFrames, parse_known
from eqm_video.sampling.option_groups import Batched, ClipLabels, Descending, HeldOut, Known, Seeded, Shaped
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import batches, rebuild
from eqm_video.studies.request import open_source
from eqm_video.studies.study import OneModel, Report
from eqm_video.studies.tasks.pictures import draw_clips, draw_strips, without_known
from eqm_video.system import waits
from eqm_video.wording import counted


@dataclass(frozen=True, kw_only=True)
class Predict(OneModel, HeldOut, Known, ClipLabels, Descending, Seeded, Batched, group="look"):
    """Hidden frames of real clips: predictions against what they were.

    Every choice of --known (image-to-video, continuation, in-betweening) gives the model the known frames of real clips
    and samples the others. The error of a frame is the root mean square difference of its pixel values from the true
    frame's. Two predictions need no network: "held" repeats the nearest known frame, "faded" blends the known frames
    around it. A video has many futures, so the best of several --samples of a clip is reported too. Motion is the mean
    change from frame to frame in units of the true clips' own: it shows whether predictions move.

    Example:
      eqm-video predict runs/actions --data FOLDER --split test --known first:4 ends --out samples/predict
    """

    split: str | None = narrower(None, unset="all")
    known: tuple[KnownFrames, ...] = tuple(parse_known(text) for text in ("first", "first:4", "ends"))
    frames: int | None = same(Shaped, "frames", least=2)
    clips: int = 16
    samples: int = option(1, least=1, metavar="S", help="predictions for each clip")
    labels: str | None = narrower(
        "own", choices=("none", "own"), help="condition on nothing, or on the clips' labels where the model knows them"
    )
    steps: int | None = narrower(None, least=1)
    predictions_only: bool = option(False, help="leave true and known frames out of the pictures")
    batch_size: int = 16

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The table by name: errors. means, held: the errors of the predictions, of the nearest known frame."""
        errors = {name: measured["error"] for name, measured in numbers["predictions"].items()}
        row = {key: [f"{error[key]:.1f}" for error in errors.values()] for key in ("mean", "held", "faded")}
        lines = zip(errors, *row.values(), strict=True)
        table = aligned([["known frames", "error", "held", "faded"], *lines])
        return {"errors": table, "means": ", ".join(row["mean"]), "held": ", ".join(row["held"])}

    def run(self, pipeline: EqMPipeline) -> Report:
        """Sample the hidden frames for each choice of known frames, and compare them with the truth."""
        frames, source = pipeline.check_frames(self.frames), self.source(pipeline)
        choices = {str(choice): choice.of(frames) for choice in self.known}  # all are checked before any is sampled
        clips = source.read()
        truth = rebuild(pipeline, clips.pixels, self.batch_size)
        known_labels = pipeline.labels.values() if self.labels == "own" else ()
        labels = [label if label in known_labels else None for label in clips.labels]
        measured, rows = {}, {}
        for name, known in choices.items():
            samples = self.predict(pipeline, clips, labels, known)
            measured[name] = {"known": known, **compare(samples, truth, known)}
            rows[name] = (samples[0], known)
        numbers = {
            "clips": len(truth),
            "files": clips.files,
            "fps": clips.rates,
            "labelled": sum(label is not None for label in labels),
            "codec": float(rms(truth, clips.pixels).mean()),
            "predictions": measured,
        }
        shown, rows = (None, without_known(rows)) if self.predictions_only else (truth, rows)
        pictures = {
            "predict.png": lambda path: draw(measured, path),
            "predict.gif": lambda path: draw_clips(path, shown, rows, statistics.median(clips.rates)),
            "predict_strips.png": lambda path: draw_strips(path, shown, rows),
        }
        return Report(numbers, table(numbers), pictures)

    def source(self, pipeline: EqMPipeline) -> Source:
        """The videos of --data at the model's size and rate; UserError if --data holds images."""
        source = open_source(self, pipeline, frames=self.frames)
        if source.data.frames == 1:
            raise UserError(
                f"--data {self.data} holds images, and only videos have frames to predict: give a folder of those"
            )
        return source

    def predict(
        self, pipeline: EqMPipeline, clips: Clips, labels: Sequence[str | None], known: list[int]
    ) -> NDArray[np.uint8]:
        """Predictions (S, N, T, H, W, 3) from the known frames of each clip, with a seed for each sample and clip."""
        how, every = Sampling.of(self), []
        for sample in range(self.samples):
            parts = []
            for rows in waits.bar(batches(len(labels), self.batch_size), "predicting", unit="batch"):
                result = pipeline.sample(
                    how,
                    labels[rows],
                    clips=clips.pixels[rows],
                    known=known,
                    seeds=[fold("predict", self.seed, sample, k) for k in range(rows.start, rows.stop)],
                    fps=clips.rates[rows],  # true rates: known frames keep their distance in time
                    output_type="uint8",
                )
                parts.append(result.frames)
            every.append(np.concatenate(parts))
        return np.stack(every)


# Measures -----------------------------------------------------------------------------------------------------------


def compare(samples: NDArray[np.uint8], truth: NDArray[np.uint8], known: Sequence[int]) -> dict[str, Any]:
    """Errors of samples (S, N, T, H, W, 3) against the truth (N, T, H, W, 3): of each frame, and over unknown frames.

    psnr (dB) and ssim: of the unknown frames, with 95 % intervals over clips. mean: over all samples; best: of each
    clip's best sample; held and faded: of the predictions without a network. motion: of the samples, in units of the
    truth's.
    """
    unknown = [frame for frame in range(truth.shape[1]) if frame not in known]
    errors = np.stack([rms(clips, truth) for clips in samples])  # (S, N, T)
    best = errors[..., unknown].mean(axis=-1).argmin(axis=0)
    values = {
        "mean": errors.mean(axis=0),
        "best": errors[best, np.arange(len(truth))],
        "held": rms(hold(truth, known), truth),
        "faded": rms(fade(truth, known), truth),
    }
    by_frame = {name: each.mean(axis=0).tolist() for name, each in values.items()}
    overall = {name: float(each[:, unknown].mean()) for name, each in values.items()}
    moved = float(np.mean([motion(clips) for clips in samples]) / max(motion(truth), 1e-6))
    numbers = {"error": overall, "error by frame": by_frame, "motion": moved, "samples": len(samples)}
    return numbers | fidelity(torch.from_numpy(samples[:, :, unknown]), torch.from_numpy(truth[:, unknown]))


def rms(clips: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Root mean square difference of pixels (0 to 255) of each frame: two arrays (N, T, H, W, 3) -> (N, T)."""
    return np.sqrt(
        np.square(clips.astype(np.float32) - truth.astype(np.float32)).mean(axis=(2, 3, 4), dtype=np.float64)
    )


def motion(clips: NDArray[np.uint8]) -> float:
    """Mean absolute change of pixels (0 to 255) from frame to frame of clips (N, T, H, W, 3)."""
    return float(np.abs(np.diff(clips.astype(np.float32), axis=1)).mean())


def hold(clips: NDArray[np.uint8], known: Sequence[int]) -> NDArray[np.uint8]:
    """Clips (N, T, H, W, 3) with each frame replaced by the nearest known frame, the earlier of two equally near."""
    nearest = [min(known, key=lambda frame: (abs(frame - place), frame)) for place in range(clips.shape[1])]
    return clips[:, nearest]


def fade(clips: NDArray[np.uint8], known: Sequence[int]) -> NDArray[np.uint8]:
    """Clips (N, T, H, W, 3) with each frame blended, by distance, from the known frames around it.

    Before the first and after the last known frame it is the nearest known frame.
    """
    every = np.arange(clips.shape[1])
    place = np.interp(every, known, np.arange(len(known)))
    before, after = np.floor(place).astype(int), np.ceil(place).astype(int)
    share = (place - before)[None, :, None, None, None]
    ends = clips[:, list(known)].astype(np.float32)
    return np.rint((1 - share) * ends[:, before] + share * ends[:, after]).astype(np.uint8)


# Reports ------------------------------------------------------------------------------------------------------------


def table(numbers: dict[str, Any]) -> str:
    """Errors of the unknown frames as a Markdown table."""
    rows = [["known frames", "error", "best sample", "held", "faded", "motion", "PSNR (95 %)", "SSIM"]]
    for name, measured in numbers["predictions"].items():
        error = measured["error"]
        errors = [f"{error[key]:.1f}" for key in ("mean", "best", "held", "faded")]
        quality, alike = measured["psnr"], measured.get("ssim")
        decibels = f"{quality['mean']:.1f} ({quality['low']:.1f} to {quality['high']:.1f})"
        ssims = "-" if alike is None else f"{alike['mean']:.2f}"
        rows.append([name, *errors, f"{measured['motion']:.2f}", decibels, ssims])
    return (
        f"{aligned(rows)}\n\nRMS of 255 on {counted(numbers['clips'], 'clip')}; the codec alone: {numbers['codec']:.1f}"
    )


def draw(measured: dict[str, Any], path: Path) -> Path:
    """Draw the error by frame, a panel for each choice of known frames; returns `path`."""
    figure = plots.figure(3.2 * len(measured), 3.2)
    for place, (name, result) in enumerate(measured.items(), 1):
        axes = plots.axes(
            figure, 1, len(measured), place, xlabel="frame", ylabel="error (RMS of 255)", title=f"known: {name}"
        )
        lines = {"prediction": "mean", "best sample": "best", "nearest held": "held", "faded": "faded"}
        for index, (label, key) in enumerate(lines.items()):
            if key == "best" and result["samples"] == 1:
                continue
            axes.plot(result["error by frame"][key], label=label, markersize=4, **plots.style(index))
        plots.legend(axes)
    return plots.save(figure, path)
