"""Tables as Markdown whose columns are aligned for the screen."""

from __future__ import annotations

from collections.abc import Sequence


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
