"""The parts of a run, made from its configuration: accelerator, codec shape, network. `run.py` composes them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from eqm_video.codec import BUNDLED, BUNDLED_FOLDER, PIXELS, Codec, hub_config
from eqm_video.core.cost import count_operations
from eqm_video.core.decay import ConstantDecay
from eqm_video.errors import UserError
from eqm_video.limits import MOST_CHANNELS
from eqm_video.models import adapters
from eqm_video.models.loading import load_transformer
from eqm_video.models.presets import build_model
from eqm_video.models.transformer import EqMTransformer
from eqm_video.models.unet import EqMUNet
from eqm_video.names import as_label
from eqm_video.randomness import fold
from eqm_video.samplers import knows_gamma
from eqm_video.sampling.folders import newest_of_run
from eqm_video.sampling.model_settings import check_settings
from eqm_video.system import machine
from eqm_video.system.reading import read_json
from eqm_video.training import launcher as launch
from eqm_video.training.config import Config

# (downsampling, latent channels) of codecs on the hub, so that a dry run needs no download.
KNOWN_CODECS = {
    PIXELS: (1, 3),
    "stabilityai/sd-vae-ft-ema": (8, 4),
    "stabilityai/sd-vae-ft-mse": (8, 4),
    "madebyollin/taesd": (8, 4),
}


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator of a run, with the recipe's precision and trackers; UserError if the device lacks the former."""
    # With a single frame the temporal weights of a video network take no part in the loss.
    idle = config.model.temporal and config.data.frames == 1
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=idle)
    # The others wait while one process scans all files, for hours if a large set lies on a slow disk. The heartbeat
    # notices a process that hangs much earlier.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    launch.check_environment()
    try:
        with launch.plain_processes():
            accelerator = Accelerator(
                # A plugin: ACCELERATE_GRADIENT_ACCUMULATION_STEPS would overrule the plain argument.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                mixed_precision=config.train.mixed_precision,
                log_with=list(config.track.to) or None,
                project_dir=str(config.run.folder),
                kwargs_handlers=[wrapper, patience],
            )
    except ValueError as error:  # a precision that the device does not have
        raise UserError(f"train.mixed_precision={config.train.mixed_precision}: {error}") from error
    if config.train.mixed_precision == "fp16" and accelerator.scaler is None:
        raise UserError(f"train.mixed_precision=fp16 needs a GPU, this is {accelerator.device}: give bf16 or no")
    return accelerator


def open_codec(config: Config, weights: bool = True) -> Codec:
    """The codec of a recipe; `weights` as in `Codec.load`. UserError if it cannot be loaded."""
    codec = Codec.load(config.codec.name, chunk=config.codec.chunk, weights=weights)
    codec.encoding = torch.bfloat16 if config.codec.dtype == "bf16" else torch.float32
    return codec


def note_precision(config: Config, device: torch.device) -> list[str]:
    """A note for each precision of the recipe that the device only emulates."""
    notes = []
    for key, precision, instead in (
        ("train.mixed_precision", config.train.mixed_precision, "no"),
        ("codec.dtype", config.codec.dtype, "fp32"),
    ):
        notes += machine.note_bf16(device, f"{key}=bf16", f"{key}={instead}") if precision == "bf16" else []
    return notes


def check_compiler() -> None:
    """UserError if the machine has no C compiler, which torch.compile needs on CPUs and GPUs alike."""
    names = [os.environ.get(name, "") for name in ("CXX", "CC")] + ["g++", "gcc", "clang++", "clang", "cc", "cl"]
    if not any(name and shutil.which(name) for name in names):
        raise UserError(
            "train.compile=true needs a C compiler, and this machine has none: install one (such as the package g++), "
            "or type train.compile=false"
        )


def codec_shape(name: str) -> tuple[int, int]:
    """(downsampling, latent channels) of a codec, from its configuration file alone; UserError if there is none."""
    if name in KNOWN_CODECS:
        return KNOWN_CODECS[name]
    folder = BUNDLED_FOLDER if name == BUNDLED else Path(name).expanduser()
    files = [folder / "config.json", folder / "vae" / "config.json"] if folder.is_dir() else []
    if not files:
        with contextlib.suppress(UserError):  # no network, repository or file: the message below covers each
            files = [hub_config(name)[0]]
    for file in files:
        if file.is_file():
            config = read_json(file)
            widths = config.get("encoder_block_out_channels") or config.get("block_out_channels")
            channels = config.get("latent_channels")
            if isinstance(widths, list) and 0 < len(widths) < 16 and channels in range(1, MOST_CHANNELS + 1):
                return 2 ** (len(widths) - 1), channels
    raise UserError(
        f"the latent shape of codec.name={name!r} is not known without a download: known are "
        f"{', '.join(KNOWN_CODECS)}, {BUNDLED!r} and local folders with a config.json"
    )


