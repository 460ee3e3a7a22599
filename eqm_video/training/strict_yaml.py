"""Recipes: YAML and `section.key=value` overrides into a tree of dataclasses, every value checked against its type.

An unknown key is an error that names the nearest legal one. A *choice* (a decay, a draw of gamma, a sampler) is a
mapping with a `kind`; its other legal keys are the fields of the class that the kind names, so a new class needs no
line here. A section's class may name whole mappings in `SHORT`: `objective: flow`. A key may stand once in a recipe;
the last of several overrides of a key counts, as on any command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import shlex
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eqm_video import options
from eqm_video.errors import UserError, cut, short
from eqm_video.limits import WHOLE_NUMBERS
from eqm_video.system.reading import read_text
from eqm_video.training import plain_yaml
from eqm_video.training.plain_yaml import Plain

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
MOST_ITEMS = 1000  # values in a list
# Folders of configs/ whose recipes may name a base: each of them changes a single choice.
BASED = ("ablations", "forcing", "gamma")
_hints = functools.cache(typing.get_type_hints)
_LARGEST = {int: WHOLE_NUMBERS, float: sys.float_info.max}


def choice(kinds: Mapping[str, type], default: Any, flat: bool = False) -> Any:
    """A field whose class the key `kind` picks. `flat` puts the class's keys beside those of its section."""
    return dataclasses.field(default=default, metadata={"kinds": kinds, "flat": flat})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if the file cannot be read or holds no mapping."""
    text = read_text(
        path,
        plain_yaml.MOST_TEXT,
        what="the recipe",
        advice="; give --config FILE.yaml, or a name that `eqm-video recipes` lists",
    )
    tree = plain_yaml.parse(text, str(path))
    tree = {} if plain_yaml.is_null(tree) else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of sections (model:, data:, train: ...)")
    return tree


def read_recipe(cls: type, path: str | Path) -> dict[str, Any]:
    """The mapping of a recipe, for dataclass `cls`. A recipe with `base: FILE.yaml` changes values of that recipe.

    A change acts like an override: another `kind` drops the keys of the old kind. Raises UserError if a recipe outside
    of `BASED` names a base, if the base is no recipe of the same folder, or if it names a base itself.
    """
    tree = read_yaml(path)
    if "base" not in tree:
        return tree
    named, folder = plain_yaml.meaning(tree.pop("base")), Path(path).resolve().parent
    if folder.parent.name != "configs" or folder.name not in BASED:
        *others, last = (f"configs/{name}" for name in BASED)
        allowed = f"{', '.join(others)} and {last}"
        raise UserError(f"{path} names a base, which only recipes in {allowed} may: write all sections out")
    names = sorted(recipe.name for recipe in folder.glob("*.yaml"))
    if named not in names:
        raise UserError(f"{path}: base is {short(named)}: it must be one of {', '.join(names)}, beside it")
    below = read_yaml(folder / named)
    if "base" in below:
        raise UserError(f"{path}: its base {named} names a base itself; name one that has all sections")
    below = _copy(below)
    for key, value in sorted(_leaves(tree), key=lambda pair: ("." in pair[0], not pair[0].endswith(".kind"))):
        _override(cls, below, key, value)
    return below


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Like `flatten`; UserError for a key with a dot, which could be taken for a section and a key."""
    for key, value in tree.items():
        if "." in str(key):
            raise UserError(
                f"unknown key {short(f'{prefix}{key}')}: keys of a recipe have no dots, write them indented"
            )
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse(cls: type, tree: Mapping[str, Any], overrides: Sequence[str], aliases: Mapping[str, str]) -> Any:
    """Build dataclass `cls`, all of whose fields have defaults, from a mapping and then overrides.

    `aliases` are short names of keys. Raises UserError for unknown keys, wrong types and values that a class refuses.
    """
    tree = _copy(tree)
    befores = ["", *overrides]
    pairs = [_split(override, aliases, before) for override, before in zip(overrides, befores, strict=False)]
    # A whole section comes first, then kinds: they decide what other keys mean, whatever the order on the command line.
    for path, text in sorted(pairs, key=lambda pair: ("." in pair[0], not pair[0].endswith(".kind"))):
        _override(cls, tree, path, text)
    return _section(cls, tree, "", [key for key, _ in flatten(to_tree(cls()))])


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise UserError for a value of a section, or of a section in it, that is out of its option's bounds."""
    for entry in dataclasses.fields(config):
        if dataclasses.is_dataclass(section := getattr(config, entry.name)) and "kinds" not in entry.metadata:
            inner = f"{prefix}{entry.name}."
            options.check(section, prefix=inner)
            check_ranges(section, inner)


