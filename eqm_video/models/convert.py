"""Conversion of reference weights (the layout of EqM and SiT): new names, the other sign, no unused half of the output.

C channels, D width, K labels, p patch size. The reference predicts (clean - noise) * c(gamma) and ascends. This module
negates the last linear layer; no other part of the package uses that sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from eqm_video.errors import UserError, cut
from eqm_video.models.layers import position_table
from eqm_video.models.presets import PRESETS
from eqm_video.models.reference_files import read_weights
from eqm_video.models.transformer import EqMTransformer
from eqm_video.system.claims import Output, claim
from eqm_video.system.files import writing_folder

POSITIONS = "pos_embed"  # a fixed table in the reference, computed by us
OUTER_LAYERS = {
    "x_embedder.proj": "patch_embed",
    "t_embedder.mlp.0": "gamma_embed.mlp.0",
    "t_embedder.mlp.2": "gamma_embed.mlp.2",
    "final_layer.adaLN_modulation.1": "head.modulation.linear",
    "final_layer.linear": "head.linear",
}
BLOCK_LAYERS = {
    "attn.qkv": "spatial.qkv",
    "attn.proj": "spatial.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "adaLN_modulation.1": "modulation.linear",
}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    num_heads: int | None = None,
    temporal: bool = False,
    temporal_every: int = 1,
    conditioned_on_gamma: bool = False,
) -> EqMTransformer:
    """Read reference weights from `source`, save them as a model of this package in the folder `out`, and return it.

    source: `.safetensors`, or `.pt` / `.pth` / `.ckpt` / `.bin` with a state dict, at the top or under `ema`
    (preferred) or `model`. out: a new or empty folder; it appears whole or not at all. The weights keep the source's
    dtype. The options are those of `convert_weights`. Raises UserError for unusable weights, and for a folder that is
    not empty or cannot be written.
    """
    out = claim(Path(out), Output({}), (), option="").resolve()  # a new or empty folder
    weights = read_weights(Path(source))
    options = {"temporal": temporal, "temporal_every": temporal_every, "conditioned_on_gamma": conditioned_on_gamma}
    model = convert_weights(weights, num_heads=num_heads, **options)
    _write(model, out)
    return model


def convert_weights(
    weights: dict[str, Tensor],
    *,
    num_heads: int | None = None,
    temporal: bool = False,
    temporal_every: int = 1,
    conditioned_on_gamma: bool = False,
) -> EqMTransformer:
    """The network of a reference state dict.

    num_heads: None takes the number of the preset with the same width and depth. temporal: add attention in time, with
    gates at zero, so that frames are first treated as images. temporal_every: in every block (1), or in every second
    (2). conditioned_on_gamma: for weights of a network that was conditioned on time. Raises UserError for keys, shapes
    or dtypes that are not those of the reference.
    """
    highest = max((int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d{1,9})\.", key))), default=0)
    depth = 1 + min(highest, len(weights))  # a larger number is an unexpected key: no network is built for it
    names = key_names(depth)
    _check_keys(weights, expected={POSITIONS, *names})
    _check_plain(weights, names)
    sizes = read_sizes(weights, depth)
    _check_positions(weights[POSITIONS], sizes["hidden_size"])
    dtype = _one_dtype(weights[key] for key in names)
    sizes["num_heads"] = _heads(sizes["hidden_size"], depth, num_heads)
    options = {"temporal": temporal, "temporal_every": temporal_every, "conditioned_on_gamma": conditioned_on_gamma}
    renamed = {names[key]: weights[key] for key in names}
    renamed["patch_embed.weight"] = renamed["patch_embed.weight"].flatten(1)
    for key in ("head.linear.weight", "head.linear.bias"):
        renamed[key] = _our_output(renamed[key], sizes["patch_size"], sizes["in_channels"])
    _check_shapes(_build(sizes, options, "meta"), renamed, names)  # compares shapes alone, before anything is allocated
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that new temporal layers are the same in every conversion
        model = _build(sizes, options, "cpu")
    model.load_state_dict({**model.state_dict(), **renamed}, assign=True)  # temporal layers keep their initial values
    nn.Module.to(model, dtype)
    return model.eval()


def key_names(depth: int) -> dict[str, str]:
    """Reference key: key of this package, for all weights of `depth` blocks; the position table is not a weight."""
    layers = dict(OUTER_LAYERS)
    for block in range(depth):
        layers |= {f"blocks.{block}.{theirs}": f"blocks.{block}.{ours}" for theirs, ours in BLOCK_LAYERS.items()}
    names = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in layers.items() for part in ("weight", "bias")}
    return names | {"y_embedder.embedding_table.weight": "label_embed.weight"}


def read_sizes(weights: dict[str, Tensor], depth: int) -> dict:
    """EqMTransformer's size arguments, except num_heads, from the shapes of a reference state dict."""
    patch = weights["x_embedder.proj.weight"]
    if patch.ndim != 4 or patch.shape[2] != patch.shape[3]:
        raise UserError(
            f"x_embedder.proj.weight has shape {tuple(patch.shape)}, not (width, channels, p, p); "
            "patches must be square and lie in one frame"
        )
    width, channels, size, _ = patch.shape
    if weights["x_embedder.proj.bias"].shape != (width,) or weights["blocks.0.mlp.fc1.weight"].ndim != 2:
        raise UserError("x_embedder.proj.bias or blocks.0.mlp.fc1.weight does not go with x_embedder.proj.weight")
    outputs = weights["final_layer.linear.weight"].shape[0]
    if outputs not in (size * size * channels, 2 * size * size * channels):
        raise UserError(
            f"final_layer.linear has {outputs} outputs; {channels} channels in patches of {size} x {size} need "
            f"{size * size * channels}, or {2 * size * size * channels} with an unused half"
        )
    return {
        "in_channels": channels,
        "patch_size": size,
        "hidden_size": width,
        "depth": depth,
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "num_labels": weights["y_embedder.embedding_table.weight"].shape[0] - 1,
    }


