"""The work of `eqm-video sample`: batches of samples into its folder, and the lines that it prints about them.

B samples of a batch, T frames of a clip or of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from eqm_video.output.media import gif_fps
from eqm_video.samplers.frame_schedule import frame_delay
from eqm_video.sampling.folder import Look, SampleFolder
from eqm_video.sampling.forecast import Forecast
from eqm_video.sampling.level_log import by_sample, corrected
from eqm_video.sampling.long import Long, measure, report_window
from eqm_video.sampling.options import PRECISIONS
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.sampling.settings import Sampling
from eqm_video.sampling.start_files import Start
from eqm_video.system import waits
from eqm_video.wording import counted


@dataclass(frozen=True)
class Work:
    """A sampling job: a pipeline, its settings, and the folder of the samples.

    labels: of all samples, None = unlabelled.
    """

    pipeline: EqMPipeline
    folder: SampleFolder
    labels: Sequence[int | None]
    look: Look
    how: Sampling
    start: Start | None
    long: Long | None

    def run(self, batches: Sequence[range], state: PartialState) -> None:
        """Sample the batches of this process, and keep each as soon as it is finished."""
        self.pipeline.set_progress_bar_config(disable=True)
        done, mine, steps = 0, sum(map(len, batches)), self.steps()
        watched = bool(batches) and state.is_main_process
        precision = PRECISIONS[self.folder.settings["mixed_precision"]]
        forecast = Forecast(len(batches) * steps, shown=watched)
        with waits.bar(total=len(batches) * steps, unit="step", delay=0, keep=True, shown=watched) as bar:
            for count, batch in enumerate(batches, 1):
                bar.set_description(f"samples {done}-{done + len(batch)} of {mine}")
                with torch.autocast(self.pipeline.device.type, precision, enabled=precision is not None):
                    if self.long is None:
                        self._clips(batch, bar, forecast)
                    else:
                        self._videos(batch, bar, watched, forecast)
                done += len(batch)
                bar.update(count * steps - bar.n)  # clips that came to rest early took fewer steps

    def steps(self) -> int:
        """The number of updates of a batch, with those that a frame schedule or further windows add."""
        settings, steps = self.folder.settings, self.how.steps
        first = settings["frames"] - len(self.start.known if self.start else [])
        later = self.long.windows - 1 if self.long else 0
        unknown = [first] + [settings["frames"] - self.long.overlap for _ in range(later)]
        return sum(steps + frame_delay(self.how.frame_schedule, steps, many) * (many - 1) for many in unknown)

    def call(self, batch: range, bar: tqdm, forecast: Forecast) -> dict[str, Any]:
        """Keyword arguments for these samples, for the pipeline and for `roll_out` alike."""
        settings = self.folder.settings
        return {
            "labels": [self.labels[index] for index in batch],
            "num_frames": settings["frames"],
            "size": tuple(settings["size"]),
            "fps": settings["fps"],
            "seeds": [settings["seed"] + index for index in batch],
            "output_type": "uint8",
            "callback": lambda *_: (bar.update(), forecast.count()),
            **(self.start.call(batch) if self.start else {}),
        }

    def _clips(self, batch: range, bar: tqdm, forecast: Forecast) -> None:
        result = self.pipeline.sample(self.how.call(), **self.call(batch, bar, forecast))
        if result.levels is not None:
            self.folder.keep("levels", batch.start, by_sample(result.levels, self.steps()))
            self.folder.keep("framenfe", batch.start, result.frame_nfe.numpy())
        self.folder.write_part(batch.start, result.frames, self.look, result.nfe.numpy())

    def _videos(self, batch: range, bar: tqdm, watched: bool, forecast: Forecast) -> None:
        """Long videos: the frames of a window go to disk before the next window begins."""
        shape = (len(batch), self.long.length, *self.folder.settings["size"], 3)
        meters, shifts, nfe = [], [], np.zeros(len(batch), np.int64)
        settings = {"length": self.long.length, "overlap": self.long.overlap}
        with self.folder.open_part(batch.start, shape, self.look) as file:
            for window in roll_out(self.pipeline, how=self.how.call(), **settings, **self.call(batch, bar, forecast)):
                for index, frames in enumerate(window.frames):
                    file.write(index, window.start, frames)
                meters.append(measure(window))
                nfe += window.nfe.numpy()
                if window.levels is not None:
                    shifts.append(corrected(window.levels, window.known))
                if watched:
                    bar.write(report_window(window, meters[-1]))
            self.folder.keep("nfe", batch.start, nfe)
            self.folder.keep("drift", batch.start, np.stack(meters, axis=1))
            if shifts:
                self.folder.keep("shifts", batch.start, np.stack(shifts, axis=1))


def describe(settings: dict[str, Any]) -> str:
    """The settings in one line."""
    height, width = settings["size"]
    rates = settings.get("clip_fps", [settings["fps"]])
    fps = " to ".join(f"{rate:.4g}" for rate in sorted({min(rates), max(rates)})) + " fps"
    count, frames = settings["num_samples"], counted(settings["frames"], "frame")
    what = counted(count, "image") if settings["frames"] == 1 else f"{counted(count, 'clip')} of {frames} at {fps}"
    if "length" in settings:
        what = (
            f"{counted(count, 'video')} of {counted(settings['length'], 'frame')} at {fps}, in windows of {frames} "
            f"that overlap by {settings['overlap']}"
        )
    rule = ", ".join(
        f"{value}" if key == "kind" else f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings["sampler"].items()
    )
    composed = "composition" in settings
    guidance = " + ".join(settings["labels"]) if composed else f"guidance {settings['guidance_scale']:g}"
    return (
        f"{what}, {height}x{width} pixels, {counted(settings['steps'], 'step')} ({rule}), "
        f"{guidance}, seeds from {settings['seed']}"
    )


def report(folder: SampleFolder, look: Look) -> None:
    """Write the pictures, and print where they are."""
    grids = folder.show(look)
    if (nfe := folder.nfe()) is not None and nfe.min() != nfe.max():
        print(f"evaluations of the field: {nfe.mean():.1f} a sample, from {nfe.min()} to {nfe.max()}")
    real = gif_fps(look.fps)
    if "gif" in look.formats and look.rates:
        print(f"clips play at their own rates, the grid at {real:.4g} fps")
    elif "gif" in look.formats and abs(real / look.fps - 1) > 0.01:
        print(f"GIFs play at {real:.2f} fps instead of {look.fps:.4g}: their delays are multiples of 10 ms")
    if look.clips < folder.count:
        print(f"files for the first {look.clips} of {folder.count} samples (--clips); samples.npz holds all")
    if look.known:
        print("known frames have an orange border in the grid, not in clips/ and samples.npz (--no-marks: none)")
    print(f"look at {', '.join(map(str, grids))}; all samples: {folder.npz}")
