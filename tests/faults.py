"""Faults of file operations: the k-th one that an action makes fails, or its process is killed there.

    ops = operations(action, [folder])                 # what it does when nothing goes wrong, e.g. "replace latest"
    for fault in faults(ops):                           # each operation fails, and is killed before, amid and after
        outcome = strike(action, [folder], fault)       # a process forked from this one, which stays as it was
        …                                               # run it again without a fault; nothing may be lost

Counted are operations of Python code on paths below the given folders: opening for writing, each write that reaches
the system (HDF5's own, too, where it writes through a Python file), truncating, closing, fsync, rename, unlink, mkdir,
rmdir (so each step of shutil.rmtree), links and copies, and opening and closing of HDF5 files that are written; with
`reads` also opening files for reading and listing folders. Only the thread that calls the action counts, so that the
number of an operation is the same each time; what beats or logs beside it does not.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

BEFORE, HALF, AFTER = "before", "half", "after"
FAIL, KILL = "fail", "kill"
ON_PATH = ("open", "mkdir", "rmdir", "unlink", "remove", "truncate", "utime", "chmod")
ON_TWO = ("rename", "replace", "link", "symlink")  # the second path is the one that comes to be
ON_NUMBER = ("write", "pwrite", "ftruncate", "fsync", "fdatasync", "sendfile", "copy_file_range", "posix_fallocate")
READS = ("read", "listdir", "scandir")  # these fail, but a kill there changes nothing
NEEDS_SPACE = {"open", "write", "pwrite", "mkdir", "sendfile", "fsync", "h5open", *ON_TWO}


@dataclass(frozen=True)
class Fault:
    """At operation `at` (from 0): fail with errno `error`, or kill, before it, amid it (writes) or after it.

    `lasting`: all later operations that need space fail, too, as on a disk that is full.
    """

    at: int
    how: str = KILL
    when: str = BEFORE
    error: int = errno.ENOSPC
    lasting: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a struck process ended: exit code (negative: signal), what it said, whether it came to the fault."""

    code: int
    said: str
    operations: list[str]
    struck: bool


def faults(operations: Sequence[str], errors: Sequence[int] = (errno.ENOSPC,)) -> Iterator[Fault]:
    """Every way in which each of these operations can go wrong."""
    for at, operation in enumerate(operations):
        if operation.split()[0] in READS:
            yield Fault(at, FAIL, BEFORE, errno.EIO)
            continue
        writes = operation.split()[0] in ("write", "pwrite", "sendfile")
        for when in (BEFORE, HALF) if writes else (BEFORE,):
            yield Fault(at, KILL, when)
            for error in errors:
                yield Fault(at, FAIL, when, error)
                yield Fault(at, FAIL, when, error, lasting=True)
        if operation.split()[0] in ("rename", "replace", "fsync", "close", "h5close"):
            yield from (Fault(at, FAIL, AFTER, error) for error in errors)  # done, and reported as failed
    if operations:
        yield Fault(len(operations) - 1, KILL, AFTER)


def operations(
    action: Callable[[], Any], folders: Sequence[Path], ignore: Sequence[str] = (), reads: bool = False
) -> list[str]:
    """The operations of an action that succeeds, run in a forked process; AssertionError if it does not."""
    outcome = strike(action, folders, None, ignore, reads=reads)
    assert outcome.code == 0, outcome.said
    return outcome.operations


def strike(
    action: Callable[[], Any],
    folders: Sequence[Path],
    fault: Fault | None,
    ignore: Sequence[str] = (),
    timeout: float = 120.0,
    reads: bool = False,
) -> Outcome:
    """Run `action()` in a forked process with that fault; what it returns (None: 0) is the exit code, an exception 70.

    `ignore`: paths with one of these words are not counted. A process that lasts longer than `timeout` seconds is
    killed and AssertionError raised.
    """
    room = Path(tempfile.mkdtemp(prefix="faults-"))
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _in_child(action, room, [Path(folder) for folder in folders], fault, ignore, reads)
    deadline = time.monotonic() + timeout
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{fault}: not ended after {timeout} s: {(room / 'said').read_text()}")
        time.sleep(0.001)
    made = (room / "operations").read_text().splitlines()
    outcome = Outcome(
        os.waitstatus_to_exitcode(ended[1]),
        (room / "said").read_text(errors="replace"),
        [line for line in made if line != "struck"],
        "struck" in made,
    )
    shutil.rmtree(room)
    return outcome


