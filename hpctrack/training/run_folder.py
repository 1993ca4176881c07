"""What other verbs wrote, read for the report: results.json and a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.files.atomic import without_checksum
from hpctrack.files.jsonlines import METRICS, is_truncated, read_metrics

CONFIG, VERSIONS = "config.yaml", "versions.json"  # in a run's folder


class Run:
    """What a run folder says: configuration text, logged steps (the last line of each counts).

    Raises InputError if the folder is no run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder}: not a run folder, {CONFIG} is missing")
        try:
            self.config = (folder / CONFIG).read_text()
        except UnicodeDecodeError as error:
            raise InputError(f"{folder / CONFIG}: not a text ({error}); damaged") from None
        log = folder / METRICS
        rows = {(row["kind"], row["step"]): row for row in read_metrics(folder)} if log.is_file() else {}
        self.unreadable = int(log.is_file() and is_truncated(log))  # a last line that a kill cut short
        ordered = [rows[key] for key in sorted(rows, key=lambda key: key[1])]
        self.train = [row for row in ordered if row["kind"] == "train" and "loss" in row]
        self.valid = [row for row in ordered if row["kind"] == "valid" and "loss" in row]
        self.waste = next((row for row in reversed(ordered) if row["kind"] == "waste" and "step_s" in row), None)
        self.versions = read_versions(folder)


def read_versions(folder: Path) -> dict[str, str] | None:
    """What a run was trained with, None if it does not say; InputError if its checksum does not fit."""
    path = folder / VERSIONS
    if not path.is_file():
        return None
    try:
        found = without_checksum(json.loads(path.read_text()), path)
        return {str(name): str(version) for name, version in found.items()}
    except InputError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a list of versions ({error})") from None
