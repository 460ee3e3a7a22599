"""Low-rank adapters (LoRA, arXiv 2106.09685) of a network, through PEFT: added, merged, saved and loaded.

An adapter adds scale * B A to the weight of a linear layer, with A (rank, inputs), B (outputs, rank) and scale =
alpha / rank. B starts at 0, so that a network with new adapters is the network itself. Files have PEFT's layout:
adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqm_video.errors import UserError
from eqm_video.system.reading import read_json

TARGETS = ("qkv", "proj", "fc1", "fc2")  # the linear layers of a transformer's blocks: attention and MLP
NAME = "default"  # PEFT's name of an adapter
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in PEFT's files


def add_adapters(network: nn.Module, rank: int, alpha: float, targets: Sequence[str] = TARGETS, seed: int = 0) -> None:
    """Put new adapters on the linear layers whose names end in `targets`, and freeze all other weights, in place.

    The weights A depend on `seed` alone. UserError without PEFT, and for targets that the network does not have.
    """
    peft = _peft()
    layers = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    present = {last for last in (name.rpartition(".")[2] for name in layers) if not last.isdecimal()}
    if missing := [target for target in targets if target not in present]:
        raise UserError(f"the network has no linear layer {missing[0]!r}; its layers are {', '.join(sorted(present))}")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), bias="none", lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, adapter_name=NAME)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def has_adapters(network: nn.Module) -> bool:
    """Whether a network has adapters that are not merged."""
    return any(is_adapter(name) for name, _ in network.named_parameters())


def merged(network: nn.Module) -> nn.Module:
    """A copy of a network with its adapters merged into its weights; the network itself if it has none."""
    if not has_adapters(network):
        return network
    plain = copy.deepcopy(network)
    for name, layer in _layers(plain):
        layer.merge()
        _put(plain, name, layer.get_base_layer())
    del plain.peft_config
    return plain


def remove_adapters(network: nn.Module) -> None:
    """Take all adapters off a network, in place; its own weights are what they were."""
    for name, layer in _layers(network):
        _put(network, name, layer.get_base_layer())
    del network.peft_config


def save_adapters(network: nn.Module, folder: Path) -> None:
    """Write the adapters of a network into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        PREFIX + name.replace(f".{NAME}.", "."): value.detach().contiguous().cpu()
        for name, value in network.named_parameters()
        if is_adapter(name)
    }
    network.peft_config[NAME].save_pretrained(str(folder))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapters(network: nn.Module, folder: Path, scale: float = 1.0) -> None:
    """Put the adapters in `folder` on a network without any, in place; `scale` multiplies their effect.

    UserError for a folder without adapters, for damaged files, and for adapters of another network.
    """
    config, weights = read_config(folder), read_weights(folder)
    rank, targets = config.get("r"), config.get("target_modules")
    names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    alpha = config.get("lora_alpha")
    numbers = isinstance(rank, int) and isinstance(alpha, int | float) and 1 <= rank <= 2**16
    if config.get("peft_type") != "LORA" or not names or not numbers:
        raise UserError(f"{folder / CONFIG} describes no LoRA adapters: needed are r, lora_alpha and target_modules")
    plain = {"bias": "none", "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder / CONFIG} has {key}={config[key]!r}: only plain LoRA adapters are read")
    add_adapters(network, rank, scale * alpha, targets)
    own = {name: value for name, value in network.named_parameters() if is_adapter(name)}
    wrong = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        remove_adapters(network)
        raise UserError(f"the adapters in {folder} are of another network: they differ at {wrong[0]}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def read_config(folder: Path) -> dict[str, Any]:
    """The description of the adapters in a folder; UserError where there is none."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}: give a folder of adapters, such as RUN/export/adapters")
    return read_json(folder / CONFIG)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the adapters in a folder, by the names of a network's parameters; UserError where damaged."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error})") from error
    return {
        name.removeprefix(PREFIX).replace(".lora_A.", f".lora_A.{NAME}.").replace(".lora_B.", f".lora_B.{NAME}."): value
        for name, value in weights.items()
    }


def _layers(network: nn.Module) -> list[tuple[str, Any]]:
    """The layers with adapters, by their names."""
    return [(name, module) for name, module in network.named_modules() if hasattr(module, "get_base_layer")]


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Make `layer` the module `name` of a network."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def _peft() -> ModuleType:
    if find_spec("peft") is None:
        raise UserError('adapters (lora) need PEFT: type pip install "peft>=0.17"')
    import peft

    return peft