def _in_child(action: Callable, room: Path, *counted: Any) -> None:
    code = 70
    try:
        said = os.open(room / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # not a test's capture
        log = os.open(room / "operations", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with Injector(log, *counted):
            code = action() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:  # noqa: BLE001 - whatever it is goes to the outcome
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Injector:
    """Counts the file operations below some folders while it is entered, and lets one of them go wrong."""

    def __init__(
        self, log: int, folders: Sequence[Path], fault: Fault | None, ignore: Sequence[str], reads: bool = False
    ) -> None:
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.fault, self.ignore, self.log, self.reads = fault, ignore, log, reads
        self.count, self.full = 0, False
        self.thread = threading.get_ident()
        self.write, self.patches = os.write, []

    def __enter__(self) -> Injector:
        for name in (*ON_PATH, *ON_TWO, *ON_NUMBER):
            self.patches.append(patch.object(os, name, self._wrapped(name, getattr(os, name))))
        opened = self._opened(io.open)
        self.patches += [patch.object(module, "open", opened) for module in (builtins, io)]
        if self.reads:
            self.patches += [patch.object(os, name, self._listed(name, getattr(os, name))) for name in READS[1:]]
        if "h5py" in sys.modules:
            self.patches += self._hdf5(sys.modules["h5py"].File)
        for one in self.patches:
            one.start()
        _Raw.injector = self
        for kind in io.FileIO.__subclasses__():  # such as what HDF5 writes through
            if kind is not _Raw:
                kind.__bases__ = (_Raw,)
        return self

    def __exit__(self, *_: object) -> None:
        for kind in _Raw.__subclasses__():
            kind.__bases__ = (io.FileIO,)
        for one in reversed(self.patches):
            one.stop()

    def step(self, name: str, path: Any, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Operation `name` on `path`, which `act` does and `half` does in part, unless it is to go wrong."""
        full = self._counted(path)
        if full is None:
            return act()
        self.write(self.log, f"{name} {os.path.basename(full)}\n".encode())
        at, self.count = self.count, self.count + 1
        if self.full and name in NEEDS_SPACE:
            raise self.error(name, full)
        if self.fault is None or at != self.fault.at:
            return act()
        self.write(self.log, b"struck\n")
        if self.fault.when == AFTER:
            with contextlib.suppress(OSError):  # such as removing what is not there
                act()
        elif self.fault.when == HALF and half is not None:
            half()
        if self.fault.how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self.full = self.fault.lasting
        raise self.error(name, full)

    def error(self, name: str, path: str) -> OSError:
        """As Python raises it: operations on open files do not know the name."""
        known = () if name in (*ON_NUMBER, "close", "h5close") else (path,)
        return OSError(self.fault.error, os.strerror(self.fault.error), *known)

    def _counted(self, path: Any) -> str | None:
        """The absolute path if operations on it count."""
        if threading.get_ident() != self.thread:
            return None
        full = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        full = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
        below = any(full == folder or full.startswith(folder + os.sep) for folder in self.folders)
        return full if below and not any(word in full for word in self.ignore) else None

    def _wrapped(self, name: str, function: Callable) -> Callable:
        def wrapped(*args: Any, **more: Any) -> Any:
            path = args[1] if name in ON_TWO else args[0]
            if name == "open" and not (args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return function(*args, **more)  # of a folder, for fsync and rmtree
            folder = more.get("dst_dir_fd" if name in ON_TWO else "dir_fd")
            if folder is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            half = None
            if name in ("write", "pwrite"):
                half = lambda: function(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])  # noqa: E731
            return self.step(name, path, lambda: function(*args, **more), half)

        return wrapped

    def _listed(self, name: str, function: Callable) -> Callable:
        return lambda path=".": self.step(name, path, lambda: function(path))

    def _opened(self, function: Callable) -> Callable:
        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding=None, errors=None, newline=None, *args, **more
        ):
            def as_it_is() -> Any:
                return function(file, mode, buffering, encoding, errors, newline, *args, **more)

            if not isinstance(file, (str, bytes, os.PathLike)) or self._counted(file) is None:
                return as_it_is()
            if not set(mode) & set("wax+"):
                return self.step("read", file, as_it_is) if self.reads else as_it_is()
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), *args, **more)
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

        return opened

    def _hdf5(self, kind: type) -> list[Any]:
        made, closed, injector = kind.__init__, kind.close, self

        def __init__(file: Any, name: Any, mode: str = "r", *args: Any, **more: Any) -> None:
            is_path = isinstance(name, (str, bytes, os.PathLike))
            if not is_path or mode == "r" and not injector.reads:
                return made(file, name, mode, *args, **more)
            injector.step("read" if mode == "r" else "h5open", name, lambda: made(file, name, mode, *args, **more))

        def close(file: Any) -> None:
            if file.id.valid and file.mode != "r":
                injector.step("h5close", file.filename, lambda: closed(file))
            closed(file)

        return [patch.object(kind, "__init__", __init__), patch.object(kind, "close", close)]


class _Raw(io.FileIO):
    """A file whose opening, writes, truncations and closing are steps of an injector."""

    injector: Injector

    def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Callable | None = None) -> None:
        def made() -> None:
            super(_Raw, self).__init__(file, mode, closefd, opener)

        if opener is None and not isinstance(file, int):
            self.injector.step("open", file, made)
        else:  # opened by a step before
            made()

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        first = whole[: len(whole) // 2]
        act = super().write
        return self.injector.step("write", self.fileno(), lambda: act(whole), lambda: act(first))

    def truncate(self, size: int | None = None) -> int:
        act = super().truncate
        return self.injector.step("ftruncate", self.fileno(), lambda: act(size))

    def close(self) -> None:
        if self.closed:
            return
        act = super().close
        try:
            self.injector.step("close", self.fileno(), act)
        finally:
            act()
