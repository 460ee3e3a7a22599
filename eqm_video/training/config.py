"""The configuration of a training run: a tree of frozen dataclasses. Each field states the range of its values.

`strict_yaml.py` reads YAML recipes and overrides into it, strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from eqm_video.core.decay import DECAYS, TruncatedDecay
from eqm_video.core.gamma import GAMMA_DRAWS, SharedGamma
from eqm_video.core.objective import objective_name
from eqm_video.data.buckets import Bucket
from eqm_video.errors import UserError, short
from eqm_video.features.registry import is_known
from eqm_video.limits import HIGHEST_RATE, LARGEST_SIDE, MOST_FRAMES, MOST_ITEMS, MOST_LABELS, MOST_UPDATES
from eqm_video.metrics.metric import Paired
from eqm_video.metrics.registry import find_metric
from eqm_video.models.adapters import TARGETS
from eqm_video.options import option
from eqm_video.samplers import NAG, SAMPLERS
from eqm_video.training import recipes
from eqm_video.training import strict_yaml as recipe
from eqm_video.training.strict_yaml import choice, to_tree

LATENTS = ("auto", "online", "memory")
ALIASES = {"frames": "data.frames"}  # overrides that need no section


@dataclass(frozen=True)
class ModelConfig:
    """The network; `num_labels: null` takes the number from the data."""

    preset: str = "EqM-B/2"  # size of the network and of its patches; a wrong name is answered with all
    temporal: bool = True  # false: no temporal weights, exactly the image model
    temporal_every: int = option(1, least=1, most=2)  # attention in time in every block, or in every second
    conditioned_on_gamma: bool = False  # true: gamma is an input of the network, as in flow matching
    # Meaning of the output f: the gradient itself (implicit), or an energy, x.f(x) (dot) or |f(x)|^2 / 2 (l2), whose
    # true gradient is then trained and descended. l2 starts from a trained network (train.init_from).
    energy: Literal["implicit", "dot", "l2"] = "implicit"
    num_labels: int | None = option(None, least=1, most=MOST_LABELS)  # null: as many as the data have
    # Standard deviation of the initial label embeddings; with 1, short runs learn to use labels much sooner.
    label_std: float = option(0.02, least=0)


@dataclass(frozen=True)
class CodecConfig:
    """The frozen autoencoder: "bundled", a local folder, or a hub id."""

    name: str = "stabilityai/sd-vae-ft-ema"  # a hub id, a folder, or bundled; pixels: no autoencoder
    chunk: int = option(64, least=1, most=MOST_ITEMS)  # frames encoded at once
    dtype: Literal["fp32", "bf16"] = "fp32"  # precision of the encoder; decoding and the export are fp32


@dataclass(frozen=True)
class DataConfig:
    """The data, and how clips are cut out of videos."""

    kind: Literal["videos", "images"] = "videos"  # images: single frames
    root: str | None = None  # the folder of the data
    split: Literal["train", "test"] | None = None  # an official list of files, such as UCF-101's; null: all files
    fold: int = option(1, least=1, most=1000)  # number of the fold in the official lists
    frames: int = option(16, least=1, most=MOST_FRAMES)  # frames of a clip; 1: image mode
    frame_interval: int = option(3, least=1, most=MOST_FRAMES)  # source frames between two frames of a clip
    # Shapes of training clips, FRAMESxINTERVAL or FRAMESxINTERVAL:WEIGHT, such as [16x3, 16x1, 32x3:0.5]. Every step
    # draws one, by weight. Empty: frames x frame_interval, which previews, held-out loss and the export always use.
    buckets: tuple[str, ...] = ()
    images: str | None = None  # a folder of images to train on beside the videos
    # Share of images among the samples of a step; without a folder `images` they are frames of the videos.
    image_fraction: float = option(0.0, least=0, below=1)
    size: int = option(256, least=1, most=LARGEST_SIDE)  # height and width in pixels
    flip: bool = False  # mirror half of the clips, left and right
    # adm: the resize of ADM, DiT and SiT, exactly. torch: a bicubic pass, about 7 times faster; Fréchet distances stay
    # where frames are enlarged or shrink to four fifths, and move where they shrink below half (docs/scaling.md).
    resize: Literal["adm", "torch"] = "adm"
    upright: bool = False  # turn images as their EXIF mark says; the rotation of videos is always applied
    labelled: bool = True  # false: ignore the labels of the data
    # Videos shorter than a clip (with buckets: than every bucket): repeat the last frame, skip them, or stop.
    short: Literal["repeat", "skip", "error"] = "repeat"
    verify: Literal["header", "size"] = "header"  # size: do not open images at the start, for sets of a million
    # The network's unit of time is 1 / reference_fps seconds.
    reference_fps: float = option(8.0, above=0, most=HIGHEST_RATE)
    workers: int = option(4, least=0, most=1024)  # decoding processes of each training process
    # When clips are encoded. online: in every step; memory: once, at the start, for small sets; cache:FOLDER: before,
    # by `eqm-video cache`; auto: memory where that fits and is less work than online, else online.
    latents: str = "auto"

    @property
    def shapes(self) -> tuple[Bucket, ...]:
        """The shapes of training clips."""
        return tuple(map(Bucket.parse, self.buckets)) or (Bucket(self.frames, self.frame_interval),)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training target (noise - clean) c(gamma); `objective: eqm`, `flow` and `forcing` stand for whole sections.

    Flow matching and Equilibrium Forcing have the constant decay 1, a velocity. The network of flow matching is
    conditioned on gamma (add model.conditioned_on_gamma), that of Equilibrium Forcing is not.
    """

    _VELOCITY: ClassVar[dict[str, Any]] = {"kind": "constant", "gain": 1.0}
    SHORT: ClassVar[dict[str, Any]] = {
        "eqm": {},
        "flow": {"decay": _VELOCITY},
        "forcing": {"name": "forcing", "decay": _VELOCITY},
    }
    decay: Any = choice(DECAYS, TruncatedDecay(a=0.8, gain=4.0))  # noqa: RUF009 (choice makes a field)
    # Weight of the dispersive loss, over the clips of a forward pass in all processes. With train.accumulation every
    # pass is a batch of its own, so that this term (and no other) depends on the number of passes.
    dispersion_weight: float = option(0.0, least=0)
    # What decay and network must then be: a falling decay (eqm), a constant one and a network that is conditioned on
    # gamma (flow) or is not (forcing). Null: the name follows from them.
    name: Literal["eqm", "flow", "forcing"] | None = None


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics of the averaged weights while training: samples against the clips that `held_out` holds out."""

    every: int = option(0, least=0)  # steps between two evaluations, and one after the last step; 0: none
    n: int = option(64, least=2, most=MOST_ITEMS)  # samples, by `sampler`; and held-out clips, four times n at most
    metrics: tuple[str, ...] = ("mmd",)  # names that `eqm-video evaluate --list` shows
    # The network of the metrics: transnet, random or pixels (neither is trained), i3d, inception or mobilenet with
    # their weights, hub:OWNER/NAME, or a TorchScript or ONNX file.
    features: str = "transnet"
    weights: str | None = None  # the file of i3d, inception or mobilenet
    # A metric of the list whose best checkpoint is kept, whatever its age, and exported beside the last; null: none.
    best: str | None = None


@dataclass(frozen=True)
class TrainConfig:
    """The optimization; `batch_size` counts the samples of one optimizer step over all processes.

    A sample is a clip, or an image: with `data.image_fraction` that share of the samples are images.
    """

    steps: int = option(100_000, least=1)  # optimizer steps
    batch_size: int = option(64, least=1, most=MOST_ITEMS)  # samples of a step, over all processes
    accumulation: int = option(1, least=1)  # forward passes of each process in an optimizer step
    seed: int = option(0, least=-(2**63), most=2**63)  # seed of everything random in training
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks, adamw for the rest
    lr: float = option(1e-4, above=0)  # learning rate after the warm-up
    matrix_scale: float = option(1.0, above=0)  # muon: learning rate of the blocks' matrices in units of lr
    betas: tuple[float, float] = option((0.9, 0.999), least=0, below=1)  # betas of adamw
    weight_decay: float = option(0.0, least=0)  # on matrices only
    warmup: int = option(0, least=0)  # steps in which the learning rate rises from 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # course of the learning rate, after the warm-up
    min_lr_factor: float = option(0.0, least=0, most=1)  # fraction of lr at the last step
    clip_norm: float | None = option(1.0, above=0)  # largest norm of the gradient; null: no limit
    ema: float = option(0.9999, least=0, most=1)  # decay of the averaged weights, a step; 0: no average
    label_dropout: float = option(0.1, least=0, most=1)  # share of samples without their label, for guidance
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"  # precision of the forward pass
    gradient_checkpointing: bool = False  # less memory, and up to a third more computation
    # Recomputed in the backward pass: whole blocks, or (selective) all but matrix products and attention, which take
    # most of the time.
    recompute: Literal["block", "selective"] = "block"
    compile: bool = False  # torch.compile of every block
    log_every: int = option(50, least=1)  # steps between two lines of the log
    save_every: int = option(5000, least=1)  # steps between two checkpoints
    save_every_minutes: float | None = option(None, above=0)  # a checkpoint by the clock too; null: by steps alone
    keep: int | None = option(3, least=1)  # newest checkpoints kept; null: all
    init_from: str | None = None  # a run, an export or a converted network to start from, weights only
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA): with a rank, they alone are trained, on the weights of `train.init_from`."""

    rank: int | None = option(None, least=1, most=4096)  # rank of the adapters; null: all weights are trained
    alpha: float | None = option(None, above=0)  # an adapter's effect is alpha / rank; null: the rank, an effect of 1
    # Linear layers that get adapters, by the ends of their names: attention and MLP of every block.
    targets: tuple[str, ...] = TARGETS


