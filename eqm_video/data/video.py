"""Video files: their properties, and the frames of a clip, decoded without reading the rest of the file.

decord reads first if it is installed, PyAV if decord is missing or fails, and both give the same frames. AVI files with
a keyframe every `SHORT` frames or more often, as UCF-101 has them, are read with PyAV: every third of 46 frames of
320 x 240 takes 8 ms instead of 20.

decord gets only files that it addresses exactly. Measured with decord 0.6, it silently returns *other* frames if frames
are shown before a keyframe that precedes them in the file (open GOPs: x265's default, MPEG-4 with B-frames), in AVI
files with B-frames, behind an edit list, after damaged packets and at the very end of some files. It ignores rotation
outside mp4 and mov, cannot rotate to some widths, gives wrong pixels from more than 8 bits a channel, aborts on some
implausible headers, and supports no AV1, no transparency and no names outside UTF-8. PyAV (`packets.py`) reads all of
those; `probe` chooses the reader of a file. Damage shows only during decoding. So `probe` decodes files up to WHOLE
that decord would get with both readers and compares every frame; larger files are read with PyAV.

Legend: T requested frames, H W height and width in pixels after the rotation in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from eqm_video.data.colour import is_hdr, is_transparent
from eqm_video.data.containers import VideoDecodeError
from eqm_video.data.packets import TABLES, TRUNCATED, Outline, decodable, outline, rate, stream_pyav, turns, verify
from eqm_video.system.files import is_utf8

__all__ = [
    *("BACKENDS", "VIDEO_EXTENSIONS", "VideoDecodeError", "VideoInfo"),
    *("frame_seconds", "probe", "read_frames", "stream_frames"),
]

BACKENDS = ("decord", "pyav")  # in the order in which they are tried
VIDEO_EXTENSIONS = (
    *(".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".flv"),
    *(".wmv", ".ogv"),
)
TOLERANCE = 8  # of 255: decoders of lossy formats round differently (by 2 in tests), a wrong frame differs more
WHOLE = 2**27  # pixels of all frames of a file that `probe` decodes (0.1 to 0.8 s): up to 10 s of 640x480
SHORT = 16  # frames from keyframe to keyframe of an AVI file, on average, up to which PyAV reads it
AT_ONCE = 8  # frames that decord decodes at once while a file is read from end to end


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The properties of a video file. `height` and `width` are those of the decoded, upright picture."""

    frames: int  # decodable frames
    fps: float  # frames per second, on average
    height: int
    width: int
    declared: int = 0  # frames in the header; 0 if it does not say
    constant_rate: bool = True  # False: frames come at irregular times, so index / fps is not their time
    backend: str = "pyav"  # the reader to try first
    notes: tuple[str, ...] = ()  # unusual properties of its pixels, such as "interlaced"
    pixel_aspect: float = 1.0  # width of a pixel over its height, in the upright picture

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # a list, if it comes from JSON

    @property
    def truncated(self) -> bool:
        """Whether the file ends well before the number of frames in its header, as after an interrupted download."""
        return self.frames < TRUNCATED * self.declared


def probe(path: str | Path) -> VideoInfo:
    """The info of a video file, with its frames counted; VideoDecodeError unless the first and the last frame decode.

    The packets are listed, not decoded, so the cost is that of the last keyframe interval. Two kinds are decoded whole:
    AVI files whose frames must be counted, and files up to WHOLE that decord may read. The number of frames is the
    number that PyAV decodes; if decord counts differently, the file is read with PyAV.
    """
    import av

    path = _existing(path)
    try:
        look = outline(path)
        frames, last = decodable(path, look.table)
        exact, damaged = _decord_is_exact(path, look, frames, last)
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"{path}: cannot be read as a video ({error.strerror})") from error
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: {error}") from error
    fps, constant = rate(look.table, frames)
    height, width, aspect = look.first.height, look.first.width, look.pixel_aspect
    if turns(look.first) % 2:
        height, width, aspect = width, height, 1 / aspect
    notes = {
        "non-square pixels": aspect != 1,
        "hdr": is_hdr(look.first),
        "interlaced": look.interlaced,
        "transparency": is_transparent(look.first),
        "damaged": damaged,
    }
    return VideoInfo(
        frames,
        fps,
        height,
        width,
        look.table.declared,
        constant,
        "decord" if exact else "pyav",
        tuple(note for note, holds in notes.items() if holds),
        aspect,
    )


