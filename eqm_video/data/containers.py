"""Video files opened with PyAV: by absolute path, as plain files, in formats that contain their own pictures.

FFmpeg chooses a format by content, and interprets some names as addresses. The limits here keep a file called
`pipe:1.avi`, or a list of other files (concat, HLS, SDP) called `a.mp4`, from opening anything else or a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eqm_video.errors import UserError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Demuxers whose files contain their pictures. None of them reads another file.
FORMATS = (
    *("matroska", "webm", "mov", "mp4", "3gp", "avi", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "h263"),
    *("flv", "live_flv", "asf", "ogg", "rm", "mxf", "dv", "nut", "ivf", "obu", "mjpeg", "gif", "apng", "yuv4mpegpipe"),
)
MOST_PIXELS = 2**26  # of a frame: 8192 x 8192. Decoders hold more than a dozen frames at once
LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these ignore the alpha channel
STRICT = "crccheck+bitstream+buffer+explode"  # FFmpeg's err_detect: damage raises instead of being patched


class VideoDecodeError(UserError):
    """A file that cannot be opened or decoded, or lacks a requested frame; the message has the file and the reason."""


def open_video(path: Path) -> InputContainer:
    """A video file, opened for reading. VideoDecodeError if its content is in none of FORMATS."""
    import av

    limits = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
    # Titles in old encodings must not make a video unreadable. Since release 19 PyAV never refuses them.
    lenient = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    try:
        return av.open(os.path.abspath(path), container_options=limits, **lenient)
    except av.error.ArgumentError as error:
        raise VideoDecodeError("cannot be read as a video (its content is of no format that is read)") from error


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream of an opened file. VideoDecodeError without one, for an unknown codec, or too large frames."""
    stream = container.streams.best("video")
    if stream is None:
        raise VideoDecodeError("holds no video stream")
    codec = stream.codec_context
    if codec is None:
        raise VideoDecodeError("holds video in a format that PyAV does not know")
    if codec.width * codec.height > MOST_PIXELS:
        raise VideoDecodeError(
            f"has frames of {codec.height}x{codec.width} pixels, more than the {MOST_PIXELS / 1e6:.0f} million that "
            "are read; make it smaller"
        )
    codec.thread_count = 1  # data loading runs in parallel already
    return stream


class Pictures:
    """The decoded frames of a video file, from its start or from the last `seek`. A context manager.

    A damaged packet loses its own frames only, and sets `damaged`. With `strict` the decoder reports damage instead of
    patching it.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self.path, self.strict, self.damaged = path, strict, False
        self._open()

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def _open(self) -> None:
        self.container = open_video(self.path)
        self.stream = video_stream(self.container)
        self.decoder = _decoder(self.stream)
        if self.strict:
            self.decoder.options = {**self.decoder.options, "err_detect": STRICT}

    def rewind(self) -> None:
        """Go to the start, without a seek."""
        self.container.close()
        self._open()

    def seek(self, time: int) -> None:
        """Go to the keyframe at or before `time`, in ticks of the stream."""
        self.container.seek(time, stream=self.stream)
        if self.decoder is not self.stream.codec_context and self.decoder.is_open:
            self.decoder.flush_buffers()

    def __iter__(self) -> Iterator[av.VideoFrame]:
        import av

        for packet in self.container.demux(self.stream):
            last = packet.size == 0 and packet.pts is None and packet.dts is None
            if packet.size == 0 and not last:  # it repeats a frame; a decoder would read it as the end
                continue
            self.damaged = self.damaged or packet.is_corrupt
            try:
                frames = self.decoder.decode(None if last else packet)
            except av.error.InvalidDataError:
                self.damaged = True
                continue
            for frame in frames:
                self.damaged = self.damaged or frame.is_corrupt
                yield frame


def _decoder(stream: VideoStream) -> av.VideoCodecContext:
    """The stream's own decoder, or libvpx for a file that declares transparency, which FFmpeg's decoder ignores."""
    import av

    own = stream.codec_context
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1" or own.name not in LIBVPX:
        return own
    decoder = av.CodecContext.create(LIBVPX[own.name], "r")
    decoder.thread_count = 1
    return decoder
