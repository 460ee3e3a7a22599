"""Sampled pixels as files: GIF, PNG, mp4 and the ADM `.npz`, and grids of labelled clips.

Arrays here are uint8 and channels last, as files want them: a clip is (T, H, W, 3), clips are (N, T, H, W, 3).
Every file is written aside and renamed, so that a file that exists is whole.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
import zipfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import numpy as np
from PIL import GifImagePlugin, Image, ImageChops, PngImagePlugin

from eqm_video.errors import UserError
from eqm_video.output.grids import Grid, checked
from eqm_video.system import waits
from eqm_video.system.files import MARK, refusing, write_file, writing

if TYPE_CHECKING:
    from torch import Tensor

PALETTE_PIXELS = 500_000  # how many pixels a GIF's palette is chosen from
BT709, LIMITED = 1, 1  # FFmpeg's numbers for BT.709 (matrix, primaries, transfer) and for the range 16 to 235
LONGEST = 655_350  # milliseconds: the longest delay of a GIF's frame


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels (..., 3, H, W) in [-1, 1] to a uint8 array (..., H, W, 3); values outside are clamped."""
    levels = pixels.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return np.ascontiguousarray(levels.movedim(-3, -1).cpu().numpy().astype(np.uint8))


# Grids --------------------------------------------------------------------------------------------------------------


def grid(
    clips: np.ndarray, labels: Sequence[str] | None = None, columns: int | None = None, scale: int = 1
) -> np.ndarray:
    """Tile clips (N, T, H, W, 3) into a clip (T, H', W', 3), each pixel enlarged `scale` times, under their labels.

    Clips are put in order of their labels (first seen first). If all labels have the same number of clips, give or take
    one, each label has rows of its own. Otherwise the grid is nearly square, or `columns` wide. A label is written
    above the first of its clips in every row, and cut short if it is longer than these clips are wide.
    """
    return np.stack(list(Grid(clips, labels, columns, scale)))


def filmstrips(clips: np.ndarray) -> np.ndarray:
    """Clips (N, T, H, W, 3) as single pictures with their frames side by side: (N, 1, H, T·W, 3)."""
    count, frames, height, width, _ = checked(clips, 5, "clips (N, T, H, W, 3)").shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(count, 1, height, frames * width, 3)


# Files --------------------------------------------------------------------------------------------------------------


def gif_fps(fps: float) -> float:
    """The frame rate at which a GIF plays `fps`: delays are whole hundredths of a second, at least 0.02 s."""
    if not (math.isfinite(fps) and fps >= 0.01):
        raise UserError(f"fps is {fps}; it must be a number of at least 0.01")
    return 100 / max(2, round(100 / fps))


