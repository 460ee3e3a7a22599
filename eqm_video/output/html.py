"""Reports as a single HTML file: text, tables, figures as SVG, pictures as data; nothing is fetched from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup

from eqm_video.output import plots
from eqm_video.system.files import MARK
from eqm_video.system.reading import asset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {".gif": "image/gif", ".png": "image/png"}  # of pictures that a report holds
PLAIN = re.compile(r"[-+]?[\d.,]+\D{,12}([\d.,]+(e[-+]?\d+)?)?|[\d.e+ -]+to[\d.e+ -]+", re.IGNORECASE)  # 8 / 12
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?(%|s|x|dB))?|nan|inf|-", re.IGNORECASE)


class Picture(NamedTuple):
    """A picture of a report: HTML that needs no other file, and a caption."""

    markup: Markup
    caption: str


class Cell(NamedTuple):
    """A cell of a table; numbers are flush right."""

    text: str
    number: bool

    @property
    def style(self) -> str:
        """The class of the cell: numbers, intervals and counts such as 8 / 12 stay on a line."""
        return "number" if self.number else "plain" if PLAIN.fullmatch(self.text) else ""


@dataclass(frozen=True)
class Table:
    """A table: a header, and rows of as many cells. A column is flush right if all its cells are numbers."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]

    @property
    def header(self) -> list[Cell]:
        """The cells of the header."""
        return [Cell(text, right) for text, right in zip(self.head, self._right(), strict=True)]

    @property
    def rows(self) -> list[list[Cell]]:
        """The cells of the rows."""
        right = self._right()
        return [[Cell(text, flush) for text, flush in zip(row, right, strict=True)] for row in self.body]

    def _right(self) -> list[bool]:
        columns = zip(*self.body, strict=True) if self.body else [()] * len(self.head)
        return [bool(column) and all(NUMBER.fullmatch(text) for text in column) for column in columns]

    @classmethod
    def of_markdown(cls, text: str) -> list[Table]:
        """The tables of a Markdown text, in order."""
        tables, lines = [], []
        for line in [*text.splitlines(), ""]:
            if line.strip().startswith("|"):
                lines.append([cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")])
            elif lines:
                head, *rest = lines
                rows = [row for row in rest if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
                tables.append(cls(head, [(row + [""] * len(head))[: len(head)] for row in rows]))
                lines = []
        return tables


@dataclass(frozen=True)
class Section:
    """A part of a report.

    text: paragraphs. command: a command line. folded: (name, text) pairs that are shown on a click. wide: whether each
    picture has a row of its own.
    """

    title: str
    text: Sequence[str] = ()
    command: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: Sequence[tuple[str, str]] = ()
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """A report: a title, a line below it, (name, value) pairs that come first, and sections."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def render(self) -> str:
        """The HTML text."""
        values: Mapping[str, Any] = {name: getattr(self, name) for name in ("title", "subtitle", "facts", "sections")}
        return filled("report/report.html", mark=MARK.decode(), **values)


def filled(template: str, /, **values: Any) -> str:
    """A template of the folder `assets`, such as "report/report.html", filled in; values in HTML are escaped."""
    return _templates().get_template(template).render(**values)


def parts(template: str) -> Any:
    """The macros of a template of the folder `assets`, as functions that return HTML; values are escaped."""
    return _templates().get_template(template).module


@cache
def _templates() -> jinja2.Environment:
    escape, loader = jinja2.select_autoescape(["html"]), jinja2.FunctionLoader(asset)
    return jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, undefined=jinja2.StrictUndefined)


def drawn(figure: Figure, caption: str) -> Picture:
    """A figure as inline SVG. Its black is the text colour of the page, so that it is read on light and on dark."""
    named = Markup('<svg role="img" aria-label="{}"').format(caption)
    return Picture(named + Markup(plots.svg(figure).removeprefix("<svg")), caption)


def shown(path: Path, caption: str) -> Picture:
    """A GIF or PNG file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{KINDS[path.suffix]};base64,{data}"
    return Picture(Markup('<img alt="{}" loading="lazy" src="{}">').format(caption, source), caption)
