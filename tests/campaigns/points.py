"""Points of a study in a JSON lines file: what is there is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpctrack.files.jsonlines import Lines, read_lines


class Points:
    """Finished points of a study, each a mapping that `keys` tell apart; a line that a kill cut short is dropped."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.keys = path, keys
        self.lines = Lines(path)
        self.rows = read_lines(path)
        self.done = {self.key(row) for row in self.rows}

    def key(self, row: dict[str, Any]) -> tuple:
        """What tells a point from others."""
        return tuple(row[key] for key in self.keys)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished point."""
        self.lines.append(row)
        self.rows.append(row)
        self.done.add(self.key(row))
