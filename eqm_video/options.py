"""Options declared once: fields of frozen dataclasses, with bounds and help, for commands and for recipes.

A field made by `option` has an `Option`, its bounds and help. `parse` turns a class of such fields into a command
line. `check` compares any instance with its bounds, so that a recipe, a command and a call from Python are refused with
the same sentence. A subclass may declare a field again to change its default, to take several values instead of a
single value, or (`narrower`) to allow less: what it does not say is that of the first declaration.

The type of a field decides how its value is read: int, float, str, Path, bool (a switch), Literal (its choices),
`X | None`, tuple[X, ...] (one or more words) and tuple[X, X] (two words).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import re
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from eqm_video.errors import UserError, cut, short

TITLES = ("what", "how to descend", "start from", "long videos", "files", "device")  # the groups of the help, in order
WIDEST = 110  # columns of a help text, at most
LARGEST = {int: 10**12, float: 1e9}  # of numbers without an upper bound of their own: more is a typing error
LEAST_HIDDEN = 3  # rare options that are left out of a help; fewer are shown, where they need no more room than a note
QUIET = "--quiet"  # an option of every command, which its runner takes
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """Bounds and help of a field; for a tuple, of each of its items.

    least, most: bounds that belong to the range; above, below: bounds that do not. words: texts allowed beside numbers,
    such as auto. read: a function from text to value that raises ValueError; kind: its values, in words. unset: the
    default in words if it is None. flag: the --name, if it differs from the field's. positional: a word without a
    --name; metavar: its name in the help. rare: whether only --help-all shows it. free: whether its words may have any
    form, as names of labels do: all words up to the next option are values.
    """

    help: str = ""
    metavar: str | tuple[str, ...] | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    kind: str = ""
    unset: str = ""
    flag: str = ""
    positional: bool = False
    free: bool = False
    rare: bool = False


def option(default: Any = MISSING, **described: Any) -> Any:
    """A dataclass field with an `Option`, whose fields are `described`. Without a default the option is required."""
    return dataclasses.field(default=default, metadata={"option": Option(**described)})


def required() -> Any:
    """A field declared again without a default, so that the option is required in this class."""
    return dataclasses.field()


def same(cls: type, name: str, **bounds: Any) -> Any:
    """The field `name` of class `cls` declared again, with the same default and, if any, tighter `bounds`."""
    entry = cls.__dataclass_fields__[name]
    return dataclasses.field(default=entry.default, metadata={**entry.metadata, "narrower": bounds})


def narrower(default: Any = MISSING, **bounds: Any) -> Any:
    """A field declared again with tighter bounds or fewer choices than in the base class, and help that says so."""
    return dataclasses.field(default=default, metadata={"narrower": bounds})


@dataclass(frozen=True)
class Declared:
    """A field with an option, as the command line and the checks use it.

    type: of an item. count: "one", "many", or the number of words. optional: whether the value may be None. title: of
    its group in the help, the `title` of the class that declared the field first.
    """

    name: str
    type: type
    count: str | int
    default: Any
    option: Option
    optional: bool = False
    title: str = TITLES[0]

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return self.option.flag or f"--{self.name.replace('_', '-')}"

    @property
    def label(self) -> str:
        """The name in the help and in errors: --steps, or MODEL."""
        return str(self.option.metavar) if self.option.positional else self.flag

    def read(self, text: str, label: str) -> Any:
        """The value of the word `text`, checked; UserError with `label` as the option's name if it is not allowed."""
        rule, text = self.option, text[1:] if text.startswith(" -") else text
        if text in rule.words:
            return text
        try:
            if rule.read:
                value = rule.read(text)
            elif self.type is float:
                value = float(text)
            elif self.type is int:
                value = _whole(text)
            else:
                value = self.type(text)
        except UserError:  # its sentence is that of `read`
            raise
        except (ValueError, OverflowError) as error:
            raise self._refusal(text, text, label) from error
        return dataclasses.replace(self, count="one").check(value, label, text)

    def check(self, value: Any, label: str, text: str | None = None) -> Any:
        """Return `value`; UserError if it is out of bounds, with `label` as its name and `text`, the typed word."""
        rule = self.option
        if (value is None and self.optional) or (isinstance(value, str) and value in rule.words):
            return value
        if isinstance(value, tuple | list) and self.count != "one":
            if self.count == "many" and not value and self.default is MISSING:
                raise UserError(f"{label} is empty: give at least one value")
            for item in value:
                dataclasses.replace(self, optional=False, count="one").check(item, label, text)
            if isinstance(self.count, int) and len(value) != self.count:
                raise UserError(f"{label} is {short(value)}: it must be {self.count} values, each {self.says()}")
            return value
        if self.count != "one" and self.type in LARGEST:
            good = False  # a single value instead of several
        elif rule.choices and isinstance(value, str):
            good = value in rule.choices
        elif self.type in LARGEST and not (rule.read and isinstance(value, str)):
            kind = numbers.Integral if self.type is int else numbers.Real
            good = isinstance(value, kind) and not isinstance(value, bool) and value == value  # NaN is not
            good = good and not self._outside(value)
        else:
            return value
        if not good:
            raise self._refusal(value, text, label)
        return value

    def says(self, value: Any = None) -> str:
        """The allowed values in words, such as "a whole number of at least 1", with a hint near the wrong `value`."""
        rule, kind = self.option, {int: "a whole number", float: "a number"}.get(self.type, "text")
        if rule.choices:
            near = difflib.get_close_matches(str(value), rule.choices, n=1)
            return f"one of {', '.join(rule.choices)}" + (f" (did you mean {near[0]}?)" if near else "")
        text = rule.kind or f"{kind} {self.limits()}".strip()
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if rule.most is None and number and abs(value) > LARGEST.get(self.type, math.inf):
            text += f", and no larger than {LARGEST[self.type]:g}"
        return " or ".join([*rule.words, text])

    def limits(self) -> str:
        """The bounds in words, such as "above 0"; empty if there are none."""
        rule = self.option
        if rule.least is not None and rule.most is not None:
            return f"from {rule.least} to {rule.most}"
        alone = rule.least is None and rule.above is None
        phrases = {
            "least": "of at least",
            "above": "above",
            "most": "of at most" if alone else "at most",
            "below": "below",
        }
        return " and ".join(
            f"{phrase} {getattr(rule, key)}" for key, phrase in phrases.items() if getattr(rule, key) is not None
        )

    def _outside(self, value: float) -> bool:
        rule = self.option
        return (
            (rule.least is not None and value < rule.least)
            or (rule.above is not None and value <= rule.above)
            or (rule.most is not None and value > rule.most)
            or (rule.below is not None and value >= rule.below)
            or (rule.most is None and abs(value) > LARGEST[self.type])
        )

    def _refusal(self, value: Any, text: str | None, label: str) -> UserError:
        shown = short(value) if text is None else cut(text) or "''"
        return UserError(f"{label} is {shown}: it must be {self.says(value)}")