@dataclass(frozen=True)
class HeldOutConfig:
    """Loss on clips that are not trained on: an official list, a share of the files, or a folder; off without one."""

    SOURCES: ClassVar[tuple[str, ...]] = ("split", "fraction", "root")
    split: Literal["train", "test"] | None = None  # an official list of files
    # Share of the files, chosen by name and train.seed; not trained on.
    fraction: float | None = option(None, above=0, below=1)
    root: str | None = None  # a folder with the same class folders as data.root
    every: int = option(1000, least=1)  # steps between two measurements
    clips: int = option(64, least=1, most=MOST_ITEMS)  # clips that are measured, at most
    gammas: tuple[float, ...] = option((0.1, 0.3, 0.5, 0.7, 0.9), least=0, below=1)  # the loss is measured at these

    def __post_init__(self) -> None:
        named = [f"held_out.{key}={getattr(self, key)}" for key in self.SOURCES if getattr(self, key) is not None]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)} exclude each other: keep one, and set the others to null")

    @property
    def wanted(self) -> bool:
        """Whether anything is held out."""
        return any(getattr(self, key) is not None for key in self.SOURCES)


@dataclass(frozen=True)
class PreviewConfig:
    """Grids sampled from the averaged weights while training; `every: 0` switches them off."""

    every: int = option(5000, least=0)  # steps between two previews; 0: none
    samples: int = option(8, least=1, most=4096)  # clips of a preview


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of previews, which the export recommends."""

    rule: Any = choice(SAMPLERS, NAG(step_size=0.003, mu=0.35), flat=True)  # noqa: RUF009
    steps: int = option(250, least=1, most=MOST_UPDATES)  # updates of a descent
    guidance_scale: float = option(1.0, help="1 = no guidance")


@dataclass(frozen=True)
class TrackConfig:
    """Experiment trackers beside the JSONL file, which is always written."""

    to: tuple[Literal["wandb", "tensorboard"], ...] = ()  # trackers that get the log too
    project: str | None = None  # project of the tracker; null: eqm-video
    name: str | None = None  # name of the run in the tracker; null: the tracker's choice


@dataclass(frozen=True)
class RunConfig:
    """The folder of a run: everything that it writes goes there."""

    dir: str = "runs/default"  # everything that the run writes goes there
    report: bool = True  # whether report.html is written at the end

    @property
    def folder(self) -> Path:
        """`dir`, with ~ for the home folder."""
        return Path(self.dir).expanduser()


@dataclass(frozen=True)
class Config:
    """The configuration of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    gamma: Any = choice(GAMMA_DRAWS, SharedGamma())  # noqa: RUF009
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_objective(self)
        _check_samples(self)
        _check_evaluate(self)
        _check_lora(self)

    @property
    def objective_name(self) -> str:
        """The objective: eqm, flow or forcing (`core.objective.objective_name`)."""
        return objective_name(self.objective.decay, conditioned=self.model.conditioned_on_gamma)

    @property
    def images(self) -> int:
        """The number of images among the samples of an optimizer step, over all processes."""
        return round(self.data.image_fraction * self.train.batch_size)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply `section.key=value` overrides; UserError for anything that is not declared.

    path: of a file, or the name of a recipe that ships with the package, such as "own_videos".
    """
    return parse_config(recipe.read_recipe(Config, recipes.find(path)) if path is not None else {}, overrides)


def parse_config(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Build the configuration from a mapping (`to_tree`'s inverse) and `section.key=value` overrides."""
    return recipe.parse(Config, tree, overrides, ALIASES)


