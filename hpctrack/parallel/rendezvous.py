"""Where ranks meet: within a time limit, with a word about who is missing, and only with ranks of the same run.

All of it goes through torch's key-value store, which rank 0 serves, or its launcher, or a file. A run has keys of its
own there: a hash of what it is (verb, settings, launcher's number of it). Each rank leaves a token; when all are there
rank 0 calls the roll, each rank answers to its token, and rank 0 lets them go. So neither what a killed run has left
in the store nor a process of another run counts as a rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

import torch.distributed as dist

from hpctrack.errors import InputError, MachineError
from hpctrack.parallel.launchers import ELSEWHERE, INIT_METHOD, address_towards
from hpctrack.parallel.orphans import end, end_with_launcher, say

TRY_S = 5.0  # one try to connect
HELD_S = 10.0  # for a port: whoever had it before may be ending
GRACE_S = 5.0  # after the limit; for a store that no longer answers, or is asked by hundreds of ranks who is missing
SHOWN = 8
FIRST, MET = "hpctrack/first", "hpctrack/met"  # the run that came here first; the one whose ranks have met


@dataclass(frozen=True)
class Run:
    """What ranks must have in common to meet: each entry is short, or the hash of what is long."""

    parts: Mapping[str, str]

    @classmethod
    def of(cls, **parts: Any) -> Run:
        """From plain values (what JSON takes; other values by their text)."""
        return cls({name: hashed(value) for name, value in parts.items()})

    def differing(self, other: Mapping[str, str]) -> list[str]:
        """Names of the parts in which another run is another one."""
        return [name for name in sorted(self.parts.keys() | other.keys()) if self.parts.get(name) != other.get(name)]


def hashed(value: Any) -> str:
    """16 hexadecimal digits that stand for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Met:
    """What came of it: a store for these ranks alone, each rank's host and address (None: unknown)."""

    store: dist.Store
    hosts: list[str]
    addresses: list[str | None]


