"""Tables as Markdown whose columns are aligned for the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def aligned(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table from the texts of its cells, line by line, the header first.

    The first `left` columns are flush left, the others flush right.
    """
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    ruler = ["-" * width for width in widths[:left]] + ["-" * (width - 1) + ":" for width in widths[left:]]
    lines = [
        " | ".join(
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [cells[0], ruler, *cells[1:]]
    ]
    return "\n".join(f"| {line} |" for line in lines)


def amount(value: float, digits: int | None, unit: str = " %") -> str:
    """A number with `digits` decimals, or, if that is None, a share as per cent with `unit` behind it."""
    return f"{round(100 * value)}{unit}" if digits is None else f"{value:.{digits}f}"


def with_interval(value: Mapping[str, Any], digits: int | None) -> str:
    """An estimate, mean and 95 % interval, such as "98 % (88–100)"; `digits` as in `amount`."""
    low, high = (amount(value[key], digits, unit="") for key in ("low", "high"))
    return f"{amount(value['mean'], digits)} ({low}–{high})"


def by_number(heading: str, rows: Mapping[str, Mapping[str, Any]], digits: int | None) -> str:
    """A table of estimates by number: a line for each row, a column for each whole number that a row has."""
    counts = sorted({int(count) for row in rows.values() for count in row})
    cells = [[heading, *map(str, counts)]]
    for name, row in rows.items():
        cells.append([name, *(with_interval(row[str(n)], digits) if str(n) in row else "" for n in counts)])
    return aligned(cells)


def runs_of(value: Mapping[str, Any]) -> str:
    """The number of training runs of an estimate; a single one is marked: its interval is over clips alone."""
    return str(value["runs"]) if value["runs"] > 1 else "1 (n = 1)"


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def metric_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Every metric of a record as the cells of a line: value, interval, n, and floors; the header first."""
    rows = [["metric", "value", "95 % interval", "n", "real", "codec", "p"]]
    for result in record["metrics"].values():
        low_high, floor = result["interval"], result.get("floor") or result.get("real")
        rows.append(
            [
                result["title"],
                number(result["value"]),
                "" if low_high is None else f"{number(low_high[0])} to {number(low_high[1])}",
                " / ".join(str(count) for count in result["n"].values()),
                "" if floor is None else number(floor["value"]),
                number(result["codec"]["value"]) if "codec" in result else "",
                f"{result['p_value']:.3g}" if "p_value" in result else "",
            ]
        )
    return rows