def check_size(config: Config, downsampling: int, patch_size: int) -> int:
    """The height and width of the latents; UserError unless codec and patches divide the image size."""
    size, unit = config.data.size, downsampling * patch_size
    if size % unit:
        near = max(unit, round(size / unit) * unit)
        raise UserError(
            f"data.size={size} is not divisible by {unit} = {downsampling} (codec downsampling) x {patch_size} (patch "
            f"size); use for instance data.size={near}"
        )
    return size // downsampling


def make_network(config: Config, num_labels: int, channels: int) -> nn.Module:
    """The network with its initial weights, which depend on `train.seed` alone. UserError for an impossible preset."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(config.train.seed, "weights"))
            network = build_model(
                config.model.preset,
                num_labels=num_labels,
                temporal=config.model.temporal,
                **({"temporal_every": config.model.temporal_every} if config.model.temporal else {}),
                conditioned_on_gamma=config.model.conditioned_on_gamma,
                energy=config.model.energy,
                in_channels=channels,
            )
            # Drawn again: their scale is a setting of the training, not a part of the architecture.
            nn.init.normal_(network.label_embed.weight, std=config.model.label_std)
            return network
    except ValueError as error:
        raise UserError(f"model.preset: {error}") from error


def start_from(network: EqMTransformer | EqMUNet, source: str, labels: Sequence[str] = ()) -> list[str]:
    """Load the weights of a run, an export, a checkpoint's `ema` or a converted network; returns notes on new parts.

    Three things may differ: the source may lack temporal layers (an image network), may have other labels, and its
    output may mean another energy. `labels` are the names of this run's labels. If the source has names too, a label
    keeps its embedding under its new number, and a label that is unknown to the source gets a new one. Without names,
    embeddings are taken over by number, with a note, if both have the same number of labels; else all are new.
    Raises UserError for another architecture.
    """
    folder, settings = find_start(source)
    other = load_transformer(folder, torch.float32)
    free = {"temporal", "num_labels", "energy"}
    if not other.config.temporal:  # an image network begins a network with attention in time in any of its blocks
        free.add("temporal_every")
    ours = {key: value for key, value in network.config.items() if not key.startswith("_") and key not in free}
    theirs = other.config
    wrong = [f"{key} {theirs.get(key)} there, {value} here" for key, value in ours.items() if theirs.get(key) != value]
    if other.config.temporal and not network.config.temporal:
        wrong.append("temporal True there, False here")
    if wrong:
        raise UserError(f"train.init_from={source} is another architecture: {'; '.join(wrong)}")
    weights, notes = other.state_dict(), []
    known, count = label_names(settings), network.config.num_labels
    nameless = source if not known else "this run" if not labels else None  # embeddings then go by number
    if other.config.num_labels == count and nameless and count:
        notes.append(f"{nameless} names no labels: the {count} label embeddings are taken over by number")
    elif other.config.num_labels != count or (not nameless and known != list(labels)):
        embedding = network.label_embed.weight.detach().clone()
        kept = [label for label in labels if label in known]
        for label in kept:
            embedding[labels.index(label)] = weights["label_embed.weight"][known.index(label)]
        embedding[-1] = weights["label_embed.weight"][-1]  # the null label
        weights["label_embed.weight"] = embedding
        named = f"{len(kept)} of the same name are kept, {count - len(kept)}" if kept else "labels"
        notes.append(
            f"{source} has {other.config.num_labels} labels, this run {count}: {named} start anew, the null label is "
            "kept"
        )
    if network.config.temporal and not other.config.temporal:
        weights |= {name: value for name, value in network.state_dict().items() if ".temporal" in name}
        notes.append(f"{source} is an image network: the temporal layers start anew, as the identity")
    if network.config.energy != other.config.energy:
        notes.append(f"{source} has the energy {other.config.energy!r}, this run trains {network.config.energy!r}")
    network.load_state_dict(weights, strict=True)
    return notes


def add_adapters(network: EqMTransformer | EqMUNet, config: Config, notes: Sequence[str] = ()) -> list[str]:
    """Put the adapters of a recipe on a network that has its trained weights, in place; returns a note.

    notes: those of `start_from`. UserError where parts of the network are new: frozen, they would stay random.
    """
    lora, source = config.lora, config.train.init_from
    if lora.rank is None:
        return []
    if new := [note for note in notes if "anew" in note]:
        raise UserError(
            f"lora.rank trains adapters alone, but {new[0]}: start from a network with these parts, or leave the "
            "labels out with data.labelled=false"
        )
    adapters.add_adapters(
        network, lora.rank, lora.alpha or float(lora.rank), lora.targets, fold(config.train.seed, "lora")
    )
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters()) - count
    return [f"adapters of rank {lora.rank}: {count:,} weights are trained, the {total:,} of {source} stay as they are"]


def find_start(source: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the network that `train.init_from` names, and the settings of its pipeline, {} without any.

    source: a network, an export, a checkpoint, or a run, which stands for its export or newest checkpoint. `codec` in
    the settings is a codec's name, or the folder of the export's own codec. UserError if there is no network.
    """
    top = Path(source).expanduser()
    top = newest_of_run(top) if (top / "checkpoints").is_dir() or (top / "export").is_dir() else top
    places = [top / "transformer", top / "ema", top]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise UserError(f"train.init_from={source} is no export, checkpoint or network folder (no config.json in it)")
    whole = folder.absolute().parent if folder.absolute().name in ("transformer", "ema") else folder
    files = [whole / name for name in ("model_index.json", "pipeline.json")]
    file = next((file for file in files if file.is_file()), None)
    settings = read_json(file) if file is not None else {}
    if file is not None:
        check_settings(settings, file)
    own = {"codec": str(whole / "vae")} if (whole / "vae" / "config.json").is_file() else {}
    return folder, {**own, **settings}


