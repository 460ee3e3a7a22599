"""Video files through PyAV: the positions of their frames, from the packets, and the frames themselves.

PyAV is the reference. Frame i of a file is the i-th in order of presentation. Its time comes from the packets, which
are listed once for each file, without decoding. Reading seeks to the keyframe before a frame and decodes from it on.
AVI stores no presentation times: if its frames are reordered (B-frames), they are counted from the start.

Legend: T requested frames, H W height and width in pixels after the rotation in the file.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eqm_video.data.colour import ToRgb, has_alpha, is_hdr, rgb
from eqm_video.data.containers import Pictures, VideoDecodeError, open_video, video_stream

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

TRUNCATED = 0.95  # share of the frames in the header below which a file counts as cut short
DEFAULT_FPS = 25.0  # the rate of a file with a single frame and no stated rate
CHUNK_HEADER = 8  # bytes of an AVI chunk before its content: an index points to the chunk, a packet to the content
KEPT = 64 * 2**20  # bytes of tables that a process caches; a table takes at most 16 bytes a frame


@dataclass(frozen=True)
class Table:
    """The positions of a file's frames, from its packets; times in ticks, in order of presentation."""

    times: array[int]  # of all frames
    keys: array[int]  # of the keyframes
    tick: float  # seconds
    rate: float  # frames per second in the header, 0 if it has none
    timed: bool  # False: the file has no presentation times, frames are counted from the start
    declared: int  # frames in the header, 0 if it does not say
    exact: bool  # decord addresses these frames exactly, unless the picture is rotated outside mp4 and mov
    rotates: bool  # decord applies the rotation in this kind of file
    lead: int = 0  # ticks before a keyframe's time that a seek to it must aim at
    avi: bool = False  # the file's format

    @property
    def group(self) -> float:
        """Mean number of frames from a keyframe to the next."""
        return len(self.times) / max(1, len(self.keys))

    def seconds(self, frames: np.ndarray | None = None) -> np.ndarray:
        """Times (T,) of `frames` (T,), indices, or of all frames if None, in seconds from the first, float64."""
        times = np.frombuffer(self.times, dtype=np.int64)
        chosen = times if frames is None else times[frames]
        return self.tick * (chosen.astype(np.float64) - times[0])


@dataclass
class Tables:
    """A cache of the tables of recently read files, at most `most` bytes; a changed file gets a new table."""

    most: int = KEPT
    _kept: OrderedDict[tuple[str, int, int], Table] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, path: Path) -> Table:
        """The table of a file, from the cache or from its packets."""
        status = path.stat()
        key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with open_video(path) as container:
            table = _table(container, video_stream(container))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = table
                self._bytes += _size(table)
            while self._bytes > self.most:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return table

    def unlock(self) -> None:
        """Replace the lock after a fork, since a thread of the parent may have been inside it."""
        self._lock = threading.Lock()


def _size(table: Table) -> int:
    return 8 * (len(table.times) + len(table.keys)) + 500


TABLES = Tables()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TABLES.unlock)


