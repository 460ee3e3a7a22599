"""Clips to measure, whatever they come from: a folder, an archive, or a model that is sampled.

Legend: N clips, B clips that are read at once, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

import io
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqm_video.data.buckets import Bucket
from eqm_video.data.clips import ClipSet
from eqm_video.data.datasets import open_data
from eqm_video.data.identity import identity
from eqm_video.data.source import kind_of
from eqm_video.data.transforms import crop_clip, sides
from eqm_video.errors import UserError
from eqm_video.evaluation.protocol import Protocol
from eqm_video.randomness import generator
from eqm_video.sampling.clips import read_captions, read_npz

if TYPE_CHECKING:
    from eqm_video.codec import Codec


class ClipSource(ABC):
    """N clips of one shape that can be read in any order.

    shape: (T, H, W). labels: names, None without one. sources: a number for each clip, equal for clips of one file.
    names: of the files, by which clips are paired with true ones. fps: None where it is not known. about: for the
    record.
    """

    shape: tuple[int, int, int]
    labels: Sequence[str | None]
    sources: Sequence[int]
    names: Sequence[str]
    fps: float | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.sources)

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Tensor:
        """Clips uint8 (B, T, H, W, 3), by number."""


@dataclass
class Arrays(ClipSource):
    """Clips in memory, uint8 (N, T, H, W, 3). size: (height, width) to which they are resized; None for their own."""

    pixels: np.ndarray
    labels: Sequence[str | None]
    fps: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.sources = range(len(self.pixels))
        self.shape = (self.pixels.shape[1], *(self.size or self.pixels.shape[2:4]))

    def read(self, rows: Sequence[int]) -> Tensor:
        """Clips, by number."""
        clips = self.pixels[list(rows)]
        if self.shape[1:] != clips.shape[2:4]:
            clips = np.stack([crop_clip(clip, self.shape[1:]) for clip in clips])
        return torch.from_numpy(np.ascontiguousarray(clips))


@dataclass
class Files(ClipSource):
    """Windows of the files of a clip set: (file, first frame) of each."""

    data: ClipSet
    windows: Sequence[tuple[int, int]]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sources = [index for index, _ in self.windows]
        named = [self.data.files[index] for index in self.sources]
        self.labels = [self.data.labels[label] if label >= 0 else None for _, label, _ in named]
        self.names = [Path(name).with_suffix("").as_posix() for name, _, _ in named]
        rates = [info.fps for _, _, info in named if hasattr(info, "fps")]
        self.fps = float(statistics.median(rates)) / self.data.frame_interval if rates else None
        self.shape = (self.data.frames, *self.data.size)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Clips, by number."""
        clips = [self.data.clip(index, start=start) for index, start in (self.windows[row] for row in rows)]
        return torch.stack([clip.pixels.movedim(1, -1) for clip in clips])


@dataclass
class Altered(ClipSource):
    """Clips that go through a function of clips: a JPEG round trip, a codec, a flaw whose effect is measured."""

    clips: ClipSource
    alter: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        self.labels, self.sources, self.names = self.clips.labels, self.clips.sources, self.clips.names
        self.fps, self.about, self.shape = self.clips.fps, self.clips.about, self.clips.shape

    def read(self, rows: Sequence[int]) -> Tensor:
        """Altered clips, by number."""
        return self.alter(self.clips.read(rows))


@dataclass
class Sampled(ClipSource):
    """Clips of a model: clip k is sampled when it is read, from the seed of k; `draw` is given the numbers."""

    draw: Callable[[Sequence[int]], np.ndarray]
    shape: tuple[int, int, int]
    labels: Sequence[str | None]
    fps: float | None
    about: dict[str, Any]

    def __post_init__(self) -> None:
        self.sources, self.names = range(len(self.labels)), ()

    def read(self, rows: Sequence[int]) -> Tensor:
        """Samples, by number."""
        return torch.from_numpy(self.draw(list(rows)))


# Alterations --------------------------------------------------------------------------------------------------------


