"""What other verbs wrote, read for the report: results.json and a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from hpctrack.errors import InputError

RESULTS_FORMAT = "hpctrack-results"
RESULTS_VERSION = 1


def load_results(path: Path) -> dict:
    """The content of a results.json; InputError if it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `hpctrack evaluate` writes it")
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); evaluate again") from None
    found = (results.get("format"), results.get("version")) if isinstance(results, dict) else (None, None)
    if found != (RESULTS_FORMAT, RESULTS_VERSION):
        raise InputError(
            f"{path}: format and version are {found}, but this hpctrack reads {(RESULTS_FORMAT, RESULTS_VERSION)}"
        )
    return results


class Run:
    """What a run folder says: configuration text, logged steps (the last line of each counts).

    Raises InputError if the folder is no run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.yaml").is_file():
            raise InputError(f"{folder}: not a run folder, config.yaml is missing")
        self.config = (folder / "config.yaml").read_text()
        rows: dict[tuple[str, int], dict] = {}
        self.unreadable = 0
        log = folder / "metrics.jsonl"
        for line in log.read_text().splitlines() if log.is_file() else ():
            try:
                row = json.loads(line)
                rows[row["kind"], row["step"]] = row
            except (ValueError, KeyError, TypeError):
                self.unreadable += 1
        ordered = [rows[key] for key in sorted(rows, key=lambda key: key[1])]
        self.train = [row for row in ordered if row["kind"] == "train" and "loss" in row]
        self.valid = [row for row in ordered if row["kind"] == "valid" and "loss" in row]
        self.waste = next((row for row in reversed(ordered) if row["kind"] == "waste" and "step_s" in row), None)
        self.versions = self.read_versions()

    def read_versions(self) -> dict[str, str] | None:
        """What the run was trained with, None if it does not say."""
        path = self.folder / "versions.json"
        if not path.is_file():
            return None
        try:
            return {str(name): str(version) for name, version in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a list of versions ({error})") from None
