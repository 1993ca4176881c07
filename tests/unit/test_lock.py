"""One owner of a folder: the second is refused in one line, a dead owner is replaced by exactly one heir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest
from faults import faults as all_faults
from faults import operations, strike

from hpctrack.errors import InputError, MachineError
from hpctrack.files import lock
from hpctrack.files.atomic import clear_leftovers, machine_id, temporary_name, write_text
from hpctrack.files.lock import LOCK, only_writer, only_writer_of, owner_of


@pytest.fixture(params=["flock", "no flock"])
def file_system(request, monkeypatch):
    """With and without the kernel's locks."""
    if request.param == "no flock":

        def refuse(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "DEAD_S", 0.4)
    monkeypatch.setattr(lock, "EMPTY_S", 0.2)


def child(act) -> int:
    """A forked process that acts, says so and stays."""
    receive, send = os.pipe()
    number = os.fork()
    if not number:
        try:
            with act():
                os.write(send, b"1")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(send)
    assert os.read(receive, 1) == b"1"
    os.close(receive)
    return number


def end(number: int) -> None:
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)


def test_the_second_writer_is_refused_and_told_who_writes(tmp_path, file_system):
    number = child(lambda: only_writer(tmp_path / "out"))
    with pytest.raises(InputError, match=rf"out: process {number} on .* \(since 20.*\) writes here"):
        only_writer(tmp_path / "out").__enter__()
    assert str(number) in owner_of(tmp_path / "out" / LOCK)
    end(number)
    with only_writer(tmp_path / "out") as owner:  # its record is still there
        owner.check()
        (tmp_path / "out" / "a").write_text("")
    assert os.listdir(tmp_path / "out") == ["a"]


def test_a_killed_owner_that_nobody_has_waited_for_is_dead(tmp_path, file_system):
    number = child(lambda: only_writer(tmp_path))
    os.kill(number, signal.SIGKILL)
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)  # a zombie: its number is still taken
    with only_writer(tmp_path):
        pass
    os.waitpid(number, 0)


def test_children_do_not_keep_what_their_killed_parent_owned(tmp_path, file_system):
    receive, send = os.pipe()

    @contextlib.contextmanager
    def act():
        with only_writer(tmp_path):
            if not os.fork():  # a reader, say, that takes a while to notice
                os.write(send, str(os.getpid()).encode())
                time.sleep(60)
                os._exit(0)
            yield

    number = child(act)
    grandchild = int(os.read(receive, 20))
    end(number)
    with only_writer(tmp_path):
        pass
    os.kill(grandchild, signal.SIGKILL)


def elsewhere(path, **changes) -> None:
    """Make the record at `path` that of a process on another machine."""
    about = json.loads(path.read_text()) | {"machine": "another", "host": "far", "pid": 1} | changes
    path.write_text(json.dumps(about) + "\n")


def test_an_owner_elsewhere_lives_by_its_beat(tmp_path, file_system, capsys):
    """With locks, too: those of a node that was lost are kept for minutes."""
    with only_writer(tmp_path) as owner:
        elsewhere(tmp_path / LOCK)
        with pytest.raises(InputError, match="process 1 on far .* writes here"):
            only_writer(tmp_path).__enter__()
        assert "process 1 on far" in capsys.readouterr().err
        owner.ended.set()  # frozen from here on
        owner.thread.join()
        with only_writer(tmp_path) as heir:
            heir.check()
            with pytest.raises(MachineError, match="has taken over .* ends without writing more"):
                owner.check()
            with pytest.raises(MachineError, match="has taken over"):
                write_text(tmp_path / "a", "from the dead")
            owner.release()  # is no longer his to remove
            heir.check()
    assert not list(tmp_path.iterdir())


def test_the_process_number_alone_says_nothing(tmp_path):
    path = tmp_path / LOCK
    about = {"id": "x", "pid": os.getpid(), "started": "1", "machine": machine_id(), "host": "here", "since": "then"}
    path.write_text(json.dumps(about) + "\n")
    with only_writer(tmp_path):  # that number belonged to another process before
        pass


def test_a_process_that_is_hidden_lives(tmp_path, monkeypatch):
    """As /proc with hidepid hides those of other users."""
    ended, read = child(contextlib.nullcontext), Path.read_text
    end(ended)

    def hide(path, *more):
        if path == Path(f"/proc/{os.getppid()}/stat"):
            raise FileNotFoundError(path)
        return read(path, *more)

    monkeypatch.setattr(Path, "read_text", hide)
    leftovers = [
        temporary_name(tmp_path / "a").name.replace(f".{os.getpid()}-", f".{pid}-") for pid in (ended, os.getppid())
    ]
    for name in leftovers:
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == leftovers[1:]


@pytest.mark.parametrize("content", ["", '{"pid": 1', "process 1 on nowhere", "nonsense\n", "[1]\n", '{"pid": 1}\n'])
def test_a_record_that_says_nothing_is_that_of_a_dead_owner(tmp_path, content, file_system):
    (tmp_path / LOCK).write_text(content)
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_of_many_heirs_one_wins_each_time(tmp_path, file_system):
    log, number = tmp_path / "log", child(lambda: only_writer(tmp_path / "out"))
    end(number)

    def claim():
        with only_writer(tmp_path / "out", wait=True) as owner:
            owner.check()
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(handle, b"(")
            time.sleep(0.005)
            os.write(handle, b")")
            owner.check()

    children = []
    for _ in range(12):
        children.append(os.fork())
        if not children[-1]:
            try:
                claim()
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(one, 0)[1] for one in children] == [0] * 12
    assert log.read_text() == "()" * 12
    assert os.listdir(tmp_path / "out") == []


def test_a_claim_that_goes_wrong_anywhere_leaves_the_folder_to_the_next(tmp_path):
    folder = tmp_path / "out"

    def act():
        with only_writer(folder):
            (folder / "a").write_text("x")

    def from_the_dead():
        end(child(lambda: only_writer(folder)))

    folder.mkdir()
    for prepare in (lambda: None, from_the_dead):
        prepare()
        made = operations(act, [folder])
        for fault in all_faults(made):
            prepare()
            outcome = strike(act, [folder], fault)
            assert outcome.struck and (outcome.code != 0 or "write" not in made[fault.at]), (fault, outcome)
            with only_writer(folder):
                pass
            assert set(os.listdir(folder) if folder.exists() else []) <= {"a"}, fault


def test_owners_of_different_events_fill_one_folder(tmp_path, file_system):
    number = child(lambda: only_writer_of(tmp_path, range(10, 20)))
    with only_writer_of(tmp_path, range(10)), only_writer_of(tmp_path, range(20, 25)):
        for wrong in (range(19, 21), range(5, 12), range(30), range(12, 13)):
            with pytest.raises(InputError, match=rf"process ({number}|{os.getpid()}) on .* writes \d+ to \d+ here"):
                only_writer_of(tmp_path, wrong).__enter__()
    end(number)
    with only_writer_of(tmp_path, range(15, 30)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_record_that_could_not_be_removed_does_not_keep_its_own_process_out(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(lock.Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"), lock.only_writer(tmp_path):
            pass
    with lock.only_writer(tmp_path), pytest.raises(InputError, match="writes here"), lock.only_writer(tmp_path):
        pass
