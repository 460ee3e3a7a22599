"""The command `convert`: weights of the reference code become a saved EqMTransformer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.models.convert import convert
from eqm_video.models.loading import NETWORKS, class_in
from eqm_video.models.presets import preset_name
from eqm_video.options import narrower, option
from eqm_video.sampling.option_groups import Written


@dataclass(frozen=True, kw_only=True)
class Convert(Written):
    """Turn weights of the reference EqM (or of another SiT-layout network) into a saved EqMTransformer.

    DIR must be new or empty.
    """

    source: Path = option(
        positional=True, metavar="SOURCE", help=".safetensors, or .pt with a state dict, or one under 'ema' or 'model'"
    )
    out: Path = narrower(positional=True)
    num_heads: int | None = option(
        None, least=1, metavar="N", help="attention heads", unset="those of the preset with this width and depth"
    )
    temporal: bool = option(False, help="add attention in time, which starts as the identity")
    conditioned_on_gamma: bool = option(False, help="for weights that were trained with the time fed to them")

    def __post_init__(self) -> None:
        options.check(self)

    def run(self) -> str:
        """Convert; returns a description of the network, line by line.

        UserError for weights that cannot be converted.
        """
        _refuse_ours(self.source)
        model = convert(
            self.source,
            self.out,
            num_heads=self.num_heads,
            temporal=self.temporal,
            conditioned_on_gamma=self.conditioned_on_gamma,
        )
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
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and print a description of the network; returns the exit status. UserError for a user's mistake."""
    words = sys.argv[1:] if arguments is None else arguments
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
