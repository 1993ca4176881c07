"""Files that stand under their final names only when they are whole and on disk."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from hpctrack.errors import InputError

CHECKSUM = "checksum"  # the key of a JSON object's own checksum
LAST_LINE = "# checksum xxh3 "  # of a text, before the checksum of all lines above it
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<token>[0-9a-f]{8,12})\.tmp")
HIDDEN = "hidden"
guards: list[Callable[[Path], None]] = []  # asked before a file gets its final name
ABANDONED_S = 3600.0  # age of a temporary file of another machine that nobody will finish


def temporary_name(path: Path) -> Path:
    """A fresh hidden name beside `path`, which `publish` turns into `path`; says which process of which machine's."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_short(machine_id())}{secrets.token_hex(2)}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its final name in the same folder, durably; those of killed writers go.

    MachineError if this process owned the folder (files/lock.py), and another has taken over.
    """
    sync(temporary)
    for guard in guards:
        guard(path)
    os.replace(temporary, path)
    clear_leftovers(path.parent, glob.escape(path.name))
    sync(path.parent)


def clear_leftovers(folder: Path, name: str = "*", owned: bool = False) -> None:
    """Remove temporary files and folders of `name` (a pattern) whose writers were killed.

    Those are: for the `owned` folder's one writer all but its own; else those of processes of this machine that are no
    more, and those last written ABANDONED_S before the folder was.
    """
    found = [(path, match) for path in folder.glob(f".{name}.*.tmp") if (match := TEMPORARY.fullmatch(path.name))]
    for path, match in found:
        pid, here = int(match["pid"]), match["token"].startswith(_short(machine_id())) and len(match["token"]) == 12
        dead = (here and start_time(pid) is None) or _is_abandoned(path)
        if dead or (owned and pid != os.getpid()):
            with contextlib.suppress(PermissionError):  # another user's
                remove(path)


def _is_abandoned(path: Path) -> bool:
    try:
        return path.lstat().st_mtime < path.parent.stat().st_mtime - ABANDONED_S  # both by the file system's clock
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def machine_id() -> str:
    """Where a process number means one process: this boot of this machine, and what Linux calls a PID namespace."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def start_time(pid: int) -> str | None:
    """When a process of this machine began, in ticks since its boot: tells a reused number. None if it has ended.

    HIDDEN if it is there, but another user's on a machine that shows each user its own processes alone (hidepid).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return HIDDEN if _is_there(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError, TypeError):  # as a record has it
        return False
    return True


def _short(text: str) -> str:
    return xxhash.xxh32_hexdigest(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = temporary_name(path)
    try:
        with os_errors_with(path):
            temporary.write_text(text)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum, in the place of one that it has."""
    bare = {key: item for key, item in value.items() if key != CHECKSUM}
    return bare | {CHECKSUM: f"xxh3 {_of_json(bare)}"}


def without_checksum(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """The object without its checksum, if it has one (0.1.0 wrote none); InputError if that does not fit."""
    bare = {key: item for key, item in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != f"xxh3 {_of_json(bare)}":
        raise InputError(f"{path}: fails its checksum; it was changed or is damaged")
    return bare


def _of_json(value: dict[str, Any]) -> str:
    """Of what is meant, not of how it is written."""
    plain = json.loads(json.dumps(value))
    return xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


def text_with_checksum(text: str) -> str:
    """A text of whole lines (YAML, say, where # begins a comment), and as its last line a checksum of those above."""
    return f"{text}{LAST_LINE}{xxhash.xxh3_64_hexdigest(text.encode())}\n"


def checksum_is_wrong(path: Path) -> bool | None:
    """Whether a text's last line is a checksum that does not fit those above; None if the text has none."""
    above, mark, found = path.read_bytes().rpartition(LAST_LINE.encode())
    return found != f"{xxhash.xxh3_64_hexdigest(above)}\n".encode() if mark else None


@contextlib.contextmanager
def os_errors_with(path: Path) -> Iterator[None]:
    """An OSError that comes from writing an open file (a full disk, say) gets that file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sync(path: Path) -> None:
    """Return when the file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
