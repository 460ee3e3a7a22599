"""Files that samples start from: clips of videos, of pictures, and of a `samples.npz`, as a model sees them.

A clip is uint8 RGB (T, H, W, 3), cropped and resized as training data are. Only the frames that are `needed` must be in
a file; every other frame shows the nearest needed frame, and its content does not matter. A file is read when its clip
is read: a folder may hold more than fits in memory.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eqm_video.data.cifar import find_cifar
from eqm_video.data.clips import ArraySet
from eqm_video.data.datasets import look_at_video, open_data
from eqm_video.data.image import decode_image, read_image
from eqm_video.data.layout import EXTENSIONS, quote
from eqm_video.data.source import kind_of
from eqm_video.data.transforms import center_crop, crop_clip
from eqm_video.data.video import VideoInfo, frame_seconds, read_frames
from eqm_video.errors import UserError
from eqm_video.names import as_label
from eqm_video.sampling.known import name_frames
from eqm_video.system.hashing import add_file

TICK = 0.001  # seconds; files round the times of their frames
END = "end"  # --at end: the last needed frame is the file's last


@dataclass(frozen=True)
class ClipSpec:
    """The clip that a model needs of a file: T `frames` at `fps`, (height, width) `size`.

    Only the `needed` frames must be in the file.
    """

    frames: int
    size: tuple[int, int]
    fps: float  # the rate to come near to: a file offers its own rate over whole numbers
    needed: Sequence[int]  # frame numbers, ascending
    at: float | str = 0.0  # the time of the clip's frame 0 in the file, in seconds, or END
    frame_interval: int | None = None  # take every K-th frame of the file; None: the interval nearest to fps

    def nearest_interval(self, info: VideoInfo) -> int:
        """The frame interval of a file that comes nearest to `fps`."""
        return max(1, round(info.fps / self.fps))

    def nearest(self) -> np.ndarray:
        """For every frame (T,) the index in `needed` of the nearest needed frame."""
        return np.abs(np.arange(self.frames)[:, None] - np.asarray(self.needed)).argmin(axis=1)


@dataclass(frozen=True)
class VideoClip:
    """A clip of a video, as the rows (frame numbers in the file) of its needed frames."""

    path: Path
    label: str | None
    info: VideoInfo
    interval: int
    rows: tuple[int, ...]  # frame numbers in the file, ascending, one for each needed frame
    spec: ClipSpec
    seconds: tuple[float, ...]  # times of `rows` in the file

    @classmethod
    def of(cls, path: Path, label: str | None, info: VideoInfo, spec: ClipSpec) -> VideoClip:
        """The clip that `spec` cuts out of the file. UserError where the file is too short for the needed frames."""
        interval = spec.frame_interval or spec.nearest_interval(info)
        last = spec.needed[-1] * interval
        times = np.arange(info.frames) / info.fps if info.constant_rate else frame_seconds(path, info)
        start = info.frames - 1 - last if spec.at == END else _frame_at(float(spec.at), times, info)
        if start < 0 or start + last >= info.frames:
            where = "" if spec.at == END else f" from {float(spec.at):g} s on"
            raise UserError(
                f"{path} has {info.frames} frames ({info.frames / info.fps:.2f} s at {info.fps:.4g} fps), but frames "
                f"{name_frames(spec.needed)} of a clip, at {every(interval)} of the file, need {last + 1}"
                f"{where}: give an earlier --at, a smaller --frame-interval, or other --known frames"
            )
        rows = tuple(start + frame * interval for frame in spec.needed)
        return cls(path, label, info, interval, rows, spec, tuple(float(times[row]) for row in rows))

    @property
    def rate(self) -> float | None:
        """Frames per second of the clip; None where a single frame is read without an interval: it fits any rate."""
        free = len(self.rows) == 1 and self.spec.frame_interval is None
        return None if free else float(self.info.fps) / self.interval

    def read(self) -> np.ndarray:
        """(T, H, W, 3)."""
        frames, _ = read_frames(self.path, self.rows, info=self.info)
        return crop_clip(frames, self.spec.size, pixel_aspect=self.info.pixel_aspect)[self.spec.nearest()]

    def identity(self) -> bytes:
        """A hash of the file and of the rows that are read."""
        return hash_file(self.path, str(self.rows))

    def describe(self) -> str:
        """Interval and rate, if the clip has a rate, and the times of the frames that are read, in words."""
        first, last = self.seconds[0], self.seconds[-1]
        when = f"at {first:.2f} s" if first == last else f"{first:.2f} to {last:.2f} s"
        if self.rate is None:
            return when
        fps = f"{self.info.fps:.4g} fps{'' if self.info.constant_rate else ' on average'}"
        if self.interval == 1:
            return f"every frame, {fps}, {when}"
        return f"{every(self.interval)} of {fps} = {self.rate:.4g} fps, {when}"


@dataclass(frozen=True)
class PictureClip:
    """A clip of pictures: a single one in all frames, or keyframes, where frame k shows the nearest needed frame."""

    paths: tuple[Path, ...]  # one for each needed frame, or a single one
    label: str | None
    spec: ClipSpec

    @property
    def rate(self) -> float | None:
        """None: pictures fit any rate."""
        return None

    def read(self) -> np.ndarray:
        """(T, H, W, 3)."""
        pictures = np.stack([center_crop(read_image(path, upright=True), self.spec.size) for path in self.paths])
        return pictures[self.spec.nearest() if len(pictures) > 1 else np.zeros(self.spec.frames, int)]

    def identity(self) -> bytes:
        """A hash of the files."""
        return b"".join(hash_file(path) for path in self.paths)

    def describe(self) -> str:
        """Empty: there is nothing to add to the path."""
        return ""


@dataclass(frozen=True)
class ArrayClip:
    """A clip that is in memory: (T, H, W, 3), or a picture (1, H, W, 3) that is repeated T times."""

    pixels: np.ndarray
    label: str | None
    frames: int
    rate: float | None = None  # frames per second, if known

    def read(self) -> np.ndarray:
        """(T, H, W, 3)."""
        return np.broadcast_to(self.pixels, (self.frames, *self.pixels.shape[1:]))

    def identity(self) -> bytes:
        """A hash of the pixels."""
        return hashlib.blake2b(np.ascontiguousarray(self.pixels), digest_size=16).digest()

    def describe(self) -> str:
        """Empty: there is nothing to add to the path."""
        return ""


Opened = VideoClip | PictureClip | ArrayClip


@dataclass(frozen=True)
class OpenedPath:
    """The clips of a path, in the order of its files, and notes on files left out and on unusual pixels."""

    clips: list[Opened]
    kind: str  # "video", "image" or "clip"
    notes: list[str] = field(default_factory=list)


def open_file(path: Path, spec: ClipSpec) -> OpenedPath:
    """The clip of one video or image; its folder's name may be its label. UserError where it cannot be read."""
    name, label = path.name.lower(), as_label(path.resolve().parent.name)
    if name.endswith(tuple(EXTENSIONS["images"])):
        notes = decode_image(path).notes  # decoded now: an unreadable file must not stop a run half-way
        return OpenedPath([PictureClip((path,), label, spec)], "image", list(notes))
    if name.endswith(tuple(EXTENSIONS["videos"])):
        info = look_at_video(path)
        return OpenedPath([VideoClip.of(path, label, info, spec)], "video", list(info.notes))
    known = ", ".join((*EXTENSIONS["videos"], *EXTENSIONS["images"]))
    raise UserError(f"--start-from {path}: give a samples.npz (or .npy), a folder, or a file with one of {known}")


