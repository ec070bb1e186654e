"""Formats tables for a terminal."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a line per row, with columns aligned to their widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def terminal_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as a table; the first row is the heading."""
    heading, *lines = columns(rows)
    return "\n".join([heading, "-" * len(heading), *lines])
