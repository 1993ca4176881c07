"""Who am I among the ranks: rank, world size, device and process group, from whatever launcher there is, or none."""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpctrack import __version__
from hpctrack.config import ParallelConfig
from hpctrack.errors import EXIT_INPUT, InputError, MachineError
from hpctrack.parallel.launchers import INIT_METHOD, MPI, Place, find_place, interface_for, slurm_rendezvous, step_id
from hpctrack.parallel.mpi import mpi_end, mpi_rendezvous
from hpctrack.parallel.orphans import end_with_launcher
from hpctrack.parallel.rendezvous import Rendezvous, Run, deadline, lost_ranks, spans

KEY = "parallel.rendezvous_timeout_s"
INTERFACE = "GLOO_SOCKET_IFNAME"
ALONE = Place("no launcher", 0, 1, 0)
# groups that have ended: a wrapped model that outlives its group, and held it last, would wait for the group's threads
# while these wait for Python
ENDED: list[dist.ProcessGroup | None] = []
SETTLE_S = 0.05
NODES_SHOWN = 4
WATCHDOG_FIRST_S = 10.0  # the watchdog, which shows where each rank stands, comes before the backend's own timeout


@dataclass(frozen=True)
class Env:
    """This rank's place: `rank` of `world`, its `device`, the backend of its process group (None: no group)."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    backend: str | None
    source: str
    store: dist.Store | None = None  # where the ranks have met, if there are several

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.is_main:
            print(text, flush=True)


@contextmanager
def distributed(
    config: ParallelConfig, threads: int | None, verb: str = "", settings: Any = None, key: str = KEY
) -> Iterator[Env]:
    """The rank's environment for the time of a run; starts and ends the process group where there are ranks.

    Only ranks with the same `verb` and `settings` (plain values) meet, within the limit that the option `key` sets.
    Rank 0 prints what was found. Raises InputError for variables that contradict each other or lack an address, for a
    device that is not there, or has two ranks; MachineError if the ranks do not meet.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = find_place(os.environ) or ALONE
    variables: dict[str, str] = {}
    if place.world > 1:
        end_with_launcher()
        place = with_rendezvous(place, config.rendezvous_timeout_s, key)
        variables = torch_variables(place)
        os.environ.update(variables)  # for the libraries beside torch
    env = make_env(config, place)
    if env.backend is not None:
        run = Run.of(verb=verb, settings=settings, version=__version__, launcher=step_id(os.environ, place.source))
        env, set_for_it = start_group(env, config, run, key)
        variables |= set_for_it
    cores = exchange_places(env, threads if config.bind_cores else None)
    option = "parallel.timeout_s" if key == KEY else ""
    with release_collectives(env), lost_ranks(config.timeout_s, option), bound(cores):
        yield env
    if env.backend is not None:
        ENDED.append(dist.group.WORLD)
        dist.destroy_process_group()  # not after an error: other ranks may still wait in a collective
    if place.source in MPI:
        mpi_end()
    for name in variables:
        del os.environ[name]


@contextmanager
def release_collectives(env: Env) -> Iterator[None]:
    """At the end, also after an error, time for the group's threads to give back the tensors of its last collectives.

    They need Python for that. Those that come to it while the interpreter ends abort the process, after a good run and
    in place of its exit code (torch 2.13, pytorch/pytorch#190489).
    """
    try:
        yield
    finally:
        if env.backend is not None:
            time.sleep(SETTLE_S)


def launcher_argument(parser: argparse.ArgumentParser) -> None:
    """Accept the `--local_rank` that the DeepSpeed launcher adds; LOCAL_RANK says the same."""
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def with_rendezvous(place: Place, limit_s: float = 300.0, key: str = KEY) -> Place:
    """The place with everything that its launcher left open: where the ranks meet, and the number on the node."""
    known = INIT_METHOD in os.environ or (place.address is not None and place.port is not None)
    if place.source == "Slurm" and not known:
        address, port = slurm_rendezvous(os.environ)
        place = replace(place, address=place.address or address, port=place.port or port)
    if place.source in MPI and not (known and place.local_rank is not None):
        waits = f"waits for the other ranks of {place.source} in MPI (until {key}={limit_s:g} s)"
        ends = f"rank {place.rank} of {place.world} did not meet the others in MPI within {key}={limit_s:g} s"
        with deadline(limit_s, place.rank, waits, ends):
            address, port, local_rank = mpi_rendezvous(place.world)
        place = replace(place, address=place.address or address, port=place.port or port, local_rank=local_rank)
    return place


