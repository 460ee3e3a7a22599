"""The command `convert`: weights of the reference code become a saved EqMTransformer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from eqm_video import options
from eqm_video.codec import Codec
from eqm_video.errors import UserError
from eqm_video.models.convert import convert, convert_weights
from eqm_video.models.loading import NETWORKS, class_in
from eqm_video.models.presets import preset_name
from eqm_video.models.reference_files import read_weights
from eqm_video.models.transformer import EqMTransformer
from eqm_video.options import narrower, option, same
from eqm_video.output.outputs import claim_output
from eqm_video.samplers.presets import SAMPLER_PRESETS
from eqm_video.sampling.option_groups import Opened, Shaped, Written
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.system.files import write_text, writing_folder
from eqm_video.system.reading import read_text
from eqm_video.training.card import CARD, converted_card

CODEC = "stabilityai/sd-vae-ft-ema"  # of the reference's weights
MOST_NAMES = 2**24  # bytes of a file of names
# Settings of an export by the target that its network was trained with: the reference EqM code's, and SiT's
EQM: dict[str, Any] = {
    "decay": {"kind": "truncated", "a": 0.8, "gain": 4.0},
    "sampler": SAMPLER_PRESETS["paper-b2"],
}
FLOW: dict[str, Any] = {
    "decay": {"kind": "constant", "gain": 1.0},
    "sampler": {"kind": "heun", "steps": 125, "guidance_scale": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class Convert(Written):
    """Turn weights of the reference EqM (or of another SiT-layout network) into a saved EqMTransformer.

    With --codec DIR becomes a whole export, which can be sampled: network, codec, names of labels, decay and sampler.
    Without it DIR holds the network alone, to start a training from. DIR must be new or empty.
    """

    source: Path = option(
        positional=True, metavar="SOURCE", help=".safetensors, or .pt with a state dict, or one under 'ema' or 'model'"
    )
    out: Path = narrower(positional=True, help="folder for the network, or for the whole export")
    num_heads: int | None = option(
        None, least=1, metavar="N", help="attention heads", unset="those of the preset with this width and depth"
    )
    temporal: bool = option(False, help="add attention in time, which starts as the identity")
    temporal_every: int = option(1, least=1, most=2, metavar="N", help="with --temporal: in every N-th block, 1 or 2")
    conditioned_on_gamma: bool = option(False, help="for weights that were trained with the time fed to them")
    codec: str | None = same(Opened, "codec", unset="none: the network alone")
    size: tuple[int, int] | None = same(Shaped, "size", unset="256")
    labels: str | None = option(None, metavar="NAMES", help="imagenet, or a text file with the name of a label a line")

    def __post_init__(self) -> None:
        options.check(self)
        if self.codec is None and (self.size is not None or self.labels is not None):
            raise UserError(f"--size and --labels belong to an export: add its codec, --codec {CODEC}")
        if self.temporal_every > 1 and not self.temporal:
            raise UserError(f"--temporal-every {self.temporal_every} needs attention in time: add --temporal")

    def run(self) -> str:
        """Convert; returns a description of the network, line by line.

        UserError for weights that cannot be converted.
        """
        _refuse_ours(self.source)
        how = {"num_heads": self.num_heads, "temporal": self.temporal, "temporal_every": self.temporal_every}
        how["conditioned_on_gamma"] = self.conditioned_on_gamma
        model = self.export(how) if self.codec is not None else convert(self.source, self.out, **how)
        config = model.config
        name = preset_name(config.hidden_size, config.depth, config.num_heads, config.patch_size)
        sizes = f"width {config.hidden_size}, depth {config.depth}, heads {config.num_heads}, patch {config.patch_size}"
        return "\n".join(
            (
                f"preset      {name or 'none'} ({sizes})",
                f"labels      {config.num_labels}, and the null label {model.null_label}",
                f"parameters  {sum(weight.numel() for weight in model.parameters()):,}",
                f"dtype       {str(model.dtype).removeprefix('torch.')}",
                f"temporal    {'yes: new layers, gates at zero' if config.temporal else 'no'}",
                f"gamma       {'an input of' if config.conditioned_on_gamma else 'no input of'} the network",
                f"written to  {self.out}",
                *self._next(name, temporal=config.temporal),
            )
        )

    def _next(self, preset: str | None, *, temporal: bool) -> list[str]:
        """The lines to type next: sample; and for a network alone of some preset, train."""
        out, add = shlex.quote(str(self.out)), "" if self.codec is not None else f" --codec {CODEC} --size 256"
        lines = [f"sample with eqm-video sample {out}{add} --out samples"]
        if self.codec is None and preset is not None:
            recipe = "ucf101_b2" if temporal else "imagenet_b2"
            words = f"model.preset={preset} train.init_from={out} data.root=FOLDER"
            lines.append(f"train with  eqm-video train --config {recipe} {words}")
        return lines

    def export(self, how: dict[str, Any]) -> EqMTransformer:
        """Write a whole export into a new folder; returns the network. UserError for parts that do not fit together."""
        out = claim_output(self.out, "convert", option="")
        names = None if self.labels is None else read_names(self.labels)
        codec = Codec.load(self.codec)
        model = convert_weights(read_weights(self.source), **how)
        if names is not None and len(names) != model.config.num_labels:
            raise UserError(f"--labels {self.labels} has {len(names)} names; the network has {model.config.num_labels}")
        target = FLOW if self.conditioned_on_gamma else EQM
        frames = 16 if self.temporal else 1
        pipeline = EqMPipeline(model, codec.vae, names, **target, frames=frames, size=self.size or (256, 256))
        pipeline.check_size(None)
        size = "x".join(str(side) for side in reversed(self.size or (256, 256)))  # width x height
        about = {"size": size, "frames": frames, "named": names is not None}
        with writing_folder(out) as folder:
            pipeline.save_pretrained(folder)
            write_text(folder / CARD, converted_card(out.name, self.source.name, str(self.codec), model, **about))
        return model


def read_names(source: str) -> list[str]:
    """The names of labels in the order of their numbers: those of ImageNet, or the lines of a text file."""
    if source == "imagenet":
        return (files("eqm_video") / "assets" / "imagenet.txt").read_text(encoding="utf-8").splitlines()
    text = read_text(source, MOST_NAMES, what="the names of the labels", advice="; or type --labels imagenet")
    return [line.strip() for line in text.splitlines() if line.strip()]


def main(words: Sequence[str]) -> int:
    """Convert, and print a description of the network; returns the exit status. UserError for a user's mistake."""
    print(options.parse(Convert, words, prog="eqm-video convert").run())
    return 0


def _refuse_ours(source: Path) -> None:
    """UserError where the source is a model of this project: a run, an export, a checkpoint, or a file of these."""
    folder = source if source.is_dir() else source.parent
    places = [folder, folder / "ema"]
    if source.is_dir():  # a reference file may lie anywhere, beside a run too
        places += [folder / "transformer", folder / "export" / "transformer", *folder.glob("checkpoints/step_*/ema")]
    elif source.suffix != ".safetensors":
        return
    if any(class_in(place / "config.json") in NETWORKS for place in places):
        raise UserError(
            f"{source} holds a model of this project, not weights of the reference code: give "
            f"train.init_from={folder}; nothing needs converting"
        )