def to_tree(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain mappings, lists and numbers, ready for YAML or JSON."""
    tree: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if "kinds" in entry.metadata:
            node = {"kind": _kind_of(entry.metadata["kinds"], value), **to_tree(value)}
            tree.update(node if entry.metadata["flat"] else {entry.name: node})
        else:
            tree[entry.name] = to_tree(value) if dataclasses.is_dataclass(value) else _plain(value)
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.lr", 0.0001) pairs of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_yaml(value: Any) -> str:
    """A value of a recipe as it is written there: null, true, [train, 0.5]."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------------- overrides


class _Text(str):
    """The right-hand side of an override. It is read as YAML unless the key is for text."""


def _split(override: str, aliases: Mapping[str, str], before: str = "") -> tuple[str, _Text]:
    """The key and the text of an override; `before` is the word on its left, from which a space may have cut it off."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        advice = "write section.key=value, such as train.lr=2e-4"
        if "=" in before:
            advice += f", and quote a value that has spaces: {shlex.quote(f'{before} {override}')}"
        raise UserError(f"cannot read the override {short(override)}: {advice}")
    return aliases.get(path, path), _Text(text)


def _override(cls: type, tree: dict[str, Any], path: str, text: Any) -> None:
    *sections, key = path.split(".")
    node, place = tree, cls
    for name in sections:
        place = _inner_place(place, name)
        node[name] = _opened(place, node.get(name), name)
        node = node[name]
    if key == "kind":
        kinds, fixed = _kinds_of(place)
        legal = fixed | _field_names(kinds.get(str(text)))
        # Keys of the old kind go. A word such as data.kind picks no class: it has no keys of its own.
        for stale in [name for name in node if kinds and name not in legal]:
            del node[stale]
    node[key] = text


def _opened(place: Any, value: Any, path: str) -> dict[str, Any]:
    """The value at a place as a mapping, of which an override can change a part."""
    value = plain_yaml.meaning(_yaml(value, path))
    if isinstance(value, str):  # `gamma: shared` is short for `gamma: {kind: shared}`
        value = _spell_out(place, value, path) if hasattr(place, "SHORT") else {"kind": value}
    return dict(value) if isinstance(value, Mapping) else {}


def _spell_out(cls: type, word: str, path: str) -> Mapping[str, Any]:
    """The mapping that a word stands for in the section of `cls`."""
    if word not in cls.SHORT:
        legal = f"{', '.join(cls.SHORT)}, or a mapping of keys"
        raise UserError(f"{path}: {short(word)} is not one of {legal}; {_nearest(word, cls.SHORT)}")
    return cls.SHORT[word]


def _inner_place(place: Any, name: str) -> Any:
    """The dataclass behind a section, or the field behind a choice; None where there is neither."""
    for entry in dataclasses.fields(place) if dataclasses.is_dataclass(place) else ():
        if entry.name == name:
            return entry if "kinds" in entry.metadata else _hints(place)[name]
    return None


def _kinds_of(place: Any) -> tuple[Mapping[str, type], set[str]]:
    """The kinds that a place chooses from, and its keys that do not depend on the kind."""
    if isinstance(place, dataclasses.Field):
        return place.metadata["kinds"], {"kind"}
    entries = dataclasses.fields(place) if dataclasses.is_dataclass(place) else ()
    for entry in entries:
        if entry.metadata.get("flat"):
            return entry.metadata["kinds"], {"kind"} | {other.name for other in entries if other is not entry}
    return {}, {"kind"}


# --------------------------------------------------------------------------------------------------------- reading


def _section(cls: type, tree: Any, path: str, keys: Sequence[str]) -> Any:
    """Build a dataclass from a mapping. `keys`: all keys of the configuration, for the hint in an error."""
    tree = plain_yaml.meaning(_yaml(tree, path))
    if isinstance(tree, str) and hasattr(cls, "SHORT"):
        tree = _spell_out(cls, tree, path)
    if not isinstance(tree, Mapping | None):
        raise UserError(f"{path or 'the recipe'} must be a mapping of keys, got {short(tree)}")
    hints, values, rest = _hints(cls), {}, dict(tree or {})
    for entry in dataclasses.fields(cls):
        inner = f"{path}.{entry.name}" if path else entry.name
        if entry.metadata.get("flat"):
            legal = {"kind"}.union(*map(_field_names, entry.metadata["kinds"].values()))
            node = {key: rest.pop(key) for key in list(rest) if key in legal}
            values[entry.name] = _choice(entry, node, path)
        elif entry.name in rest:
            value = rest.pop(entry.name)
            if "kinds" in entry.metadata:
                values[entry.name] = _choice(entry, value, inner)
            elif dataclasses.is_dataclass(hints[entry.name]):
                values[entry.name] = _section(hints[entry.name], value, inner, keys)
            else:
                values[entry.name] = _coerce(hints[entry.name], value, inner)
    for name in rest:
        raise _unknown(f"{path}.{name}" if path else str(name), keys)
    return cls(**values)


def _choice(entry: dataclasses.Field, node: Any, path: str) -> Any:
    """Build the class that `kind` names. If it is the default's kind, missing keys have the default's values."""
    node = plain_yaml.meaning(_yaml(node, path))
    if not isinstance(node, Mapping | str | None):
        raise UserError(f"{path} must be a kind or a mapping with a kind, got {short(node)}")
    node = {"kind": node} if isinstance(node, str) else dict(node or {})
    kinds = entry.metadata["kinds"]
    kind = node.pop("kind", None)
    kind = _kind_of(kinds, entry.default) if kind == "" or plain_yaml.is_null(kind) else kind
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{path}.kind: {short(kind)} is not one of {', '.join(kinds)}; {_nearest(kind, kinds)}")
    cls = kinds[kind]
    hints, names = _hints(cls), _field_names(cls)
    inner = {choice.name: choice for choice in dataclasses.fields(cls) if "kinds" in choice.metadata}
    values = {name: getattr(entry.default, name) for name in names} if type(entry.default) is cls else {}
    for name, value in node.items():
        if name not in names:
            legal = f"it has {', '.join(sorted(names))}" if names else "it has no other key"
            raise UserError(f"unknown key {short(f'{path}.{name}')}: kind {str(kind)!r} does not know it, {legal}")
        here = f"{path}.{name}"
        values[name] = _choice(inner[name], value, here) if name in inner else _coerce(hints[name], value, here)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {cut(str(error), 300)}") from error


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """A YAML value or an override's text as the declared type; UserError, which names that type, for any other."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if plain_yaml.is_null(value) or (isinstance(value, str) and value.lower() in ("null", "none", "~")):
            return None
        return _coerce(next(arg for arg in args if arg is not type(None)), value, path)
    if origin is Literal:
        return _coerce_word(args, value, path)
    if origin is tuple:
        return _coerce_tuple(args, value, path)
    if isinstance(value, _Text) and hint is not str:
        return _coerce(hint, _yaml(value, path), path)
    if hint is str:
        result = None if plain_yaml.is_null(value) else _text(value, path)
    elif hint is bool:
        result = plain_yaml.truth_of(value) if isinstance(value, Plain) else value if isinstance(value, bool) else None
    else:
        result = _number(hint, value)
    if result is None:
        advice = plain_yaml.advice_on(value) if isinstance(value, str) and hint in (int, float) else ""
        raise UserError(f"{path}: expected {NAMES.get(hint, hint)}, got {short(plain_yaml.meaning(value))}{advice}")
    return result


def _coerce_word(words: tuple[str, ...], value: Any, path: str) -> str:
    truth = plain_yaml.truth_of(value) if isinstance(value, Plain) and value not in words else value
    # Many YAML readers take `no` for false.
    text = {True: "yes", False: "no"}[truth] if isinstance(truth, bool) else value
    if not isinstance(text, str) or text not in words:
        raise UserError(f"{path}: {short(text)} is not one of {', '.join(words)}; {_nearest(text, words)}")
    return str(text)


def _coerce_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, _Text):
        parsed = _yaml(value, path)  # null and an empty text mean no values, as null does in a recipe
        value = parsed if isinstance(parsed, list) or plain_yaml.is_null(parsed) else str(value).split(",")
    if not isinstance(value, list | tuple):
        value = [] if plain_yaml.is_null(value) else [value]
    if args[-1] is not Ellipsis and len(args) != len(value):
        raise UserError(f"{path}: expected {len(args)} values, got {short([*map(plain_yaml.meaning, value)])}")
    if len(value) > MOST_ITEMS:
        raise UserError(f"{path}: a list of {len(value):,} values; the most is {MOST_ITEMS:,}")
    return tuple(_coerce(args[0], item, f"{path}[{index}]") for index, item in enumerate(value))


