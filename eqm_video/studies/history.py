"""History guidance in long videos: what its strength does to motion, and to what the windows show.

Legend: N clips, W windows, L frames of a video, T frames of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.metrics.intervals import estimate
from eqm_video.options import narrower, option
from eqm_video.output import plots
from eqm_video.output.tables import aligned, with_interval
from eqm_video.sampling.option_groups import Batched, Guided, Many, Rendered, Seeded, Stepped
from eqm_video.sampling.options import Longer
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import latent_motion
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.batches import encode
from eqm_video.studies.forcing.measure import motion
from eqm_video.studies.request import own_scale
from eqm_video.studies.study import OneModel, Report
from eqm_video.studies.tasks.clips import Truth, forward, is_centred, names_of, said_centred, tracks
from eqm_video.studies.tasks.long import Way, continue_clips
from eqm_video.studies.tasks.short import Setting
from eqm_video.system import waits

MEASURES = {
    "motion": "motion meter, real clips are 1",
    "still": "windows that stand still",
    "speed": "speed, true speed is 1",
    "right": "windows that show their label",
    "drift": "drift meter",
}
STILL = 0.25  # pixels a frame in the direction of the label, below which a window stands still


@dataclass(frozen=True, kw_only=True)
class History(OneModel, Longer, Rendered, Many, Guided, Stepped, Seeded, Batched, group="look"):
    """History guidance in long videos: motion and right windows by its strength.

    The model was trained on moving shapes without borders. Videos start with known frames of a true clip and go on for
    --length frames, window by window, by the multistep sampler, for every strength of --scales (1 is no history
    guidance, 0 no history at all). Every window has a motion meter, which needs no truth (the RMS change of the latents
    from frame to frame, over that of the true clips), and a drift meter (the RMS gradient on known frames). Measured
    beside them are the windows that stand still, the speed in the direction of the label over the true one, and the
    windows that show their label. Means have 95 % intervals over clips.
    """

    scales: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 1.0, 1.5, 2.0), least=0, most=100, metavar="S", help="strengths of the guidance"
    )
    length: int | None = narrower(40, least=8)
    overlap: int | None = narrower(4)
    steps: int = narrower(8, least=1)

    @classmethod
    def views(cls, numbers: Mapping[str, Any]) -> dict[str, str]:
        """The tables by name: results, settings."""
        measured, settings = numbers["found"], numbers["settings"]
        cells: list[Sequence[str]] = [["history guidance", *measured]]
        for name, heading in MEASURES.items():
            digits = None if name in ("still", "right") else 2
            cells.append([heading, *(with_interval(rows[name], digits) for rows in measured.values())])
        said = (
            f"{settings['clips']} videos of {settings['length']} frames in {settings['windows']} windows, overlap "
            f"{settings['overlap']}, {settings['steps']} multistep steps, guidance {settings['guidance scale']:g}; one "
            f"training run. Intervals are 95 %, over clips.{said_centred(settings)}"
        )
        return {"results": aligned(cells), "settings": said}

    def run(self, pipeline: EqMPipeline) -> Report:
        """Roll out and measure, strength by strength."""
        frames = pipeline.check_frames()
        if self.overlap >= frames or self.length <= frames:
            raise UserError(
                f"--overlap {self.overlap} and --length {self.length}: windows have {frames} frames, so give an "
                f"--overlap below and a --length above that"
            )
        pipeline.set_progress_bar_config(disable=True)
        scale = own_scale(self, pipeline)
        names = names_of(pipeline, self.num_samples)
        centred = is_centred(self, pipeline)
        truth = Truth.render(names, self.length, pipeline.check_size()[0], self.seed, centred=centred)
        true = latent_motion(encode(pipeline, truth.clips[:, :frames], self.batch_size)).cpu().double()
        results, windows = {}, 0
        for strength in waits.bar(list(dict.fromkeys(self.scales)), "history guidance", unit="strength"):
            how = Sampling(sampler="multistep", steps=self.steps, guidance_scale=scale, history_guidance=strength)
            values = measure(pipeline, Way(self.overlap, how), Setting(truth, self.seed, self.batch_size, how), true)
            windows = values["motion"].shape[0]
            results[f"{strength:g}"] = {
                name: asdict(estimate(each.mean(dim=0)[None])) | {"by window": each.mean(dim=1).tolist()}
                for name, each in values.items()
            }
        numbers = {
            "settings": {
                "clips": self.num_samples,
                "length": self.length,
                "overlap": self.overlap,
                "windows": windows,
                "steps": self.steps,
                "seed": self.seed,
                "guidance scale": scale,
                "centred": centred,
            },
            "found": results,
        }
        return Report(numbers, "\n\n".join(self.views(numbers).values()), pictures(numbers))


def measure(pipeline: EqMPipeline, way: Way, setting: Setting, true: Tensor) -> dict[str, Tensor]:
    """The `MEASURES` (W, N) of every window, each with the frames before it that fill T; true: the true motion (N,)."""
    frames, truth = pipeline.check_frames(), setting.truth
    video = continue_clips(pipeline, way, setting)
    ends = [*video.starts[1:], video.clips.shape[1]]
    parts = [video.clips[:, max(0, end - frames) : end] for end in ends]
    speeds = np.stack([forward(tracks(part), truth.names, truth.size) for part in parts])
    values = {
        "motion": torch.from_numpy(video.motion) / true,
        "still": torch.from_numpy(np.abs(speeds) < STILL),
        "speed": torch.from_numpy(speeds / truth.speeds),
        "right": torch.tensor([motion(part, truth)["both"] for part in parts]),
        "drift": torch.from_numpy(video.drift),
    }
    return {name: each.double() for name, each in values.items()}


def pictures(numbers: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """The picture by its file name: motion, right windows and drift by window, a line for each strength."""
    return {"history.png": partial(draw, numbers)}


def draw(numbers: Mapping[str, Any], path: Path) -> Path:
    """A panel for each of motion, right windows and drift: means over clips, window by window."""
    figure = plots.figure(9.6, 3.0)
    for place, name in enumerate(("motion", "right", "drift"), start=1):
        axes = plots.axes(figure, 1, 3, place, xlabel="window")
        axes.set_title(MEASURES[name], fontsize=10)
        for index, (strength, rows) in enumerate(numbers["found"].items()):
            values = rows[name]["by window"]
            axes.plot(range(1, len(values) + 1), values, label=strength, markersize=4, **plots.style(index))
        axes.set_ylim(bottom=0)
        if place == 1:
            plots.legend(axes, title="history guidance", fontsize=7, title_fontsize=7, ncols=2)
    return plots.save(figure, path)