@dataclass
class Rendezvous:
    """One rank's way to the others. `limit_s` is set by the option `key`."""

    rank: int
    world: int
    run: Run
    limit_s: float
    key: str
    speaks: bool = True  # one rank a node is enough to say that rank 0 cannot be reached
    begun: float = field(default_factory=time.monotonic)
    said: bool = False

    def __post_init__(self) -> None:
        self.url = urlparse(os.environ.get(INIT_METHOD, ""))
        self.by_file = self.url.scheme == "file"
        if self.by_file:
            self.where = self.url.path
            return
        if self.url.scheme not in ("", "env", "tcp") or (self.url.scheme == "tcp" and self.url.port is None):
            raise InputError(
                f"environment: {INIT_METHOD}='{self.url.geturl()}': file:///folder/file or tcp://host:port"
            )
        by_url = self.url.scheme == "tcp"
        self.host = str(self.url.hostname) if by_url else os.environ["MASTER_ADDR"]
        self.port = int(self.url.port or 0) if by_url else int(os.environ["MASTER_PORT"])
        if not 0 < self.port < 1 << 16:
            raise InputError(f"environment: MASTER_PORT='{self.port}' is no port; they go from 1 to 65535")
        self.where = f"{self.host}:{self.port}"
        # torchrun's agent serves the store, unless it was told otherwise
        self.serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)

    def meet(self) -> Met:
        """Return when all ranks of this run are here; MachineError within the time limit if they are not."""
        silent = self.failed("an answer of the store there")
        with deadline(self.limit_s + GRACE_S + self.world / 100, self.rank, "", str(silent)):
            store = self.open_file() if self.by_file else self.connect()
            try:
                return self.roll(store)
            except dist.DistError as error:
                raise self.failed("the store there, which has gone with rank 0 or its launcher") from error

    # ------------------------------------------------------------------------------------------ the store

    def open_file(self) -> dist.Store:
        """The store in a file."""
        try:
            return dist.FileStore(self.url.path, self.world)
        except RuntimeError as error:
            raise self.failed(f"the file ({' '.join(str(error).split())[:200]})") from error

    def connect(self) -> dist.Store:
        """The store at an address; tried again until the time limit, since its server may come later."""
        while True:
            try:
                if not self.serves:
                    socket.create_connection((self.host, self.port), TRY_S).close()  # it says why it fails
                left = timedelta(seconds=max(0.1, min(TRY_S, self.left())))
                return dist.TCPStore(
                    self.host,
                    self.port,
                    self.world,
                    is_master=self.serves,
                    timeout=left,
                    wait_for_workers=False,
                    multi_tenant=self.serves,
                )
            except OSError as error:
                why = error.strerror or str(error)
            except (dist.DistError, RuntimeError) as error:
                why = self.reason(error)
            waited_for = f"{'its own port' if self.serves else 'rank 0'} ({why})"
            self.wait(waited_for if self.speaks else "", self.failed(waited_for))
            time.sleep(0.2)

    def reason(self, error: Exception) -> str:
        """Why the store failed, for people; MachineError if nothing will change it."""
        if "EADDRINUSE" not in str(error):
            return "what answers there is no store of ranks" if not self.serves else " ".join(str(error).split())[:150]
        if time.monotonic() > self.begun + HELD_S:
            raise MachineError(
                f"port {self.port} of {socket.gethostname()}, where the ranks are to meet, is held by another process, "
                f"perhaps of another run; end that, or set another MASTER_PORT"
            )
        return "the port is held by another process"

    # ------------------------------------------------------------------------------------------ the roll

    def roll(self, store: dist.Store) -> Met:
        """Until all have answered to the same roll."""
        mine = dist.PrefixStore(f"hpctrack/{hashed([self.run.parts, self.world])}", store)
        towards = ELSEWHERE if self.by_file else self.host
        own = {"token": secrets.token_hex(8), "host": socket.gethostname(), "address": address_towards(towards)}
        store.compare_set(FIRST, "", json.dumps(dict(self.run.parts)))
        mine.set(f"rank/{self.rank}", json.dumps(own))
        answered, pause = "", 0.002
        while True:
            name, members = self.call(mine, answered) if self.rank == 0 else self.called(mine)
            if members and members[self.rank] == own:
                if name != answered:
                    end_with_launcher()  # a rank without one must not take the place of another
                    mine.set(f"answer/{name}/{self.rank}", "here")
                    answered = name
                if self.released(mine, store, name):
                    hosts, addresses = [m["host"] for m in members], [m["address"] for m in members]
                    return Met(dist.PrefixStore(f"hpctrack/{name}", store), hosts, addresses)
            if json.loads(mine.get(f"rank/{self.rank}")) != own:
                raise MachineError(
                    f"another process is rank {self.rank} of the same run at {self.where}; end one of them"
                )
            self.refuse_strangers(store)
            self.wait(lambda: self.missing(mine, store, True), lambda: self.failed(self.missing(mine, store)))
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05 + self.world / 4000)  # thousands of ranks ask one server

    def call(self, mine: dist.Store, last: str) -> tuple[str, list[dict[str, Any]]]:
        """Rank 0: the roll of all that are there, under its name; a new one if somebody has come anew."""
        if not mine.check([f"rank/{rank}" for rank in range(self.world)]):
            return "", []
        members = [json.loads(own) for own in mine.multi_get([f"rank/{rank}" for rank in range(self.world)])]
        name = hashed([member["token"] for member in members])
        if name != last:
            mine.set("roll", json.dumps([name, members]))
        return name, members

    def called(self, mine: dist.Store) -> tuple[str, list[dict[str, Any]]]:
        """The other ranks: the roll that was called last."""
        return tuple(json.loads(mine.get("roll"))) if mine.check(["roll"]) else ("", [])

    def released(self, mine: dist.Store, store: dist.Store, name: str) -> bool:
        """Whether all have answered; rank 0 says so."""
        if self.rank != 0:
            return mine.check([f"go/{name}"])
        if not mine.check([f"answer/{name}/{rank}" for rank in range(self.world)]):
            return False
        mine.set(f"go/{name}", "")
        store.set(MET, json.dumps(dict(self.run.parts)))
        return True

    def refuse_strangers(self, store: dist.Store) -> None:
        """MachineError if another run's ranks have met here: this rank has no business there."""
        if store.check([MET]) and (differing := self.run.differing(json.loads(store.get(MET)))):
            raise MachineError(
                f"rank {self.rank} of {self.world} came to another run's meeting at {self.where}: "
                f"its {', '.join(differing)} differ; this rank ends, that run goes on"
                f"{' (if that has ended, remove the file)' if self.by_file else ''}"
            )

    # ------------------------------------------------------------------------------------------ words

    def left(self) -> float:
        """Seconds until the limit."""
        return self.begun + self.limit_s - time.monotonic()

    def wait(self, word: str | Callable[[], str], otherwise: MachineError | Callable[[], MachineError]) -> None:
        """Say after WORD_S, once, what is waited for (nothing, if that is empty); `otherwise` at the time limit."""
        if self.left() <= 0:
            raise otherwise() if callable(otherwise) else otherwise
        if not self.said and time.monotonic() > self.begun + WORD_S:
            self.said = True
            if text := word() if callable(word) else word:
                until = f"since {WORD_S:g} s; until {self.key}={self.limit_s:g} s"
                say(f"hpctrack [rank {self.rank}]: waits at {self.where} for {text} ({until})")

    def missing(self, mine: dist.Store, store: dist.Store, to_say: bool = False) -> str:
        """Who is not there; `to_say`: nothing unless this is the first rank that is."""
        if to_say and any(mine.check([f"rank/{rank}"]) for rank in range(self.rank)):
            return ""
        absent = without(mine, "rank/", range(self.world))
        here = sorted({*range(self.world)} - {*absent})
        hosts = dict.fromkeys(json.loads(own)["host"] for own in mine.multi_get([f"rank/{rank}" for rank in here]))
        name, _ = self.called(mine)
        absent = absent or without(mine, f"answer/{name}/", range(self.world)) or [0]
        text = f"{ranks(absent)} of {self.world}; here on {', '.join([*hosts][:SHOWN])}: {ranks(here)}"
        if differing := self.run.differing(json.loads(store.get(FIRST))):
            text += f"; ranks of another run meet there, too: its {', '.join(differing)} differ"
        return text

    def failed(self, waited_for: str) -> MachineError:
        """That the ranks did not meet."""
        return MachineError(
            f"rank {self.rank} of {self.world} did not meet the others at {self.where} within "
            f"{self.key}={self.limit_s:g} s: waited for {waited_for}"
        )