def write_gif(path: str | Path, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> float:
    """Write frames (T, H, W, 3) as a GIF that loops for ever; returns its real frame rate, `gif_fps(fps)`.

    The whole clip has one palette of 256 colours, without dithering: a still background does not flicker. Equal
    consecutive frames become a single frame of longer delay: the playing time is right, the file may have fewer frames.
    Frames are read one by one, twice, and need not fit in memory: a memory map will do, or a `Grid`.
    """
    real = gif_fps(fps)
    palette = _palette(frames)
    delay = round(1000 / real)  # milliseconds, a multiple of 10
    write_file(path, lambda aside: _stream_gif(aside, frames, palette, delay))
    return real


def _stream_gif(path: Path, frames: np.ndarray | Sequence[np.ndarray], palette: Image.Image, delay: int) -> None:
    """Write the frames as blocks of a GIF89a. A block holds the part of a frame that differs from the frame before."""
    colours = bytes(palette.getpalette("RGB")).ljust(768, b"\0")
    shown: Image.Image | None = None  # the picture that a viewer sees so far
    part, corner, wait = None, (0, 0), 0  # the block to write next: its delay is known once a frame differs
    with open(path, "wb") as file:
        for frame in waits.bar(frames, "writing a GIF", unit="frame"):
            picture = Image.fromarray(checked(frame, 3, "a frame (H, W, 3)"))
            picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
            if shown is None:
                file.write(b"GIF89a" + struct.pack("<HHBBB", *picture.size, 0xF7, 0, 0) + colours)
                file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # for ever
                file.write(b"!\xfe" + bytes([len(MARK)]) + MARK + b"\0")  # a comment
                box: tuple[int, ...] | None = (0, 0, *picture.size)
            else:
                box = ImageChops.difference(_levels(shown), _levels(picture)).getbbox()
            if part is not None and (box is not None or wait + delay > LONGEST):
                file.writelines(GifImagePlugin.getdata(part, corner, duration=wait))
                part, wait = None, 0
            if part is None:
                box = box or (0, 0, 1, 1)
                shown, part, corner = picture, picture.crop(box), (box[0], box[1])
            wait += delay
        file.writelines(GifImagePlugin.getdata(part, corner, duration=wait))
        file.write(b";")


def _levels(picture: Image.Image) -> Image.Image:
    """The palette indices of a picture as grey levels, which Pillow can subtract."""
    return Image.frombytes("L", picture.size, picture.tobytes())


def _palette(frames: np.ndarray | Sequence[np.ndarray]) -> Image.Image:
    """256 colours by median cut.

    A colour counts as the square root of its pixels, or a large background takes them all. Among Pillow's methods this
    has the lowest 99th percentile of errors, measured on grids of sampled shapes and of real people.
    """
    if len(frames) == 0:
        raise ValueError("a GIF needs at least one frame")
    area = frames[0].shape[0] * frames[0].shape[1]
    every = max(1, len(frames) * area // PALETTE_PIXELS)
    counts = np.zeros(1 << 18, np.int64)  # of each colour of 6 bits a channel: many times faster than sorting pixels
    for k, frame in enumerate(frames):
        red, green, blue = (frame.reshape(-1, 3)[-k * area % every :: every] >> 2).astype(np.uint32).T
        counts += np.bincount(red << 12 | green << 6 | blue, minlength=len(counts))
    used = np.flatnonzero(counts)
    colours, counts = np.stack([used >> 12, used >> 6 & 63, used & 63], axis=1) << 2, counts[used]
    weighted = np.repeat(colours + 2, np.sqrt(counts).astype(int), axis=0).astype(np.uint8)
    return Image.fromarray(weighted[:, None]).quantize(256, Image.Quantize.MEDIANCUT)


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Write one picture (H, W, 3) as a PNG, without loss."""
    frame, info = checked(frame, 3, "a picture (H, W, 3)"), PngImagePlugin.PngInfo()
    info.add_text("Software", MARK.decode())
    write_file(path, lambda aside: iio.imwrite(aside, frame, plugin="pillow", extension=".png", pnginfo=info))


def write_mp4(path: str | Path, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> None:
    """Write frames (T, H, W, 3) as H.264 (yuv420p, crf 18); odd sizes grow by one repeated row or column.

    Frames are read one by one and need not fit in memory.
    """
    if len(frames) == 0:
        raise ValueError("a video needs at least one frame")
    if not (math.isfinite(fps) and fps >= 0.01):
        raise UserError(f"fps is {fps}; it must be a number of at least 0.01")
    write_file(path, lambda aside: _encode(aside, frames, Fraction(fps).limit_denominator(1001)))


def write(path: str | Path, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> None:
    """Write frames (T, H, W, 3) as the ending of `path` says: .gif, .mp4, or else the first of them as a PNG."""
    ending = Path(path).suffix
    if ending in (".gif", ".mp4"):
        (write_gif if ending == ".gif" else write_mp4)(path, frames, fps)
    else:
        write_png(path, frames[0])


def _encode(path: Path, frames: np.ndarray | Sequence[np.ndarray], rate: Fraction) -> None:
    import av  # imported here: GIFs and PNGs need not wait for it

    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = MARK.decode()
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context  # written down, or players guess the matrix from the height
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        for frame in waits.bar(frames, "writing a video", unit="frame"):
            frame = checked(frame, 3, "a frame (H, W, 3)")
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_npz(path: str | Path, samples: np.ndarray | Iterable[np.ndarray], labels: np.ndarray) -> None:
    """Write the ADM layout: `arr_0` uint8 (N, T, H, W, 3), or (N, H, W, 3) for images, and `labels` int64 (N,).

    `samples` may also be several arrays (memory maps, say) of N samples in all, in order. They are copied one by one.
    """
    pieces = iter([samples] if isinstance(samples, np.ndarray) else samples)
    first = next(pieces)
    shape = (len(labels), *first.shape[1:])

    def write(aside: Path) -> None:
        progress = waits.bar(what=f"writing {Path(path).name}", total=len(labels), unit="sample")
        with progress, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)  # with the magic bytes
                count = 0
                for piece in itertools.chain([first], pieces):
                    if piece.dtype != np.uint8 or piece.shape[1:] != shape[1:]:
                        raise ValueError(f"samples are {piece.dtype} {piece.shape}, not uint8 (n, {shape[1:]})")
                    for sample in piece:
                        member.write(np.ascontiguousarray(sample).data)
                        progress.update()
                    count += len(piece)
                if count != len(labels):
                    raise ValueError(f"{count} samples but {len(labels)} labels; give one label for each sample")
            archive.comment = MARK
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, np.int64))

    write_file(path, write)


def open_npz(path: str | Path) -> np.ndarray:
    """The samples of a file that `write_npz` wrote, as a memory map: only the samples that are used are read."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        place, header = archive.getinfo("arr_0.npy").header_offset, member.tell()
    with open(path, "rb") as file:
        file.seek(place + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # lengths of the two fields after the zip's 30 bytes
    return np.memmap(path, dtype, "r", place + 30 + name + extra + header, shape)


class NpyFile:
    """A new `.npy` of uint8 `shape` (n, T, ...), filled piece by piece.

    It has its name once the block ends without an error. Used as `with NpyFile(path, shape) as file: file.write(index,
    start, frames)`. Raises UserError if writing fails.
    """

    def __init__(self, path: str | Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = Path(path), tuple(shape)

    def __enter__(self) -> NpyFile:
        with contextlib.ExitStack() as opened:
            aside = opened.enter_context(writing(self.path))
            self.file = opened.enter_context(open(aside, "wb"))
            header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.begin = self.file.tell()
            self.file.truncate(self.begin + math.prod(self.shape))
            self.opened = opened.pop_all()
        return self

    def write(self, index: int, start: int, frames: np.ndarray) -> None:
        """Put `frames` (t, ...) at [index, start : start + t]; ValueError where they do not fit."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self.shape[2:] or start + len(frames) > self.shape[1]:
            raise ValueError(f"frames {frames.dtype} {frames.shape} do not fit at {start} into {self.shape}")
        with refusing(self.path):
            self.file.seek(self.begin + (index * self.shape[1] + start) * math.prod(self.shape[2:]))
            self.file.write(np.ascontiguousarray(frames).data)

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write an array as `.npy`, whole or not at all."""

    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            np.save(file, array)

    write_file(path, write)
