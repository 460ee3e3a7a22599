"""Both sets as folders that other people's evaluation scripts read, so that anybody can check a number with their tool.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eqm_video.data.buckets import Bucket
from eqm_video.errors import UserError
from eqm_video.evaluation.clips import ClipSource, Files
from eqm_video.system import waits

NAME = "{index:06d}/{frame:06d}.{ending}"  # a folder for each video, a picture for each frame
SIZES = (128, 256, 512, 1024)  # values of --resolution that the scripts know; it decides the batch, and nothing else


@dataclass(frozen=True)
class Tool:
    """A project whose script reads folders of frames.

    script: its place there. stride: the script takes every K-th frame of the real videos by itself. metrics: by the
    number of frames, the name of the metric in the script.
    """

    script: str
    stride: int
    metrics: Mapping[int, str]


LAYOUTS = {
    "stylegan-v": Tool("src/scripts/calc_metrics_for_dataset.py", 1, {16: "fvd2048_16f", 128: "fvd2048_128f"}),
    "latte": Tool("tools/calc_metrics_for_dataset.py", 3, {16: "fvd2048_16f", 128: "fvd2048_128f"}),
}


def export_for(tool: str, out: Path, samples: ClipSource, real: Files | None, jpeg: int = 0) -> str:
    """Write OUT/TOOL/fake and OUT/TOOL/real, and say how the tool is called.

    The scripts read a folder of folders of frames. Frames are PNG, or JPEG of quality `jpeg` where the protocol has
    one, as the tools' own converters make them. Latte's script takes every third frame of the real videos, and leaves
    out those of fewer than 3 T frames: for it real clips are written with 3 T frames in a row. UserError for clips that
    the script cannot read.
    """
    folder, (frames, height, width), chosen = out / tool, samples.shape, LAYOUTS[tool]
    if height != width or height > SIZES[-1]:
        raise UserError(
            f"--export-for {tool}: its scripts take square frames of at most {SIZES[-1]} pixels, and these have "
            f"{height}x{width}: type --size"
        )
    if frames not in chosen.metrics:
        raise UserError(
            f"--export-for {tool}: its scripts take clips of {' or '.join(map(str, chosen.metrics))} frames, and these "
            f"have {frames}: type --frames 16"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is there already, and clips of two exports would mix: delete it, or choose another --out"
        )
    if real is not None and chosen.stride > 1:
        real = unthinned(real, chosen.stride, tool)
    for name, source in (("fake", samples), ("real", real)):
        if source is None:
            continue
        for index in waits.bar(range(len(source)), f"writing {name}", unit="clip"):
            for frame, pixels in enumerate(source.read([index])[0].numpy()):
                ending, how = ("jpg", {"quality": jpeg}) if jpeg else ("png", {})
                path = folder / name / NAME.format(index=index, frame=frame, ending=ending)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, **how)
    resolution = min(size for size in SIZES if size >= height)
    return (
        f"python {chosen.script} --real_data_path {folder / 'real'} --fake_data_path {folder / 'fake'} --metrics "
        f"{chosen.metrics[frames]} --resolution {resolution} --mirror 0 --gpus 1 --verbose 0 --use_cache 0"
    )


def unthinned(real: Files, stride: int, tool: str) -> Files:
    """The same windows with all frames between, and as many at the end as a script wants that thins them itself."""
    if real.data.frame_interval != stride:
        raise UserError(
            f"--export-for {tool}: its script takes every {stride}rd frame of the real clips, and this protocol every "
            f"{real.data.frame_interval}: type --frame-interval {stride}, or --protocol {tool}"
        )
    whole = real.data.view(Bucket(real.data.frames * stride, 1))
    fits = [(index, min(start, whole.length(index) - whole.span)) for index, start in real.windows]
    return Files(whole, [window for window in fits if window[1] >= 0], real.about)
