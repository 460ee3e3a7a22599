"""From a data folder to a set of clips: find the files, inspect each of them once, keep those that can be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eqm_video.data.buckets import Bucket
from eqm_video.data.cifar import find_cifar, read_cifar
from eqm_video.data.clips import ArraySet, Clip, ClipSet, ImageSet, VideoSet, batch_of, check_flip, collate
from eqm_video.data.holding import choose_held_out
from eqm_video.data.image import ImageInfo
from eqm_video.data.layout import Listing, list_files, quote
from eqm_video.data.scan import Report, examine
from eqm_video.data.transforms import sides
from eqm_video.data.video import VideoDecodeError, VideoInfo
from eqm_video.errors import UserError

__all__ = ["ArraySet", "Clip", "ClipSet", "ImageSet", "VideoSet", "batch_of", "collate", "look_at_video", "open_data"]

SHORT = ("repeat", "skip", "error")  # policies for videos shorter than a clip
DECODED = 20_000  # images up to which each is decoded at first; a larger set would take many minutes


@dataclass(frozen=True)
class Share:
    """A share of the files, held out by name and `seed`; `held_out` selects these files, False all others."""

    fraction: float
    seed: int
    held_out: bool = False


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
    resize: Literal["adm", "torch"] = "adm",
    short: Literal["repeat", "skip", "error"] = "repeat",
    report_path: str | Path | None = None,
    index_path: str | Path | None = None,
    verify: Literal["header", "size"] = "header",
    labelled: bool = True,
    buckets: Sequence[Bucket] = (),
    beside: bool = False,
    upright: bool = False,
    share: Share | None = None,
    again: bool = True,
    split_option: str = "data.split",
) -> VideoSet | ImageSet | ArraySet:
    """Find the files of a data folder, inspect each of them once, and make a set of those that can be read.

    Layouts: class folders; a flat folder (no labels); UCF-101's lists, for `split` and `fold`; for images also CIFAR-10
    as published, archive or folder, with its own splits. `labelled=False` drops the labels. `short` is the policy for
    videos shorter than a clip, which spans (frames - 1)·frame_interval + 1 source frames: "repeat" repeats the last
    frame, "skip" leaves them out, "error" refuses them. `size` is in pixels, a number or (height, width).

    `buckets` are the shapes of clips of the set, through `set.view(bucket)`. If there are any, they and not `frames`
    decide which videos are too short. Each view has the videos that are long enough for it. `short` applies to videos
    that are too short for all shapes: "repeat" repeats their last frame in the view of the shortest shape.

    Files that cannot be read are left out, and named with the reason in `set.report` and in the JSON file
    `report_path`. A class without a usable file has no label, unless an official list numbers it. `index_path` is a
    file that caches the results of the inspection for a quick second start; with `again=False` refused files are not
    inspected again either. Up to 20,000 images are decoded, of more the headers alone are read; `verify="size"` opens
    none, for sets of a million.

    `share` keeps a part of the usable files: those to train on, or those held out. It changes no other setting.

    UserError if no file can be used, and for every setting out of range. `beside` means images beside videos: errors
    then suggest no other kind and no split. `split_option` is the user's name of `split` in errors. `upright` applies
    the EXIF rotation of images.
    """
    _check(kind, frames, frame_interval, short, verify)
    sides(size)
    root = Path(root)
    shapes = sorted(buckets or [Bucket(frames, frame_interval)], key=lambda shape: shape.span)
    look = {"size": size, "flip": flip, "resize": resize}
    if (place := find_cifar(root)) is not None:
        whole = _open_cifar(kind, place, split, labelled, look)
    else:
        listing = list_files(kind, root, split=split, fold=fold, beside=beside, split_option=split_option)
        if not labelled:
            listing = replace(listing, labels=[], label_ids=[-1] * len(listing.names), official=False)
        check_flip(flip, listing.labels)
        report = report_on(listing, str(root), short)
        place = Path(os.path.abspath(root))  # decoders read a relative name such as 12:30.avi as a protocol
        infos, report.unreadable = _examine(kind, place, listing.names, verify, index_path, again)
        if kind == "videos":
            report.short = {name: info.frames for name, info in infos.items() if info.frames < shapes[0].span}
        files, labels = _usable(listing, infos, report)
        if report_path is not None:
            report.write(report_path)
        _check_lengths(kind, infos, report, shapes, bool(buckets))
        if kind == "images":
            whole = ImageSet(place, files, labels, report, upright=upright, **look)
        else:
            shortest = shapes[0].span if buckets else None
            clip = {"frames": frames, "frame_interval": frame_interval, "shortest": shortest}
            whole = VideoSet(place, files, labels, report, **clip, **look)
    part = whole if share is None else _part(whole, share, buckets)
    if report_path is not None:
        part.report.write(report_path)
    return part


def _open_cifar(kind: str, place: Path, split: str | None, labelled: bool, look: dict[str, Any]) -> ArraySet:
    """The pictures of CIFAR-10, all in memory: a training split has 150 MB."""
    if kind != "images":
        raise UserError(f"{place} holds CIFAR-10's images, not videos: type data.kind=images data.frames=1")
    pictures = read_cifar(place, split)
    count = len(pictures.names)
    label_ids = pictures.label_ids if labelled else [-1] * count
    info = ImageInfo(*pictures.pixels.shape[1:3])
    files = [(name, label, info) for name, label in zip(pictures.names, label_ids, strict=True)]
    report = Report(str(place), found=count, used=count)
    return ArraySet(place, files, pictures.labels if labelled else [], report, pixels=pictures.pixels, **look)


def look_at_video(path: Path) -> VideoInfo:
    """The info of a video file; VideoDecodeError, which names the file, if it cannot be read or was cut short."""
    path = Path(os.path.abspath(path))
    infos, reasons = examine(path.parent, [path.name], "video", VideoInfo)
    if reasons:
        raise VideoDecodeError(f"{path}: {reasons[path.name]}")
    return infos[path.name]


def report_on(listing: Listing, root: str, short: str) -> Report:
    """The report of a data set before its files are opened."""
    return Report(
        root,
        len(listing.names),
        missing=list(listing.missing),
        policy=short,
        ignored=list(listing.ignored),
        passed_over=listing.passed_over,
    )


def _examine(
    kind: str, place: Path, names: Sequence[str], verify: str, index_path: str | Path | None, again: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Infos of the files by name, and the reasons why the others cannot be read, by name."""
    if kind == "videos":
        return examine(place, names, "video", VideoInfo, index_path, again)
    if verify == "size":
        return examine(place, names, None, ImageInfo)
    look = "image" if len(names) <= DECODED else "image header"
    return examine(place, names, look, ImageInfo, index_path, again)


