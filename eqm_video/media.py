"""Sampled pixels as files: GIF, PNG, mp4 and the ADM `.npz`, and grids of labelled clips.

Arrays here are uint8 and channels last, as files want them: a clip is (T, H, W, 3), clips are (N, T, H, W, 3).
Every file is written aside and renamed, so that a file that exists is whole.
"""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eqm_video.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PAPER, INK, GAP = 255, 0, 2  # background and text of a grid (grey levels), and the space between clips in pixels
PALETTE_PIXELS = 500_000  # pixels that a GIF's palette is chosen from


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels (..., 3, H, W) in [-1, 1] to a uint8 array (..., H, W, 3); values outside are clamped."""
    levels = pixels.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return np.ascontiguousarray(levels.movedim(-3, -1).cpu().numpy().astype(np.uint8))


# Grids --------------------------------------------------------------------------------------------------------------


def grid(
    clips: np.ndarray, labels: Sequence[str] | None = None, columns: int | None = None, scale: int = 1
) -> np.ndarray:
    """Tile clips (N, T, H, W, 3) into one (T, H', W', 3), each pixel enlarged `scale` times, under their labels.

    Clips are put in order of their labels (first seen first). By default each label has rows of its own where labels
    have equally many clips, give or take one; otherwise the grid is nearly square, or `columns` wide. A label is
    written where it begins and on every new row, over all the clips that it covers there, cut short where it must be.
    """
    clips = _checked(clips, 5, "clips (N, T, H, W, 3)")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(clips)} clips but {len(labels)} labels; give one label for each clip")
    if scale < 1 or (columns is not None and columns < 1):
        raise UserError(f"grid scale is {scale} and columns {columns}; both must be at least 1")
    names = [str(label) for label in labels] if labels is not None else [""] * len(clips)
    rows = _rows(names, columns)
    frames, height, width = clips.shape[1], clips.shape[2] * scale, clips.shape[3] * scale
    size = min(24, max(11, height // 9))  # of the text, in pixels
    band = size + 5 if labels is not None else 0
    cell_h, cell_w = band + height + GAP, width + GAP
    shape = (frames, GAP + len(rows) * cell_h, GAP + max(map(len, rows)) * cell_w, 3)
    canvas = np.full(shape, PAPER, np.uint8)
    for top, row in zip(range(GAP, shape[1], cell_h), rows, strict=False):
        if band:
            strip = _captions([names[index] for index in row], cell_w, band, size)
            canvas[:, top : top + band, GAP : GAP + strip.shape[1]] = strip
        for left, index in zip(range(GAP, shape[2], cell_w), row, strict=False):
            tile = clips[index].repeat(scale, axis=1).repeat(scale, axis=2)
            canvas[:, top + band : top + band + height, left : left + width] = tile
    return canvas


def filmstrips(clips: np.ndarray) -> np.ndarray:
    """Clips (N, T, H, W, 3) as single pictures with their frames side by side: (N, 1, H, T·W, 3)."""
    count, frames, height, width, _ = _checked(clips, 5, "clips (N, T, H, W, 3)").shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(count, 1, height, frames * width, 3)


def _rows(names: Sequence[str], columns: int | None) -> list[list[int]]:
    """Which clips each row of the grid shows."""
    groups = [[index for index, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]
    counts = [len(group) for group in groups]
    if columns is None and len(groups) > 1 and 2 <= max(counts) <= 16 and max(counts) - min(counts) <= 1:
        return groups
    columns = min(columns or math.ceil(math.sqrt(len(names))), len(names))
    order = [index for group in groups for index in group]
    return [order[start : start + columns] for start in range(0, len(order), columns)]


def _captions(names: Sequence[str], cell_w: int, band: int, size: int) -> np.ndarray:
    """The strip of text over one row of clips: (band, len(names) * cell_w, 3)."""
    strip = Image.new("RGB", (len(names) * cell_w, band), (PAPER,) * 3)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size)
    start = 0
    while start < len(names):
        end = start + 1
        while end < len(names) and names[end] == names[start]:
            end += 1
        text, room = names[start], (end - start) * cell_w - 4
        if pen.textlength(text, font) > room:
            while text and pen.textlength(text + "…", font) > room:
                text = text[:-1]
            text += "…"
        pen.text((start * cell_w + 1, band - 3), text, (INK,) * 3, font, anchor="ls")
        start = end
    return np.asarray(strip)


# Files --------------------------------------------------------------------------------------------------------------


def make_folder(path: str | Path) -> Path:
    """The folder `path`, made where it is missing; UserError where nothing can be written into it."""
    path = Path(path)
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); give another folder") from error
    return path


def gif_fps(fps: float) -> float:
    """The frame rate a GIF plays `fps` at: the nearest delay of whole hundredths of a second, at least 0.02 s."""
    if not (math.isfinite(fps) and fps >= 0.01):
        raise UserError(f"fps is {fps}; it must be a number of at least 0.01")
    return 100 / max(2, round(100 / fps))


def write_gif(path: str | Path, frames: np.ndarray, fps: float) -> float:
    """Write frames (T, H, W, 3) as a GIF that loops for ever; returns its real frame rate, `gif_fps(fps)`.

    One palette of 256 colours for the whole clip and no dithering, so that what rests does not flicker. Equal
    consecutive frames become one frame of longer delay: the playing time is right, the number of frames may be less.
    """
    frames = _checked(frames, 4, "frames (T, H, W, 3)")
    real = gif_fps(fps)
    palette = _palette(frames)
    indexed = [
        np.asarray(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)) for frame in frames
    ]
    options = {"mode": "P", "is_batch": True, "palette": bytes(palette.getpalette("RGB")), "loop": 0}
    duration = round(1000 / real)  # milliseconds, a multiple of 10
    _atomically(
        path,
        lambda aside: iio.imwrite(
            aside, np.stack(indexed), plugin="pillow", extension=".gif", duration=duration, **options
        ),
    )
    return real


def _palette(frames: np.ndarray) -> Image.Image:
    """256 colours by median cut, every colour counted by the square root of its pixels: else a large ground takes most.

    Measured on grids of sampled shapes and of real people, this has the lowest 99th percentile of errors among Pillow's
    methods.
    """
    pixels = frames.reshape(-1, 3)
    sample = pixels[:: max(1, len(pixels) // PALETTE_PIXELS)] & 0xFC
    colours, counts = np.unique(sample, axis=0, return_counts=True)
    weighted = np.repeat(colours + 2, np.sqrt(counts).astype(int), axis=0).astype(np.uint8)
    return Image.fromarray(weighted[:, None]).quantize(256, Image.Quantize.MEDIANCUT)


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Write one picture (H, W, 3) as a PNG, without loss."""
    frame = _checked(frame, 3, "a picture (H, W, 3)")
    _atomically(path, lambda aside: iio.imwrite(aside, frame, plugin="pillow", extension=".png"))