def _table(container: InputContainer, stream: VideoStream) -> Table:
    """List the packets of a newly opened file. Hidden frames, and frames before the first keyframe, do not count."""
    import av

    times, marks = array("q"), array("q")  # presentation times of shown frames in file order, and of shown keyframes
    keys = array("q")  # hidden keyframes too: after a cut in an edit list, decoding may start from one
    rows, hidden, end = 0, 0, 0.0  # `end`: seconds at which the last packet of any stream ends
    is_avi, indexed = container.format.name == "avi", True
    index = {entry.timestamp: entry.pos for entry in stream.index_entries if entry.is_keyframe} if is_avi else {}
    lead = 0  # presentation minus decoding time, the largest at a keyframe
    places = array("q")  # indices of the shown frames in `marks`
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                keyframe = packet.is_keyframe and packet.pts is not None
                if keyframe:
                    keys.append(packet.pts)
                    lead = max(lead, packet.pts - (packet.pts if packet.dts is None else packet.dts))
                    # Seeks use the index. If a chunk is lost, the index counts frames that are missing.
                    indexed = indexed and (not index or index.get(packet.dts) == packet.pos - CHUNK_HEADER)
                if packet.is_discard:
                    hidden += 1
                    continue
                if keyframe:
                    marks.append(packet.pts)
                    places.append(rows)
                if packet.pts is not None:
                    times.append(packet.pts)
                rows += 1
    except av.error.FFmpegError:
        if not rows:
            raise
    if not rows:
        raise VideoDecodeError("holds no frames")
    keys, times = _rising(keys), _rising(times)
    untimed_avi = is_avi and (stream.codec_context.has_b_frames or not indexed)
    timed = bool(keys) and len(times) == rows and bool(np.all(np.diff(times) > 0)) and not untimed_avi
    closed = timed and all(times[place] == mark for place, mark in zip(places, marks, strict=True))
    depth = max((part.bits for part in getattr(stream.codec_context.format, "components", ())), default=8)
    rate = float(stream.average_rate or 0)
    declared, seconds = max(stream.frames - hidden, 0), (container.duration or 0) / av.time_base
    if not declared and end < TRUNCATED * seconds:
        declared = round((rate or DEFAULT_FPS) * seconds)
    return Table(
        times=times[bisect_left(times, keys[0]) :] if timed else array("q", range(rows)),
        keys=keys,
        tick=float(stream.time_base) if timed else 1 / (rate or DEFAULT_FPS),
        rate=rate,
        timed=timed,
        declared=declared,
        exact=closed and not hidden and depth <= 8,
        rotates="mp4" in container.format.name,
        lead=lead if container.format.name.startswith("mpeg") else 0,  # seeks in MPEG streams use decoding times
        avi=is_avi,
    )


def _rising(values: array[int]) -> array[int]:
    return array("q", np.sort(np.frombuffer(values, dtype=np.int64)).tobytes()) if values else values


@dataclass(frozen=True)
class Outline:
    """The result of inspecting a file: its table, its first frame, and properties of its pixels."""

    table: Table
    first: av.VideoFrame
    pixel_aspect: float  # width of a pixel over its height, before the rotation; 1 if nearly square
    interlaced: bool

    @property
    def exact(self) -> bool:
        """Whether decord reads this file exactly, as far as its header, packets and first frame show."""
        plain = not (is_hdr(self.first) or has_alpha(self.first) or self.first.is_corrupt)
        return self.table.exact and plain and (self.table.rotates or turns(self.first) == 0)


def outline(path: Path) -> Outline:
    """Inspect a file: list its packets and decode its first frame. VideoDecodeError if no frame decodes."""
    table = TABLES.of(path)
    with Pictures(path) as pictures:
        first = next(iter(pictures), None)
        if first is None:
            raise VideoDecodeError("not one frame can be decoded")
        # 0: unknown, 1: progressive. PyAV before 18.1, the newest for Python 3.10 among it, leaves it unknown; then the
        # first frame alone says whether the video is interlaced.
        order = int(getattr(pictures.stream.codec_context, "field_order", 0))
        return Outline(table, first, _pixel_aspect(pictures.stream), first.interlaced_frame or order > 1)