def to_yaml(config: Config) -> str:
    """The resolved configuration as a recipe that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def _check_ranges(config: Config) -> None:
    """Raise UserError for values that no run could use. Types, and which keys may be null, were checked before."""
    data, train = config.data, config.train
    recipe.check_ranges(config)
    if not config.held_out.gammas:
        raise UserError(
            "held_out.gammas is empty: give one or more, such as held_out.gammas=0.5, or held_out.split=null"
        )
    kind, _, folder = data.latents.partition(":")
    if data.latents not in LATENTS and (kind != "cache" or not folder):
        raise UserError(
            f"data.latents is {short(data.latents)}: it must be one of {', '.join(LATENTS)}, or cache:FOLDER, a folder "
            "that eqm-video cache filled"
        )
    if data.kind == "images" and data.frames != 1:
        raise UserError(f"data.kind is images but data.frames is {data.frames}: an image is one frame, add frames=1")
    if data.frames > 1 and not config.model.temporal:
        raise UserError(
            f"model.temporal is false, so {data.frames} frames would not see each other: add model.temporal=true, or "
            "frames=1 for an image model"
        )
    if train.recompute == "selective":
        _check_selective(config)
    if train.compile and config.model.energy != "implicit":
        raise UserError(
            f"train.compile=true does not go with model.energy={config.model.energy}: compiled blocks have no double "
            "backward; add train.compile=false"
        )


def _check_evaluate(config: Config) -> None:
    """Raise UserError for an evaluation that no run could make."""
    evaluate = config.train.evaluate
    if evaluate.every == 0:
        if evaluate.best is not None:
            raise UserError(
                f"train.evaluate.best={evaluate.best} needs evaluations, and train.evaluate.every is 0: add for "
                "instance train.evaluate.every=1000"
            )
        return
    if not config.held_out.wanted:
        raise UserError(
            "train.evaluate.every needs clips that are not trained on: add held_out.fraction=0.1, which holds out a "
            "tenth of the files, held_out.root=FOLDER, or held_out.split=test"
        )
    if not evaluate.metrics:
        raise UserError("train.evaluate.metrics is empty: give one or more, such as train.evaluate.metrics=mmd")
    if not is_known(evaluate.features):
        raise UserError(
            f"train.evaluate.features is {short(evaluate.features)}: it must be transnet, random, pixels, i3d, "
            "inception, mobilenet, hub:OWNER/NAME, or a TorchScript or ONNX file"
        )
    for name in evaluate.metrics:
        metric = find_metric(name, evaluate.features, "train.evaluate.metrics=")
        if isinstance(metric, Paired):
            raise UserError(
                f"train.evaluate.metrics={name} compares a clip with its true one, and samples have none: leave it out"
            )
    if evaluate.best is not None and evaluate.best not in evaluate.metrics:
        raise UserError(
            f"train.evaluate.best is {short(evaluate.best)}: it must be one of train.evaluate.metrics, which are "
            f"{', '.join(evaluate.metrics)}"
        )


def _check_selective(config: Config) -> None:
    """Raise UserError for selective recomputation that would do nothing, or that other settings contradict."""
    train, energy = config.train, config.model.energy
    if not train.gradient_checkpointing:
        raise UserError(
            "train.recompute=selective says what train.gradient_checkpointing computes again, and that is false: add "
            "train.gradient_checkpointing=true"
        )
    if energy != "implicit":
        raise UserError(
            f"train.recompute=selective does not go with model.energy={energy}, whose blocks are differentiated twice: "
            "add train.recompute=block"
        )
    if train.compile:
        raise UserError(
            "train.recompute=selective does not go with train.compile=true, whose blocks recompute what is cheap by "
            "themselves: add train.gradient_checkpointing=false with train.recompute=block, or train.compile=false"
        )


def _check_lora(config: Config) -> None:
    """Raise UserError for adapters of no layer, and for adapters of compiled blocks, which have not been tried."""
    if config.lora.rank is None:
        return
    if not config.lora.targets:
        raise UserError(f"lora.targets is empty: name linear layers, such as lora.targets={','.join(TARGETS)}")
    if config.train.compile:
        raise UserError("lora.rank does not go with train.compile=true: add train.compile=false")


def _check_objective(config: Config) -> None:
    """Raise UserError if the objective differs from its name."""
    stated, actual = config.objective.name, config.objective_name
    if stated in (None, actual):
        return
    advice = {
        "eqm": "give objective.decay a kind that falls to 0, such as truncated",
        "flow": "add objective.decay.kind=constant and model.conditioned_on_gamma=true",
        "forcing": "add objective.decay.kind=constant and model.conditioned_on_gamma=false",
    }[stated]
    conditioned = str(config.model.conditioned_on_gamma).lower()
    raise UserError(
        f"objective.name is {stated}, but objective.decay={config.objective.decay!r} with "
        f"model.conditioned_on_gamma={conditioned} is {actual}: {advice}, or name it {actual}"
    )


def _check_samples(config: Config) -> None:
    """Raise UserError for shapes of clips and shares of images of which no step can be made."""
    data, train = config.data, config.train
    for place, text in enumerate(data.buckets):
        try:
            shape = Bucket.parse(text)
        except ValueError as error:
            raise UserError(f"data.buckets[{place}]: {error}") from error
        if max(shape.frames, shape.frame_interval) > MOST_FRAMES:
            raise UserError(
                f"data.buckets[{place}] is {short(text)}: the most is {MOST_FRAMES:,} frames, and as many between two"
            )
        if shape.frames < 2:
            raise UserError(
                f"data.buckets has {text}, clips of one frame: leave it out, and add data.image_fraction=0.25 for "
                "a share of samples that are single frames"
            )
    if data.frames == 1 and (data.buckets or data.images or data.image_fraction):
        key = "buckets" if data.buckets else "images" if data.images else "image_fraction"
        raise UserError(
            f"data.frames=1 is the image mode, where every sample is one frame: data.{key} belongs to videos; leave it "
            "out, or give data.kind=videos and frames=2 or more"
        )
    patterns, context = getattr(config.gamma, "patterns", ()), getattr(config.gamma, "context", 1)
    if set(patterns) == {"ends"} and context > 0 and any(shape.frames == 2 for shape in data.shapes):
        where, more = "2 frames", "frames=3 or more"
        if data.buckets:
            where, more = f"the 2 frames of data.buckets={','.join(data.buckets)}", "3 frames or more in every bucket"
        raise UserError(
            f"gamma.patterns has 'ends' alone, where the first and the last frame are known: with {where} none is left "
            f"to learn; add gamma.patterns=prefix,ends, or {more}"
        )
    if data.images is not None and data.image_fraction == 0:
        raise UserError("data.images is given, but data.image_fraction is 0: add for instance data.image_fraction=0.25")
    if data.image_fraction and not 0 < config.images < train.batch_size:
        raise UserError(
            f"data.image_fraction={data.image_fraction:g} of train.batch_size={train.batch_size} samples are "
            f"{config.images} images: both kinds need at least one sample in a step; change one of the two numbers"
        )
    if train.batch_size % train.accumulation or config.images % train.accumulation:
        images = f", {config.images} of them images (data.image_fraction)," if config.images else ""
        raise UserError(
            f"train.batch_size={train.batch_size}{images} cannot be cut into train.accumulation={train.accumulation} "
            "parts"
        )