def label_names(settings: Mapping[str, Any]) -> list[str]:
    """The label names in the settings of an export or a checkpoint, by number; empty if there are none."""
    names = settings.get("id2label") or {}
    return [as_label(names[key]) for key in sorted(names, key=int)]


def check_start(network: EqMTransformer | EqMUNet) -> None:
    """UserError where training cannot begin: energy `l2` with a head of zeros, as at initialization.

    There f = 0, so that |f|^2 / 2 and its derivatives by every weight vanish. (Energy `dot` does begin.)
    """
    last = network.conv_out if isinstance(network, EqMUNet) else network.head.linear
    zero = not any(bool(parameter.any()) for parameter in last.parameters())
    if network.config.energy == "l2" and zero:
        raise UserError(
            "model.energy=l2 cannot start from new weights: their output is 0, where the gradient of |f|^2 / 2 and all "
            "its derivatives are 0 too. Train with model.energy=implicit first, as the paper does, and add "
            "train.init_from=ITS_RUN; or use model.energy=dot"
        )


def note_sampler(config: Config) -> list[str]:
    """A note if a velocity field is to be sampled by gradient descent, which does not stop at the data."""
    if not isinstance(config.objective.decay, ConstantDecay) or knows_gamma(config.sampler.rule):
        return []
    return [
        "note: with a constant decay (flow matching) gradient descent does not stop at the data: use "
        "sampler.kind=multistep, euler, heun or dopri5"
    ]


def count_labels(config: Config, labels: list[str]) -> int:
    """`model.num_labels`, or the number of the data's labels; UserError where the data have more."""
    stated = config.model.num_labels
    if stated is not None and len(labels) > stated:
        raise UserError(
            f"model.num_labels={stated}, but the data have {len(labels)} labels ({', '.join(labels[:4])}, ...): give "
            f"model.num_labels={len(labels)}, or model.num_labels=null to count them"
        )
    return stated if stated is not None else len(labels)


def make_encode(codec: Codec, device: torch.device) -> Callable[[dict[str, Any], Any], Tensor]:
    """The function encode(batch, generators) -> clean latents (B, T, C, h, w), from pixels or from cached moments."""

    def encode(batch: dict[str, Any], generators: list[torch.Generator] | None) -> Tensor:
        if "moments" in batch:
            moments = batch["moments"].to(device, non_blocking=True)
        else:
            pixels = batch["pixels"].to(device, non_blocking=True)
            moments = codec.moments(pixels.float() / 127.5 - 1)
        return codec.sample(moments, generators)

    return encode


def measure(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Parameters of a network on the meta device, and the operations of its field: see `count_operations`."""
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": count_operations(network, shape),
    }
