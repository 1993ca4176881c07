"""One writer at a time: a folder that is being written has one owner, on whatever machine; a dead one is replaced.

The owner's record lies in the folder: which process it is, since when, and a beat, the file's time, every few seconds.
Whether an owner lives is told on its machine by the kernel's lock (flock) on its record, where the file system has one,
or by its process; and elsewhere by the beat: one that does not move for DEAD_S seconds is that of a dead owner. Clocks
are not compared, the beat is watched. An owner that was taken for dead (a frozen process, a node that was cut off)
notices by `Owner.check` before it writes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hpctrack.errors import InputError, MachineError
from hpctrack.files import atomic
from hpctrack.files.atomic import HIDDEN, machine_id, os_errors_with, start_time
from hpctrack.files.outputs import check_folder

LOCK = ".lock"
BEATING = "lock"  # name of the thread that beats
OF_NUMBERS = re.compile(r"\.(\d+)-(\d+)\.lock")
BEAT_S = 10.0
DEAD_S = 30.0  # without a beat
EMPTY_S = 2.0  # for a record to be written once its file is there
POLL_S = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[int] = set()  # handles of this process's records


@contextlib.contextmanager
def only_writer(folder: Path, wait: bool = False, name: str = LOCK) -> Iterator[Owner]:
    """Own `folder` (made if need be); if another process does, `wait`, or InputError that names it.

    A folder that was made for it and is still empty at the end goes again.
    """
    made = not folder.exists()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        owner = Owner(folder / name, _acquire(folder / name, wait))
        try:
            yield owner
        finally:
            owner.release()
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def only_writer_of(folder: Path, numbers: range) -> Iterator[None]:
    """Own what `folder` holds of these numbers (events, say), beside owners of others; InputError if one has some."""
    name = f".{numbers[0]}-{numbers[-1]}{LOCK}"
    with contextlib.ExitStack() as stack:
        with only_writer(folder, wait=True):
            for path in folder.iterdir():
                first, last = map(int, found.groups()) if (found := OF_NUMBERS.fullmatch(path.name)) else (0, -1)
                if first > numbers[-1] or last < max(first, numbers[0]):
                    continue
                if said := owner_of(path):
                    raise InputError(
                        f"{folder}: {said} writes {first} to {last} here; wait for its end, or choose others"
                    )
                path.unlink(missing_ok=True)
            stack.enter_context(only_writer(folder, name=name))
        yield


class Owner:
    """This process as the owner of a record; beats until it is released."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle, self.pid = path, handle, os.getpid()
        self.checked = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name=BEATING, daemon=True)
        self.thread.start()
        atomic.guards.append(self.guard)

    def guard(self, path: Path) -> None:
        """`check`, for what is about to be published in the folder."""
        if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.path.parent)):
            self.check()

    def check(self, every_s: float = 0.0) -> None:
        """MachineError if another process has taken over; looks at most every `every_s` seconds."""
        if every_s and time.monotonic() < self.checked + every_s:
            return
        self.checked = time.monotonic()
        if not _is_at(self.handle, self.path):
            other = _read(self.path)
            raise MachineError(
                f"{self.path.parent}: {other.said if other else 'another process'} has taken over while this one "
                f"(process {os.getpid()} on {socket.gethostname()}) did not answer; it ends without writing more"
            )

    def release(self) -> None:
        """Give the folder up, once; in a forked child this does nothing."""
        if os.getpid() != self.pid or self.handle < 0:
            return
        atomic.guards.remove(self.guard)
        self.ended.set()
        self.thread.join()
        try:
            if _is_at(self.handle, self.path):
                self.path.unlink()
        finally:
            _close(self.handle)
            self.handle = -1

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a record that is gone: `check` says so, here nobody would hear it
                os.utime(self.handle)


