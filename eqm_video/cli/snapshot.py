"""The declarations of all options as data, for `cli/quick.py`: `python -m eqm_video.cli.snapshot` (`make options`).

Needed after every change of an option, a recipe's key, or a list of choices; a test compares the file with the classes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from eqm_video import options
from eqm_video.cli import quick
from eqm_video.commands import COMMANDS
from eqm_video.system.files import write_text
from eqm_video.training.config import ALIASES, Config

MORE = ("epilog", "sections", "elsewhere", "SHORT")  # what parsers look at besides docstring and fields
NAMES = {kind: name for name, kind in quick.PLAIN.items()}


def main() -> int:
    """Write the file; returns the exit status."""
    write_text(quick.STORED, as_text(snapshot()))
    return 0


def snapshot() -> dict[str, Any]:
    """The entries of the file: of every command, and of a recipe."""
    entries = {name: _entry(command.options()) for name, command in sorted(COMMANDS.items())}
    return entries | {quick.RECIPE: {**_entry(Config), "aliases": ALIASES}}


def as_text(value: Any, levels: int = 4) -> str:
    """Entries as JSON with a line for each field of a class, so that changes can be read and merged."""
    if not levels or not value or not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    inner = ",\n".join(f"{json.dumps(name)}: {as_text(part, levels - 1)}" for name, part in value.items())
    return f"{{\n{inner}\n}}" + "\n" * (levels == 4)


def _entry(cls: type) -> dict[str, Any]:
    uses: dict[str, set[str]] = {}
    _statements(cls.__module__, cls.__name__, uses)
    sources = {file: sorted(names) for file, names in sorted(uses.items())}
    return {"digest": quick.digest(sources), "sources": sources, "class": describe(cls)}


# Classes ------------------------------------------------------------------------------------------------------------


def describe(cls: type) -> dict[str, Any]:
    """A class as data, from which `quick.rebuild` makes it again."""
    declared, entries = options.declared(cls), {entry.name: entry for entry in dataclasses.fields(cls)}
    every = dict.fromkeys([*declared, *entries]) if all(entry.kw_only for entry in entries.values()) else entries
    hints = typing.get_type_hints(cls)
    more = {name: getattr(cls, name) for name in MORE if getattr(cls, name, None)}
    if hasattr(cls, "spelled_out"):
        more["spelled_out"] = _name(cls.spelled_out)
    fields = {name: _describe(entries[name], hints[name], declared.get(name)) for name in every}
    return {"name": cls.__name__, "doc": inspect.getdoc(cls), "more": more, "fields": fields}


def _describe(entry: dataclasses.Field, hint: Any, declared: options.Declared | None) -> dict[str, Any]:
    """A field: its type, default, option, and the kinds that it chooses from."""
    said: dict[str, Any] = {"kw_only": entry.kw_only}
    if not entry.init:
        said["init"] = False
    if dataclasses.is_dataclass(hint) and entry.default is dataclasses.MISSING:
        return {**said, "class": describe(hint)}
    if "kinds" in entry.metadata:
        kinds = entry.metadata["kinds"]
        name = next(name for name, cls in kinds.items() if type(entry.default) is cls)
        plain = [inner.name for inner in dataclasses.fields(entry.default) if "kinds" not in inner.metadata]
        chosen = {key: getattr(entry.default, key) for key in plain}
        described = {name: describe(cls) for name, cls in kinds.items()}
        return {**said, "kinds": described, "chosen": [name, chosen], "flat": entry.metadata["flat"]}
    said["type"] = spell(hint)
    if entry.default is not dataclasses.MISSING:
        said["default"] = str(entry.default) if isinstance(entry.default, Path) else entry.default
    if declared is not None:
        unset = options.Option()
        rule = {name: value for name, value in vars(declared.option).items() if value != getattr(unset, name)}
        if "read" in rule:
            rule["read"] = _name(rule["read"])
        said |= {"title": declared.title, "option": rule}
    return said


def _name(function: Any) -> str:
    """The name by which `quick.Reference` finds a function."""
    return f"{function.__module__}:{function.__qualname__}"


def spell(hint: Any) -> Any:
    """A type as JSON: names, and lists for literals, tuples and unions. Classes of the package are "object"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ("literal", *args)
    if origin is tuple:
        return ("tuple", *("..." if part is Ellipsis else spell(part) for part in args))
    if origin in (types.UnionType, typing.Union):
        return ("union", *dict.fromkeys(map(spell, args)))
    return NAMES.get(hint, "object")


# Sources ------------------------------------------------------------------------------------------------------------


def _statements(module: str, name: str, uses: dict[str, set[str]]) -> None:
    """Add the statement that defines `name`, and all statements of the package that it uses, by file, to `uses`."""
    path = quick.PACKAGE.joinpath(*module.split(".")[1:])
    package = path / "__init__.py"  # a folder without it may be what an older version left behind
    path = package if package.is_file() else path.with_suffix(".py")
    file = path.relative_to(quick.PACKAGE).as_posix()
    if name in uses.get(file, ()):
        return
    text = path.read_text(encoding="utf-8")
    if not quick.statement(text, name):
        return
    uses.setdefault(file, set()).add(name)
    tree = ast.parse(text)
    imported = {alias.asname or alias.name: (node.module, alias.name) for node, alias in _imports(tree)}
    for used in _used(tree, name):
        first, _, rest = used.partition(".")
        home, inner = imported.get(first, (module, first))
        if rest and quick.PACKAGE.joinpath(*f"{home}.{inner}.py".split(".")[1:-1]).with_suffix(".py").is_file():
            home, inner = f"{home}.{inner}", rest
        _statements(home, inner, uses)


def _imports(tree: ast.Module) -> Iterator[tuple[ast.ImportFrom, ast.alias]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("eqm_video"):
            yield from ((node, alias) for alias in node.names)


def _used(tree: ast.Module, name: str) -> Iterator[str]:
    """The names, such as `option` and `groups.Known`, in the statements that define `name`, methods left out."""
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.ClassDef) and node.name == name:
            parts = [*node.bases, *(part for part in node.body if not isinstance(part, ast.FunctionDef))]
        elif any(isinstance(target, ast.Name) and target.id == name for target in targets):
            parts = [node]
        else:
            continue
        for inner in (inner for part in parts for inner in ast.walk(part)):
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                yield f"{inner.value.id}.{inner.attr}"


if __name__ == "__main__":
    raise SystemExit(main())