def jpeg(quality: int) -> Callable[[Tensor], Tensor]:
    """A JPEG round trip of every frame, as tools do that keep frames as files."""

    def alter(clips: Tensor) -> Tensor:
        frames = []
        for frame in clips.flatten(0, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(frame).save(file, format="JPEG", quality=quality)
            frames.append(np.asarray(Image.open(file)))
        return torch.from_numpy(np.stack(frames)).unflatten(0, clips.shape[:2])

    return alter


def through(codec: Codec) -> Callable[[Tensor], Tensor]:
    """Clips encoded and decoded: what a codec leaves of them, and the best that a model in its latents can reach."""

    @torch.no_grad()
    def alter(clips: Tensor) -> Tensor:
        height, width = clips.shape[2:4]
        if height % codec.downsampling or width % codec.downsampling:
            raise UserError(
                f"the clips have {height}x{width} pixels, which the codec's downsampling {codec.downsampling} does not "
                "divide: leave --codec out, or compare at another --size"
            )
        pixels = clips.to(codec.device).float().movedim(-1, 2) / 127.5 - 1
        again = codec.decode(codec.encode(pixels)).float().clamp(-1, 1)
        return ((again + 1) * 127.5).round().to(torch.uint8).movedim(2, -1).cpu()

    return alter


# Opening ------------------------------------------------------------------------------------------------------------


def open_samples(path: Path, protocol: Protocol, kind: str | None) -> ClipSource:
    """Samples of a folder of videos or pictures, of a folder by `sample_video.py`, or of an .npz.

    The first frames of each are taken. Samples of another size than the protocol's are resized and cropped as real
    clips are, with a warning. UserError for what holds no clips, fewer than the protocol's `count`, clips that are too
    short, or, where the protocol has no size, clips of several sizes.
    """
    if path.suffix == ".npz" or (path / "samples.npz").is_file():
        source: ClipSource = _open_arrays(path, protocol)
    else:
        source = _open_folder(path, protocol, kind)
    count, total = protocol.count, len(source)
    if count is not None and total < count:
        raise UserError(
            f"{path} holds {total} clips, and the protocol asks for {count}: make more, or type --num-samples {total}, "
            "which is another protocol"
        )
    return source


def _open_arrays(path: Path, protocol: Protocol) -> Arrays:
    """Clips of samples.npz with its samples.json, or of any .npz with uint8 (N, T, H, W, 3) or (N, H, W, 3)."""
    archive = path if path.suffix == ".npz" else path / "samples.npz"
    pixels, _ = read_npz(archive, "give a folder that `eqm-video sample` wrote, or an .npz of clips")
    labels: list[str | None] = [None] * len(pixels)
    fps, record = None, archive.with_name("samples.json")
    if archive.name == "samples.npz" and record.is_file():
        labels, fps = read_captions(record, len(pixels))
    frames = protocol.frames or pixels.shape[1]
    _check_frames(archive, frames, pixels.shape[1])
    chosen = slice(0, protocol.count)
    about = {"file": str(archive), **_resized(archive, {pixels.shape[2:4]}, protocol.size)}
    return Arrays(pixels[chosen, :frames], labels[chosen], fps, about, size=protocol.size)


def _open_folder(path: Path, protocol: Protocol, kind: str | None) -> Files:
    """The first frames of every file of a folder, in the order of the names, at the protocol's size or their own."""
    kind = kind or kind_of(path)
    data = open_data(kind, path, frames=1, frame_interval=1, size=8, short="skip")
    infos = [info for _, _, info in data.files]
    size = protocol.size or (infos[0].height, infos[0].width)
    sizes = {(info.height, info.width) for info in infos}
    if protocol.size is None and len(sizes) > 1:
        shown = _shown(sizes)
        raise UserError(
            f"{path} holds samples of {shown} pixels: type --size, to which they are then resized and cropped as real "
            "clips are"
        )
    lengths = {info.frames for info in infos} if kind == "videos" else {1}
    frames = protocol.frames or min(lengths)
    if kind == "images" and frames > 1:
        raise UserError(f"{path} holds pictures, and the protocol asks for {frames} frames: type --frames 1")
    if kind == "videos":
        _check_frames(path, frames, min(lengths))
    data = data.view(Bucket(frames, 1))
    data.size = sides(size)
    order = sorted(range(len(data)), key=lambda index: data.files[index][0])[: protocol.count]
    about = {
        "folder": str(path),
        **_resized(path, sizes, protocol.size),
        **_cut(path, lengths, protocol.frames),
        **_left_out(path, len(data.report.unreadable)),
    }
    return Files(data, [(index, 0) for index in order], about)


def _resized(path: Path, sizes: Collection[tuple[int, int]], size: tuple[int, int] | None) -> dict[str, Any]:
    """For the record: the sizes of samples that are resized, with a warning; empty where none is."""
    if size is None or set(sizes) == {tuple(size)}:
        return {}
    shown = _shown(sizes)
    warnings.warn(
        f"{path} holds samples of {shown} pixels: they are resized and cropped to {size[0]}x{size[1]}, as the real "
        "clips are",
        stacklevel=2,
    )
    return {"resized from": shown}


def _cut(path: Path, lengths: Collection[int], frames: int | None) -> dict[str, Any]:
    """For the record: the lengths of samples that are cut to the shortest, with a warning; empty where none is."""
    if frames is not None or len(lengths) == 1:
        return {}
    least, most = min(lengths), max(lengths)
    warnings.warn(
        f"{path} holds samples of {least} to {most} frames: the first {least} of each are taken; type --frames to "
        "choose another number",
        stacklevel=2,
    )
    return {"frames from": [least, most]}


def _left_out(path: Path, count: int) -> dict[str, Any]:
    """For the record: the number of samples that cannot be read, with a warning; empty where there is none."""
    if not count:
        return {}
    warnings.warn(f"{path} holds {count} files that cannot be read: they are no part of the samples", stacklevel=2)
    return {"unreadable": count}


def _shown(sizes: Collection[tuple[int, int]]) -> str:
    """Sizes in words, such as 64x64, 240x320 and 5 more."""
    words = ["x".join(map(str, size)) for size in sorted(sizes)]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more


def _check_frames(path: Path, frames: int, have: int) -> None:
    if have < frames:
        raise UserError(
            f"{path} holds clips of {have} frames, and the protocol asks for {frames}: make longer ones, or type "
            f"--frames {have}, which is another protocol"
        )


def open_real(
    root: Path, protocol: Protocol, shape: tuple[int, int, int], fps: float | None, kind: str | None
) -> Files:
    """The real clips that a protocol chooses, at the samples' shape; the frame interval by `fps` unless it is stated.

    Videos that are too short are left out. UserError where fewer than `real_count` are left.
    """
    kind = kind or kind_of(root)
    frames, size = shape[0], shape[1:]
    if kind == "images" and frames > 1:
        raise UserError(f"--data {root} holds pictures, and the samples are clips of {frames} frames: give videos")
    split = {"split": None if protocol.split == "all" else protocol.split, "fold": protocol.fold}
    data = open_data(kind, root, frames=1, frame_interval=1, size=size, short="skip", split_option="--split", **split)
    interval = protocol.stride or 1
    if protocol.stride is None and fps and kind == "videos" and frames > 1:
        interval = max(1, round(statistics.median(info.fps for _, _, info in data.files) / fps))
    data = data.view(Bucket(frames, interval))
    order = [index for index in range(len(data)) if data.length(index) >= data.span]
    if not order:
        longest = max(data.length(index) for index in range(len(data)))
        raise UserError(
            f"every video in --data {root} is shorter than a clip of this protocol, which spans {data.span} frames: "
            f"the longest has {longest}; type --frames or --frame-interval, which is another protocol"
        )
    skipped = len(data) - len(order)
    order.sort(key=lambda index: data.files[index][0])
    if protocol.order == "shuffled":
        draw = torch.randperm(len(order), generator=generator("evaluated files", protocol.seed))
        order = [order[place] for place in draw.tolist()]
    windows = _windows(data, order, protocol)
    if protocol.real_count is not None and len(windows) < protocol.real_count:
        raise UserError(
            f"--data {root} has {len(windows)} clips for this protocol, which asks for {protocol.real_count}: give "
            f"more data, or type --real {len(windows)}, which is another protocol"
        )
    about = {
        "folder": str(root),
        "identity": identity(data)["total"],
        "files": len(data),
        "unreadable": len(data.report.unreadable),
        "too short": skipped,
    }
    return Files(data, windows[: protocol.real_count], about)


def _windows(data: ClipSet, order: Sequence[int], protocol: Protocol) -> list[tuple[int, int]]:
    """(file, first frame) of the clips, in the order of the files."""
    if protocol.window == "every":
        places: dict[int, list[int]] = {}
        for index, start in data.windows():
            places.setdefault(index, []).append(start)
        return [(index, start) for index in order for start in places.get(index, [])]
    return [(index, _start(data, index, protocol)) for index in order]


def _start(data: ClipSet, index: int, protocol: Protocol) -> int:
    """The first frame of a file's one clip."""
    last = max(0, data.length(index) - data.span)
    if protocol.window == "random":
        name = data.files[index][0].encode("utf-8", "surrogateescape").hex()
        draw = generator("evaluated window", protocol.seed, name)
        return int(torch.randint(last + 1, (), generator=draw))
    return 0 if protocol.window == "first" else last // 2