def open_folder(root: Path, spec: ClipSpec, **lists: Any) -> OpenedPath:
    """A clip of every file of a folder. lists: `split` and `fold` of UCF-101's lists.

    UserError if no file can be used.
    """
    kind = kind_of(root)
    data = open_data(kind, root, frames=1, frame_interval=1, size=spec.size, **lists)
    names = [data.labels[label] if label >= 0 else None for _, label, _ in data.files]
    notes = [] if data.report.complete else [data.report.summary()]
    if isinstance(data, ArraySet):
        pictures = (data.clip(index).pixels.movedim(1, -1).numpy() for index in range(len(data)))
        clips = [ArrayClip(pixels, name, spec.frames) for pixels, name in zip(pictures, names, strict=True)]
        return OpenedPath(clips, "image", notes)
    paths = [data.root / name for name, _, _ in data.files]
    if kind == "images":
        return OpenedPath(
            [PictureClip((path,), name, spec) for path, name in zip(paths, names, strict=True)], "image", notes
        )
    clips, short = [], []
    for path, name, (_, _, info) in zip(paths, names, data.files, strict=True):
        try:
            clips.append(VideoClip.of(path, name, info, spec))
        except UserError as error:
            short.append((path.name, error))
    if not clips:
        raise UserError(f"no video in {root} is long enough; {short[0][1]}")
    if short:
        notes.append(f"{len(short)} are too short and left out: {quote([name for name, _ in short])}")
    return OpenedPath(clips, "video", notes)