def torch_variables(place: Place) -> dict[str, str]:
    """What torchrun would have set, where it has not."""
    values: dict[str, object] = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank}
    values |= {"MASTER_ADDR": place.address, "MASTER_PORT": place.port}
    return {name: str(value) for name, value in values.items() if value is not None and name not in os.environ}


def make_env(config: ParallelConfig, place: Place) -> Env:
    """Choose the device and the backend; no process group is started."""
    local_rank = place.local_rank or 0
    device = choose_device(config.device, local_rank, place.source)
    grouped = place.world > 1 or config.strategy != "ddp"  # sharding and its libraries want a group, if only of one
    backend = ("nccl" if device.type == "cuda" else "gloo") if grouped else None
    return Env(place.rank, place.world, local_rank, device, backend=backend, source=place.source)


def choose_device(wanted: str, local_rank: int, source: str) -> torch.device:
    """`cuda:local_rank` where there are GPUs (or they are asked for), else the CPU.

    Where the launcher shows each rank its own GPU only, that one.
    """
    n_gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and n_gpus == 0:
        raise InputError("key 'parallel.device': cuda asked for, but torch sees no GPU; use cpu or auto")
    if n_gpus == 0:
        return torch.device("cpu")
    own = n_gpus == 1 and (source == "Slurm" or source in MPI)  # else `exchange_places` finds two ranks on a GPU
    if local_rank >= n_gpus and not own:
        raise InputError(
            f"local rank {local_rank} has no GPU of its own ({n_gpus} here); start {n_gpus} ranks per node"
        )
    index = 0 if own else local_rank
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def start_group(env: Env, config: ParallelConfig, run: Run, key: str = KEY) -> tuple[Env, dict[str, str]]:
    """Start the process group, of this rank alone if there are no others; MachineError if the ranks do not meet.

    Returns the environment with the store where they have met, and variables that were set for the group.
    """
    store: dist.Store = dist.HashStore()
    limit_s, variables = config.timeout_s + WATCHDOG_FIRST_S, dict[str, str]()
    if env.world > 1:
        speaks = env.local_rank == 0 or env.rank == 1
        met = Rendezvous(env.rank, env.world, run, config.rendezvous_timeout_s, key, speaks=speaks).meet()
        store = met.store
        store.set_timeout(timedelta(seconds=limit_s))
        interface = interface_for(env.rank, met.hosts, met.addresses)
        if env.backend == "gloo" and INTERFACE not in os.environ and interface is not None:
            variables[INTERFACE] = interface  # gloo's own choice, that of the host name, may be the loopback
            os.environ.update(variables)
    name = INTERFACE if env.backend == "gloo" else "NCCL_SOCKET_IFNAME"
    within = min(limit_s, config.rendezvous_timeout_s)
    unreached = (
        f"rank {env.rank} of {env.world} met the others, but {env.backend} did not reach all of them in {within:g} s: "
        f"one has gone, or {name}={os.environ.get(name, '')} must be set to the network interface by which nodes reach "
        "each other"
    )
    with deadline(within, env.rank, "", unreached):
        try:
            dist.init_process_group(
                env.backend,
                store=store,
                rank=env.rank,
                world_size=env.world,
                timeout=timedelta(seconds=limit_s),
                device_id=env.device if env.device.type == "cuda" else None,
            )
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise MachineError(f"{unreached} ({' '.join(str(error).split())[:200]})") from error
    return replace(env, store=store), variables