class Record:
    """Another owner's record, held open: so its file keeps its identity even if it is removed."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        content = os.pread(handle, 4096, 0)
        self.empty = not content.endswith(b"\n") and not content.startswith(b"process ")
        try:
            self.about = json.loads(content)
            self.said = "process {pid} on {host} (since {since})".format(**self.about)
        except (ValueError, KeyError, TypeError, IndexError):
            self.about, self.said = {}, "another process"
        self.id = str(self.about.get("id", os.fstat(handle).st_ino))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.handle)

    def lives(self, path: Path, aloud: bool = True) -> bool:
        """Whether its process does, as far as can be told from here; may watch for DEAD_S seconds, and says so."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who ask do not stop each other
            fcntl.flock(self.handle, fcntl.LOCK_UN)
        except BlockingIOError:
            # file systems keep the lock of a node that was lost for minutes, in which a run is to go on elsewhere
            if self.about.get("machine", machine_id()) == machine_id():
                return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if self.empty:
            return self._moves(path, EMPTY_S)
        if not self.about:  # of a version that wrote no more than a line, and relied on flock
            return False
        if self.about.get("machine") == machine_id():
            if self.about.get("pid") == os.getpid():  # a record that could not be removed may outlive its owner
                return any(_is_at(handle, path) for handle in _held)
            return start_time(self.about.get("pid", 0)) in (self.about.get("started"), HIDDEN)
        if aloud:
            line = f"{path.parent}: {self.said} writes or wrote here; looking for {DEAD_S:g} s whether it lives"
            print(line, file=sys.stderr, flush=True)
        return self._moves(path, DEAD_S)

    def _moves(self, path: Path, seconds: float) -> bool:
        """Whether the file at `path` changes within some seconds; it is opened again each time, for caches of NFS."""
        first, end = _stamp(path), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.5, seconds / 10))
            if _stamp(path) != first:
                return True
        return False


def owner_of(path: Path) -> str | None:
    """Who owns the record at `path`, if somebody alive does."""
    record = _read(path)
    if record is None:
        return None
    try:
        return record.said if record.lives(path) else None
    finally:
        record.close()


def _acquire(path: Path, wait: bool) -> int:
    """The handle of a record at `path` that is this process's own."""
    begin = said = time.monotonic()
    heard = None  # whose record was looked at last
    while True:
        try:
            handle = _create(path)
        except FileNotFoundError:  # an owner before has just removed the empty folder
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        if handle is not None:
            if _is_at(handle, path):
                return handle
            _close(handle)  # taken for one whose writer was killed
            continue
        record = _read(path)
        if record is None:
            continue
        try:
            known, heard = heard, record.id
            if record.lives(path, aloud=record.id != known):
                if not wait:
                    raise InputError(
                        f"{path.parent}: {record.said} writes here; wait for its end or choose another folder"
                    )
                if time.monotonic() > said + 10:
                    said = time.monotonic()
                    print(f"{path.parent}: waiting for {record.said}, {said - begin:.0f} s", file=sys.stderr)
                time.sleep(POLL_S)
            elif (handle := _take_over(path, record)) is not None:
                return handle
        finally:
            record.close()


def _take_over(path: Path, dead: Record) -> int | None:
    """Put a record of this process in the place of a dead owner's; None if another process was quicker.

    The heir's record is made under a name that belongs to the dead owner, so only one process has it at a time; and
    moved only if the dead owner's is still there then.
    """
    heir = path.with_name(f"{path.name}.{dead.id}")
    handle = _create(heir)
    if handle is None:
        other = _read(heir)
        if other is not None:
            if not other.lives(heir):  # killed while it took over
                heir.unlink(missing_ok=True)
            other.close()
        time.sleep(POLL_S)
        return None
    with contextlib.suppress(FileNotFoundError):  # a third process took ours for one of a dead process
        if _is_at(dead.handle, path):
            os.replace(heir, path)
            if _is_at(handle, path):
                return handle
        elif _is_at(handle, heir):
            heir.unlink()
    _close(handle)
    return None


def _create(path: Path) -> int | None:
    """A new record of this process at `path`, locked where that can be; None if there is one."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    _held.add(handle)
    about = {"id": secrets.token_hex(8), "pid": os.getpid(), "machine": machine_id()}
    about |= {"started": start_time(os.getpid())}
    about |= {"host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
    try:
        with os_errors_with(path):
            os.write(handle, (json.dumps(about) + "\n").encode())
            os.fdatasync(handle)  # other machines read it
            _lock(handle)
    except OSError:
        path.unlink(missing_ok=True)
        _close(handle)
        raise
    return handle


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # waits for those who just ask
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _read(path: Path) -> Record | None:
    try:
        return Record(os.open(path, os.O_RDWR))
    except FileNotFoundError:
        return None


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(handle)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    found, own = _stamp(path), os.fstat(handle)
    return found is not None and found[:2] == (own.st_dev, own.st_ino)


def _close(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _forget() -> None:
    """In a forked child: its copies of the handles would keep the locks of a parent that was killed."""
    atomic.guards.clear()
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
