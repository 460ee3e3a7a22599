"""The start of samples on the command line: `--start-from`, `--known`, `--keyframes`, `--start-gamma`.

Known frames stay as they are in the clips; the others start as noise, or with `--start-gamma` between noise and clip.
Sample k starts from clip k; after the last clip the first comes again. T frames, H W pixels.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.data.cifar import find_cifar
from eqm_video.data.image import ANIMATION, read_image
from eqm_video.data.layout import EXTENSIONS
from eqm_video.data.source import kind_of
from eqm_video.errors import UserError
from eqm_video.sampling.clips import (
    ArrayClip,
    ClipSpec,
    Opened,
    OpenedPath,
    PictureClip,
    VideoClip,
    check_exists,
    every,
    open_path,
    read_npz,
    read_rates,
)
from eqm_video.sampling.known import KnownFrames, keyframes_of, name_frames
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.wording import counted

ARRAYS = (".npz", ".npy")
SAME = 1.001  # rates within this factor are equal: files round their frame times
READING = ("at", "frame_interval", "split", "fold")  # options of reading videos


@dataclass(frozen=True)
class Start:
    """The clips that samples start from, of T `frames` and (height, width) `size`, and the numbers of known frames."""

    clips: Sequence[Opened]
    frames: int
    size: tuple[int, int]
    known: list[int]
    labels: list[str | int | None] | None  # of every clip, None: unlabelled; None for all: labels do not count
    digest: str  # a hash of the clips
    said: str  # a line about the files
    mask: np.ndarray | None = None  # (T, H, W) bool, known pixels of the frames that are not known

    @property
    def rates(self) -> list[float]:
        """Frames per second of every clip; [] if clips fit any rate."""
        return [clip.rate for clip in self.clips if clip.rate is not None]

    @property
    def mixed(self) -> bool:
        """Whether clips have different rates."""
        return bool(self.rates) and max(self.rates) > SAME * min(self.rates)

    def fps(self, otherwise: float) -> float:
        """The rate of all clips in frames per second; `otherwise` if they have several rates, or none."""
        return otherwise if self.mixed or not self.rates else self.rates[0]

    def batch(self, samples: range) -> np.ndarray:
        """The clips (B, T, H, W, 3) of these samples."""
        return np.stack([self.clips[sample % len(self.clips)].read() for sample in samples])

    def call(self, samples: range) -> dict[str, Any]:
        """Keyword arguments of `EqMPipeline.__call__` for these samples."""
        known = {"known": self.known} if self.known else {}
        rates = self.rates if self.mixed else []
        timing = {"fps": [rates[sample % len(rates)] for sample in samples]} if rates else {}
        region = {} if self.mask is None else {"known_mask": self.mask}
        return {"clips": self.batch(samples), **known, **region, **timing}

    def settings(self) -> dict[str, Any]:
        """The entries of samples.json that describe the start."""
        known = {"known": self.known} if self.known else {}
        region = {} if self.mask is None else {"known_mask": hashlib.blake2b(self.mask, digest_size=16).hexdigest()}
        return {"start_from": self.digest, **known, **region, **({"clip_fps": self.rates} if self.mixed else {})}


def open_start(pipeline: EqMPipeline, options: argparse.Namespace) -> Start | None:
    """The start that the command line asks for; None for noise. UserError for options that exclude each other."""
    if options.length is not None:
        _check_first_window(options)
    start = _opened(pipeline, options)
    if start is None or options.known_mask is None:
        return start
    mask = options.known_mask.of(start.frames, tuple(start.size))
    return replace(start, mask=mask, said=f"{start.said}; known region: {options.known_mask}")


def _opened(pipeline: EqMPipeline, options: argparse.Namespace) -> Start | None:
    """The start without a known region."""
    if options.keyframes:
        return _from_keyframes(pipeline, options)
    if options.start_from is None:
        for name in ("start_gamma", "known", "known_mask", *READING):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} needs clips to start from: add --start-from FILE_OR_FOLDER")
        return None
    check_exists(options.start_from)
    if options.start_from.suffix in ARRAYS:
        return _from_arrays(pipeline, options)
    return _from_files(pipeline, options)


# Kinds of starts ----------------------------------------------------------------------------------------------------


def _from_keyframes(pipeline: EqMPipeline, options: argparse.Namespace) -> Start:
    """A clip whose keyframes are pictures."""
    others = ("start_from", "known", "known_mask", "start_gamma", *READING)
    if clash := [f"--{name.replace('_', '-')}" for name in others if getattr(options, name) is not None]:
        raise UserError(
            f"--keyframes names the known frames and their pictures itself: leave {' and '.join(clash)} out"
        )
    frames, size = pipeline.check_frames(options.frames), pipeline.check_size(options.size)
    pictures = keyframes_of(options.keyframes, frames)
    for frame, path in options.keyframes:
        if not Path(path).is_file():
            raise UserError(f"--keyframes {frame}={path}: there is no such file; give a picture")
    for path in dict.fromkeys(pictures.values()):
        read_image(path)
    spec = ClipSpec(frames, size, 1.0, list(pictures))
    clip = PictureClip(tuple(pictures.values()), None, spec)
    named = ", ".join(f"{frame}={path}" for frame, path in pictures.items())
    said = f"known: {_of(list(pictures), frames)} ({named})"
    return Start([clip], frames, size, list(pictures), [None], digest([clip]), said)


def _from_arrays(pipeline: EqMPipeline, options: argparse.Namespace) -> Start:
    """The clips of a samples.npz, at their own number of frames and size."""
    path = options.start_from
    if clash := [f"--{name.replace('_', '-')}" for name in READING if getattr(options, name) is not None]:
        raise UserError(
            f"{' and '.join(clash)}: {path} holds finished clips, whose frames are all used: leave that out"
        )
    pixels, numbers = read_npz(path, "give --start-from the samples.npz of a folder that `eqm-video sample` wrote")
    frames, size = pixels.shape[1], pixels.shape[2:4]
    _check_shape(pipeline, options, frames, size)
    pipeline.check_frames(frames)
    pipeline.check_size(size)
    if options.known is None and options.start_gamma is None and options.known_mask is None:
        raise UserError(_neither(path))
    pixels = pixels[: options.num_samples]
    known = options.known.of(frames) if options.known else []
    names = None
    if known:  # partial denoising takes labels in turn, as sampling from noise does
        total = pipeline.transformer.null_label
        numbers = [-1] * len(pixels) if numbers is None else numbers[: len(pixels)]
        names = [int(number) if 0 <= number < total else None for number in numbers]
    rates = [None] * len(pixels) if options.fps or frames == 1 else read_rates(path, len(pixels))
    clips = [ArrayClip(clip, None, frames, rate) for clip, rate in zip(pixels, rates, strict=True)]
    said = f"starts from {counted(len(clips), 'clip')} of {path}" + (f"; known: {_of(known, frames)}" if known else "")
    whole = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).hexdigest()
    return Start(clips, frames, tuple(size), known, names, whole, said)


def _from_files(pipeline: EqMPipeline, options: argparse.Namespace) -> Start:
    """The start from a video, an image, or a folder: a clip of every file, or of files spread evenly over it."""
    frames, size = pipeline.check_frames(options.frames), pipeline.check_size(options.size)
    path, fps = options.start_from, options.fps or pipeline.config.fps
    still = _shows_images(path)
    known = options.known
    if known is None and options.start_gamma is None and options.known_mask is None:
        if not still or frames == 1:
            raise UserError(_neither(path))
        known = KnownFrames("first", ((0, 0),))  # a picture can be nothing else
    kept = known.of(frames) if known else []
    needed = list(range(frames)) if options.start_gamma or options.known_mask or not kept else kept
    spec = ClipSpec(frames, size, fps, needed, options.at or 0.0, options.frame_interval)
    split = None if options.split == "all" else options.split
    if options.fold and not split:
        raise UserError("--fold belongs to a split: add --split train or --split test")
    source = open_path(path, spec, split=split, fold=options.fold or 1, split_option="--split")
    if source.kind == "image" and (clash := [name for name in ("at", "frame_interval") if getattr(options, name)]):
        raise UserError(f"--{clash[0].replace('_', '-')} is for videos, but {path} holds images: leave it out")
    if ANIMATION in source.notes and len(needed) > 1:
        raise UserError(
            f"--start-from {path} is an {ANIMATION}: give it as a video, such as the mp4 of --format gif,mp4, or keep "
            "one frame, --known first"
        )
    total = len(source.clips)
    count = min(total, options.num_samples or total)
    clips = [source.clips[k * total // count] for k in range(count)]
    _check_interval(options, clips)
    ours = set(pipeline.labels.values())
    labels = [clip.label if clip.label in ours else None for clip in clips]
    said = _describe(path, source, clips) + (f"; known: {_of(kept, frames)}" if kept else "")
    return Start(clips, frames, size, kept, labels, digest(clips), said)


# Checks and words ---------------------------------------------------------------------------------------------------


def _check_shape(pipeline: EqMPipeline, options: argparse.Namespace, frames: int, size: Sequence[int]) -> None:
    """UserError unless finished clips have the shape of the options or, with known frames, the model's own."""
    theirs = f"{frames} frames of {size[0]}x{size[1]} pixels"
    if (options.frames or frames) != frames or tuple(options.size or size) != tuple(size):
        raise UserError(
            f"--start-from: frames and size are those of the clips ({theirs}); leave --frames and --size out"
        )
    if options.known is None:
        return
    own_frames, own_size = pipeline.config.frames, pipeline.config.size
    own_size = tuple(pipeline.check_size(own_size)) if own_size is not None else tuple(size)
    typed = f"--frames {frames} --size {size[0]}x{size[1]}"
    if (options.frames or own_frames) != frames or tuple(options.size or own_size) != tuple(size):
        raise UserError(
            f"{options.start_from} holds clips of {theirs}, but this model makes {own_frames} frames of "
            f"{own_size[0]}x{own_size[1]}: known frames must be of the shape that is sampled; give clips of that shape "
            f"(of a video or an image they are made here), or type {typed} to sample at theirs"
        )


