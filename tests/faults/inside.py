"""Work done inside forked processes beside the command line: looks at damaged files, and long trainings."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

TOLERANCE = 8  # of 255: decoders of lossy formats round differently


def scan(kind: str, folder: str, answer: str) -> None:
    """Open a folder of damaged files as a data set does, read every file that is accepted, compare with PyAV's frames.

    Writes the accepted names, the refused ones with their reasons, those that fail when they are read, and the largest
    difference of every accepted video.
    """
    from eqm_video.data.datasets import open_data
    from eqm_video.data.video import VideoDecodeError

    data = open_data(kind, folder, frames=1 if kind == "images" else 4, frame_interval=1, size=32)
    result = {"refused": data.report.unreadable, "later": {}, "differences": {}, "crashes": {}}
    result["accepted"] = sorted(set(os.listdir(folder)) - set(data.report.unreadable))
    for name in result["accepted"]:
        try:
            if kind == "videos":
                result["differences"][name] = difference(Path(folder) / name)
            else:
                read_picture(Path(folder) / name)
        except VideoDecodeError as error:
            result["later"][name] = str(error)
        except Exception:
            result["crashes"][name] = traceback.format_exc()
    Path(answer).write_text(json.dumps(result))


def difference(path: Path) -> int:
    """The largest difference of a video's first, middle and last frames between its own reader and PyAV."""
    from eqm_video.data.video import probe, read_frames

    info = probe(path)
    places = sorted({*range(min(info.frames, 4)), info.frames // 2, *range(max(0, info.frames - 4), info.frames)})
    ours, _ = read_frames(path, places, info=info)
    theirs, _ = read_frames(path, places, "pyav")
    return int(np.abs(ours.astype(int) - theirs).max()) if ours.shape == theirs.shape else 255


def read_picture(path: Path) -> None:
    """The pixels of a picture."""
    from eqm_video.data.image import read_image

    pixels = read_image(path)
    assert pixels.ndim == 3 and pixels.dtype == np.uint8


def files(kind: str, folder: str, answer: str) -> None:
    """Open every damaged file of a kind: recipes, CIFAR archives, weights to convert."""
    from eqm_video.errors import UserError

    result = {"accepted": [], "refused": {}, "crashes": {}}
    for path in sorted(Path(folder).iterdir()):
        try:
            OPENERS[kind](path)
            result["accepted"].append(path.name)
        except UserError as error:
            result["refused"][path.name] = str(error)
        except Exception:
            result["crashes"][path.name] = traceback.format_exc()
    Path(answer).write_text(json.dumps(result))


def open_recipe(path: Path) -> None:
    from eqm_video.training.config import load_config

    load_config(path)


def open_archive(path: Path) -> None:
    from eqm_video.data.datasets import open_data

    open_data("images", path, split="train", frames=1, size=32)


def open_weights(path: Path) -> None:
    from eqm_video.models.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        convert(path, Path(folder) / "out", num_heads=4)


OPENERS = {"recipes": open_recipe, "archives": open_archive, "weights": open_weights}


def checkpoints(whole: str, scratch: str, count: str, seed: str, answer: str) -> None:
    """Damage one file of a checkpoint at a time: it must be noticed, and be one sentence whoever opens it."""
    from eqm_video.errors import UserError
    from eqm_video.sampling.loading import load_pipeline
    from eqm_video.system import record
    from faults.made import mutate

    random_ = random.Random(int(seed))
    source = Path(whole)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    contents = {name: (source / name).read_bytes() for name in names}
    result = {"tries": 0, "crashes": [], "unnoticed": []}
    folder = Path(scratch) / source.name
    shutil.copytree(source, folder)
    for _ in range(int(count)):
        name = random_.choice(names)
        changed = mutate(contents[name], random_, [contents[random_.choice(names)]])
        (folder / name).write_bytes(changed)
        result["tries"] += 1
        try:
            if record.damage(folder) is None and changed != contents[name] and name != "checkpoint.json":
                result["unnoticed"].append(name)
            load_pipeline(folder)
        except UserError as error:
            if "\n" in str(error):
                result["crashes"].append(f"{name}: {error}")
        except Exception:
            result["crashes"].append(f"{name}: {traceback.format_exc()}")
        (folder / name).write_bytes(contents[name])
    Path(answer).write_text(json.dumps(result))


def train_long(folder: str, steps: str) -> None:
    """Train a tiny network on clips in memory and write the resident memory at every tenth of the steps."""
    import torch
    from tiny_run import tiny_trainer

    from eqm_video.training.trainer import Hook

    torch.set_num_threads(1)
    count, seen = int(steps), []

    def look(step: int, network: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append((step, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))

    hooks = [Hook(max(1, count // 10), look)]
    tiny_trainer(Path(folder), steps=count, log_every=10, save_every=max(1, count // 8), keep=2, hooks=hooks).run()
    print(json.dumps(seen), file=sys.stdout)
