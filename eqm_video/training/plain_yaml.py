"""YAML without surprises: a recipe means what a reader sees in it, or it is refused in a sentence.

A plain scalar stays the text that was written (`Plain`) until its type is known, so that neither `0100` nor `1:30` nor
`no` turns into something else on the way. Keys are text, and none may stand twice. The size of a document is bounded
before anything is built of it; aliases (`*name`) and merges (`<<`) count as the values that they stand for.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import yaml

from eqm_video.errors import UserError, cut, short
from eqm_video.limits import WHOLE_NUMBERS

MOST_TEXT = 2**18  # bytes of a document
MOST_VALUES = 10_000  # mappings, lists and scalars, with aliases spelled out
LONGEST_TEXT = 4096  # characters of a text, the longest path of a file
DEEPEST = 20  # mappings and lists inside each other

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_NULLS = {"", "~", "null", "Null", "NULL"}
_TRUE = {form for word in ("true", "yes", "on") for form in (word, word.capitalize(), word.upper())}
_FALSE = {form for word in ("false", "no", "off") for form in (word, word.capitalize(), word.upper())}
# 1_000, 2.5, .5, 1e-4; not 0100, which YAML takes for 64, and not 1:30, which it takes for 90.
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_BASED = re.compile(r"[+-]?0(?:x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)")
_LONGEST_NUMBER = 100  # characters


class Plain(str):
    """A scalar without quotes, as it was written."""


def parse(text: str, name: str) -> Any:
    """Mappings, lists, quoted scalars (str) and others (`Plain`) of a YAML document; None where it is empty.

    Raises UserError for invalid YAML, more than one document, a key that stands twice, tags that build objects, and
    documents beyond the bounds above. `name`: the document, in messages.
    """
    if len(text) > MOST_TEXT:
        raise UserError(f"{name} has {len(text):,} characters; the most is {MOST_TEXT:,}")
    try:
        _check_events(text, name)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {_reason(error)}") from error
    return None if node is None else _Builder(name).build(node)


def meaning(value: Any) -> Any:
    """A scalar as None, a bool, a number or text; other values as they are."""
    if not isinstance(value, Plain):
        return value
    if value in _NULLS:
        return None
    truth, count = truth_of(value), number_of(value)
    if truth is not None or count is None:
        return str(value) if truth is None else truth
    whole = whole_of(value)
    return whole if whole is not None and not re.search(r"[.eE]", value) else count


def is_null(value: Any) -> bool:
    """Whether a value is None, or a plain scalar that means null."""
    return value is None or (isinstance(value, Plain) and value in _NULLS)


def truth_of(text: str) -> bool | None:
    """True for true, yes and on, False for false, no and off; None for other text."""
    return True if text in _TRUE else False if text in _FALSE else None


def whole_of(text: str) -> int | None:
    """The whole number of 64 bits that a text spells, exactly (`1e3` is 1000); None for other text."""
    exact = _exact(text)
    if exact is None or exact.denominator != 1 or abs(exact.numerator) > WHOLE_NUMBERS:
        return None
    return exact.numerator


def number_of(text: str) -> float | None:
    """The number that a text spells; None for other text, and for numbers beyond the range of floating point."""
    exact = _exact(text)
    if exact is None:
        return None
    try:
        number = float(exact)
    except OverflowError:
        return None
    return None if number == 0 and exact != 0 else number


def advice_on(text: str) -> str:
    """Advice on a number that YAML reads differently from a reader, such as 0100; "" for other text."""
    if re.fullmatch(r"[+-]?0[0-9_]+", text):
        return "; leave out the 0 in front, which in YAML means a number of base 8"
    if re.fullmatch(r"[+-]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?", text):
        return "; write one number, because in YAML a colon means a number of base 60"
    return ""


def flaw_of(text: str) -> str | None:
    """The flaw of a text that can be no name or path, in words; None for a good text.

    File names that are not UTF-8 are good, in the form in which Python keeps them.
    """
    if len(text) > LONGEST_TEXT:
        return f"a text of {len(text):,} characters, of which {LONGEST_TEXT:,} may be given"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "a text with half a character in it"
    return "a text with a NUL in it" if "\0" in text else None


def _exact(text: str) -> Fraction | None:
    text = text.strip()
    if len(text) > _LONGEST_NUMBER:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace("_", ""))
    try:
        return Fraction(int(text, 0)) if _BASED.fullmatch(text) else None
    except ValueError:  # an underscore at the end
        return None


def _check_events(text: str, name: str) -> None:
    """UserError for a document that is too deep or too long, or has a tag. Nothing is built here."""
    depth = count = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        count += 1
        if depth > DEEPEST:
            raise UserError(f"{name} has more than {DEEPEST} brackets or levels inside each other (line {line})")
        if count > MOST_VALUES:
            raise UserError(f"{name} has more than {MOST_VALUES:,} values (line {line})")
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _TAGS:
            raise UserError(f"{name} has the tag {short(tag)} (line {line}): write the value without it")


class _Builder:
    """Builds plain values from a document's nodes."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.open: list[yaml.Node] = []  # the nodes around the node that is being built

    def build(self, node: yaml.Node) -> Any:
        """The value of a node; UserError if aliases make it endless, or stand for too many values."""
        line, self.count = node.start_mark.line + 1, self.count + 1
        if any(node is outer for outer in self.open):
            raise UserError(f"{self.name} has an alias (*name) inside the value that it stands for (line {line})")
        if self.count > MOST_VALUES or len(self.open) > DEEPEST:
            raise UserError(
                f"{self.name} has aliases (*name) that stand for more than {MOST_VALUES:,} values, or {DEEPEST} levels"
            )
        if isinstance(node, yaml.ScalarNode):
            return Plain(node.value) if node.style is None else str(node.value)
        self.open.append(node)
        built = self._mapping(node) if isinstance(node, yaml.MappingNode) else [self.build(item) for item in node.value]
        self.open.pop()
        return built

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Any]] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.name} has a list or a mapping for a key (line {line}): a key must be a word")
            key = str(key_node.value)
            if key in lines:
                raise UserError(
                    f"{self.name} has the key {short(key)} twice, in line {lines[key]} and in line {line}: "
                    "leave one of them out"
                )
            lines[key] = line
            if key == "<<" and key_node.style is None:
                merged = self._merged(value_node, line)
            else:
                own[key] = self.build(value_node)
        for mapping in merged:  # own keys win over merged ones, earlier mappings over later
            own = {**mapping, **own}
        return own

    def _merged(self, node: yaml.Node, line: int) -> list[dict[str, Any]]:
        """The mappings whose keys `<<` stands for."""
        value = self.build(node)
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise UserError(
                f"{self.name} merges {short(value)} (line {line}): << takes a mapping, or a list of mappings"
            )
        return mappings


def _reason(error: yaml.YAMLError) -> str:
    """The first fault of a document, in a line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if "'\\t'" in problem:
        problem += " (indent with spaces, not with tabs)"
    if "single document" in problem or "but found another document" in problem:
        problem = "it holds more than one document (a line ---)"
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return cut(where + " ".join(problem.split()), 200)