def _check_interval(options: argparse.Namespace, clips: Sequence[Opened]) -> None:
    """UserError where --fps and --frame-interval contradict each other for a video."""
    if options.fps is None or options.frame_interval is None:
        return
    for clip in clips:
        if isinstance(clip, VideoClip) and clip.interval != (best := clip.spec.nearest_interval(clip.info)):
            raise UserError(
                f"--fps {options.fps:g} and --frame-interval {clip.interval} do not agree: {every(clip.interval)} of "
                f"{clip.path} is {clip.rate:.4g} fps; leave one of the two out, or type --frame-interval {best}"
            )


def _check_first_window(options: argparse.Namespace) -> None:
    """UserError where known frames of a long video are counted from the end, which is only the first window's."""
    if options.known_mask is not None:
        raise UserError("--known-mask is for clips of one window: leave --length out, or --known-mask")
    known = [number for part in options.known.parts for number in part] if options.known else []
    words = [f"--known {options.known}"] if any(number < 0 for number in known) else []
    words += [f"--keyframes {frame}={path}" for frame, path in options.keyframes or () if frame < 0]
    if words:
        raise UserError(
            f"{words[0]}: with --length, known frames lie in the first window and not at the video's end: count them "
            "from 0 within the first window, such as first:4 or 0-3"
        )


