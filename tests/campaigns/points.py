"""Points of a study in a JSON lines file: what is there is not measured again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Points:
    """Finished points of a study, each a mapping that `keys` tell apart; a line that a kill cut short is dropped."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.keys = path, keys
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        self.done = {self.key(row) for row in self.rows}
        if len(self.rows) < len(lines):
            path.write_text("".join(line for line in lines if line.endswith("}\n")))

    def key(self, row: dict[str, Any]) -> tuple:
        """What tells a point from others."""
        return tuple(row[key] for key in self.keys)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished point."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self.done.add(self.key(row))