@functools.cache
def declared(cls: type) -> Mapping[str, Declared]:
    """The options of a dataclass, by name: its own in their order, then those of its bases."""
    hints, options, entries = typing.get_type_hints(cls), {}, {entry.name: entry for entry in dataclasses.fields(cls)}
    names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", {}))
    for entry in (entries[name] for name in names if name in entries):
        homes = [vars(base).get("__dataclass_fields__", {}).get(entry.name) for base in cls.__mro__]
        homes = [home for home in homes if home is not None]
        rules = [home.metadata["option"] for home in homes if "option" in home.metadata]
        if rules:
            kind, count, choices = _shape(hints[entry.name], rules[0])
            rule = dataclasses.replace(rules[0], choices=choices) if choices else rules[0]
            for home in reversed(homes):
                rule = dataclasses.replace(rule, **home.metadata.get("narrower", {}))
            optional = type(None) in typing.get_args(hints[entry.name])
            first = [base for base in cls.__mro__ if entry.name in vars(base).get("__annotations__", {})][-1]
            title = entry.metadata.get("title") or vars(first).get("title", TITLES[0])
            options[entry.name] = Declared(entry.name, kind, count, entry.default, rule, optional, title)
    return types.MappingProxyType(options)


def check(instance: Any, prefix: str = "--") -> None:
    """Raise UserError if a field of `instance` is out of bounds. `prefix` precedes its name: "--" or "section."."""
    for name, entry in declared(type(instance)).items():
        entry.check(getattr(instance, name), entry.label if prefix == "--" else f"{prefix}{name}")


# Command line -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors raise a UserError of a single sentence, instead of printing the usage and exiting."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> typing.NoReturn:
        if sys.stdout is not None:
            sys.stdout.flush()  # the help: if its reader left, that is an error here, not at Python's exit
        super().exit(status, message)


