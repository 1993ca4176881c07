"""One writer at a time: a folder that is being written is locked against a second run of the same command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from hpctrack.data.files import naming
from hpctrack.errors import InputError

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def only_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `folder` (made if need be); if another process has it, `wait`, or InputError that names it.

    The kernel releases the lock of a process that ends in any way, so a kill leaves a file but no lock. On a file
    system without locks a line on stderr says that nothing guards the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with naming(path):
        handle = _acquire(path, wait)
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)


def _acquire(path: Path, wait: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise InputError(
                f"{path.parent}: {holder} writes here; wait for its end or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            print(f"{path}: no locks on this file system ({error.strerror}): start one run at a time", file=sys.stderr)
        if _is_at(handle, path):
            return handle
        os.close(handle)  # its holder removed it between our open and our lock


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
