"""Both sets as folders that other people's evaluation scripts read, so that anybody can check a number with their tool.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from eqm_video.errors import UserError
from eqm_video.evaluation.clips import ClipSource
from eqm_video.system import waits

LAYOUTS = {"stylegan-v": "{index:06d}/{frame:06d}.png"}  # a folder for each video, a picture for each frame


def export_for(tool: str, out: Path, samples: ClipSource, real: ClipSource | None) -> str:
    """Write OUT/TOOL/fake and OUT/TOOL/real, and say how the tool is called.

    StyleGAN-V's and Latte's scripts read a folder of folders of frames. The pictures are PNG: what their converters do
    to videos first (JPEG of quality 75) is the caller's choice.
    """
    folder = out / tool
    height, width = samples.shape[1:]
    if height != width:
        raise UserError(f"--export-for {tool}: its scripts take square frames, and these have {height}x{width} pixels")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is there already, and clips of two exports would mix: delete it, or choose another --out"
        )
    for name, source in (("fake", samples), ("real", real)):
        if source is None:
            continue
        for index in waits.bar(range(len(source)), f"writing {name}", unit="clip"):
            for frame, pixels in enumerate(source.read([index])[0].numpy()):
                path = folder / name / LAYOUTS[tool].format(index=index, frame=frame)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    size = samples.shape[1]
    return (
        f"python src/scripts/calc_metrics_for_dataset.py --real_data_path {folder / 'real'} --fake_data_path "
        f"{folder / 'fake'} --metrics fvd2048_16f --resolution {size} --mirror 0 --gpus 1 --verbose 0 --use_cache 0"
    )
