"""`eqm-video sample MODEL --out DIR ...`: labelled clips, or images, from a trained model.

Sample k starts from the noise of seed K + k, whatever the batch size and the number of processes. The work is cut into
batches of consecutive samples that the processes share; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from eqm_video.errors import UserError
from eqm_video.output.outputs import claim_output
from eqm_video.sampling.choices import choose_look, choose_sampling
from eqm_video.sampling.folder import SampleFolder
from eqm_video.sampling.folders import note_best
from eqm_video.sampling.forecast import note_long
from eqm_video.sampling.job import Work, describe, report
from eqm_video.sampling.labels import choose_labels, clip_labels, names
from eqm_video.sampling.level_log import level_log
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.long import Long, summarise
from eqm_video.sampling.options import SampleOptions, parse
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.processes import choose_device, start_processes
from eqm_video.sampling.start_files import Start, open_start
from eqm_video.system import machine
from eqm_video.system.hashing import add_weights


def main(words: Sequence[str]) -> int:
    """Parse the command line, sample, and write the folder; returns the exit status. UserError for a user's mistake."""
    options = parse(words)
    state = start_processes(options.device)
    claim_output(options.out, "sample", probe=state.is_main_process)
    device = choose_device(options.device, state)
    diffusers_logging.disable_progress_bar()
    pipeline, source = load_pipeline(options.model, codec=options.codec)
    start = open_start(pipeline, options)
    options = replace(options, num_samples=options.num_samples or (16 if start is None else len(start.clips)))
    how = choose_sampling(pipeline, options)
    long = Long.of(options, start.frames if start else options.frames or pipeline.config.frames)
    settings = resolve(pipeline, options, how.record(), start, long)
    labels, captions = choose_captions(pipeline, options, start)
    look = choose_look(options, settings)
    folder = SampleFolder(options.out, settings, [-1 if label is None else label for label in labels], captions)
    if state.is_main_process and options.overwrite:
        folder.clear()
    state.wait_for_everyone()
    folder.check()
    state.wait_for_everyone()  # no process writes before all have checked
    if state.is_main_process:
        print(f"{source} -> {options.out}: {describe(settings)}")
        if note := note_best(options.model, source):
            print(note)
        if start:
            print(describe_start(start, options, labels, pipeline))
        if options.mixed_precision == "bf16":
            for note in machine.note_bf16(device, "--mixed-precision bf16", "--mixed-precision no"):
                print(note)
        folder.start()
    state.wait_for_everyone()
    batches = folder.missing(options.batch_size, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process and sum(map(len, batches)) < folder.count:
        print(f"{folder.count - sum(map(len, batches))} of {folder.count} samples are there already")
    try:
        pipeline.to(device)
        work = Work(pipeline, folder, labels, look, how, start, long)
        if batches and state.is_main_process:
            steps, most = len(batches[:: state.num_processes]) * work.steps(), max(map(len, batches))
            if note := note_long(pipeline, settings, steps, most, long is not None):
                print(note, flush=True)
        work.run(batches[state.process_index :: state.num_processes], state)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("finished batches are kept, and the same command goes on") from interrupt
    finally:
        if state.num_processes == 1:  # with several, another may be about to finish a batch
            folder.abandon()
    state.wait_for_everyone()
    if state.is_main_process:
        finish(folder, source, options.seed, long)
        report(folder, look)
    state.wait_for_everyone()
    state.destroy_process_group()
    return 0


def finish(folder: SampleFolder, source: str, seed: int, long: Long | None) -> None:
    """Join the batches, and write samples.json: model, labels, seeds, drift and levels if there are any, versions."""
    record = {"model": source, "labels": folder.names, "seeds": [seed + index for index in range(folder.count)]}
    if long and (meters := folder.kept("drift")) is not None:
        record["drift"] = summarise(meters, long)
    if (log := level_log(folder, long)) is not None:
        record["levels"] = log
    folder.finish({**record, "versions": machine.versions()})


# Choices ------------------------------------------------------------------------------------------------------------


def resolve(
    pipeline: EqMPipeline, options: SampleOptions, descent: dict[str, Any], start: Start | None, long: Long | None
) -> dict[str, Any]:
    """All settings that decide the samples, the model's own filled in, for samples.json; checked before any work."""
    fps = float(options.fps or pipeline.config.fps)
    if options.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed-precision fp16 needs a GPU; give bf16 or no")
    for name in ("context_gamma", "history_guidance"):
        if name in descent and not (long or (start and start.known)):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} needs known frames: add --start-from with --known, --keyframes, or --length")
    words = [f"{label}:{weight:g}" for label, weight in options.composition or ()]
    if not (words or options.labels) and start and start.labels is not None:
        words = ["of the clips"]
    return {
        "model": fingerprint(pipeline),
        "labels": words or options.labels or ["all"],
        "num_samples": options.num_samples,
        "frames": start.frames if start else pipeline.check_frames(options.frames),
        "fps": start.fps(fps) if start else fps,
        "size": list(start.size if start else pipeline.check_size(options.size)),
        **descent,
        "seed": options.seed,
        "mixed_precision": options.mixed_precision,
        **(start.settings() if start else {}),
        **(long.settings() if long else {}),
    }


def choose_captions(
    pipeline: EqMPipeline, options: SampleOptions, start: Start | None
) -> tuple[list[int | None], list[str] | None]:
    """The label of each sample, and the captions (None: no sample has a label). Composed samples have no label."""
    count = options.num_samples
    if options.composition:
        return [None] * count, ["+".join(label for label, _ in options.composition)] * count
    if options.labels is None and start and start.labels is not None:
        labels = clip_labels(pipeline, start.labels, count)
    else:
        labels = choose_labels(pipeline, options.labels, count, options.seed)
    return labels, names(pipeline, labels)


def describe_start(start: Start, options: SampleOptions, labels: Sequence[int | None], pipeline: EqMPipeline) -> str:
    """A line about the clips that samples start from, and where their labels come from."""
    if options.composition or options.labels or start.labels is None or pipeline.transformer.null_label == 0:
        return start.said
    named = sum(label is not None for label in labels)
    if named == 0:
        return f"{start.said}; unlabelled (--labels NAME says what is shown)"
    some = "" if named == len(labels) else f", {len(labels) - named} have none that the model knows"
    own = f"label {names(pipeline, labels)[0]}, its folder's" if len(start.labels) == 1 else "each its own label"
    return f"{start.said}; {own}{some} (--labels none or NAME says otherwise)"


def fingerprint(pipeline: EqMPipeline) -> str:
    """A hash of all weights and of their configuration: samples of two models never mix.

    Keys that a model's files do not have, because they are older than the key, do not count: measurements stay valid.
    """
    digest = hashlib.blake2b(digest_size=16)
    # The decay decides the samples of a network that is conditioned on gamma.
    decay = [pipeline.config.decay] if pipeline.transformer.config.conditioned_on_gamma else []
    digest.update(json.dumps([pipeline.config.id2label, pipeline.config.reference_fps, *decay]).encode())
    for module in (pipeline.transformer, pipeline.vae):
        later = module.config.get("_use_default_values", ())
        config = {key: value for key, value in module.config.items() if not key.startswith("_") and key not in later}
        digest.update(json.dumps(config, sort_keys=True).encode())
        add_weights(digest, module.state_dict())
    return digest.hexdigest()
