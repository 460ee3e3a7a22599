"""A training run: its parts put together, its previews and its export."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn

from eqm_video.codec import BUNDLED, PIXELS, Codec
from eqm_video.core.energy import Field, checkpoint_block
from eqm_video.core.objective import EqMObjective
from eqm_video.data.datasets import collate
from eqm_video.data.latents import collate_latents
from eqm_video.errors import UserError
from eqm_video.models.adapters import has_adapters, merged, save_adapters
from eqm_video.models.loading import load_transformer
from eqm_video.models.recompute import keep_products
from eqm_video.randomness import generator
from eqm_video.sampling.settings import Sampling
from eqm_video.system import machine
from eqm_video.system.claims import carry_over
from eqm_video.system.reading import read_json
from eqm_video.training import build
from eqm_video.training import launcher as launch
from eqm_video.training.card import own_files, write_card
from eqm_video.training.checkpoint import Checkpoints, replace_folder
from eqm_video.training.config import Config, TrainConfig, to_tree
from eqm_video.training.data import (
    HELD_OUT,
    VIDEOS,
    LatentCaches,
    TrainingData,
    cache_folder,
    choose_latents,
    open_held_out,
    open_training_data,
)
from eqm_video.training.ema import Ema
from eqm_video.training.estimate import Device, count_memory, free_memory, note_memory
from eqm_video.training.evaluating import Best, Evaluating
from eqm_video.training.heartbeat import Heartbeat
from eqm_video.training.held_out import HeldOut, note_unheld
from eqm_video.training.optim import OPTIMIZERS, Schedule
from eqm_video.training.report import RunFiles
from eqm_video.training.signals import Stopped, StopSignals
from eqm_video.training.tracking import RunLog
from eqm_video.training.trainer import Hook, Trainer

# Paths in an export that `save_pretrained` writes
EXPORTED = r"model_index\.json|(transformer|vae)/(config\.json|diffusion_pytorch_model.*)"
EXPORTED += r"|adapters/adapter_(config\.json|model\.safetensors)"
ANEW = (
    "data.latents=memory: latents in memory end with the process, so all files are encoded again at every --resume; "
    "`eqm-video cache` keeps them on disk"
)
MIXED = 1.2  # the highest frame rate over the lowest, from which on it is said
LEGIBLE = 96  # pixels: the width of clips in previews, at least, so that the names of labels fit above them


class Run:
    """All parts of a training run, made from its configuration: `trainer.run()` trains, `export()` ends it."""

    def __init__(
        self, config: Config, accelerator: Accelerator, resuming: bool = False, heartbeat: Heartbeat | None = None
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.folder = config.run.folder
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.train.keep)
        self.signals = StopSignals(self.checkpoints.newest, accelerator.is_main_process)
        self.heartbeat = heartbeat or Heartbeat(accelerator)
        data = open_training_data(config, accelerator)
        self.labels, self.video_labels = data.labels, data.labels[: data.video_labels]
        self.caches = None
        if cache_folder(config) is not None:  # the weights of the codec wait for previews and the export
            self.codec = build.open_codec(config, weights=False)
            self.caches = LatentCaches.of(config, self.codec)
            data = data.cached(self.caches)
        else:
            self.codec = build.open_codec(config)
        if config.data.latents == "auto":
            config, note = choose_latents(config, data, self.codec, accelerator)
            accelerator.print(note, flush=True)  # before the wait that it explains
            self.config, data = config, replace(data, config=config)
        elif config.data.latents == "memory" and resuming:
            accelerator.print(ANEW, flush=True)
        self.codec.to(accelerator.device)
        self.encode = build.make_encode(self.codec, accelerator.device)
        network = build.make_network(config, build.count_labels(config, self.labels), self.codec.latent_channels)
        build.check_size(config, self.codec.downsampling, network.config.patch_size)
        source = None if resuming else config.train.init_from
        started = build.start_from(network, source, self.labels) if source else []
        self.notes = list(started)
        self.notes += note_start(source, config, self.codec) if source else []
        if not resuming:
            build.check_start(network)
        self.notes += build.add_adapters(network, config, started)
        self.notes += build.note_sampler(config) + launch.note_precision(config)
        self.notes += build.note_precision(config, accelerator.device)
        if not config.held_out.wanted:
            self.notes.append(note_unheld(data.videos))
        self.fps = playback_fps(data.clips, config.data.reference_fps)
        self.notes += note_fps(data.videos, self.fps)
        # A network that is cut in parts is never whole on a GPU.
        self.sharding = launch.read_sharding() if accelerator.num_processes > 1 else None
        if self.sharding is not None and config.lora.rank is not None:
            raise UserError("lora.rank does not go with weights in parts (FSDP): launch without, adapters are small")
        self.notes += self._note_memory(network)
        self.ema = Ema(network if self.sharding else network.to(accelerator.device), config.train.ema)
        self.log = RunLog(self.folder, accelerator, config.track.to)
        self.objective = EqMObjective(config.objective.decay, config.objective.dispersion_weight)
        self.data_record, self.data_notes = data.record, data.notes
        self.trainer = self._trainer(network, data)

    def _note_memory(self, network: nn.Module) -> list[str]:
        """A note if a step needs more memory than this process's device has free."""
        accelerator, config = self.accelerator, self.config
        free = free_memory(accelerator.device)
        if accelerator.device.type == "cpu" and free is not None:  # the processes of this machine share it
            free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        name = machine.device_name(accelerator.device)
        size = config.data.size // self.codec.downsampling
        shape = (max(shape.frames for shape in config.data.shapes), self.codec.latent_channels, size, size)
        parts = accelerator.num_processes // self.sharding.copies if self.sharding is not None else 1
        memory = count_memory(config, network, shape, accelerator.num_processes, parts, kind=accelerator.device.type)
        return note_memory(memory, Device(name, accelerator.device.type, free, 0.0, 0.0))

    def _trainer(self, network: nn.Module, data: TrainingData) -> Trainer:
        config, train, accelerator = self.config, self.config.train, self.accelerator
        if train.gradient_checkpointing:
            explicit = checkpoint_block if config.model.energy != "implicit" else None
            network.enable_gradient_checkpointing(keep_products if train.recompute == "selective" else explicit)
        if train.compile:
            build.check_compiler()
            for block in network.blocks:
                # A part that cannot be compiled is an error, not a slower run. Parts of weights are gathered between.
                block.compile(fullgraph=self.sharding is None)
        field = Field(network)
        if self.sharding is not None:
            self.sharding.apply(field, accelerator)
            self.ema.shard(network)
        self.best: Best | None = None  # of the evaluations
        evaluations = self._evaluations()
        return Trainer(
            field,
            self.objective,
            config.gamma,
            data.batches(accelerator, self.codec),
            encode=self.encode,
            optimizer=make_optimizer(network, train),
            schedule=Schedule(train.lr, train.steps, train.warmup, train.schedule, train.min_lr_factor),
            ema=self.ema,
            accelerator=accelerator,
            settings=train,
            reference_fps=config.data.reference_fps,
            checkpoints=self.checkpoints,
            log=self.log,
            evaluations=evaluations,
            hooks=[Hook(config.preview.every, self.preview)],
            record={
                "config": to_tree(config),
                "data": self.data_record,
                "machine": machine.describe(accelerator.device),
                "versions": machine.versions(),
            },
            describe=self._describe,
            best=self.best,
            signals=self.signals,
            heartbeat=self.heartbeat,
            sharded=self.sharding is not None,
        )

    def pulse(self, *unused: object) -> None:
        """Report progress inside a long task; raises Stopped after a stop signal."""
        self.heartbeat.beat()
        self.signals.check()

    def _evaluations(self) -> list[Hook]:
        """The loss on held-out clips, and metrics of samples against them, where they are wanted."""
        held_out, data, evaluate = self.config.held_out, self.config.data, self.config.train.evaluate
        clips = open_held_out(self.config, self.accelerator, self.video_labels)
        if clips is None:
            return []
        if held_out.fraction is None and (held_out.root is not None or not clips.report.complete):
            self.notes.append(f"held out: {clips.report.summary()}")
        more = []
        if evaluate.every:
            labels = spread(evaluate.n, len(self.video_labels))
            settings = {"fps": self.fps, "accelerator": self.accelerator}
            evaluating = Evaluating(self.config, clips, self._sample, labels, **settings)
            self.best = evaluating.best
            more = [Hook(evaluate.every, evaluating)]
        if self.caches is not None:
            clips = self.caches.open(HELD_OUT if held_out.root is not None else VIDEOS, clips)
        evaluation = HeldOut(
            clips,
            collate if self.caches is None else collate_latents,
            self.encode,
            self.objective,
            clips=held_out.clips,
            gammas=held_out.gammas,
            seed=self.config.train.seed,
            reference_fps=data.reference_fps,
            accelerator=self.accelerator,
            pulse=self.pulse,
        )
        return [Hook(held_out.every, evaluation), *more]

    def pipeline_settings(self) -> dict[str, Any]:
        """The settings of the run's pipeline: everything beside the network and the codec."""
        tree = to_tree(self.config)
        return {
            "id2label": dict(enumerate(self.labels)),
            "decay": tree["objective"]["decay"],
            "objective": {"name": self.config.objective_name, "gamma": tree["gamma"]},
            "sampler": tree["sampler"],
            "frames": self.config.data.frames,
            "fps": self.fps,
            "reference_fps": self.config.data.reference_fps,
            "size": self.config.data.size,
        }

    def pipeline(self, network: nn.Module | None = None) -> Any:
        """The averaged network, or another one, with the run's codec: ready to sample or to save."""
        from eqm_video.sampling.pipeline import EqMPipeline

        return EqMPipeline(transformer=network or self.ema.network, vae=self.codec.vae, **self.pipeline_settings())

    def _describe(self, folder: Path) -> None:
        """Write pipeline.json into a checkpoint: the settings to sample from it."""
        settings = {**self.pipeline_settings(), "codec": self.config.codec.name}
        (folder / "pipeline.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def preview(self, step: int, network: nn.Module) -> None:
        """Sample clips from the averaged network into `previews/`, with the same noise and labels at every step.

        Every process makes its share: if one made all, the others would wait until their communication times out.
        """
        accelerator, count = self.accelerator, self.config.preview.samples
        self.heartbeat.beat(f"sampling the preview of step {step}")
        labels = spread(count, len(self.video_labels))  # clips have no labels that only images have
        mine = list(range(accelerator.process_index, count, accelerator.num_processes))
        parts = [self._sample(mine, [labels[k] for k in mine] if labels else None)]
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        problem = next((part for part in parts if isinstance(part, str)), None)
        if problem is not None:  # early in training the recipe's sampler may diverge; training goes on
            accelerator.print(f"no preview of step {step}: {problem}")
        elif accelerator.is_main_process:
            clips = {k: clip for part in parts for k, clip in part.items()}
            names = [self.labels[label] for label in labels] or None
            try:
                self.log.video("preview", self._write_preview(step, clips, names), step)
            except (UserError, OSError, ValueError) as error:  # a failed picture must not end the run
                warnings.warn(f"no preview of step {step}: {error}", stacklevel=2)
        accelerator.wait_for_everyone()

    def _sample(self, seeds: list[int], labels: list[int] | None) -> dict[int, Any] | str:
        """Clips uint8 (T, H, W, 3) by seed, or a sentence on why there are none."""
        if not seeds:
            return {}
        pipeline = self.pipeline()
        try:
            with self.accelerator.autocast():  # the precision of the run: a preview in float32 takes much longer
                made = pipeline.sample(Sampling(), labels, seeds=seeds, output_type="uint8", callback=self.pulse)
        except Stopped:
            return "the run is being stopped"
        except (UserError, torch.OutOfMemoryError) as error:
            return str(error)
        return dict(zip(seeds, made.frames, strict=True))

    def make_up_preview(self) -> None:
        """Sample the preview of the step that the run resumes from, if it ended between checkpoint and preview."""
        step, every = self.trainer.step, self.config.preview.every
        due = every > 0 and step > 0 and (step % every == 0 or step == self.config.train.steps)
        there = any((self.folder / "previews" / f"step_{step:08d}.{kind}").exists() for kind in ("gif", "png"))
        if due and not gather_object([there])[0]:  # the main process knows its own folder
            with self.ema.whole() as average:
                self.preview(step, average)

    def _write_preview(self, step: int, clips: dict[int, Any], names: list[str] | None) -> Path:
        from eqm_video.output import media

        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        ordered = np.stack([clips[k] for k in sorted(clips)])
        scale = 1 if names is None else max(1, LEGIBLE // ordered.shape[3])
        frames = media.grid(ordered, names, scale=scale)
        path = folder / f"step_{step:08d}.{'png' if len(frames) == 1 else 'gif'}"
        media.write(path, frames, self.fps)
        return path

    def export(self) -> Path:
        """Write the folder that `EqMPipeline.from_pretrained` loads, whole or not at all; returns it."""
        with self.ema.whole() as average:
            return self._export("export", lambda: average, "to write it from the last checkpoint")

    def export_best(self) -> Path | None:
        """Write the averaged network of the best evaluation as `export_best`; None without such a checkpoint."""
        best = self.checkpoints.at(None if self.best is None else self.best.step)
        if best is None:
            return None
        load = partial(load_transformer, best / "ema", torch.float32)
        return self._export("export_best", load, "to write it", best=self.best.state())

    def _export(
        self, name: str, load: Callable[[], nn.Module], again: str, best: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the pipeline of a network with its card, and keep a user's own files of the export before; its folder.

        load: gives the network, on the main process alone. again: the use of --resume after a failure, in words. best:
        the state of the best evaluation, where the network is of its step.
        """
        final = self.folder / name

        def fill(folder: Path) -> None:
            network = load()
            if has_adapters(network):
                save_adapters(network, folder / "adapters")
            self.pipeline(merged(network)).save_pretrained(folder)
            write_card(folder, RunFiles.read(self.folder, strict=False), final, best=best)
            carry_over(final, folder, "|".join([EXPORTED, *map(re.escape, own_files(final))]))

        if self.accelerator.is_main_process:
            try:
                replace_folder(final, fill)
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot write {final} ({error}): mend that, then add --resume {again}") from error
        self.accelerator.wait_for_everyone()
        return final


def note_start(source: str, config: Config, codec: Codec) -> list[str]:
    """Notes if the weights of `train.init_from` were trained with another codec, unit of time or decay."""
    folder, settings = build.find_start(source)
    notes, tree = [], to_tree(config)
    name = settings.get("codec")
    if name is not None and not same_codec(name, codec):
        notes.append(f"{source} has the codec {name}, this run {codec.name}: the same frames may be other latents")
    theirs, ours = settings.get("reference_fps"), config.data.reference_fps
    if theirs not in (None, ours) and read_json(folder / "config.json").get("temporal"):
        notes.append(f"{source} has the reference_fps {theirs:g}, this run {ours:g}: the same times are other seconds")
    theirs, ours = settings.get("decay"), tree["objective"]["decay"]
    if theirs not in (None, ours):
        spelled = [", ".join(f"{key} {decay[key]}" for key in sorted(decay)) for decay in (theirs, ours)]
        notes.append(f"{source} was trained with another decay: {spelled[0]} there; {spelled[1]} here")
    return notes


@torch.no_grad()
def same_codec(name: str, codec: Codec) -> bool:
    """Whether the codec `name` gives the same latents as `codec`.

    One that must be fetched is compared by name alone.
    """
    if name == codec.name:
        return True
    if name not in (BUNDLED, PIXELS) and not Path(name).expanduser().is_dir():
        return False
    pixels = 2 * torch.rand(1, 1, 3, 64, 64, generator=generator("same codec")) - 1
    theirs, ours = (coder.encode(pixels).cpu() for coder in (Codec.load(name), codec))
    return theirs.shape == ours.shape and float((theirs - ours).abs().mean()) < 0.02  # latents are about 1; TF32 rounds


def make_optimizer(network: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that a recipe names."""
    special = {"matrix_scale": train.matrix_scale} if train.optimizer == "muon" else {}
    return OPTIMIZERS[train.optimizer](
        network, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, **special
    )


def spread(count: int, num_labels: int) -> list[int]:
    """Labels for `count` samples: all in turn, or evenly chosen ones if samples are fewer than labels."""
    if num_labels == 0:
        return []
    return [k * num_labels // count if count < num_labels else k % num_labels for k in range(count)]


def note_fps(videos: Any, fps: float) -> list[str]:
    """A note where videos have other frame rates, so that one interval gives clips of several; `fps` of samples."""
    rates = [info.fps for _, _, info in videos.files if getattr(info, "fps", 0)]
    if len(rates) < 2 or max(rates) < MIXED * min(rates):
        return []
    return [
        f"note: the videos have {min(rates):.4g} to {max(rates):.4g} fps, so clips with data.frame_interval="
        f"{videos.frame_interval} have {min(rates) / videos.frame_interval:.4g} to "
        f"{max(rates) / videos.frame_interval:.4g}; the network gets the time of every frame, and samples have "
        f"{fps:.4g} fps unless --fps says otherwise"
    ]


def playback_fps(data: Any, reference_fps: float) -> float:
    """Frames per second at which a clip of the data plays in real time; `reference_fps` for single frames."""
    # `substitutes` replaces a file that no longer decodes.
    seconds = data.substitutes.take(0, 0, data.clip).times
    return round(1 / float(seconds.diff().median()), 3) if len(seconds) > 1 else reference_fps