def write_mp4(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames (T, H, W, 3) as H.264 (yuv420p, crf 18); odd sizes grow by one repeated row or column."""
    frames = _checked(frames, 4, "frames (T, H, W, 3)")
    if not (math.isfinite(fps) and fps >= 0.01):
        raise UserError(f"fps is {fps}; it must be a number of at least 0.01")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    _atomically(path, lambda aside: _encode(aside, frames, Fraction(fps).limit_denominator(1001)))


def _encode(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    import av  # here, so that GIFs and PNGs do not wait for it

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_npz(path: str | Path, samples: np.ndarray | Iterable[np.ndarray], labels: np.ndarray) -> None:
    """Write the ADM layout: `arr_0` uint8 (N, T, H, W, 3), or (N, H, W, 3) for images, and `labels` int64 (N,).

    `samples` may be arrays (memory maps, say) that follow one another, N in all; they are copied one by one.
    """
    pieces = iter([samples] if isinstance(samples, np.ndarray) else samples)
    first = next(pieces)
    shape = (len(labels), *first.shape[1:])

    def write(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)  # with the magic bytes
                count = 0
                for piece in itertools.chain([first], pieces):
                    if piece.dtype != np.uint8 or piece.shape[1:] != shape[1:]:
                        raise ValueError(f"samples are {piece.dtype} {piece.shape}, not uint8 (n, {shape[1:]})")
                    for sample in piece:
                        member.write(np.ascontiguousarray(sample).data)
                    count += len(piece)
                if count != len(labels):
                    raise ValueError(f"{count} samples but {len(labels)} labels; give one label for each sample")
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, np.int64))

    _atomically(path, write)


def iterate_npz(path: str | Path, count: int | None = None) -> Iterator[np.ndarray]:
    """The first `count` samples (all, if None) of a file by `write_npz`, one after the other."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        for _ in range(shape[0] if count is None else min(count, shape[0])):
            yield np.frombuffer(member.read(math.prod(shape[1:])), dtype).reshape(shape[1:])


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one array as `.npy`."""

    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            np.save(file, array)

    _atomically(path, write)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file."""
    _atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    path = Path(path)
    aside = path.with_name(f".{path.name}.aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); choose a folder that you may write to"
        ) from error


def _checked(array: np.ndarray, dimensions: int, what: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"expected {what} of uint8, got {array.dtype} {array.shape}")
    return array