def read_frames(
    path: str | Path, indices: Sequence[int], backend: str | None = None, *, info: VideoInfo | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the frames at `indices` (from 0; any order, repeats allowed) of a video file.

    Returns uint8 RGB (T,H,W,3), upright, and the frames' times (T,) in seconds from the file's first frame, float64.
    `backend` is "decord", "pyav" or None: decord if `info`, the result of `probe`, says that it is exact, then PyAV;
    PyAV alone without `info`. Raises VideoDecodeError with the reason of every reader that was tried.
    """
    import av

    path = _existing(path)
    rows, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if rows.size == 0 or rows[0] < 0:
        raise ValueError(f"indices must be frame numbers from 0 on, at least one; got {list(indices)}")
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend is {backend!r}; type one of {', '.join(BACKENDS)}, or None to let the file decide")
    if backend == "decord" and info is None:
        info = probe(path)
    if info is not None and rows[-1] >= info.frames:
        raise VideoDecodeError(f"{path}: frame {rows[-1]} was requested, but the last one is {info.frames - 1}")
    exact = info is not None and info.backend == "decord" and _decord() is not None
    if backend == "decord" and not exact:
        raise VideoDecodeError(f"{path}: decord is missing or not exact on this file; type backend='pyav'")
    reasons = []
    for name in (backend,) if backend else (BACKENDS if exact else ("pyav",)):
        try:
            pictures = _read_decord(path, rows, info) if name == "decord" else np.stack([*stream_pyav(path, rows)])
            return pictures[inverse], TABLES.of(path).seconds(rows)[inverse]
        except av.error.FFmpegError as error:
            reasons.append(f"{name}: {error.strerror}")
        except VideoDecodeError as error:
            reasons.append(f"{name}: {error}")
    raise VideoDecodeError(f"{path}: cannot be decoded ({'; '.join(reasons)})")


def stream_frames(path: str | Path, info: VideoInfo) -> Iterator[np.ndarray]:
    """Yield all frames of a file, uint8 RGB (H,W,3), in order, with only a few in memory.

    They equal those of `read_frames`. Raises VideoDecodeError.
    """
    path, done = _existing(path), 0
    if info.backend == "decord" and _decord() is not None:
        try:
            for picture in _stream_decord(path, info):
                done += 1
                yield picture
        except VideoDecodeError:
            pass  # PyAV goes on, or raises its own error
    if done < info.frames:
        with _pyav_errors(path):
            yield from stream_pyav(path, np.arange(done, info.frames))


def frame_seconds(path: str | Path, info: VideoInfo) -> np.ndarray:
    """Times (F,) of all frames of a file in seconds from the first frame, float64. Raises VideoDecodeError."""
    path = _existing(path)
    with _pyav_errors(path):
        return TABLES.of(path).seconds()[: info.frames]


@contextmanager
def _pyav_errors(path: Path) -> Iterator[None]:
    """Turn errors of PyAV inside the block into a VideoDecodeError that names the file."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"{path}: cannot be decoded (pyav: {error.strerror})") from error
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: cannot be decoded (pyav: {error})") from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise VideoDecodeError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoDecodeError(f"{path}: the file is empty (0 bytes)")
    return path


def _decord() -> ModuleType | None:
    """The decord module with its messages silenced; None if it is missing or does not load."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_is_exact(path: Path, look: Outline, frames: int, last: np.ndarray | None) -> tuple[bool, bool]:
    """Compare decord with PyAV on a file: (decord is to read it, and gives the same frames; the file is damaged).

    decord itself opens the file last, after all files are ruled out on which it is known to fail or abort.
    """
    table = look.table
    plausible = table.declared == 0 or TRUNCATED * table.declared <= frames <= 2 * table.declared
    small = frames * look.first.width * look.first.height <= WHOLE
    if not (look.exact and plausible and small and frames == len(table.times) and is_utf8(os.path.abspath(path))):
        return False, look.first.is_corrupt
    in_order, damaged = verify(path, table)
    wanted = not (table.avi and table.group <= SHORT)
    return wanted and in_order and not damaged and _decord_agrees(path, frames, last), damaged


def _decord_agrees(path: Path, frames: int, last: np.ndarray) -> bool:
    """Whether decord is installed and gives the frames of PyAV: the last frame by a seek, then all frames in order.

    decord may fail in a seek to the end, and the two patch unnoticed damage in different ways.
    """
    decord = _decord()
    if decord is None:
        return False
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        if len(reader) != frames or not _alike(reader[frames - 1].asnumpy(), last):
            return False
        theirs = (reader[index].asnumpy() for index in range(frames))
        ours = stream_pyav(path, np.arange(frames))
        return all(_alike(*both) for both in zip(theirs, ours, strict=True))
    except (decord.DECORDError, RuntimeError, IndexError):
        return False


def _alike(picture: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures (H,W,3) agree within `TOLERANCE` on every fourth row and column."""
    if picture.shape != other.shape:
        return False
    return int(np.abs(picture[::4, ::4].astype(np.int16) - other[::4, ::4]).max()) <= TOLERANCE


def _read_decord(path: Path, rows: np.ndarray, info: VideoInfo) -> np.ndarray:
    """The frames (T,H,W,3) at the rising indices `rows`, by decord."""
    with _decord_errors() as decord:
        return _reader(decord, path, info).get_batch(rows.tolist()).asnumpy()


def _stream_decord(path: Path, info: VideoInfo) -> Iterator[np.ndarray]:
    """Yield all frames (H,W,3) in order, by decord."""
    with _decord_errors() as decord:
        reader = _reader(decord, path, info)
    for first in range(0, info.frames, AT_ONCE):
        with _decord_errors():
            pictures = reader.get_batch(list(range(first, min(first + AT_ONCE, info.frames)))).asnumpy()
        yield from pictures


def _reader(decord: ModuleType, path: Path, info: VideoInfo) -> Any:
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
    if len(reader) != info.frames:
        raise VideoDecodeError(f"counts {len(reader)} frames instead of {info.frames}")
    return reader


@contextmanager
def _decord_errors() -> Iterator[ModuleType]:
    """The decord module; its errors inside the block become VideoDecodeError."""
    decord = _decord()
    try:
        yield decord
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise VideoDecodeError(str(error).strip().splitlines()[-1] if str(error).strip() else "failed") from error
