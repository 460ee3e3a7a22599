"""The training data of a run: its videos and images, the labels of both, and the batches drawn from them."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from eqm_video.codec import Codec, fingerprint
from eqm_video.data.buckets import Bucket
from eqm_video.data.datasets import Share, collate, open_data
from eqm_video.data.identity import identity
from eqm_video.data.latent_cache import VERSION, LatentCache, LatentsOnDisk
from eqm_video.data.latents import LIMIT, LatentsInMemory, collate_latents, moments_shape, total_bytes
from eqm_video.data.layout import quote
from eqm_video.data.presence import patient
from eqm_video.data.transforms import sides
from eqm_video.errors import UserError
from eqm_video.system import machine
from eqm_video.system.files import write_file
from eqm_video.training.batches import Batches, BatchPlan
from eqm_video.training.config import Config
from eqm_video.training.recipes import check_root
from eqm_video.training.shared_memory import check_shared_memory
from eqm_video.wording import counted, storage

STILL = Bucket(1, 1)  # a single frame of a video
VIDEOS, IMAGES, HELD_OUT = "data", "images", "held_out"  # folders of a latent cache: of data.root, data.images ...
INDEX = "data_index.json"  # in each of them: what the first look at the files found
# Keys of `data` that are arguments of `open_data`
SAME = ("split", "fold", "frames", "frame_interval", "size", "flip", "resize", "short", "verify", "labelled", "upright")


@dataclass(frozen=True)
class TrainingData:
    """The sets of a run, with a common numbering of labels.

    `labels`: the labels of the videos, `video_labels` of them, then those that only images have. `images` is None
    without a folder of images.
    """

    config: Config
    videos: Any
    images: Any | None
    labels: list[str]
    video_labels: int
    on_disk: tuple[LatentsOnDisk, LatentsOnDisk | None] | None = None  # the latents of both, from a cache

    @property
    def clips(self) -> Any:
        """The set that training clips come from: of latents, where a cache has them, else the videos."""
        return self.on_disk[0] if self.on_disk else self.videos

    def cached(self, caches: LatentCaches) -> TrainingData:
        """The same data, their latents taken from a cache; UserError where it does not have all of them."""
        images = None if self.images is None else caches.open(IMAGES, self.images)
        return replace(self, on_disk=(caches.open(VIDEOS, self.videos), images))

    @property
    def record(self) -> dict[str, Any]:
        """The record of the data in a checkpoint.

        A run resumes only on equal data: the order of the samples and the rows of the label embedding depend on them.
        """
        record = {"size": len(self.videos), "labels": self.labels, "identity": identity(self.videos)}
        if self.images is not None:
            record |= {"images": len(self.images), "images_identity": identity(self.images)}
        return record

    @property
    def notes(self) -> list[str]:
        """Lines about the data: the scan of the files, labels, and videos too short for some or all buckets."""
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
        padded = len(self.videos.report.short) if shapes and self.config.data.short == "repeat" else 0
        if padded:
            least = min(shapes, key=lambda shape: shape.span)
            notes.append(
                f"too short for every shape: {padded} of these videos; in clips of {least} their last frame is repeated"
            )
        return notes

    def batches(self, accelerator: Accelerator, codec: Codec) -> Batches:
        """The batches of this process. With `data.latents=memory` the whole data set is encoded first, once."""
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
        if self.on_disk is not None:
            shape = self.on_disk[0].maps.shape
            self._check_shared_memory(plan, accelerator, 2 * math.prod(shape))
            return Batches(self._views(*self.on_disk), collate_latents, plan, workers=data.workers, pin_memory=pin)
        if data.latents == "online":
            for data_set in (self.videos, self.images):
                if data_set is not None:
                    data_set.substitutes = patient(data_set) or data_set.substitutes
            self._check_shared_memory(plan, accelerator, 3 * data.size**2)
            return Batches(self._views(self.videos, self.images), collate, plan, workers=data.workers, pin_memory=pin)
        quiet = not accelerator.is_local_main_process
        videos = LatentsInMemory(self.videos, codec, accelerator.device, quiet=quiet)
        images = self.images
        if images is not None:
            images = LatentsInMemory(images, codec, accelerator.device, quiet=quiet, taken=videos.bytes)
        return Batches(self._views(videos, images), collate_latents, plan, pin_memory=pin)

    def _check_shared_memory(self, plan: BatchPlan, accelerator: Accelerator, frame: int) -> None:
        """UserError where the workers' batches, of frames of so many bytes, do not fit into /dev/shm."""
        data = self.config.data
        frames = max(shape.frames for shape in data.shapes) if data.kind == "videos" else 1
        largest = max(plan.micro_batch * frames, plan.images // (plan.world * plan.accumulation)) * frame
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        check_shared_memory(largest, data.workers, processes)

    def _views(self, videos: Any, images: Any | None) -> list[Any]:
        """A set for each shape of clips, then the set of single frames if the plan has any."""
        if self.config.data.kind == "images":
            return [videos]
        stills = [videos.view(STILL) if images is None else images] if self.config.images else []
        return [videos.view(shape) for shape in self.config.data.shapes] + stills


@dataclass(frozen=True)
class LatentCaches:
    """The caches of a recipe's data sets in `folder`, one for each of its folders of videos and images.

    `codec` is its fingerprint, `shape` (2C, h, w) that of the moments of a frame.
    """

    config: Config
    folder: Path
    codec: dict[str, str]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, config: Config, codec: Codec, folder: Path | None = None) -> LatentCaches:
        """The caches in `folder`, by default that of `data.latents`; UserError if the codec's files are missing."""
        folder = cache_folder(config) if folder is None else folder
        return cls(config, folder, fingerprint(config.codec.name), moments_shape(codec, sides(config.data.size)))

    def cache(self, part: str) -> LatentCache:
        """The cache of one part, for the settings of the recipe; not read yet."""
        data = self.config.data
        kind = "images" if part == IMAGES else data.kind
        settings = {
            "version": VERSION,
            "kind": kind,
            "codec": self.codec,
            "codec_dtype": self.config.codec.dtype,
            "shape": list(self.shape),
            "size": list(sides(data.size)),
            "resize": data.resize,
            "flip": data.flip and part != HELD_OUT,  # its clips are never mirrored
            "upright": data.upright and kind == "images",
        }
        return LatentCache(self.folder / part, settings)

    def open(self, part: str, data: Any) -> LatentsOnDisk:
        """The latents of a set; UserError if the cache lacks some, or has those of changed files or other settings."""
        return LatentsOnDisk(data, self.cache(part), f"eqm-video cache --config ... --out {self.folder}")