def without(store: dist.Store, prefix: str, numbers: range) -> list[int]:
    """The ranks that have left nothing under `prefix`, by halves: few questions where few are missing."""
    if store.check([f"{prefix}{number}" for number in numbers]):
        return []
    if len(numbers) == 1:
        return [*numbers]
    half = len(numbers) // 2
    return without(store, prefix, numbers[:half]) + without(store, prefix, numbers[half:])


def ranks(numbers: list[int]) -> str:
    """`rank 3`, `ranks 0-3,8`."""
    return f"rank{'s' if len(numbers) > 1 else ''} {spans(numbers)}"


def spans(numbers: list[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3, 8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


# --------------- a time limit on what cannot be interrupted, such as a wait inside a library: a thread ends the process


WORD_S = 10.0  # a wait that is longer is said


@contextmanager
def deadline(limit_s: float, rank: int, waits: Callable[[], str] | str, otherwise: str) -> Iterator[None]:
    """Say `waits` after WORD_S (not if that is empty); after `limit_s` seconds end this process, saying `otherwise`."""

    def word() -> None:
        if text := waits if isinstance(waits, str) else waits():
            say(f"hpctrack [rank {rank}]: {text}")

    timers = [threading.Timer(min(limit_s, threading.TIMEOUT_MAX), end, (rank, otherwise))]
    if limit_s > WORD_S:
        timers.append(threading.Timer(WORD_S, word))
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


# --------------------------------------------------------------------- what becomes of the other ranks when one is lost


SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "MPI_")


@contextmanager
def lost_ranks(timeout_s: float, key: str = "parallel.timeout_s") -> Iterator[None]:
    """Turn what a collective operation raises when a peer has gone, or is silent for too long, into a MachineError.

    `key` is the option that sets the time, if there is one.
    """
    try:
        yield
    except MachineError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in SIGNS):
            raise
        what = str(error).strip().splitlines()[0].rpartition("] ")[2]  # without the place in gloo's source
        raise MachineError(
            f"a rank was lost, or did not answer within {f'{key}=' if key else ''}{timeout_s:g} s "
            f"({what}); the same command goes on from what was saved last"
        ) from error
