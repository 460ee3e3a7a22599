"""The small model that ships with the package, trained again: its export in half precision, and its card."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.data.moving_shapes import label_names, score_motion, write_moving_shapes
from eqm_video.errors import UserError
from eqm_video.options import narrower
from eqm_video.output.outputs import claim_output
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.option_groups import Data, Many, Overridden
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import roll_out
from eqm_video.sampling.settings import Sampling
from eqm_video.studies.demo import SHAPES, OwnRun
from eqm_video.studies.study import Report, Study
from eqm_video.studies.tasks.clips import AROUND, Truth
from eqm_video.system import machine
from eqm_video.system.claims import check_place
from eqm_video.system.reading import asset
from eqm_video.training import launch as training
from eqm_video.training.config import load_config
from eqm_video.training.report import RunFiles
from eqm_video.wording import counted

RECIPE = "shipped"
VIDEOS, HELD_OUT = 72, 8  # of each label
VIDEO_FRAMES = 8 + AROUND  # a clip of the recipe, and the frames around it
WINDOWS = 10  # a long video has this many times the frames of a clip
LONG = 16  # long videos that are measured


@dataclass(frozen=True, kw_only=True)
class TrainShipped(Study, OwnRun, Many, Data, Overridden, group="use", record="numbers.json"):
    """Train the small model that ships with the package, measure it, and write its export with its card.

    The export is a folder like that of a run, in half precision, without the codec: that is the bundled one.
    """

    data: Path | None = Path("data/shipped_shapes")
    run_dir: Path = Path("runs/shipped")
    num_samples: int = 64
    out: Path = narrower(help="folder of the export and its numbers")

    def check(self) -> None:
        """UserError for overrides that the recipe does not take: the videos are written before it is read."""
        load_config(RECIPE, self.overrides)

    def run(self) -> Report:
        """Write the videos, train, measure, and write the export; what is there already is not made again."""
        claim_output(self.run_dir, "train", option="--run")
        write_videos(self.data)
        words = ["--config", RECIPE, "--resume", f"data.root={self.data}", f"run.dir={self.run_dir}", *self.overrides]
        if training.main(words) != 0 or not (self.run_dir / "export").is_dir():
            raise UserError(f"training did not finish; type the same command again to continue {self.run_dir}")
        pipeline, _ = load_pipeline(self.run_dir / "export")
        pipeline.set_progress_bar_config(disable=True)
        pipeline.transformer.half().float()  # what is measured is what is written
        numbers = measure(pipeline, self.num_samples)
        numbers["training_seconds"] = training_seconds(self.run_dir)
        numbers["steps"] = load_config(self.run_dir / "config.yaml").train.steps
        write_export(pipeline, self.out)
        table = "\n".join(rows(numbers))
        return Report(numbers, table, files={"README.md": card(numbers, pipeline, self.run_dir)})


def write_videos(root: Path, videos: int | None = None, seed: int = 0) -> None:
    """Write the videos, `VIDEOS` or `videos` of each label, unless they are there: the demo's shapes on a torus.

    Another seed gives other videos of the same kind, to measure the model against.
    """
    check_place(root, f"--data {root}")
    if not root.exists():
        print(f"writing moving shapes as videos to {root}", flush=True)
        kind = {"endless": True, "centred": True, "frames": VIDEO_FRAMES}
        write_moving_shapes(root, shapes=SHAPES, videos=videos or VIDEOS, held_out=HELD_OUT, seed=seed, **kind)


def measure(pipeline: EqMPipeline, count: int) -> dict[str, Any]:
    """Shares of `count` generated clips, as many continued ones, and windows of long videos that show their label.

    The labels take turns and the seeds begin at 0. Pictures to continue are rendered as the training videos are.
    """
    labels = [label_names(SHAPES)[k % (2 * 4)] for k in range(count)]
    frames, size = pipeline.check_frames(), pipeline.check_size()[0]
    truth = Truth.render(labels, frames, size, centred=True).clips
    begun = time.perf_counter()
    sampled = {
        "generation": sample(pipeline, labels),
        "image_to_video": sample(pipeline, labels, clips=truth, known=[0]),
        "continuation": sample(pipeline, labels, clips=truth, known=[0, 1, 2]),
    }
    scores = {name: score_motion(clips, labels, SHAPES, endless=True) for name, clips in sampled.items()}
    many = min(LONG, count)
    windows = roll_out(
        pipeline, labels[:many], length=WINDOWS * frames, overlap=frames // 2, seeds=range(many), how=Sampling()
    )
    video = np.concatenate([window.frames for window in windows], axis=1)
    parts = video.reshape(many * WINDOWS, frames, size, size, 3)
    each = [label for label in labels[:many] for _ in range(WINDOWS)]
    scores["long_video"] = score_motion(parts, each, SHAPES, endless=True)
    return {**scores, "machine": machine.describe(), "seconds": round(time.perf_counter() - begun, 1)}


def sample(pipeline: EqMPipeline, labels: list[str], **start: Any) -> np.ndarray:
    """Clips uint8 (N, T, H, W, 3) of these labels, seeds from 0."""
    seeds = list(range(len(labels)))
    return pipeline.sample(Sampling(), labels, seeds=seeds, output_type="uint8", **start).frames


def write_export(pipeline: EqMPipeline, folder: Path) -> None:
    """The network in half precision and the settings, as `EqMPipeline.from_pretrained` reads them; no codec."""
    network = pipeline.transformer
    network.half().save_pretrained(folder / "transformer")
    network.float()
    pipeline.save_config(folder)


def training_seconds(run: Path) -> float:
    """Seconds of all steps of a run, over all its starts."""
    return json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]


def rows(numbers: dict[str, Any]) -> list[str]:
    """The lines of the card's table."""
    names = {
        "generation": "clips of a label",
        "image_to_video": "clips from their first frame",
        "continuation": "clips from their first 3 frames",
        "long_video": f"windows of videos of {WINDOWS} times the frames",
    }
    return [
        f"| {numbers[key]['samples']} {name} | "
        + " | ".join(f"{numbers[key][f'{part}_accuracy']:.0%}" for part in ("direction", "shape", "both"))
        + " |"
        for key, name in names.items()
    ]


def card(numbers: dict[str, Any], pipeline: EqMPipeline, run: Path) -> str:
    """The model card."""
    trained = RunFiles.read(run)
    train, place = trained.config.train, trained.record["machine"]  # where it was trained, not where it is measured
    return asset("cards/shipped.md").format(
        parameters=f"{sum(weight.numel() for weight in pipeline.transformer.parameters()) / 1e6:.1f}",
        frames=pipeline.check_frames(),
        videos=len(label_names(SHAPES)) * (VIDEOS - HELD_OUT),
        held_out=len(label_names(SHAPES)) * HELD_OUT,
        recipe=RECIPE,
        steps=train.steps,
        batch=train.batch_size,
        seconds=f"{numbers['training_seconds']:.0f}",
        cores=counted(place["threads"], "core"),
        processor=place["processor"],
        rows="\n".join(rows(numbers)),
    )
