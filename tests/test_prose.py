"""Prose of the package and its tests: docstrings begin with their subject, and names are words of the field."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "eqm_video"
OPENING = re.compile(r"(What|Of|Where|Which|How)\b")
SENTENCE = re.compile(r"(?:^|[.;] +)(What|Of|Where|Which)\b")
DIALECT = {"one", "found", "told", "held", "heard", "asked", "given"}  # names that do not say what they hold

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every docstring with its owner; strings below an assignment, which describe it, are docstrings too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            yield node, ast.get_docstring(node)
    for assigned, below in itertools.pairwise(tree.body):
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(assigned, ast.Assign | ast.AnnAssign) and isinstance(text, str):
            yield assigned, text


def wrong_openings(tree: ast.Module) -> list[str]:
    """Docstrings or sentences in them without a subject, and "Whether ..." for a function that returns no bool."""
    wrong = []
    for node, text in docstrings(tree):
        line = re.sub(r"\s+", " ", text)
        is_predicate = isinstance(node, Function) and node.returns is not None and ast.unparse(node.returns) == "bool"
        if SENTENCE.search(line) or OPENING.match(line) or (line.startswith("Whether") and not is_predicate):
            wrong.append(line[:100])
    return wrong


def private_names(tree: ast.Module) -> list[str]:
    """Arguments and variables of functions whose names are in DIALECT."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg in DIALECT:
            names.append(node.arg)
        if isinstance(node, Function | ast.Lambda | ast.comprehension):
            stored = (name for name in ast.walk(node) if isinstance(name, ast.Name))
            names += [name.id for name in stored if isinstance(name.ctx, ast.Store) and name.id in DIALECT]
    return sorted(set(names))


def modules() -> list[Path]:
    """All modules of the package."""
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstrings_begin_with_their_subject(path: Path) -> None:
    assert wrong_openings(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_tests_are_described_by_their_subject() -> None:
    for path in sorted(PACKAGE.parent.glob("tests/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or "test_" not in path.name, f"{path.name} has no docstring"
        assert [text for _, text in docstrings(tree) if OPENING.match(text)] == [], path.name


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_names_say_what_they_hold(path: Path) -> None:
    assert private_names(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module holds."""',
        'def f() -> int:\n    """How many frames there are."""',
        'def f() -> str:\n    """Whether a file is whole."""',
        'class A:\n    """Of all clips the longest."""',
        'def f():\n    """The field. Where it is 0, clips rest."""',
        'NAMES = ()\n"""Which files are read."""',
    ],
)
def test_an_opening_without_a_subject_is_noticed(source: str) -> None:
    assert len(wrong_openings(ast.parse(source))) == 1


def test_predicates_may_begin_with_whether() -> None:
    assert wrong_openings(ast.parse('def f() -> bool:\n    """Whether a file is whole."""')) == []


@pytest.mark.parametrize(
    "source",
    ["def f(one): ...", "def f():\n    found = 1", "x = [one for one in ()]", "x = lambda told: 1"],
)
def test_a_private_name_is_noticed(source: str) -> None:
    assert len(private_names(ast.parse(source))) == 1
