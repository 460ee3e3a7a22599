"""From a data folder to a set of clips: find the files, look at each one once, keep those that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from eqm_video.data.buckets import Bucket
from eqm_video.data.cifar import find_cifar, read_cifar
from eqm_video.data.clips import ArraySet, Clip, ClipSet, ImageSet, VideoSet, batch_of, check_flip, collate
from eqm_video.data.image import ImageInfo, decode_image, probe_image, probe_size
from eqm_video.data.index import Report, examine
from eqm_video.data.layout import list_files, quote
from eqm_video.data.transforms import sides
from eqm_video.data.video import VideoDecodeError, VideoInfo, probe
from eqm_video.errors import UserError

__all__ = ["ArraySet", "Clip", "ClipSet", "ImageSet", "VideoSet", "batch_of", "collate", "look_at_video", "open_data"]

SHORT = ("repeat", "skip", "error")  # what to do with videos shorter than a clip
DECODED = 20_000  # images up to which the first look decodes each one; of a larger set it would take many minutes


def open_data(
    kind: Literal["videos", "images"] = "videos",
    root: str | Path = "",
    *,
    split: Literal["train", "test"] | None = None,
    fold: int = 1,
    frames: int = 16,
    frame_interval: int = 3,
    size: int | tuple[int, int] = 256,
    flip: bool = False,
    short: Literal["repeat", "skip", "error"] = "repeat",
    report_path: str | Path | None = None,
    index_path: str | Path | None = None,
    verify: Literal["header", "size"] = "header",
    labelled: bool = True,
    buckets: Sequence[Bucket] = (),
    beside: bool = False,
    upright: bool = False,
) -> VideoSet | ImageSet | ArraySet:
    """Find the files of a data folder, look at each one once, and make a set of those that can be read.

    Layouts: class folders; a flat folder (no labels); UCF-101's lists, for `split` and `fold`; for images also CIFAR-10
    as it is published, archive or folder, with its own splits. `labelled=False` forgets the labels. `short` says what
    happens to videos shorter than a clip, which spans (frames - 1)·frame_interval + 1 source frames: "repeat" holds the
    last frame, "skip" leaves them out, "error" refuses them. `size` is in pixels, one number or (height, width).

    `buckets` are shapes of clips that the set is meant for, through `set.view(bucket)`; where there are any, they and
    not `frames` decide which videos are too short. Each view takes the videos that are long enough for it. `short` is
    about those that are too short for all of them: "repeat" holds their last frame in the view of the shortest shape.

    Files that cannot be read are left out and named with the reason in `set.report`, and in the JSON file
    `report_path`. `index_path` remembers what was found, for a quick second start. Images are decoded at this first
    look, of more than 20,000 the headers alone are read; `verify="size"` opens none, for sets of a million.

    UserError where nothing can be used, and for every setting out of range. `beside` says that these are images beside
    videos: errors then advise no other kind and no split. `upright` turns images as their EXIF data ask for.
    """
    _check(kind, frames, frame_interval, short, verify)
    sides(size)
    root = Path(root)
    if (place := find_cifar(root)) is not None:
        return _open_cifar(kind, place, split, size, flip, labelled, report_path)
    listing = list_files(kind, root, split=split, fold=fold, beside=beside)
    if not labelled:
        listing = replace(listing, labels=[], label_ids=[-1] * len(listing.names))
    check_flip(flip, listing.labels)
    if kind == "videos":
        infos, unreadable = examine(root, listing.names, look_at_video, VideoInfo, index_path)
    elif verify == "header":
        look = decode_image if len(listing.names) <= DECODED else probe_image
        infos, unreadable = examine(root, listing.names, look, ImageInfo, index_path)
    else:
        infos, unreadable = examine(root, listing.names, probe_size, ImageInfo)
    report = Report(
        str(root), len(listing.names), 0, unreadable, list(listing.missing), policy=short, ignored=list(listing.ignored)
    )
    shapes = sorted(buckets or [Bucket(frames, frame_interval)], key=lambda shape: shape.span)
    if kind == "videos":
        report.short = {name: info.frames for name, info in infos.items() if info.frames < shapes[0].span}
    skipped = report.short if short == "skip" else {}
    labelled = zip(listing.names, listing.label_ids, strict=True)
    files = [(name, label, infos[name]) for name, label in labelled if name in infos and name not in skipped]
    report.used = len(files)
    if report_path is not None:
        report.write(report_path)
    if not infos:
        named = [f"{name} ({reason})" for name, reason in unreadable.items()]
        raise UserError(f"none of the {len(named)} {kind} in {root} can be read: {quote(named)}")
    if kind == "images":
        return ImageSet(root, files, listing.labels, report, size=size, flip=flip, upright=upright)
    _check_lengths(infos, report, shapes, bool(buckets))
    shortest = shapes[0].span if buckets else None
    clip = {"frames": frames, "frame_interval": frame_interval, "shortest": shortest}
    return VideoSet(root, files, listing.labels, report, size=size, flip=flip, **clip)


def _open_cifar(
    kind: str,
    place: Path,
    split: str | None,
    size: int | tuple[int, int],
    flip: bool,
    labelled: bool,
    report_path: str | Path | None,
) -> ArraySet:
    """The pictures of CIFAR-10, all in memory: a training split has 150 MB."""
    if kind != "images":
        raise UserError(f"{place} holds CIFAR-10's images, not videos: type data.kind=images data.frames=1")
    pictures = read_cifar(place, split)
    count = len(pictures.names)
    label_ids = pictures.label_ids if labelled else [-1] * count
    info = ImageInfo(*pictures.pixels.shape[1:3])
    files = [(name, label, info) for name, label in zip(pictures.names, label_ids, strict=True)]
    report = Report(str(place), found=count, used=count)
    if report_path is not None:
        report.write(report_path)
    labels = pictures.labels if labelled else []
    return ArraySet(place, pictures.pixels, files, labels, report, size=size, flip=flip)


def look_at_video(path: Path) -> VideoInfo:
    """`probe`, and VideoDecodeError where the file was cut short."""
    info = probe(path)
    if info.truncated:
        raise VideoDecodeError(
            f"{path}: truncated, {info.frames} of the {info.declared} frames in its header are there"
        )
    return info


def _check(kind: str, frames: int, frame_interval: int, short: str, verify: str) -> None:
    for key, value, allowed in (
        ("kind", kind, ("videos", "images")),
        ("short", short, SHORT),
        ("verify", verify, ("header", "size")),
    ):
        if value not in allowed:
            raise UserError(f"data.{key} is {value!r}; type one of {', '.join(allowed)}")
    for key, value in (("frames", frames), ("frame_interval", frame_interval)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"data.{key} is {value!r}; type a whole number from 1 on")
    if kind == "images" and frames != 1:
        raise UserError(f"data.frames={frames}, but images are clips of one frame: type data.frames=1")


def _check_lengths(infos: dict[str, VideoInfo], report: Report, shapes: Sequence[Bucket], is_bucket: bool) -> None:
    """UserError where no video is as long as the longest clip, or one is shorter than all and `short` refuses that.

    `shapes` are ordered by their spans.
    """
    shape = shapes[-1]
    frames, frame_interval, span = shape.frames, shape.frame_interval, shape.span
    name, longest = max(((name, info.frames) for name, info in infos.items()), key=lambda pair: pair[1])
    fewer, closer = (longest - 1) // frame_interval + 1, (longest - 1) // max(1, frames - 1)
    if longest < span and is_bucket:
        raise UserError(
            f"every video in {report.root} is shorter than the clips of {shape} in data.buckets, which span {span} "
            f"source frames; the longest video ({name}) has {longest}: leave that bucket out, or take "
            f"{fewer}x{frame_interval}" + (f" or {frames}x{closer}" if closer >= 1 else "")
        )
    if longest < span:
        advice = f"data.frames={fewer}" + (f" or data.frame_interval={closer}" if closer >= 1 else "")
        raise UserError(
            f"every video in {report.root} is shorter than a clip: data.frames={frames} with data.frame_interval="
            f"{frame_interval} spans {span} source frames, the longest video ({name}) has {longest}; "
            f"type {advice}, or less"
        )
    if report.policy == "error" and report.short:
        named = [f"{name} ({count} frames)" for name, count in report.short.items()]
        clip = f"every clip of data.buckets, the shortest of {shapes[0].span}" if is_bucket else f"a clip of {span}"
        raise UserError(
            f"{len(named)} of {len(infos)} videos in {report.root} are shorter than {clip} source frames: "
            f"{quote(named)}; type data.short=repeat to hold their last frame, or data.short=skip to leave them out"
        )
