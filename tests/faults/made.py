"""Inputs of the attacks: a tiny run with everything in it, clips in many codecs, and mutations of any file."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from cifar_files import cifar_files, random_pictures, write_archive
from PIL import Image
from tiny_run import write_codec, write_videos

STEPS, SAVE_EVERY = 6, 2
SHARED = Path(__file__).resolve().parents[3] / "shared"
# name: (encoder, pixel format)
CODECS = {
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "h264.avi": ("libx264", "yuv420p"),
    "h264.ts": ("libx264", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mpeg2.mpg": ("mpeg2video", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "ffv1.mkv": ("ffv1", "yuv444p"),
    "flv.flv": ("flv", "yuv420p"),
}


def write_clips(folder: Path, frames: int = 24, size: int = 64) -> list[Path]:
    """A moving square in every codec that this PyAV can write."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, (encoder, pixels) in CODECS.items():
        if encoder in av.codecs_available:
            write_clip(folder / name, encoder, pixels, frames, size)
            made.append(folder / name)
    return made


def write_clip(path: Path, encoder: str, pixels: str, frames: int, size: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(25))
        stream.width = stream.height = size
        stream.pix_fmt = pixels
        for index in range(frames):
            picture = np.full((size, size, 3), 60, np.uint8)
            picture[8:40, (2 * index) % 32 : (2 * index) % 32 + 24] = (230, 120, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def write_pictures(folder: Path) -> list[Path]:
    """Photographs in the common formats."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    pictures = {
        "a.jpg": "RGB",
        "b.png": "RGB",
        "c.png": "P",
        "d.png": "RGBA",
        "e.webp": "RGB",
        "f.bmp": "RGB",
        "g.png": "I;16",
    }
    for name, mode in pictures.items():
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        image.save(folder / name)
    return sorted(folder.iterdir())


def write_cifar(path: Path) -> Path:
    """A small archive of the layout of CIFAR-10's."""
    pictures, labels = random_pictures(60)
    return write_archive(path, cifar_files(pictures, labels, 10))


def mutate(content: bytes, random_: random.Random, others: list[bytes]) -> bytes:
    """A file with bits turned, bytes run over, cut, moved, or spliced with those of another file."""
    data = bytearray(content)
    for _ in range(random_.randint(1, 3)):
        size = len(data)
        if size < 8:
            break
        place = random_.randrange(min(size, random_.choice((64, 512, size))))  # headers, more often than not
        length = min(size - place, random_.choice((1, 4, 16, 400, size // 8)))
        kind = random_.choice(("bits", "bytes", "ones", "zeros", "number", "cut", "drop", "double", "splice", "tail"))
        if kind == "bits":
            for _ in range(random_.randint(1, 20)):
                data[random_.randrange(size)] ^= 1 << random_.randrange(8)
        elif kind == "bytes":
            data[place : place + length] = random_.randbytes(length)
        elif kind in ("ones", "zeros"):
            data[place : place + length] = (b"\xff" if kind == "ones" else b"\0") * length
        elif kind == "number":
            number = random_.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1))
            data[place : place + 4] = number.to_bytes(4, random_.choice(("little", "big")))
        elif kind == "cut":
            del data[random_.randrange(size) :]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        elif kind == "splice":
            data[place:] = random_.choice(others)[place:]
        else:
            data[size // 2 :] = b"\0" * (size - size // 2)
    return bytes(data)


def write_mutations(sources: list[Path], folder: Path, count: int, seed: int) -> int:
    """`count` mutated files, some under another extension, beside one that is whole; returns how many were written."""
    folder.mkdir(parents=True)
    random_ = random.Random(seed)
    contents = [path.read_bytes() for path in sources]
    (folder / f"whole{suffix_of(sources[0])}").write_bytes(contents[0])
    for index in range(count):
        place = random_.randrange(len(sources))
        suffix = suffix_of(sources[random_.randrange(len(sources)) if random_.random() < 0.1 else place])
        content, packed = contents[place], suffix.endswith(".gz") and random_.random() < 0.8  # else the gzip is damaged
        changed = mutate(gzip.decompress(content) if packed else content, random_, contents)
        (folder / f"m{index:04d}{suffix}").write_bytes(gzip.compress(changed, 1) if packed else changed)
    return count


def suffix_of(path: Path) -> str:
    """The extension of a file, with that of an archive before that of its compression."""
    return "".join(path.suffixes)


def real_clips() -> list[Path]:
    """Small real videos beside the checkout, where there are any."""
    found = sorted((SHARED / "real").rglob("*.avi")) if SHARED.is_dir() else []
    return [path for path in found if path.stat().st_size < 400_000][:4]


def write_recipe(folder: Path) -> list[str]:
    """Videos, a codec, and the overrides of a run of six steps with previews, checkpoints and held-out loss."""
    write_codec(folder / "codec")
    write_videos(folder / "videos", size=16)
    return [
        f"data.root={folder / 'videos'}",
        f"codec.name={folder / 'codec'}",
        "data.latents=online",
        *("model.preset=EqM-Nano/4", "data.size=16", "frames=3", "data.frame_interval=2", "data.workers=0"),
        *(f"train.steps={STEPS}", "train.batch_size=2", f"train.save_every={SAVE_EVERY}", "train.log_every=1"),
        *("preview.every=3", "preview.samples=2", "sampler.steps=2", "train.ema=0.9", "train.label_dropout=0.3"),
    ]


def digest(run: Path) -> dict[str, str]:
    """Results of a run: hashes of the export, the newest checkpoint and the previews, by name, and the losses."""
    newest = max((run / "checkpoints").glob("step_*"))
    found = {}
    for top in (run / "export", newest, run / "previews"):
        for path in sorted(top.rglob("*")):
            if path.name == "optimizer.pt":
                found[str(path.relative_to(run))] = state_digest(path)
            elif path.is_file() and path.name not in ("checkpoint.json", "pipeline.json", "README.md"):
                found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = json.dumps([(line["step"], line.get("loss")) for line in lines])
    return found


def state_digest(path: Path) -> str:
    """A hash of every number in `optimizer.pt`, but for the times that were measured."""
    hashed = hashlib.sha256()

    def add(name: str, value: object) -> None:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                add(f"{name}.{key}", inner)
        elif isinstance(value, torch.Tensor):
            hashed.update(name.encode() + value.numpy().tobytes())
        elif "seconds" not in name and ".log" not in name:
            hashed.update(f"{name} {value!r}".encode())

    add("", torch.load(path, map_location="cpu", weights_only=True))
    return hashed.hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Names of half-written files below a folder."""
    hidden = (path for path in folder.rglob(".*") if path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in hidden)


def sampled(folder: Path) -> dict[str, str]:
    """The files of a folder of samples, by name, but for the times in their record."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