def cache_folder(config: Config) -> Path | None:
    """FOLDER of `data.latents=cache:FOLDER`; None for other latents."""
    kind, _, folder = config.data.latents.partition(":")
    return Path(folder).expanduser() if kind == "cache" else None


def choose_latents(config: Config, data: TrainingData, codec: Codec, accelerator: Accelerator) -> tuple[Config, str]:
    """The recipe with `data.latents=auto` decided, memory or online, and a note that says why.

    Memory where every process's copy fits, with room to spare, and holds fewer frames than the run would encode online.
    All processes decide alike.
    """
    sets = [data_set for data_set in (data.videos, data.images) if data_set is not None]
    shape = moments_shape(codec, sides(config.data.size))
    size = sum(total_bytes(data_set, shape) for data_set in sets)
    frames = sum(data_set.length(index) for data_set in sets for index in range(len(data_set))) * (1 + config.data.flip)
    longest = max(bucket.frames for bucket in config.data.shapes) if config.data.kind == "videos" else 1
    samples = config.train.steps * config.train.batch_size // accelerator.num_processes
    free = machine.free_memory()
    room = LIMIT if free is None else min(LIMIT, free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    fits = size <= room
    if accelerator.num_processes > 1:
        fits = all(gather_object([fits]))
    chosen = "memory" if fits and frames <= samples * longest else "online"
    if chosen == "memory":
        why = f"its {counted(frames, 'frame')} are encoded once, {storage(size)}"
    elif not fits:
        why = (
            f"the latents of its {frames:,} frames are {size / 2**30:,.1f} GiB, too much for this memory, so clips are "
            "encoded in every step; `eqm-video cache` keeps latents on disk"
        )
    else:
        steps = config.train.steps
        sees = "sees" if steps == 1 else "see"
        why = f"{counted(steps, 'step')} {sees} fewer frames than the {frames:,} of the data"
    note = f"data.latents=auto: {chosen}; {why}"
    return replace(config, data=replace(config.data, latents=chosen)), note


def open_training_data(config: Config, accelerator: Accelerator) -> TrainingData:
    """The videos (or the images of an image model) of `data.root`, and the images of `data.images`.

    UserError where one of the two cannot be used.
    """
    fraction, report = config.held_out.fraction, config.run.folder / "data_report.json"
    share = None if fraction is None else Share(fraction, config.train.seed)
    videos = open_split(config, config.data.split, accelerator, report, config.data.buckets, share=share)
    labels = list(videos.labels)
    if config.data.images is None:
        return TrainingData(config, videos, None, labels, len(labels))
    images = _open_beside(config, accelerator, IMAGES, "data.images", kind="images", root=config.data.images, frames=1)
    labels += [label for label in images.labels if label not in set(labels)]
    return TrainingData(config, videos, images.relabel(labels), labels, len(videos.labels))


def open_held_out(config: Config, accelerator: Accelerator, labels: list[str]) -> Any | None:
    """The clips of the held-out loss, or None. Their labels have the numbers of `labels`, those of the training videos.

    UserError where they have other labels.
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
    """The clips of `held_out.root`, with the numbers of `labels`.

    UserError for other labels, and for data.root itself.
    """
    root, trained = (Path(path).expanduser() for path in (config.held_out.root, config.data.root))
    if os.path.realpath(root) == os.path.realpath(trained):
        raise UserError(
            f"held_out.root={root} is the folder that is trained on: give another one, or held_out.fraction=0.1 to "
            "hold out a tenth of its files"
        )
    clips = _open_beside(config, accelerator, HELD_OUT, "held_out.root", root=str(root))
    known = f"those trained on are {quote(labels)}" if labels else "the videos trained on have none"
    if unknown := sorted(set(clips.labels) - set(labels)):
        raise UserError(f"held_out.root={root} has class folders that are not trained on ({quote(unknown)}); {known}")
    if labels and not clips.labels:
        raise UserError(f"held_out.root={root} holds no class folders: sort its files as in {trained}; {known}")
    return clips.relabel(labels)


def _open_beside(config: Config, accelerator: Accelerator, part: str, key: str, **changes: Any) -> Any:
    """All files of a folder beside data.root, which `changes` of the section `data` name.

    part: IMAGES or HELD_OUT. UserError, with the recipe's `key` of the folder, where it cannot be used.
    """
    folder, main = config.run.folder, accelerator.is_main_process
    with accelerator.main_process_first():
        index = _index(config, folder / f"data_index_{part}.json", part, main)
        report = folder / f"data_report_{part}.json" if main else None
        data = replace(config.data, split=None, buckets=(), **changes)
        try:
            return open_set(data, index, report, beside=part == IMAGES, again=main)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error


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

    The main process alone scans the files; the others use its record. UserError where there are no data.
    """
    check_root(config.data.root)
    index = config.run.folder / f"data_index{'_' + split if split else ''}.json"
    data = replace(config.data, split=split, buckets=buckets)
    with accelerator.main_process_first():
        main = accelerator.is_main_process
        index = _index(config, index, VIDEOS, main)
        return open_set(data, index, report if main else None, share=share, again=main, split_option=split_option)


def _index(config: Config, path: Path, part: str, main: bool) -> Path:
    """`path`, the record of a run's scan. A new run with a latent cache begins with a copy of the cache's record."""
    folder = cache_folder(config)
    if main and folder is not None and not path.exists() and (folder / part / INDEX).is_file():
        write_file(path, lambda aside: shutil.copyfile(folder / part / INDEX, aside))
    return path


def open_set(data: Any, index: Path | None, report: Path | None, **settings: Any) -> Any:
    """`open_data` with the settings of a `DataConfig`; `index` records the scan, `report` names unreadable files."""
    same = {name: getattr(data, name) for name in SAME}
    buckets = [Bucket.parse(text) for text in data.buckets]
    paths = {"report_path": report, "index_path": index}
    return open_data(data.kind, Path(data.root).expanduser(), buckets=buckets, **same, **paths, **settings)