def open_path(path: Path, spec: ClipSpec, **lists: Any) -> OpenedPath:
    """The clips of a file or a folder. lists: as for `open_folder`. UserError where there are none."""
    if path.is_dir() or find_cifar(path) is not None:
        return open_folder(path, spec, **lists)
    if lists.get("split") is not None:
        raise UserError(f"--split chooses among the files of a folder, but {path} is none: leave it out")
    check_exists(path)
    return open_file(path, spec)


def check_exists(path: Path) -> None:
    """UserError for a path of --start-from where nothing is."""
    if not path.exists():
        raise UserError(f"--start-from {path} does not exist: give a video, an image, a folder of these, or an .npz")


def read_npz(path: Path, advice: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Clips uint8 (N, T, H, W, 3) of an `.npz` or an `.npy`, and the numbers (N,) of their labels, or None.

    The clips of an `.npz` are its arr_0, or else its first array. Pictures (N, H, W, 3) become clips of one frame.
    UserError, with `advice` at its end, for files that cannot be read or hold something else.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        archive = isinstance(loaded, np.lib.npyio.NpzFile)
        clips = loaded["arr_0" if "arr_0" in loaded.files else loaded.files[0]] if archive else loaded
        labels = loaded["labels"] if archive and "labels" in loaded.files else None
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as clips ({error}): {advice}") from error
    clips = clips[:, None] if clips.ndim == 4 else clips
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape:
        raise UserError(
            f"{path} holds {clips.dtype} {clips.shape}, not uint8 (N, T, H, W, 3), or (N, H, W, 3) for pictures: "
            f"{advice}"
        )
    usable = labels is not None and labels.shape == (len(clips),) and np.issubdtype(labels.dtype, np.integer)
    return clips, labels if usable else None


def read_captions(record: Path, count: int) -> tuple[list[str | None], float]:
    """Names of labels (None: unlabelled) and frames per second of `count` samples, from their samples.json.

    UserError for a damaged file, and for one of another number of samples.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        labels, fps = content["labels"], float(content["settings"]["fps"])
        labels = [None] * count if labels is None else list(labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error!r}); sample again with --overwrite") from error
    if len(labels) != count or not fps > 0:
        raise UserError(f"{record} ({len(labels)} labels, {fps:g} fps) does not fit the {count} samples beside it")
    return labels, fps


def read_rates(path: Path, count: int) -> list[float | None]:
    """Frames per second of each of the `count` clips of a samples.npz, from the samples.json beside it; else None."""
    record = path.with_name("samples.json")
    if path.name != "samples.npz" or not record.is_file():
        return [None] * count
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
        rates = settings.get("clip_fps") or [settings["fps"]]
        return [float(rates[k % len(rates)]) for k in range(count)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record} does not say the fps of {path.name} ({error!r}): give --fps") from error


def hash_file(path: Path, more: str = "") -> bytes:
    """A hash of a file's bytes, and of `more`."""
    try:
        digest = add_file(hashlib.blake2b(digest_size=16), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    digest.update(more.encode())
    return digest.digest()


def _frame_at(at: float, times: np.ndarray, info: VideoInfo) -> int:
    """The number of the frame on show at `at` seconds; at a constant rate, the number of the nearest frame.

    Beyond the end of the file it is a number that no frame has. `times` (F,): seconds of all frames.
    """
    if info.constant_rate:
        return round(at * info.fps)
    if at >= times[-1] + 1 / info.fps:
        return info.frames
    return int(np.searchsorted(times, at + TICK, side="right")) - 1


def every(number: int, last: int = 0) -> str:
    """An interval in words: "every frame", "every 3rd frame", "every 2nd to 4th frame"."""
    return (
        f"every {_ordinal(number)}frame"
        if last <= number
        else f"every {_ordinal(number) or '1st '}to {_ordinal(last)}frame"
    )


def _ordinal(number: int) -> str:
    if number == 1:
        return ""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending} "
