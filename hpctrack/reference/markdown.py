"""Markdown of the reference pages."""

from __future__ import annotations

from collections.abc import Iterable


def code(text: object) -> str:
    """`text` as code."""
    return f"`{text}`"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; bars in its cells are escaped."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return (
        "\n".join(
            f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines
        )
        + "\n"
    )