def _usable(
    listing: Listing, infos: dict[str, VideoInfo | ImageInfo], report: Report
) -> tuple[list[tuple[str, int, VideoInfo | ImageInfo]], list[str]]:
    """The used files and their labels, noted in the report. A label without a file is dropped, unless official."""
    skipped = report.short if report.policy == "skip" else {}
    numbered = zip(listing.names, listing.label_ids, strict=True)
    files = [(name, label, infos[name]) for name, label in numbered if name in infos and name not in skipped]
    report.used = len(files)
    for name, _, info in files:
        for note in info.notes:
            report.notes.setdefault(note, []).append(name)
    used = {label for _, label, _ in files}
    bare = [label for number, label in enumerate(listing.labels) if number not in used]
    report.unlabelled = list(listing.empty)
    if listing.official:
        report.untrained = bare
        return files, listing.labels
    report.unlabelled = sorted([*listing.empty, *bare])
    places = {old: new for new, old in enumerate(sorted(used - {-1}))}
    files = [(name, places.get(label, -1), info) for name, label, info in files]
    return files, [listing.labels[old] for old in places]


def _part(whole: ClipSet, share: Share, buckets: Sequence[Bucket]) -> ClipSet:
    """The files of a set to train on, or the held-out ones. UserError if a bucket is left without a file."""
    is_held_out = choose_held_out(
        [name for name, _, _ in whole.files], [label for _, label, _ in whole.files], share.fraction, share.seed
    )
    chosen = [index for index, out in enumerate(is_held_out) if out == share.held_out]
    names = [name for (name, _, _), out in zip(whole.files, is_held_out, strict=True) if out]
    part = whole.subset(chosen, replace(whole.report, used=len(chosen), held_out=names))
    for shape in buckets:
        if not part.view(shape).members():
            raise UserError(
                f"no video that is left to train on is long enough for clips of {shape} in data.buckets: the long ones "
                f"are held out by held_out.fraction={share.fraction:g}; take another fraction, or leave that bucket out"
            )
    return part


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
        raise UserError(f"data.frames={frames}, but images are clips of 1 frame: type data.frames=1")


def _check_lengths(kind: str, infos: dict[str, Any], report: Report, shapes: Sequence[Bucket], is_bucket: bool) -> None:
    """UserError if no file can be read, no video is as long as the longest clip, or a video is shorter than all clips.

    The last is an error only under the policy "error". `shapes` are ordered by their spans.
    """
    if not infos:
        named = [f"{name} ({reason})" for name, reason in report.unreadable.items()]
        raise UserError(f"none of the {len(named)} {kind} in {report.root} can be read: {quote(named)}")
    if kind == "images":
        return
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
        advice = f"data.frames={fewer}"
        if closer >= 1:
            advice += f" or data.frame_interval={closer}"
        elif frame_interval > 1:  # too short for as many frames, however close together
            advice += f" or data.frames={longest} data.frame_interval=1"
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
