"""`python sample_video.py MODEL --out DIR ...`: labelled clips, or images, from a trained model.

Sample k starts from the noise of seed K + k, whatever the batch size and the number of processes. The work is cut into
batches of consecutive samples that the processes share; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm

from eqm_video.build import versions
from eqm_video.cli.labels import choose_labels, names
from eqm_video.cli.options import open_device
from eqm_video.cli.sample_folder import Look, SampleFolder
from eqm_video.cli.sample_options import PRECISIONS, Descent, choose_descent, choose_look, parse, read_start
from eqm_video.errors import UserError
from eqm_video.loading import load_pipeline
from eqm_video.media import gif_fps
from eqm_video.pipeline import EqMPipeline


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, write."""
    options = parse(arguments)
    state = start_processes(options.device)
    device = choose_device(options.device, state)
    diffusers_logging.disable_progress_bar()
    start = read_start(options)
    options.num_samples = options.num_samples or (16 if start is None else len(start))
    pipeline, source = load_pipeline(options.model, codec=options.codec)
    descent, kind = choose_descent(pipeline, options)
    settings = resolve(pipeline, options, descent.settings(kind), start)
    labels, captions = choose_captions(pipeline, options)
    look = choose_look(options, settings)
    folder = SampleFolder(options.out, settings, [-1 if one is None else one for one in labels], captions)
    if state.is_main_process and options.overwrite:
        folder.clear()
    state.wait_for_everyone()
    folder.check()
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if state.is_main_process:
        print(f"{source} -> {options.out}: {describe(settings)}")
        folder.start()
    batches = folder.missing(options.batch_size, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process and sum(map(len, batches)) < folder.count:
        print(f"{folder.count - sum(map(len, batches))} of {folder.count} samples are there already")
    pipeline.to(device)
    mine = batches[state.process_index :: state.num_processes]
    sample(pipeline, folder, mine, labels, look, state, descent, start)
    state.wait_for_everyone()
    if state.is_main_process:
        seeds = [options.seed + index for index in range(folder.count)]
        folder.finish({"model": source, "labels": folder.names, "seeds": seeds, "versions": versions()})
        report(folder, look)
    state.wait_for_everyone()
    state.destroy_process_group()
    return 0


# Choices ------------------------------------------------------------------------------------------------------------


def start_processes(device: str) -> PartialState:
    """Accelerate's view of the launch; refuses one whose processes do not know of each other."""
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # a slower process may keep the others waiting
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked > state.num_processes:
        raise UserError(
            f"the launcher started {asked} processes, but each is alone: on CPUs type ACCELERATE_USE_CPU=1 torchrun "
            f"--standalone --nproc_per_node {asked} sample_video.py ... --device cpu"
        )
    return state


def choose_device(name: str, state: PartialState) -> torch.device:
    """The device of this process."""
    if state.num_processes > 1 and name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: with several processes each takes its own device; leave --device out")
    if name == "auto" or state.num_processes > 1:
        return state.device
    return open_device(name)


def resolve(
    pipeline: EqMPipeline, options: argparse.Namespace, descent: dict[str, Any], start: np.ndarray | None
) -> dict[str, Any]:
    """Everything that decides the samples, with the model's own settings filled in; checked before any work."""
    config = pipeline.config
    if options.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed-precision fp16 needs a GPU; give bf16 or no")
    if start is not None and (options.frames or options.size):
        raise UserError("--start-from: frames and size are those of the clips; leave --frames and --size out")
    frames, fps = options.frames or config.frames, options.fps or config.fps
    size, clips = options.size, {}
    if start is not None:
        frames, size = start.shape[1], start.shape[2:4]
        clips = {"start_from": hashlib.blake2b(np.ascontiguousarray(start), digest_size=16).hexdigest()}
    pipeline.check_frames(frames)
    words = [f"{label}:{weight:g}" for label, weight in options.compose or ()]
    return {
        "model": fingerprint(pipeline),
        "labels": words or options.labels or ["all"],
        "num_samples": options.num_samples,
        "frames": frames,
        "fps": float(fps),
        "size": list(pipeline.check_size(size)),
        **descent,
        "seed": options.seed,
        "mixed_precision": options.mixed_precision,
        **clips,
    }


def choose_captions(pipeline: EqMPipeline, options: argparse.Namespace) -> tuple[list[int | None], list[str] | None]:
    """The label of each sample, and its caption; composed samples have no label of their own."""
    if options.compose:
        return [None] * options.num_samples, ["+".join(label for label, _ in options.compose)] * options.num_samples
    labels = choose_labels(pipeline, options.labels, options.num_samples, options.seed)
    return labels, names(pipeline, labels)


def fingerprint(pipeline: EqMPipeline) -> str:
    """A hash of all weights and what they mean: samples of two models never mix."""
    digest = hashlib.blake2b(digest_size=16)
    # A network that is told gamma is sampled along its decay.
    told = [pipeline.config.decay] if pipeline.transformer.config.conditioned_on_gamma else []
    digest.update(json.dumps([pipeline.config.id2label, pipeline.config.reference_fps, *told]).encode())
    for module in (pipeline.transformer, pipeline.vae):
        config = {key: value for key, value in module.config.items() if not key.startswith("_")}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Work ---------------------------------------------------------------------------------------------------------------


def sample(
    pipeline: EqMPipeline,
    folder: SampleFolder,
    batches: Sequence[range],
    labels: Sequence[int | None],
    look: Look,
    state: PartialState,
    descent: Descent,
    start: np.ndarray | None,
) -> None:
    """Sample the batches of this process, and keep each as soon as it is there."""
    settings = folder.settings
    precision = PRECISIONS[settings["mixed_precision"]]
    pipeline.set_progress_bar_config(disable=True)
    done, mine, steps = 0, sum(map(len, batches)), settings["steps"]
    shape = {"num_frames": settings["frames"], "size": tuple(settings["size"])}
    with tqdm(total=len(batches) * steps, unit="step", disable=not (batches and state.is_main_process)) as bar:
        for count, batch in enumerate(batches, 1):
            bar.set_description(f"samples {done}-{done + len(batch)} of {mine}")
            clips = {} if start is None else {"clips": start[batch.start : batch.stop]}
            with torch.autocast(pipeline.device.type, precision, enabled=precision is not None):
                result = pipeline(
                    [labels[index] for index in batch],
                    fps=settings["fps"],
                    seeds=[settings["seed"] + index for index in batch],
                    output_type="uint8",
                    callback=lambda *_: bar.update(),
                    **(clips or shape),
                    **descent.call(),
                )
            folder.write_part(batch.start, result.frames, look, result.nfe.numpy())
            done += len(batch)
            bar.update(count * steps - bar.n)  # clips that came to rest took fewer


def describe(settings: dict[str, Any]) -> str:
    """The settings in one line."""
    height, width = settings["size"]
    what = "images" if settings["frames"] == 1 else f"clips of {settings['frames']} frames at {settings['fps']:g} fps"
    rule = ", ".join(f"{key} {value}" for key, value in settings["sampler"].items())
    composed = "composition" in settings
    guidance = " + ".join(settings["labels"]) if composed else f"guidance {settings['guidance_scale']:g}"
    return (
        f"{settings['num_samples']} {what}, {height}x{width} pixels, {settings['steps']} steps ({rule}), "
        f"{guidance}, seeds from {settings['seed']}"
    )


def report(folder: SampleFolder, look: Look) -> None:
    """Write the pictures and say where to look."""
    grids = folder.show(look)
    if (nfe := folder.nfe()) is not None and nfe.min() != nfe.max():
        print(f"evaluations of the field: {nfe.mean():.1f} a sample, from {nfe.min()} to {nfe.max()}")
    real = gif_fps(look.fps)
    if "gif" in look.formats and abs(real - look.fps) > 1e-6:
        print(f"GIFs play at {real:.2f} fps instead of {look.fps:g}: their delays are multiples of 10 ms")
    if look.clips < folder.count:
        print(f"files for the first {look.clips} of {folder.count} samples (--clips); samples.npz holds all")
    print(f"look at {', '.join(map(str, grids))}; all samples: {folder.npz}")