def _pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel over its height; 1 within 2 % of square, since scalers write 2048:2043 for a rounded width.

    A ratio outside 1/4 to 4 comes from damage, and counts as 1.
    """
    ratio = stream.sample_aspect_ratio
    aspect = float(ratio) if ratio else 1.0
    return aspect if abs(aspect - 1) > 0.02 and 1 / 4 <= aspect <= 4 else 1.0


def decodable(path: Path, table: Table) -> tuple[int, np.ndarray | None]:
    """The number of frames up to the last decodable one, and that frame (H,W,3); None if frames are counted.

    VideoDecodeError if no frame can be decoded.
    """
    with Pictures(path) as pictures:
        if not table.timed:
            return sum(1 for _ in pictures), None
        for key in (*reversed(table.keys), None):
            _go(pictures, table, key)
            last = max((p for p in pictures if p.pts is not None), key=attrgetter("pts"), default=None)
            if last is not None and last.pts >= table.times[0]:
                return bisect_right(table.times, last.pts), _pixels(last)
    raise VideoDecodeError("none of its frames can be found by time")


def _go(pictures: Pictures, table: Table, key: int | None) -> None:
    """Seek to the keyframe shown at `key`, in ticks; None rewinds to the start."""
    if key is None:
        pictures.rewind()
    else:
        pictures.seek(key - table.lead)


def verify(path: Path, table: Table) -> tuple[bool, bool]:
    """Decode a whole file, with damage reported instead of patched.

    Returns whether its frames agree with the table, and whether it is damaged.
    """
    with Pictures(path, strict=True) as pictures:
        times = array("q", (-1 if picture.pts is None else picture.pts for picture in pictures))
        return times == table.times, pictures.damaged


def rate(table: Table, frames: int) -> tuple[float, bool]:
    """Frames per second, and whether every frame is within half a frame of its time at that constant rate.

    It is the header's rate if the frames keep to it, or are within 1 % of it on average, else the measured rate.
    """
    if not table.timed or frames < 2:
        return table.rate or DEFAULT_FPS, True
    seconds = table.seconds()[:frames]
    measured = float((frames - 1) / seconds[-1])
    for fps in (table.rate, measured):
        if fps > 0 and np.all(np.abs(seconds - np.arange(frames) / fps) <= 0.5 / fps):
            return fps, True
    return (table.rate if abs(table.rate - measured) <= 0.01 * measured else measured), False


def turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counterclockwise, that set the picture upright."""
    return round(frame.rotation / 90) % 4


def _pixels(frame: av.VideoFrame, convert: Callable[[av.VideoFrame], np.ndarray] = rgb) -> np.ndarray:
    return np.rot90(convert(frame), turns(frame))


def stream_pyav(path: Path, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames (H,W,3) at the rising `indices`; VideoDecodeError if a frame is missing."""
    table = TABLES.of(path)
    if indices[-1] >= len(table.times):
        raise VideoDecodeError(f"frame {indices[-1]} was requested, but the last one is {len(table.times) - 1}")
    times = [table.times[i] for i in indices]
    count, shape = 0, None
    with Pictures(path) as pictures:
        for frame in _at(pictures, table, times) if table.timed else _counted(pictures, times):
            if frame.shape != (shape or frame.shape):
                raise VideoDecodeError("the size of the picture changes on the way")
            count, shape = count + 1, frame.shape
            yield frame
    if count < len(times):
        raise VideoDecodeError(f"frame {indices[count]} does not decode")


def _counted(pictures: Pictures, places: list[int]) -> Iterator[np.ndarray]:
    """Yield the frames at rising `places`, counted from the start."""
    chosen, convert = set(places), ToRgb()
    for place, picture in zip(range(places[-1] + 1), pictures, strict=False):
        if place in chosen:
            yield _pixels(picture, convert)


def _at(pictures: Pictures, table: Table, times: list[int]) -> Iterator[np.ndarray]:
    """Yield the frames shown at `times` (rising ticks); ends at the first frame that is missing."""
    coming: Iterator[av.VideoFrame] = iter(())
    now, convert = table.keys[0] - 1, ToRgb()
    for time in times:
        nearest = table.keys[bisect_right(table.keys, time) - 1]
        picture = None
        if now < nearest:  # with a keyframe in between, a seek is shorter than decoding on
            for start in (nearest, table.keys[0], None):  # some files seek too far: then decode from the first keyframe
                _go(pictures, table, start)
                coming = iter(pictures)
                picture = _advance(coming, time)
                if picture is not None:
                    break
        else:
            picture = _advance(coming, time)
        if picture is None:
            return
        now = time
        yield _pixels(picture, convert)


def _advance(pictures: Iterator[av.VideoFrame], time: int) -> av.VideoFrame | None:
    """The picture shown at `time`; None if the next pictures are later."""
    picture = next((p for p in pictures if p.pts is not None and p.pts >= time), None)
    return picture if picture is not None and picture.pts == time else None
