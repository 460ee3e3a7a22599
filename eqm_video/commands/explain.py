"""The command `explain`: the keys of a recipe, with their values, defaults and meanings, read off the configuration."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.training.config import Config
from eqm_video.training.strict_yaml import to_tree

WIDTH = 100  # columns of the text


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Say what a key of a recipe means, such as data.latents; a section, such as data, for all of its keys.

    Without a KEY every key is listed with its default.
    """

    keys: tuple[str, ...] = option((), positional=True, metavar="KEY", help="section.key or section")
    markdown: bool = option(False, help="print the whole reference as Markdown")


@dataclass(frozen=True)
class Key:
    """A key of a recipe: its path, the values that it may have, its default and its meaning."""

    path: str
    values: str
    default: str
    meaning: str


def main(words: Sequence[str]) -> int:
    """Print what is asked for; returns the exit status. UserError for a key that does not exist."""
    chosen = options.parse(Explain, words, prog="eqm-video explain")
    every = list(every_key())
    if chosen.markdown:
        print(as_markdown(every), end="")
    elif not chosen.keys:
        wide = max(len(key.path) for key in every)
        print("\n".join(f"{key.path:{wide}}  {key.default}" for key in every))
    else:
        print("\n\n".join(as_text(key) for name in chosen.keys for key in select(every, name)))
    return 0


def select(every: Sequence[Key], name: str) -> list[Key]:
    """The keys of this name: a single key, or all of a section. UserError, with the nearest name, for none."""
    matching = [key for key in every if key.path == name or key.path.startswith(f"{name}.")]
    if not matching:
        names = [key.path for key in every] + [key.path.partition(".")[0] for key in every]
        last = {path.rpartition(".")[2]: path for path in names}
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = last.get(name) or (near[0] if near else "")
        advice = f": did you mean {hint}?" if hint else "; eqm-video explain lists all"
        raise UserError(f"{name} is no key of a recipe{advice}")
    return matching


def as_text(key: Key) -> str:
    """A key in a few lines for the screen."""
    lines = [f"{key.path}: {key.values}; default: {key.default}"]
    return "\n".join([*lines, *textwrap.wrap(key.meaning, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def as_markdown(every: Sequence[Key]) -> str:
    """All keys as a Markdown page with a table for each section."""
    parts, section = ["# Configuration\n\nEvery key of a recipe. `eqm-video explain KEY` prints the same.\n"], ""
    for key in every:
        if key.path.partition(".")[0] != section:
            section = key.path.partition(".")[0]
            parts.append(
                f"\n## {section}\n\n{_doc(section)}\n\n| key | values | default | meaning |\n|---|---|---|---|\n"
            )
        cells = (f"`{key.path}`", key.values, f"`{key.default}`", key.meaning)
        parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


# Reading ------------------------------------------------------------------------------------------------------------


def every_key() -> Iterator[Key]:
    """Every key of a recipe, in the order of the configuration."""
    for section in dataclasses.fields(Config):
        if "kinds" in section.metadata:
            yield from _kinds(section, section.name, _default(section))
            continue
        yield from _keys(_section(section.name), section.name)


def _keys(cls: type, section: str) -> Iterator[Key]:
    """The keys of a section, and of the sections in it."""
    says, hints = comments(cls), typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        path = f"{section}.{entry.name}"
        if entry.metadata.get("flat"):
            yield from _kinds(entry, section, entry.default)
        elif "kinds" in entry.metadata:
            yield from _kinds(entry, path, entry.default)
        elif dataclasses.is_dataclass(hints[entry.name]):
            yield from _keys(hints[entry.name], path)
        else:
            yield _key(cls, entry, path, says.get(entry.name, ""), entry.default)


def _kinds(entry: dataclasses.Field, path: str, default: typing.Any) -> Iterator[Key]:
    """The key `kind`, and the keys of each kind below it."""
    kinds = entry.metadata["kinds"]
    names = {cls: name for name, cls in kinds.items()}
    firsts = (f"{name}: {_first(cls)}" for name, cls in kinds.items())
    yield Key(f"{path}.kind", ", ".join(kinds), names[type(default)], "; ".join(firsts))
    seen: dict[str, tuple[Key, list[str]]] = {}
    nested: dict[str, dataclasses.Field] = {}
    for name, cls in kinds.items():
        says = comments(cls)
        for inner in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
            if "kinds" in inner.metadata and path.count(".") == 0:
                nested.setdefault(inner.name, inner)
            elif inner.init and "kinds" not in inner.metadata:
                value = getattr(default, inner.name) if isinstance(default, cls) else inner.default
                key = _key(cls, inner, f"{path}.{inner.name}", says.get(inner.name, ""), value)
                kept = seen.setdefault(inner.name, (key, []))
                kept[1].append(name)
    for key, owners in seen.values():
        meaning = f"({', '.join(owners)}) {key.meaning}" if len(owners) < len(kinds) else key.meaning
        yield dataclasses.replace(key, meaning=meaning)
    for name, inner in nested.items():
        yield from _kinds(inner, f"{path}.{name}", inner.default)


def _key(cls: type, entry: dataclasses.Field, path: str, says: str, default: typing.Any) -> Key:
    declared = options.declared(cls).get(entry.name)
    hint = typing.get_type_hints(cls)[entry.name]
    values = declared.says() if declared is not None else _type(hint)
    if declared is not None and declared.count == "many":
        values = f"a list; each {values}"
    if declared is not None and type(None) in typing.get_args(hint):
        values += ", or null"
    text = " ".join(filter(None, [declared.option.help if declared is not None else "", says]))
    return Key(path, values, _shown(default), _opened(text))


def _opened(text: str) -> str:
    """A text with a capital letter, unless it opens with a value or a name of code, such as `false:`."""
    first = text.partition(" ")[0]
    return text if first.endswith(":") or "." in first else f"{text[:1].upper()}{text[1:]}"


def comments(cls: type) -> dict[str, str]:
    """The comments above and behind the fields of a class, by field; {} for a class without source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    lines, says = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above, line = [], node.lineno - 2
        while line >= 0 and lines[line].strip().startswith("#"):
            above.insert(0, lines[line].strip("# "))
            line -= 1
        behind = lines[node.end_lineno - 1][node.end_col_offset :].strip()
        behind = behind.strip("# ") if behind.startswith("#") and "noqa" not in behind else ""
        says[node.target.id] = " ".join([*above, *([behind] if behind else [])])
    return says


def _section(name: str) -> type:
    return typing.get_type_hints(Config)[name]


def _default(entry: dataclasses.Field) -> typing.Any:
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()


def _doc(section: str) -> str:
    """The description of a section, in one paragraph."""
    entry = next(entry for entry in dataclasses.fields(Config) if entry.name == section)
    if "kinds" in entry.metadata:
        return "The way gammas are drawn for the frames of a training clip."
    return " ".join((inspect.getdoc(_section(section)) or "").split())


def _first(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")


def _type(hint: typing.Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list; each {_type(args[0])}"
    if args:
        return " or ".join("null" if arg is type(None) else _type(arg) for arg in args)
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _shown(value: typing.Any) -> str:
    if dataclasses.is_dataclass(value):
        value = to_tree(value)
    if value is dataclasses.MISSING:
        return "must be given"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(map(str, value)) or "empty" if isinstance(value, (tuple, list)) else str(value)
