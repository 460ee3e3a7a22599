"""What a run trains on: its videos and images, the labels of both, and the batches that are drawn from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eqm_video.codec import Codec
from eqm_video.data.buckets import Bucket
from eqm_video.data.datasets import Share, collate, open_data
from eqm_video.data.identity import identity
from eqm_video.data.layout import quote
from eqm_video.data.presence import patient
from eqm_video.errors import UserError
from eqm_video.training.batches import Batches, BatchPlan
from eqm_video.training.config import Config
from eqm_video.training.shared_memory import check_shared_memory
from eqm_video.wording import counted

STILL = Bucket(1, 1)  # a single frame of a video


@dataclass(frozen=True)
class TrainingData:
    """The sets of a run, whose labels are numbered alike.

    `labels` are those of the videos, then further ones that only images have; the first `video_labels` are the videos'.
    `images` is None where there is no folder of images.
    """

    config: Config
    videos: Any
    images: Any | None
    labels: list[str]
    video_labels: int

    @property
    def record(self) -> dict[str, Any]:
        """What must stay the same for a run to go on: the order of the samples and the rows of labels hang on it."""
        record = {"size": len(self.videos), "labels": self.labels, "identity": identity(self.videos)}
        if self.images is not None:
            record |= {"images": len(self.images), "images_identity": identity(self.images)}
        return record

    @property
    def notes(self) -> list[str]:
        """What became of the files, which of them the buckets leave out, and which are too short for all of these."""
        notes = [self.videos.report.summary()]
        if (stated := self.config.model.num_labels) is not None and stated > len(self.labels):
            notes.append(
                f"note: model.num_labels={stated}, but the data have {counted(len(self.labels), 'label')}: numbers "
                f"from {len(self.labels)} on are never trained; model.num_labels=null counts the labels"
            )
        if self.images is not None:
            notes.append(self.images.report.summary())
            if own := self.labels[self.video_labels :]:
                notes.append(f"labels that only images have: {quote(own)}")
        shapes = self.config.data.shapes if self.config.data.buckets else ()
        for shape in shapes:
            few = len(self.videos.view(shape).members())
            if few < len(self.videos):
                notes.append(f"clips of {shape} come from {few} of {len(self.videos)} videos: the others are too short")
        held = len(self.videos.report.short) if shapes and self.config.data.short == "repeat" else 0
        if held:
            least = min(shapes, key=lambda shape: shape.span)
            notes.append(
                f"too short for every shape: {held} of these videos; in clips of {least} their last frame is held"
            )
        return notes

    def batches(self, accelerator: Accelerator, codec: Codec) -> Batches:
        """The batches of this process; with `data.latents=memory` everything is encoded first, once."""
        config, data = self.config, self.config.data
        plan = BatchPlan(
            size=len(self.videos),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            accumulation=config.train.accumulation,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            weights=tuple(shape.weight for shape in data.shapes),
            images=config.images,
            image_size=len(self.images if self.images is not None else self.videos) if config.images else 0,
        )
        pin = accelerator.device.type == "cuda"
        if data.latents == "online":
            for one in (self.videos, self.images):
                if one is not None:
                    one.substitutes = patient(one) or one.substitutes
            self._check_shared_memory(plan, accelerator)
            return Batches(self._views(self.videos, self.images), collate, plan, workers=data.workers, pin_memory=pin)
        from eqm_video.data.latents import LatentSet, collate_latents

        quiet = not accelerator.is_local_main_process
        videos = LatentSet(self.videos, codec, accelerator.device, quiet=quiet)
        images = self.images
        if images is not None:
            images = LatentSet(images, codec, accelerator.device, quiet=quiet, taken=videos.bytes)
        return Batches(self._views(videos, images), collate_latents, plan, pin_memory=pin)

    def _check_shared_memory(self, plan: BatchPlan, accelerator: Accelerator) -> None:
        """UserError where the workers' batches do not fit into /dev/shm."""
        data = self.config.data
        frames = max(shape.frames for shape in data.shapes) if data.kind == "videos" else 1
        frame = 3 * data.size**2  # bytes
        largest = max(plan.micro_batch * frames, plan.images // (plan.world * plan.accumulation)) * frame
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        check_shared_memory(largest, data.workers, processes)

    def _views(self, videos: Any, images: Any | None) -> list[Any]:
        """One set for each shape of clips, then that of single frames where the plan has any."""
        if self.config.data.kind == "images":
            return [videos]
        stills = [videos.view(STILL) if images is None else images] if self.config.images else []
        return [videos.view(shape) for shape in self.config.data.shapes] + stills


def open_training_data(config: Config, accelerator: Accelerator) -> TrainingData:
    """The videos (or the images of an image model) of `data.root`, and the images of `data.images` beside them."""
    folder = config.run.folder
    fraction = config.held_out.fraction
    share = None if fraction is None else Share(fraction, config.train.seed)
    videos = open_split(
        config, config.data.split, accelerator, folder / "data_report.json", config.data.buckets, share=share
    )
    labels = list(videos.labels)
    if config.data.images is None:
        return TrainingData(config, videos, None, labels, len(labels))
    folderful = {"kind": "images", "root": config.data.images, "split": None, "frames": 1, "buckets": ()}
    with accelerator.main_process_first():
        report = folder / "data_report_images.json" if accelerator.is_main_process else None
        try:
            images = _open(
                replace(config.data, **folderful),
                folder / "data_index_images.json",
                report,
                beside=True,
                again=accelerator.is_main_process,
            )
        except UserError as error:
            raise UserError(f"data.images: {error}") from error
    labels += [label for label in images.labels if label not in set(labels)]
    return TrainingData(config, videos, images.relabel(labels), labels, len(videos.labels))


def open_held_out(config: Config, accelerator: Accelerator, labels: list[str]) -> Any | None:
    """The clips of the held-out loss, numbered as `labels`, those of the videos trained on; None where there are none.

    UserError where their classes are others.
    """
    held_out, data = config.held_out, config.data
    if held_out.fraction is not None:
        return open_split(config, data.split, accelerator, share=Share(held_out.fraction, config.train.seed, True))
    if held_out.split is not None:
        clips = open_split(config, held_out.split, accelerator, split_option="held_out.split")
        if list(clips.labels) != labels:
            raise UserError(
                f"the labels of data.split={data.split} and held_out.split={held_out.split} differ in "
                f"{quote(sorted(set(clips.labels) ^ set(labels)))}: both need the same class folders"
            )
        return clips
    return _open_held_out_root(config, accelerator, labels) if held_out.root is not None else None


def _open_held_out_root(config: Config, accelerator: Accelerator, labels: list[str]) -> Any:
    """The clips of `held_out.root`."""
    root, trained = (Path(path).expanduser() for path in (config.held_out.root, config.data.root))
    if os.path.realpath(root) == os.path.realpath(trained):
        raise UserError(
            f"held_out.root={root} is the folder that is trained on: give another one, or held_out.fraction=0.1 to "
            "hold out a tenth of its files"
        )
    folder = config.run.folder
    with accelerator.main_process_first():
        main = accelerator.is_main_process
        report = folder / "data_report_held_out.json" if main else None
        data = replace(config.data, root=str(root), split=None, buckets=())
        try:
            clips = _open(data, folder / "data_index_held_out.json", report, again=main)
        except UserError as error:
            raise UserError(f"held_out.root: {error}") from error
    known = f"those trained on are {quote(labels)}" if labels else "the videos trained on have none"
    if unknown := sorted(set(clips.labels) - set(labels)):
        raise UserError(f"held_out.root={root} has class folders that are not trained on ({quote(unknown)}); {known}")
    if labels and not clips.labels:
        raise UserError(f"held_out.root={root} holds no class folders: sort its files as in {trained}; {known}")
    return clips.relabel(labels)


def open_split(
    config: Config,
    split: str | None,
    accelerator: Accelerator,
    report: Path | None = None,
    buckets: tuple[str, ...] = (),
    *,
    share: Share | None = None,
    split_option: str = "data.split",
) -> Any:
    """The set of a split, or a share of it.

    Every file is looked at by the main process alone; the others believe what it found.
    """
    if not config.data.root:
        raise UserError("data.root is not set: add data.root=FOLDER, the folder of your videos or images")
    index = config.run.folder / f"data_index{'_' + split if split else ''}.json"
    data = replace(config.data, split=split, buckets=buckets)
    with accelerator.main_process_first():
        main = accelerator.is_main_process
        return _open(data, index, report if main else None, share=share, again=main, split_option=split_option)


def _open(data: Any, index: Path, report: Path | None, **settings: Any) -> Any:
    """`open_data` with the settings of a `DataConfig`; `index` remembers the files, `report` names unreadable ones."""
    return open_data(
        data.kind,
        Path(data.root).expanduser(),
        split=data.split,
        fold=data.fold,
        frames=data.frames,
        frame_interval=data.frame_interval,
        size=data.size,
        flip=data.flip,
        short=data.short,
        report_path=report,
        index_path=index,
        verify=data.verify,
        labelled=data.labelled,
        buckets=[Bucket.parse(text) for text in data.buckets],
        upright=data.upright,
        **settings,
    )
