"""The exactly-once ledger of a run: which events each optimizer step consumed, one line a step, written by rank 0.

Lines beyond the step that a run resumes at are taken back, so the file is what the weights have seen.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hpctrack.errors import InputError
from hpctrack.files.atomic import write_text
from hpctrack.files.jsonlines import Lines, Mark, read_lines

NAME = "ledger.jsonl"
KEYS = {"step": int, "epoch": int, "events": list}


class Ledger:
    """Append-only while a run goes on; `record` returns when the line is with the operating system.

    `mark`: how far the file was at the resumed step; without one, the lines of later steps are looked for.
    """

    def __init__(self, run: Path, resumed_step: int, n_events: int, mark: Mark | None = None) -> None:
        self.path = run / NAME
        if mark is None:
            kept = [entry for entry in read(run) if entry["step"] <= resumed_step] if self.path.exists() else []
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in [{"events": n_events}, *kept]))
        self.lines = Lines(self.path, None if mark is None else mark["bytes"])

    def record(self, step: int, epoch: int, events: list[int]) -> None:
        """The events (ids) that optimizer step `step` consumed, over all ranks."""
        self.lines.append({"step": step, "epoch": epoch, "events": events})

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


def read(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's ledger, without its head; a last line that a kill cut short is left out."""
    return _read(run)[1]


def _read(run: Path) -> tuple[int, list[dict[str, Any]]]:
    """The number of events that a ledger's head names, and its further lines."""
    path = run / NAME
    try:
        head, *entries = read_lines(path, "no ledger line")
        n_events = int(head["events"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError) and ": line 1 " not in str(error):
            raise
        raise InputError(f"{path}: not a run's ledger: its first line does not say how many events there are") from None
    for number, entry in enumerate(entries, 2):
        if entry.keys() != KEYS.keys() or not all(isinstance(entry[key], kind) for key, kind in KEYS.items()):
            raise InputError(f"{path}: line {number} is no ledger line; expected {', '.join(KEYS)}")
    return n_events, entries


def problems(run: Path) -> list[str]:
    """What is not exactly once: steps missing or repeated, events repeated in an epoch or missing from a whole one."""
    n_events, entries = _read(run)
    found = []
    steps = [entry["step"] for entry in entries]
    if steps != list(range(1, len(steps) + 1)):
        found.append(f"steps are not 1 to {len(steps)}, each once and in order")
    last = max((entry["epoch"] for entry in entries), default=0)
    for epoch in range(last + 1):
        count = Counter(event for entry in entries if entry["epoch"] == epoch for event in entry["events"])
        repeated = sorted(event for event, times in count.items() if times > 1)
        if repeated:
            found.append(f"epoch {epoch}: {len(repeated)} events consumed more than once, first event {repeated[0]}")
        if len(count) != n_events and epoch < last or len(count) > n_events:
            found.append(f"epoch {epoch}: {len(count)} events consumed, the dataset has {n_events}")
    return found


def summary(run: Path) -> list[str] | None:
    """The ledger as a few lines, None if the run has none."""
    if not (run / NAME).is_file():
        return None
    entries = read(run)
    epochs = Counter(entry["epoch"] for entry in entries)
    consumed = sum(len(entry["events"]) for entry in entries)
    lines = [f"ledger: {len(entries)} steps, {consumed} events consumed in {len(epochs)} epochs"]
    shown = sorted(epochs)
    for epoch in shown if len(shown) <= 6 else [*shown[:3], *shown[-3:]]:
        events = [event for entry in entries if entry["epoch"] == epoch for event in entry["events"]]
        lines.append(f"ledger: epoch {epoch}: {epochs[epoch]} steps, {len(events)} events, {len(set(events))} distinct")
    return lines + [f"ledger: NOT EXACTLY ONCE: {text}" for text in problems(run)]