def _neither(path: Path) -> str:
    return (
        f"--start-from {path}: choose what to keep: --known FRAMES (such as first, 0-3 or ends), or --start-gamma G, "
        "such as 0.5, for a start between noise and clip, or --known-mask REGION for a part of every frame"
    )


def _of(known: Sequence[int], frames: int) -> str:
    return f"frame{'s' if len(known) > 1 else ''} {name_frames(known)} of {frames}"


def _shows_images(path: Path) -> bool:
    if path.is_dir() or find_cifar(path) is not None:
        return kind_of(path) == "images"
    return path.name.lower().endswith(tuple(EXTENSIONS["images"]))


def _describe(path: Path, source: OpenedPath, clips: Sequence[Opened]) -> str:
    """The files, their frames and times in a line."""
    if len(source.clips) == 1:
        words = [f"starts from {path}", clips[0].describe()]
    else:
        of = f" of {len(source.clips)}" if len(clips) < len(source.clips) else ""
        words = [f"starts from {counted(len(clips), source.kind)}{of} in {path}"]
        videos = [clip for clip in clips if isinstance(clip, VideoClip)]
        rates = [clip.rate for clip in videos if clip.rate is not None]
        if len({(clip.interval, clip.seconds, clip.info.fps) for clip in videos}) == 1:
            words.append(videos[0].describe())
        elif rates:
            intervals = sorted({clip.interval for clip in videos})
            low, high = f"{min(rates):.4g}", f"{max(rates):.4g}"
            words.append(f"{every(intervals[0], intervals[-1])}, {low if low == high else f'{low} to {high}'} fps")
    return ": ".join(word for word in words if word) + "".join(f" ({note})" for note in source.notes)


def digest(clips: Sequence[Opened]) -> str:
    """A hash of the clips' contents: samples of two starts never mix."""
    whole = hashlib.blake2b(digest_size=16)
    for clip in clips:
        whole.update(clip.identity())
    return whole.hexdigest()