def exchange_places(env: Env, threads: int | None) -> Cores:
    """The ranks tell each other where they are, and rank 0 of a launcher's ranks prints it.

    Returns the cores that this rank, of so many threads, is to be bound to; none on GPUs or for `threads` None.
    InputError if two ranks have the same GPU.
    """
    own = (socket.gethostname(), str(env.device), gpu_identity(env.device), allowed_cores())
    found = [own] * env.world
    if env.world > 1:
        dist.all_gather_object(found, own)
    hosts, _, _, allowed = zip(*found, strict=True)
    cores: list[Cores] = [()] * env.world
    if threads is not None and env.device.type == "cpu":
        cores = shares(hosts, allowed, threads)
    if env.source != ALONE.source:
        env.say(ranks_line(env, [(host, device) for host, device, _, _ in found]) + binding_text(cores))
    seen: dict[tuple[str, str], int] = {}
    for rank, (host, device, gpu, _) in enumerate(found):
        if gpu and seen.setdefault((host, gpu), rank) != rank:
            if not env.is_main:
                raise SystemExit(EXIT_INPUT)
            other = seen[host, gpu]
            raise InputError(
                f"ranks {other} and {rank} have the same GPU ({device} of {host}); start fewer ranks per node"
            )
    return cores[env.rank]


def gpu_identity(device: torch.device) -> str:
    """What no other GPU of the machine has; empty for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def ranks_line(env: Env, found: Sequence[tuple[str, str]]) -> str:
    """One line for (host, device) of all ranks."""
    if env.world == 1:
        return f"ranks: 1 ({env.source}) on {env.device}, {env.backend or 'no process group'}"
    nodes: dict[str, list[int]] = {}
    for rank, (host, _) in enumerate(found):
        nodes.setdefault(host, []).append(rank)
    parts = [f"{host}: {spans(ranks)} on {devices(found, ranks)}" for host, ranks in nodes.items()]
    more = f"; and {len(parts) - NODES_SHOWN} nodes more" if len(parts) > NODES_SHOWN else ""
    plural = "s" if len(nodes) > 1 else ""
    start = f"ranks: {env.world} from {env.source} on {len(nodes)} node{plural}, {env.backend}"
    return f"{start}; {'; '.join(parts[:NODES_SHOWN])}{more}"


def devices(found: Sequence[tuple[str, str]], ranks: Sequence[int]) -> str:
    """`cpu`, or `cuda:0-3`."""
    names = [found[rank][1] for rank in ranks]
    numbers = [int(name.partition(":")[2]) for name in names if ":" in name]
    return f"cuda:{spans(numbers)}" if len(numbers) == len(names) else ", ".join(sorted(set(names)))


# --------------------------- cores of each rank: left to itself, a scheduler may keep two ranks on one core for seconds


Cores = tuple[int, ...]


def allowed_cores() -> Cores:
    """Cores that this process may run on, ascending; empty where the system does not say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def shares(hosts: Sequence[str], allowed: Sequence[Cores], threads: int) -> list[Cores]:
    """Each rank's cores, of ranks on `hosts` that may run on `allowed`; empty for ranks that are left as they are.

    The ranks of a host split its cores evenly, in order. They are left alone if there are fewer cores than threads, or
    if a launcher has bound them: then they do not all have the same cores, or are one a host.
    """
    found: list[Cores] = [()] * len(hosts)
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, other in enumerate(hosts) if other == host]
        cores = allowed[ranks[0]]
        if len(ranks) == 1 or any(allowed[rank] != cores for rank in ranks) or len(cores) < len(ranks) * threads:
            continue
        for place, rank in enumerate(ranks):
            found[rank] = cores[place * len(cores) // len(ranks) : (place + 1) * len(cores) // len(ranks)]
    return found


@contextmanager
def bound(cores: Cores) -> Iterator[None]:
    """This thread, and those that it starts, on `cores` (empty: wherever it may) for the time of the context."""
    before = allowed_cores()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)


def binding_text(found: Sequence[Cores]) -> str:
    """What was bound, for the line that says where ranks are."""
    sizes = sorted({len(cores) for cores in found if cores})
    if not sizes:
        return ""
    return f"; each bound to {sizes[0]}{f'-{sizes[-1]}' if len(sizes) > 1 else ''} core{'s' if sizes[-1] > 1 else ''}"
