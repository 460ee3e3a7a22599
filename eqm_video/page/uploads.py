"""Uploaded videos and pictures: checked, decoded within limits, and cut into the clip that a model knows.

Files are read by the readers of training, and inspected in a child process before anything else opens them. No
sentence here names a path of this machine: a file has the name under which it was sent.
T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from eqm_video.data.datasets import look_at_video
from eqm_video.data.image import ANIMATION, decode_image, probe_image
from eqm_video.data.layout import EXTENSIONS
from eqm_video.data.video import VideoDecodeError, VideoInfo
from eqm_video.errors import UserError, cut
from eqm_video.names import shown
from eqm_video.sampling.clips import ClipSpec, PictureClip, VideoClip
from eqm_video.wording import counted

MOST_BYTES = 64 * 2**20  # of an uploaded file
MOST_PIXELS = 2**23  # of a video's frame, a little more than 3840 x 2160: all frames of a clip are decoded together
KINDS = {ending: kind[:-1] for kind, endings in EXTENSIONS.items() for ending in endings}


@dataclass(frozen=True)
class Upload:
    """An uploaded file that can be read. kind: "video" or "image"; info: of a video; notes: on a picture."""

    path: Path
    name: str
    kind: str
    info: VideoInfo | None = None
    notes: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """Name, length and size in a line."""
        if self.info is None:
            if ANIMATION in self.notes:
                return f"{self.name}: an {ANIMATION}; for its motion choose a video, such as an mp4"
            return f"{self.name}: a picture"
        seconds, fps = self.info.frames / self.info.fps, self.info.fps
        return f"{self.name}: {counted(self.info.frames, 'frame')}, {seconds:.1f} s at {fps:.3g} fps"


@dataclass(frozen=True)
class Cut:
    """A clip uint8 (T, H, W, 3) of an upload. Only its first `available` frames are in the file.

    rate: its frames per second; None for a picture.
    """

    pixels: np.ndarray
    available: int
    rate: float | None


def display_name(name: str) -> str:
    """The name of a sent file as one short line, without its folders."""
    return cut(shown(PurePosixPath(name.replace("\\", "/")).name) or "the file", 60)


def ending_of(name: str) -> str:
    """The ending of a file's name, such as ".mp4"; UserError unless it is of a video or a picture."""
    ending = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if ending not in KINDS:
        raise UserError(
            f"{display_name(name)} is no video or picture by its name: give .mp4, .mov, .webm, .png, .jpg or the like"
        )
    return ending


def too_large(name: str) -> UserError:
    """The sentence about a file of more than MOST_BYTES."""
    return UserError(f"{display_name(name)} is larger than {MOST_BYTES // 2**20} MB: give a shorter or smaller one")


def look(path: Path, name: str) -> Upload:
    """The upload at `path`, whose sender calls it `name`; UserError if it cannot be read, or has too many pixels."""
    kind, called = KINDS[ending_of(name)], display_name(name)
    with nameless(path, called):
        try:
            info = _info(path, kind)
        except VideoDecodeError as error:
            raise UserError(f"{error}; {_advice(path, kind)}") from error
        if info is not None and info.height * info.width > MOST_PIXELS:
            raise UserError(
                f"{called} has frames of {info.width}x{info.height} pixels: the page reads up to 3840x2160, make it "
                "smaller"
            )
        return Upload(path, called, kind, info, () if info is not None else probe_image(path).notes)


def _info(path: Path, kind: str) -> VideoInfo | None:
    """The info of a video, None for a picture; VideoDecodeError for a file that cannot be read as that kind."""
    if kind == "video":
        return look_at_video(path)
    decode_image(path)
    return None


def _advice(path: Path, kind: str) -> str:
    """A hint for the sender of a file that cannot be read as a `kind`: its content may be of the other one."""
    other, ending = ("image", ".png") if kind == "video" else ("video", ".mp4")
    try:
        _info(path, other)
    except VideoDecodeError:
        return "choose another file"
    return f"it is a {'picture' if other == 'image' else 'video'}: give its name an ending such as {ending}"


def cut_clip(upload: Upload, frames: int, size: tuple[int, int], fps: float, at: float = 0.0) -> Cut:
    """The clip of T `frames` near the rate `fps`, from `at` seconds on; a picture fills all frames.

    A video that is too short gives the frames that it has, the last one repeated. UserError where it has none.
    """
    with nameless(upload.path, upload.name):
        if upload.info is None:
            picture = PictureClip((upload.path,), None, ClipSpec(frames, size, fps, [0]))
            return Cut(picture.read(), 1, None)
        info = upload.info
        interval = ClipSpec(frames, size, fps, [0]).nearest_interval(info)
        left = info.frames - round(at * info.fps)
        if at < 0 or left < 1:
            raise UserError(
                f"{upload.name} has {info.frames / info.fps:.1f} s: give a start from 0 s to before its end"
            )
        available = min(frames, 1 + (left - 1) // interval)
        spec = ClipSpec(frames, size, fps, list(range(available)), at, interval)
        clip = VideoClip.of(upload.path, None, info, spec)
        return Cut(clip.read(), available, clip.rate)


def join(first: Cut | None, last: Cut | None) -> tuple[np.ndarray, list[int], float | None]:
    """The clip (T, H, W, 3) of one upload or two, the numbers of the frames that it shows, and its rate.

    The last frame is the first frame of `last`. UserError without any.
    """
    if first is None and last is None:
        raise UserError("choose a video or a picture first")
    if last is None:
        return first.pixels, list(range(first.available)), first.rate
    frames = len(last.pixels)
    end = last.pixels[0]
    if first is None:
        return np.broadcast_to(end, last.pixels.shape).copy(), [frames - 1], None
    pixels = first.pixels.copy()
    pixels[-1] = end
    return pixels, sorted({*range(min(first.available, frames - 1)), frames - 1}), first.rate


@contextmanager
def nameless(path: Path, name: str) -> Iterator[None]:
    """Give a UserError inside the block the name of the upload in place of its path."""
    try:
        yield
    except UserError as error:
        text = str(error).replace(str(path), name).replace(path.name, name).replace(str(path.parent), "the page")
        raise UserError(cut(text, 300)) from error
