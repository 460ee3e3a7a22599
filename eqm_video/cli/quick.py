"""Quick answers, without torch: the help of every command, and the refusal of words that make no sense.

Importing a command takes seconds, because the libraries that compute come with it. So the classes of its options are
also kept as data, in assets/options.json: `cli/snapshot.py` writes them from the true classes, and here they become
classes again, for the same parser. Words that pass it go to the true command, which checks them again. A command whose
declarations have changed since the file was written is left to its true class.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from eqm_video import options
from eqm_video.sampling.option_words import check_model, split_recipe
from eqm_video.training import recipes, strict_yaml

PACKAGE = Path(__file__).resolve().parents[1]
STORED = PACKAGE / "assets" / "options.json"
RECIPE = "recipe"  # the entry of the configuration of training, beside those of the commands
PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "path": Path, "null": type(None), "object": object}


def answer(name: str, words: Sequence[str]) -> None:
    """Print the help of the command `name` and leave (SystemExit), or refuse wrong words (UserError), or do nothing."""
    entry = stored().get(name)
    if entry is None or entry["digest"] != digest(entry["sources"]):
        return
    cls = rebuild(entry["class"])
    helping = {"-h", "--help", "--help-all"} & set(words)
    if not helping and {word.partition("=")[0] for word in words} & set(getattr(cls, "elsewhere", ())):
        return
    chosen = options.parse(cls, words, prog=f"eqm-video {name}")
    if isinstance(getattr(chosen, "model", None), str) and name != "push":  # push takes a run or an export alone
        check_model(chosen.model)
    if hasattr(chosen, "overrides"):
        _check_recipe(vars(chosen))


def _check_recipe(chosen: Mapping[str, Any]) -> None:
    """Refuse an unknown recipe, keys and values that a recipe cannot have, and work without data; UserError."""
    entry = stored()[RECIPE]
    if "config" in chosen:
        name, changes = split_recipe(chosen["config"], chosen["overrides"])
    else:
        name, changes = chosen.get("recipe", ""), chosen["overrides"]  # "": the command has recipes of its own
    if name == "" or chosen.get("own") or "=" in str(name) or entry["digest"] != digest(entry["sources"]):
        return
    cls = rebuild(entry["class"])
    tree = {} if name is None else strict_yaml.read_recipe(cls, recipes.find(name))
    config = strict_yaml.parse(cls, tree, changes, entry["aliases"])
    strict_yaml.check_ranges(config)
    if "config" in chosen and not chosen.get("dry_run") and (name is not None or not chosen.get("resume")):
        recipes.check_root(config.data.root)
        if not os.path.exists(Path(config.data.root).expanduser()):
            from eqm_video.data.layout import check_folder  # here: it imports numpy

            check_folder(config.data.kind, Path(config.data.root).expanduser())
        if name is not None:
            recipes.check_base(config.lora.rank, config.train.init_from)


@functools.cache
def stored() -> dict[str, Any]:
    """The entries of the file, by command."""
    return json.loads(STORED.read_text(encoding="utf-8"))


# Classes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A function of the package by its name, such as "eqm_video.sampling.known:parse_known", imported when called."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """The result of the function."""
        module, _, function = self.name.partition(":")
        return getattr(importlib.import_module(module), function)(*arguments)


def rebuild(entry: Mapping[str, Any]) -> type:
    """The class that an entry of the file describes: its docstring, fields and what else the parsers look at."""
    more = {name: tuple(value) if isinstance(value, list) else value for name, value in entry["more"].items()}
    if "spelled_out" in more:
        more["spelled_out"] = staticmethod(Reference(more["spelled_out"]))
    return make_dataclass(
        entry["name"],
        [(name, *_field(described)) for name, described in entry["fields"].items()],
        namespace={"__doc__": entry["doc"], **more},
        frozen=True,
    )


def _field(described: Mapping[str, Any]) -> tuple[Any, Any]:
    """The type and the field that an entry describes."""
    metadata: dict[str, Any] = {"title": described["title"]} if "title" in described else {}
    default: dict[str, Any] = {"default": _value(described["default"])} if "default" in described else {}
    kind = _type(described.get("type", "object"))
    if "option" in described:
        rule = {name: _value(value) for name, value in described["option"].items()}
        if "read" in rule:
            rule["read"] = Reference(rule["read"])
        metadata["option"] = options.Option(**rule)
    if "class" in described:
        kind = rebuild(described["class"])
        default = {"default_factory": kind}
    if "kinds" in described:
        kinds = {name: rebuild(cls) for name, cls in described["kinds"].items()}
        name, values = described["chosen"]
        chosen = {key: _value(value) for key, value in values.items()}
        for inner in kinds[name].__dataclass_fields__.values():
            if "kinds" in inner.metadata:  # a choice within: its default is that of the class
                chosen[inner.name] = inner.default
        default = {"default": kinds[name](**chosen)}
        metadata |= {"kinds": kinds, "flat": described["flat"]}
    return kind, field(**default, init=described.get("init", True), kw_only=described["kw_only"], metadata=metadata)


def _value(value: Any) -> Any:
    """A value from JSON, with tuples for its lists."""
    return tuple(map(_value, value)) if isinstance(value, list) else value


def _type(spelled: Any) -> Any:
    """The type that `snapshot.spell` spelled."""
    if isinstance(spelled, str):
        return PLAIN[spelled]
    kind, *inner = spelled
    if kind == "literal":
        return typing.Literal[tuple(inner)]
    if kind == "tuple":
        return tuple[tuple(... if part == "..." else _type(part) for part in inner)]
    return functools.reduce(lambda first, second: first | second, map(_type, inner))


# Whether the file is current ----------------------------------------------------------------------------------------


def digest(sources: Mapping[str, Sequence[str]]) -> str:
    """A digest of the statements that declare classes and constants, given as names by file."""
    total = hashlib.sha256()
    for file, names in sources.items():
        path = PACKAGE / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for name in names:
            total.update(statement(text, name).encode())
    return total.hexdigest()


def statement(text: str, name: str) -> str:
    """The top-level statements of a source text that define a class or a constant; of a class all before its methods.

    Empty for a name that the text does not define.
    """
    pattern = rf"^(?:class {name}\b|{name}\b *[:+]?[^=\n]*=).*?(?=^[A-Za-z_@#\"]|^    (?:def |@)|\Z)"
    return "".join(match[0] for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE))
