"""Frames of a real video through the codec in bf16 and fp32, and into a GIF: how fast, and what is lost.

    python benchmarks/frames.py video.mp4 --codec bundled --size 128

`psnr_decoded` compares the decoded latents with the frames, `psnr_apart` the two decodes with each other; decoding is
in fp32 in either case, as in training. `gif_ms` is a GIF of 16 frames of 256 x 256 pixels. Seconds are CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import measuring
import torch

from eqm_video.codec import Codec
from eqm_video.data.transforms import crop_clip
from eqm_video.data.video import probe, read_frames
from eqm_video.metrics.psnr import psnr
from eqm_video.output.media import write_gif

FRAMES = 16


def main() -> None:
    """Measure one video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--codec", default="bundled")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (128)")
    parser.add_argument("--frames", type=int, default=8, help="frames that are encoded (8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, info = torch.device(options.device), probe(options.video)
    frames = read_frames(options.video, range(min(FRAMES, info.frames)), info=info)[0]
    small = torch.from_numpy(crop_clip(frames[: options.frames], options.size))
    pixels = (small.movedim(-1, 1)[None].to(device).float() / 127.5) - 1
    rows, decoded = [], {}
    for dtype in measuring.DTYPES:
        codec = Codec.load(options.codec).to(device)
        codec.encoding = measuring.DTYPES[dtype]
        (found,) = measuring.timed([lambda codec=codec: codec.moments(pixels)], options.repeats, device)
        decoded[dtype] = codec.decode(codec.encode(pixels))
        row = {"codec": options.codec, "size": options.size, "frames": options.frames, "dtype": dtype, **found}
        row |= {"frames_per_second": options.frames / found["seconds"]}
        row |= {"psnr_decoded": float(psnr(decoded[dtype], pixels, span=2).mean())}
        rows.append({**row, "psnr_apart": float(psnr(decoded[dtype], decoded["fp32"], span=2).mean())})
    large, least = crop_clip(frames, 256), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats + 1):
            began = time.process_time()
            write_gif(Path(folder) / "a.gif", large, 8.0)
            least = min(least, time.process_time() - began)
    rows.append({"gif_frames": len(large), "gif_size": 256, "gif_ms": 1000 * least})
    measuring.record("frames", rows, device, options.out)


if __name__ == "__main__":
    main()
