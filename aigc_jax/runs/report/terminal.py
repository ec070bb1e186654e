"""Rows of words in columns, for a terminal."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row; each column but the last is as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def terminal_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows under a heading, which is the first of them."""
    heading, *lines = columns(rows)
    return "\n".join([heading, "-" * len(heading), *lines])
