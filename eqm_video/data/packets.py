"""Video files through PyAV: where the frames are, by the file's packets, and the frames themselves.

PyAV is the reference. Frame i of a file is the i-th in order of presentation; its time comes from the packets, which
are listed without decoding them. Reading seeks to the keyframe before a frame and decodes on from there. AVI stores no
presentation times: where its frames are reordered (B-frames), they are found by counting from the start.

Legend: T frames asked for, H W height and width in pixels after the rotation that the file asks for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eqm_video.errors import UserError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

TRUNCATED = 0.95  # a file with fewer than this share of the frames that its header promises has been cut short
DEFAULT_FPS = 25.0  # stands in for the rate of a file that holds one frame and states none


class VideoDecodeError(UserError):
    """A file that cannot be opened or decoded, or that lacks the frames asked for; the message says which and why."""


@dataclass(frozen=True)
class Table:
    """Where the frames of a file are, by its packets; times in ticks, in order of presentation."""

    times: list[int]  # one for every frame
    keys: list[int]  # those of the keyframes
    tick: float  # seconds
    rate: float  # frames per second as the header states them, 0 where it does not
    timed: bool  # False: the file has no presentation times, a frame is found by counting from the start
    declared: int  # frames that the header promises, 0 where it does not say
    exact: bool  # decord addresses these frames exactly, unless the picture is rotated outside mp4 and mov
    rotates: bool  # decord applies the rotation that this kind of file asks for


def _open(path: Path) -> InputContainer:
    import av

    return av.open(str(path), metadata_errors="ignore")  # titles in old encodings are no reason to refuse a video


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise VideoDecodeError("holds no video stream")
    if stream.codec_context is None:
        raise VideoDecodeError("holds video in a format that PyAV does not know")
    stream.codec_context.thread_count = 1  # data loading runs in parallel already
    return stream


def _table(container: InputContainer, stream: VideoStream) -> Table:
    """List the packets of a freshly opened file. Frames before the first keyframe, and hidden ones, do not count."""
    import av

    rows: list[tuple[int | None, bool]] = []  # presentation time, "is a keyframe" of the shown frames, in file order
    keys: list[int] = []  # hidden keyframes too: an edit list may cut right behind one, which decoding starts from
    hidden, end = 0, 0.0  # `end`: seconds at which the last packet of any stream ends
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                if packet.is_discard:
                    hidden += 1
                else:
                    rows.append((packet.pts, packet.is_keyframe))
    except av.error.FFmpegError:
        if not rows:
            raise
    if not rows:
        raise VideoDecodeError("holds no frames")
    keys, times = sorted(keys), sorted(pts for pts, _ in rows if pts is not None)
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    timed = bool(keys) and len(set(times)) == len(rows) and not reordered_avi
    closed = timed and all(pts == times[place] for place, (pts, key) in enumerate(rows) if key)
    depth = max((part.bits for part in getattr(stream.codec_context.format, "components", ())), default=8)
    rate = float(stream.average_rate or 0)
    declared, seconds = max(stream.frames - hidden, 0), (container.duration or 0) / av.time_base
    if not declared and end < TRUNCATED * seconds:
        declared = round((rate or DEFAULT_FPS) * seconds)
    return Table(
        times=times[bisect_left(times, keys[0]) :] if timed else list(range(len(rows))),
        keys=keys,
        tick=float(stream.time_base) if timed else 1 / (rate or DEFAULT_FPS),
        rate=rate,
        timed=timed,
        declared=declared,
        exact=closed and not hidden and depth <= 8,
        rotates="mp4" in container.format.name,
    )


def _pictures(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The decoded frames from here on; a damaged packet costs its own frames only."""
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def outline(path: Path) -> tuple[Table, av.VideoFrame]:
    """The table of a file and its first frame."""

    with _open(path) as container:
        table = _table(container, _video_stream(container))
    with _open(path) as container:
        first = next(_pictures(container, _video_stream(container)), None)
    if first is None:
        raise VideoDecodeError("not one frame can be decoded")
    return table, first


