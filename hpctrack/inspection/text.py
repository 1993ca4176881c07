"""Facts as text for the terminal: aligned keys, tables, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BAR = 40  # characters of the longest bar
MAX_BINS = 12


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Counts of whole numbers in at most MAX_BINS equal bins, with the least, the median, the mean and the greatest."""
    if not len(values):
        return {"n": 0, "edges": [], "counts": []}
    low, high = int(values.min()), int(values.max())
    width = _round_up(max(1, -(-(high - low + 1) // MAX_BINS)))
    start = low // width * width
    edges = np.arange(start, high + width + 1, width)
    counts, _ = np.histogram(values, edges)
    while len(counts) > 1 and not counts[-1]:
        counts, edges = counts[:-1], edges[:-1]
    numbers = {"min": low, "median": float(np.median(values)), "mean": float(values.mean()), "max": high}
    return {"n": len(values), **numbers, "edges": edges.tolist(), "counts": counts.tolist()}


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 10 ** (len(str(width)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def histogram_lines(name: str, found: dict[str, Any]) -> list[str]:
    """A text histogram; a bin holds the values from its left edge up to, without, its right one."""
    if not found["n"]:
        return [f"{name}: none"]
    numbers = ", ".join(f"{key} {found[key]:,.10g}" for key in ("min", "median", "max"))
    lines = [f"{name}: {numbers}, mean {found['mean']:,.6g}"]
    edges, most = found["edges"], max(found["counts"])
    wide = len(f"{edges[-1]:,}")
    for left, right, count in zip(edges, edges[1:], found["counts"], strict=False):
        label = f"{left:>{wide},}" + (f" .. {right - 1:>{wide},}" if right - left > 1 else "")
        lines.append(f"  {label}  {'#' * -(-BAR * count // most):<{BAR}}  {count:,}")
    return lines


def rows(table: Sequence[Sequence[object]]) -> list[str]:
    """A table, columns aligned: text to the left, numbers to the right."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in table]
    wide = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))] if cells else []
    return [
        "  "
        + "  ".join(
            text.rjust(w) if isinstance(value, (int, float)) else text.ljust(w)
            for text, value, w in zip(texts, values, wide, strict=True)
        ).rstrip()
        for texts, values in zip(cells, table, strict=True)
    ]


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 999.5 else f"{value:.0f} {units[0]}"


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts of one thing: simple values first, then its tables and histograms."""
    simple = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
    wide = max(map(len, simple), default=0)
    out = [f"{key.replace('_', ' '):<{wide}}  {_value(key, value)}" for key, value in simple.items()]
    for key, value in facts.items():
        if isinstance(value, dict) and value and key == "histograms":
            for name, found in value.items():
                out += ["", *histogram_lines(name, found)]
        elif isinstance(value, dict) and value:
            nested = [isinstance(entry, dict) for entry in value.values()]
            table = [[k, *entry.values()] for k, entry in value.items()] if all(nested) else list(_flat(value))
            out += ["", f"{key.replace('_', ' ')}:", *rows(table)]
        elif isinstance(value, list) and value:
            out += ["", f"{key.replace('_', ' ')}:", *(f"  {entry}" for entry in value)]
    return out


def _flat(values: dict[str, Any], prefix: str = "") -> list[list[object]]:
    out: list[list[object]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append([f"{prefix}{key}", value if isinstance(value, str) else str(value)])
    return out


def _value(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value:,} ({size(value)})"
    return f"{value:,}" if isinstance(value, int) and key not in ("version",) else str(value)