def _text(value: Any, path: str) -> str | None:
    """Text as it was written; None for a value that is no text."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    text = str(value)
    if flaw := plain_yaml.flaw_of(text):
        raise UserError(f"{path}: {flaw}: {short(text)}")
    return text


def _number(hint: type, value: Any) -> float | int | None:
    """The number of type `hint` that a value is or a text spells; None unless it is a finite number of 64 bits."""
    if isinstance(value, str):
        return plain_yaml.whole_of(value) if hint is int else plain_yaml.number_of(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST[hint]:
        return None
    return hint(value) if hint is float or value == int(value) else None


def _yaml(value: Any, path: str) -> Any:
    """The YAML value of an override's text; other values unchanged."""
    return (
        plain_yaml.parse(str(value), f"{path}: cannot read {short(value)}, which")
        if isinstance(value, _Text)
        else value
    )


# ----------------------------------------------------------------------------------------------------------- names


def _field_names(cls: type | None) -> set[str]:
    return {entry.name for entry in dataclasses.fields(cls)} if cls is not None else set()


def _kind_of(kinds: Mapping[str, type], value: Any) -> str:
    return next(name for name, cls in kinds.items() if type(value) is cls)


def _nearest(name: Any, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(cut(str(name)), list(names), n=1, cutoff=0.4) if isinstance(name, str) else []
    return f"did you mean {near[0]!r}?" if near else "see the recipes in configs/"


def _unknown(path: str, keys: Sequence[str]) -> UserError:
    """The error for an unknown key. It names the nearest key of the whole tree, by the last part of the path first."""
    leaf = path.rsplit(".", 1)[-1]
    same = [key for key in keys if key.rsplit(".", 1)[-1] == leaf]
    sections = [key.split(".")[0] for key in keys]
    return UserError(f"unknown key {short(path)}; {_nearest(path, same or [*keys, *sections])}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