def _our_output(values: Tensor, patch_size: int, channels: int) -> Tensor:
    """The last layer from the reference's rows (p p c), c = C or 2C: the first C of each patch pixel, negated."""
    rows = rearrange(values, "(p q c) ... -> p q c ...", p=patch_size, q=patch_size)
    return -rows[:, :, :channels].flatten(0, 2)


def _heads(width: int, depth: int, typed: int | None) -> int:
    if typed is None:
        known = {
            preset.num_heads for preset in PRESETS.values() if (preset.hidden_size, preset.depth) == (width, depth)
        }
        if not known:
            raise UserError(
                f"no preset has width {width} and depth {depth}, and heads cannot be read off the weights: "
                "add --num-heads N"
            )
        return known.pop()
    if typed < 1 or width % typed:
        raise UserError(f"--num-heads {typed} does not divide the width {width}")
    return typed


def _one_dtype(weights: Iterable[Tensor]) -> torch.dtype:
    dtypes = {weight.dtype for weight in weights}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise UserError(
            f"the weights are {names}; they must all have the same floating-point dtype: save them again in float32"
        )
    return dtypes.pop()


def _check_keys(weights: dict[str, Tensor], expected: set[str]) -> None:
    problems = {"missing": sorted(expected - set(weights)), "unexpected": sorted(set(weights) - expected)}
    if any(problems.values()):
        listed = "; ".join(f"{name}: {_shortened(keys)}" for name, keys in problems.items() if keys)
        raise UserError(f"these are not weights in the reference's layout (EqM, SiT). {listed}")


def _check_plain(weights: dict[str, Tensor], names: Iterable[str]) -> None:
    """UserError unless every tensor to convert is dense, not quantised, and has numbers."""
    for key in (POSITIONS, *names):
        weight = weights[key]
        if weight.layout != torch.strided or weight.is_meta or weight.is_quantized or not weight.ndim * weight.numel():
            raise UserError(
                f"{key} is not a plain tensor ({weight.layout}, {tuple(weight.shape)}): save the weights again"
            )


def _build(sizes: dict, options: dict, device: str) -> EqMTransformer:
    """The network of these sizes; UserError if they do not go together."""
    try:
        with torch.device(device):
            return EqMTransformer(**sizes, **options)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"the sizes of these weights do not go together: {error}") from error


def _check_shapes(model: EqMTransformer, renamed: dict[str, Tensor], names: dict[str, str]) -> None:
    theirs = {ours: key for key, ours in names.items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [
        f"{theirs[key]} gives {tuple(value.shape)} where {expected[key]} is needed"
        for key, value in renamed.items()
        if tuple(value.shape) != expected[key]
    ]
    if wrong:
        raise UserError(f"the weights do not fit together: {_shortened(wrong)}")


def _check_positions(table: Tensor, width: int) -> None:
    """UserError unless `table` is the sin-cos table of this package, on a square grid."""
    side = round(table.shape[-2] ** 0.5) if table.ndim == 3 else 0
    if not side or tuple(table.shape) != (1, side * side, width) or width % 4:
        raise UserError(f"{POSITIONS} has shape {tuple(table.shape)}, not (1, side * side, {width}) of a square image")
    ours = position_table(side, side, width, torch.device("cpu"), torch.float32)
    tolerance = max(1e-6, torch.finfo(table.dtype).eps)
    difference = (table[0].float() - ours).abs().max().item()
    if not difference <= tolerance:
        raise UserError(
            f"{POSITIONS} is not the fixed sin-cos table (it differs by up to {difference:.3g}); "
            "learned or differently ordered positions cannot be converted"
        )


def _shortened(items: list[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(cut, items[:most])) + more


def _write(model: EqMTransformer, out: Path) -> None:
    """Save beside `out`, then rename, so that the folder is whole or absent."""
    try:
        with writing_folder(out) as aside:
            model.save_pretrained(aside)
    except SafetensorError as error:
        raise UserError(f"{out} cannot be written: {error}") from error
