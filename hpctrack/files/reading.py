"""Byte ranges of files, read into memory that is used again; and how much of a packed file is believed.

Fresh memory costs page faults, which take as long as copying a column out of the page cache.
"""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError

ALIGN = 64  # bytes: where arrays begin in a buffer, as processors read them best
PIECE = 1 << 20  # bytes that are read at a time where a file could be larger than believed


def _references(buffers: list[np.ndarray], k: int) -> int:
    return sys.getrefcount(buffers[k])


_UNUSED = _references([np.empty(0, np.uint8)], 0)  # what a buffer counts that only its list knows


class BufferPool:
    """Hands out byte buffers, at most `keep` of them again and again: those that no array refers to any more."""

    def __init__(self, keep: int = 4) -> None:
        self.keep = keep
        self._buffers: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """A uint8 buffer of at least `size` bytes that nobody else uses. Not for two threads at once."""
        for k in range(len(self._buffers)):
            if _references(self._buffers, k) == _UNUSED:
                if len(self._buffers[k]) >= size:
                    return self._buffers[k]
                del self._buffers[k]
                break
        if len(self._buffers) == self.keep:
            return np.empty(size, np.uint8)
        buffer = np.empty(size + size // 4, np.uint8)  # the next event may be a little larger
        self._buffers.append(buffer)
        return buffer


def aligned(size: int) -> int:
    """The bytes, a multiple of ALIGN, that something of `size` bytes takes up in a buffer it shares with others."""
    return -(-size // ALIGN) * ALIGN


def read_into(descriptor: int, buffer: np.ndarray, position: int, path: Path) -> None:
    """Fill a contiguous array with the file's bytes from `position`; InputError if the file ends before.

    Uses no file position, so threads and forked processes may share the descriptor.
    """
    view = buffer.data.cast("B")
    while len(view):
        done = os.preadv(descriptor, [view], position)
        if not done:
            raise InputError(f"{path}: ends at byte {position}, cut short since it was opened; convert again")
        view, position = view[done:], position + done


def read_ranges(descriptor: int, parts: Sequence[tuple[np.ndarray, int]], path: Path) -> None:
    """Fill each array with the file's bytes from its position, as `read_into` does.

    What lies in the page cache is copied at once; where that ends, all that is left is asked for together, so that the
    disk works on it in parallel.
    """
    asked = not (hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise"))
    for k, (buffer, position) in enumerate(parts):
        if asked or not buffer.nbytes:
            read_into(descriptor, buffer, position, path)
            continue
        try:
            done = os.preadv(descriptor, [buffer.data], position, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            done = 0
        if done < buffer.nbytes:
            for other, start in [(buffer, position), *parts[k + 1 :]]:
                os.posix_fadvise(descriptor, start, other.nbytes, os.POSIX_FADV_WILLNEED)
            asked = True
            read_into(descriptor, buffer.reshape(-1).view(np.uint8)[done:], position + done, path)


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's content, in the memory that it needs; ValueError if it has more than `limit` bytes."""
    parts, left = list[bytes](), limit
    with open(path, "rb") as file:
        while part := file.read(min(PIECE, left + 1)):
            left -= len(part)
            if left < 0:
                raise ValueError(f"more than {limit:,} bytes")
            parts.append(part)
    return b"".join(parts)


def write_all(file: io.FileIO, values: np.ndarray) -> None:
    """Append a contiguous array's bytes to an unbuffered file."""
    view = values.data.cast("B")
    while len(view):
        view = view[file.write(view) :]


class DiskFile(io.FileIO):
    """A file that keeps its first failed write instead of raising it, because HDF5 cannot close a file after one."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, unless a write has failed before."""
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view) and self.error is None:
            try:
                view = view[super().write(view) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Likewise."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


# ----------------------------------- packed files: what is small on disk and claims to be huge must not fill the memory


VARIABLE = "HPCTRACK_MAX_UNPACKED_GB"
DEFAULT_GB = 1.0  # the largest files of the challenge, cells.csv, have 0.1 GB
SQUEEZED = 1100  # no compression of HDF5's, and no gzip, makes data smaller by more than this


def max_unpacked() -> int:
    """Bytes that one packed file, or one compressed column, may unpack to; InputError for a limit that is none."""
    text = os.environ.get(VARIABLE, str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < 1e9:
        raise InputError(f"{VARIABLE}='{text}': must be a number of GB greater than 0, e.g. {DEFAULT_GB:g}")
    return int(limit * 1e9)


def too_large(size: int) -> str:
    """What to say of something packed that is, or claims to be, `size` bytes or more."""
    return f"unpacks to {size / 1e9:.3g} GB or more, beyond the limit of {max_unpacked() / 1e9:.3g} GB; {_RAISE}"


_RAISE = f"if it is meant to be so large, raise {VARIABLE}"
