"""`python -m eqm_video convert`: reference weights in, a saved network of ours out."""

from __future__ import annotations

import argparse
from pathlib import Path

from eqm_video.system.parser import Parser


def main(arguments: list[str] | None = None) -> None:
    """Convert, then say what came out. A mistake of the user raises UserError."""
    options = _parser().parse_args(arguments)

    from eqm_video.models.convert import convert  # after parsing: --help need not wait for torch
    from eqm_video.models.presets import preset_name

    _refuse_ours(options.source)
    model = convert(
        options.source,
        options.out,
        num_heads=options.num_heads,
        temporal=options.temporal,
        conditioned_on_gamma=options.conditioned_on_gamma,
    )
    config = model.config
    name = preset_name(config.hidden_size, config.depth, config.num_heads, config.patch_size)
    sizes = f"width {config.hidden_size}, depth {config.depth}, heads {config.num_heads}, patch {config.patch_size}"
    print(f"preset      {name or 'none'} ({sizes})")
    print(f"labels      {config.num_labels}, and the null label {model.null_label}")
    print(f"parameters  {sum(weight.numel() for weight in model.parameters()):,}")
    print(f"dtype       {str(model.dtype).removeprefix('torch.')}")
    print(f"temporal    {'yes: new layers, gates at zero' if config.temporal else 'no'}")
    print(f"gamma       {'told to the network' if config.conditioned_on_gamma else 'not told to the network'}")
    print(f"written to  {options.out}")


def _refuse_ours(source: Path) -> None:
    """UserError where the source is a run, an export, a checkpoint or a network of this project, or a file of one."""
    from eqm_video.errors import UserError
    from eqm_video.models.loading import NETWORKS, class_in

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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m eqm_video convert",
        description="Turn weights of the reference EqM (or of another SiT-layout network) into a saved EqMTransformer.",
    )
    parser.add_argument(
        "source", type=Path, help=".safetensors, or .pt with a state dict, or one under 'ema' or 'model'"
    )
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--num-heads", type=int, help="heads; default: those of the preset with this width and depth")
    parser.add_argument("--temporal", action="store_true", help="add attention in time, which starts as the identity")
    parser.add_argument(
        "--conditioned-on-gamma", action="store_true", help="for weights that were trained with the time fed to them"
    )
    return parser
