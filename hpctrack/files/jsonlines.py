"""JSON lines: files that grow by a line at a time, are read up to their last whole line, and can be vouched for.

A kill or a full disk may cut the last line short: it counts for nothing, and whoever goes on writing cuts it off first.
A whole line that is not what it should be is damage, which is named. A mark is what such a file held at some moment,
as its length and the checksum of so many bytes: what comes later does not change whether it fits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from hpctrack.errors import InputError
from hpctrack.files.atomic import os_errors_with, sync

Mark = dict[str, Any]  # bytes, xxh3
METRICS = "metrics.jsonl"  # of a run
TIMINGS = "timings.jsonl"  # of candidates
BLOCK = 1 << 20
NOTHING: Mapping[str, Any] = {}


def read_lines(path: Path, what: str = "no JSON object", keys: Mapping[str, Any] = NOTHING) -> list[dict[str, Any]]:
    """The objects of all whole lines, each with these keys; InputError `line 3 is {what}` for one that is damaged."""
    entries = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in keys.items()):
            wanted = f"; expected {', '.join(keys)}" if keys else ""
            raise InputError(f"{path}: line {number} is {what}{wanted}; the file is damaged")
        entries.append(entry)
    return entries


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged."""
    return read_lines(run / METRICS, "not a metrics line", {"kind": str, "step": int})


def is_truncated(path: Path) -> bool:
    """Whether the last line is not whole."""
    return complete_bytes(path) != path.stat().st_size


def complete_bytes(path: Path) -> int:
    """The length of all whole lines."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - BLOCK)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                return begin + at + 1
            end = begin
    return 0


class Lines:
    """Appends to a file of JSON lines, made if need be, behind its last whole line or the first `keep` bytes."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = path
        with os_errors_with(path):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as its writer
            self.bytes = complete_bytes(path) if keep is None else keep
            self.file.truncate(self.bytes)
        sync(path.parent)
        self.hash = _hash_of(path, self.bytes)

    def append(self, entry: dict[str, Any]) -> None:
        """One line; returns when it is with the operating system."""
        line = (json.dumps(entry) + "\n").encode()
        with os_errors_with(self.path):
            written = 0
            while written < len(line):  # a nearly full disk takes part of it before it refuses
                written += self.file.write(line[written:])
        self.hash.update(line)
        self.bytes += len(line)

    def mark(self) -> Mark:
        """What the file holds now, once that is on disk."""
        with os_errors_with(self.path):
            os.fsync(self.file.fileno())
        return {"bytes": self.bytes, "xxh3": self.hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def mark_of(path: Path) -> Mark:
    """The mark of a whole file of any kind."""
    size = path.stat().st_size
    return {"bytes": size, "xxh3": _hash_of(path, size).hexdigest()}


def mismatch(path: Path, mark: Mark) -> str | None:
    """What is wrong with a file that once held `mark`; None if it still begins so."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size < mark["bytes"]:
        return f"cut short: has {size} bytes of at least {mark['bytes']}"
    if _hash_of(path, mark["bytes"]).hexdigest() != mark["xxh3"]:
        return f"fails its checksum over the first {mark['bytes']} bytes: it was changed or is damaged"
    return None


def _hash_of(path: Path, length: int) -> xxhash.xxh3_64:
    state = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while length > 0 and (block := file.read(min(length, BLOCK))):
            state.update(block)
            length -= len(block)
    return state
