"""Files and folders that a user names as outputs: what may stand there, and how it is replaced.

A regular file is replaced when its successor is whole; of a link, that is the file it leads to, and the link stays. A
pipe or a device such as /dev/null and /dev/stdout is written into. Anything else is refused before the work begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hpctrack.errors import InputError
from hpctrack.files.atomic import os_errors_with, publish, temporary_name

_OPEN = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)|/dev/std(out|err)")  # names of what is open already


def check_output(path: Path) -> None:
    """InputError if no file can be written as `path`: its folder does not exist, or something else stands there."""
    _is_stream(path)


def check_folder(path: Path) -> None:
    """InputError if `path` cannot be a folder: it is a file or a link to nothing, or one of its parents is."""
    for place in (path, *path.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                what = "a file" if place.exists() else f"a link to {os.readlink(place)}, which does not exist"
                raise InputError(f"{path}: {'' if place == path else f'{place} '}is {what}; OUT must be a folder")
            return


@contextlib.contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """The file to write `path` into; it has this name once the block has ended well. InputError as `check_output`."""
    if _is_stream(path):
        with os_errors_with(path), open(_open_stream(path), "wb") as file:
            yield file
        return
    final = Path(os.path.realpath(path))
    temporary = temporary_name(final)
    try:
        with os_errors_with(path), open(temporary, "wb") as file:
            yield file
        publish(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_output(path: Path, content: bytes | str) -> None:
    """Write all of an output."""
    with output(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json_output(path: Path, value: object) -> None:
    """Write an output as JSON."""
    write_output(path, json.dumps(value, indent=1) + "\n")


def _open_stream(path: Path) -> int:
    """A descriptor; of a file that is open already another one with the same place in it."""
    if not (opened := _OPEN.fullmatch(os.path.abspath(path))):
        return os.open(path, os.O_WRONLY)
    sys.stdout.flush()
    number, same, standard = opened.groups()
    return os.dup(int(number or same or {"out": 1, "err": 2}[standard]))


def _is_stream(path: Path) -> bool:
    """Whether `path` is to be written into as it is, rather than replaced; InputError if neither can be."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise InputError(f"{path}: its folder does not exist") from None
        return False
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; name a file")
    if stat.S_ISREG(mode):
        return _OPEN.fullmatch(os.path.abspath(path)) is not None
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    raise InputError(f"{path}: is neither a regular file nor a pipe; name a file")