def decodable(path: Path, table: Table) -> tuple[int, np.ndarray | None]:
    """How many frames there are up to the last one that decodes; and that one (H,W,3), unless frames are counted."""

    with _open(path) as container:
        stream = _video_stream(container)
        if not table.timed:
            return sum(1 for _ in _pictures(container, stream)), None
        for key in reversed(table.keys):
            container.seek(key, stream=stream)
            last = max((p for p in _pictures(container, stream) if p.pts is not None), key=_shown_at, default=None)
            if last is not None and last.pts >= table.times[0]:
                return bisect_right(table.times, last.pts), _pixels(last)
    raise VideoDecodeError("none of its frames can be found by time")


def _shown_at(picture: av.VideoFrame) -> int:
    return picture.pts


def rate(table: Table, frames: int) -> tuple[float, bool]:
    """Frames per second, and whether frames follow each other at that rate (within half a frame)."""
    if not table.timed or frames < 2:
        return table.rate or DEFAULT_FPS, True
    seconds = table.tick * np.asarray(table.times[:frames], dtype=np.float64)
    measured = (frames - 1) / (seconds[-1] - seconds[0])
    fps = table.rate if abs(table.rate - measured) <= 0.01 * measured else measured
    return float(fps), bool(np.all(np.abs(np.diff(seconds) - 1 / fps) <= 0.5 / fps))


def turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counterclockwise, that set the picture upright."""
    return round(frame.rotation / 90) % 4


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), turns(frame))


def read_pyav(path: Path, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T,H,W,3) and seconds (T,) at the rising indices `wanted`."""

    with _open(path) as container:
        stream = _video_stream(container)
        table = _table(container, stream)
        if wanted[-1] >= len(table.times):
            raise VideoDecodeError(f"frame {wanted[-1]} was asked for, but the last one is {len(table.times) - 1}")
        times = [table.times[i] for i in wanted]
        found = list(_frames_at(container, stream, table, times)) if table.timed else []
    if not table.timed:
        with _open(path) as container:
            pictures, chosen = _pictures(container, _video_stream(container)), set(times)
            found = [_pixels(p) for i, p in zip(range(times[-1] + 1), pictures, strict=False) if i in chosen]
    if len(found) < len(times):
        raise VideoDecodeError(f"frame {wanted[len(found)]} does not decode")
    if len({frame.shape for frame in found}) > 1:
        raise VideoDecodeError("the size of the picture changes on the way")
    return np.stack(found), table.tick * (np.asarray(times, dtype=np.float64) - table.times[0])


def _frames_at(
    container: InputContainer, stream: VideoStream, table: Table, times: Sequence[int]
) -> Iterator[np.ndarray]:
    """The frames shown at `times` (rising ticks); ends before the first one that does not come."""
    pictures: Iterator[av.VideoFrame] = iter(())
    now = table.keys[0] - 1
    for time in times:
        nearest = table.keys[bisect_right(table.keys, time) - 1]
        picture = None
        if now < nearest:  # a keyframe lies in between, so that a seek is shorter than decoding on
            for start in (nearest, table.keys[0]):  # some files seek too far: then from the first keyframe
                container.seek(start, stream=stream)
                pictures = _pictures(container, stream)
                picture = _advance(pictures, time)
                if picture is not None:
                    break
        else:
            picture = _advance(pictures, time)
        if picture is None:
            return
        now = time
        yield _pixels(picture)


def _advance(pictures: Iterator[av.VideoFrame], time: int) -> av.VideoFrame | None:
    """The picture shown at `time`, or None where the next ones lie beyond it."""
    picture = next((p for p in pictures if p.pts is not None and p.pts >= time), None)
    return picture if picture is not None and picture.pts == time else None