class _Help(argparse.RawDescriptionHelpFormatter):
    """A help text as wide as the screen, up to `WIDEST`, with `LABEL ...` for one or more words."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
        super().__init__(prog, max_help_position=30, width=width)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        more = action.nargs in ("+", "*")
        return f"{action.metavar or default_metavar} ..." if more else super()._format_args(action, default_metavar)


def parse(cls: type[T], arguments: Sequence[str], *, prog: str) -> T:
    """An instance of `cls` from the words of a command line; UserError for unknown, wrong and missing words.

    prog: the command in messages. `cls` may have: epilog, a text below the help; sections, such that `key=value` and
    `section.key=value` mean `--key value`; spelled_out, a function that replaces short forms among the words.
    """
    options, sections = declared(cls), getattr(cls, "sections", ())
    arguments = cls.spelled_out(arguments) if hasattr(cls, "spelled_out") else arguments
    names = [entry.flag for entry in options.values() if not entry.option.positional] + [QUIET, "--help", "--help-all"]
    words = list(_words(arguments, options, sections, names))
    everything = "--help-all" in words
    helping = everything or not {"-h", "--help"}.isdisjoint(words)
    made = parser(cls, prog=prog, strict=helping, everything=everything)
    typed = vars(made.parse_intermixed_args(["--help"] if helping else words))
    typed = {name: value for name, value in typed.items() if value not in (None, [])}
    missing = [entry.label for name, entry in options.items() if entry.default is MISSING and name not in typed]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given; see {prog} --help")
    return cls(**{name: _value(options[name], value) for name, value in typed.items()})


def parser(cls: type, *, prog: str, strict: bool = True, everything: bool = True) -> argparse.ArgumentParser:
    """The argparse parser of a class, with its docstring as the description; parsed values stay text.

    Without `strict` missing words are accepted, because argparse would name missing options but not missing positional
    words beside them. The help has a group for each `title`, and hides rare options unless `everything` is true.
    """
    every = sorted(declared(cls).values(), key=lambda entry: not entry.option.positional)  # words without a name first
    words = [entry for entry in every if entry.option.positional]
    usage = [*words, *(entry for entry in every if entry.default is MISSING and not entry.option.positional)]
    hidden = sum(entry.option.rare for entry in every)
    everything = everything or hidden < LEAST_HIDDEN
    hidden = 0 if everything else hidden
    more = [f"{hidden} more options: {prog} --help-all" if hidden else "", getattr(cls, "epilog", "")]
    made = _Parser(
        prog=prog,
        usage=" ".join([prog, *map(_shown, usage), "[options]"]).replace("%", "%%"),
        description=inspect.getdoc(cls),
        epilog="\n\n".join(filter(None, more)),
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    groups = {title: made.add_argument_group(title) for title in TITLES if any(entry.title == title for entry in every)}
    text = f"this text; --help-all: all of it; {QUIET}: show no progress"
    made.add_argument_group("help").add_argument("-h", "--help", action="help", help=text)
    for entry in every:
        rule, group = entry.option, groups[entry.title]
        settings: dict[str, Any] = {"help": _help(entry).replace("%", "%%")}
        if rule.rare and not everything:
            settings["help"] = argparse.SUPPRESS
        if entry.type is bool:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = rule.metavar or ("|".join(rule.choices) if rule.choices else entry.name.upper())
            settings["nargs"] = {"one": None, "many": "+"}.get(entry.count, entry.count)
        if rule.positional:
            optional = not strict or entry.default is not MISSING
            settings["nargs"] = {"one": "?", "many": "*"}[entry.count] if optional else settings["nargs"]
            group.add_argument(entry.name, **settings)
        else:
            group.add_argument(entry.flag, dest=entry.name, required=strict and entry.default is MISSING, **settings)
    return made


def _shown(entry: Declared) -> str:
    """An option in a usage line, such as [OVERRIDE ...] or --out DIR."""
    word = str(entry.option.metavar or entry.name.upper())
    word = f"{word} ..." if entry.count == "many" else word
    if not entry.option.positional:
        return f"{entry.flag} {word}"
    return word if entry.default is MISSING else f"[{word}]"


def _help(entry: Declared) -> str:
    """The help text of an option, with its upper bound, if it has one, and its default."""
    rule, shown = entry.option, entry.option.unset if entry.default is None else entry.default
    bounded = rule.below is not None or (rule.most is not None and rule.most <= LARGEST[float])
    if isinstance(shown, tuple):
        shown = ("x" if rule.read and entry.count == "one" else " ").join(map(str, shown))
    default = f"; default: {shown}" if shown is not MISSING and shown is not False and shown != "" else ""
    return rule.help + (f" ({entry.limits().removeprefix('of ')})" if bounded else "") + default


def _value(entry: Declared, typed: Any) -> Any:
    if isinstance(typed, list):
        return tuple(entry.read(word, entry.label) for word in typed)
    return entry.read(typed, entry.label) if isinstance(typed, str) else typed


def _words(
    arguments: Sequence[str], options: Mapping[str, Declared], sections: Sequence[str], names: Sequence[str]
) -> Iterable[str]:
    """The words for argparse. After an option with free words, all words up to a known option or key are values."""
    free = False
    for word in arguments:
        name, equals, _ = word.partition("=")
        if word.startswith("--") and name != "--" and any(known.startswith(name) for known in names):
            free = not equals and any(entry.option.free and entry.flag.startswith(name) for entry in options.values())
        elif free and not (sections and _key(word, options, sections)):
            yield f" {word}" if word.startswith("-") else word
            continue
        else:
            free = False
        yield _checked(_as_option(word, options, sections) if sections else word, names)


def _key(word: str, options: Mapping[str, Declared], sections: Sequence[str]) -> str | None:
    """The name of the option in `key=value` or `section.key=value`; None if there is no such option."""
    match = re.fullmatch(r"(?:([a-z]+)\.)?([a-z_]+)=.*", word, re.DOTALL)
    if match is None or match[1] not in (None, *sections):
        return None
    name = "sampler" if (match[1], match[2]) == ("sampler", "kind") else match[2]
    flags = {entry.flag[2:].replace("-", "_") for entry in options.values() if not entry.option.positional}
    return name if name in flags else None


def _checked(word: str, names: Sequence[str]) -> str:
    """A word for argparse: negative numbers, frames from the end (-1=end.png) and labels such as -x are values."""
    if not word.startswith("-") or word in ("-h", "--"):
        return word
    if not word.startswith("--"):
        return f" {word}"  # argparse takes a word with a leading space as a value
    name = word.partition("=")[0]
    if not any(known.startswith(name) for known in names):
        raise UserError(f"unknown option {name}{_nearest(name, names)}; see --help for all options")
    return word


def _as_option(word: str, options: Mapping[str, Declared], sections: Sequence[str]) -> str:
    """`section.key=value` as `--key=value`; files whose names have such a form are files."""
    match = re.fullmatch(r"(?:([a-z]+)\.)?([a-z]+(?:_[a-z]+)*)=(.*)", word)
    if match is None or Path(word).exists() or match[1] not in (None, *sections):
        return word
    named = {entry.flag[2:].replace("-", "_"): entry for entry in options.values() if not entry.option.positional}
    name = "sampler" if (match[1], match[2]) == ("sampler", "kind") else match[2]
    if name not in named:
        near = difflib.get_close_matches(name, named, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}={match[3]}? " if near else ""
        raise UserError(f"unknown override {word!r}; {hint}See --help for the options")
    entry = named[name]
    if entry.type is bool or entry.count != "one":
        raise UserError(f"{word!r}: {entry.flag} is an option, not an override; see --help for what follows it")
    return f"{entry.flag}={match[3]}"


def _nearest(name: str, names: Iterable[str]) -> str:
    bare = {known.strip("-"): known for known in names}  # common dashes would make all options alike
    near = difflib.get_close_matches(name.strip("-"), bare, n=1, cutoff=0.55)
    return f": did you mean {bare[near[0]]}?" if near else ""


# Kinds --------------------------------------------------------------------------------------------------------------


def _shape(hint: Any, rule: Option) -> tuple[type, str | int, tuple[str, ...]]:
    """The type of an item, the number of words, and the choices of a type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        shapes = [_shape(arg, rule) for arg in args if arg is not type(None)]
        return next((shape for shape in shapes if shape[0] in LARGEST), shapes[0])
    if origin is tuple and (args[-1] is Ellipsis or rule.read is None):
        kind, _, choices = _shape(args[0], rule)
        return kind, "many" if args[-1] is Ellipsis else len(args), choices
    if origin is Literal:
        return str, "one", args
    return (hint if isinstance(hint, type) and origin is None else object), "one", ()


def _whole(text: str) -> int:
    """A whole number, which may be written as 1e3; ValueError for anything else."""
    return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) or not float(text).is_integer() else int(float(text))
