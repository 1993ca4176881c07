"""What launchers tell a process in environment variables: torchrun, DeepSpeed, Slurm, MPI; and which network interface
leads to the other machines. No torch, no MPI in here.
"""

from __future__ import annotations

import fcntl
import ipaddress
import re
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctrack.errors import InputError

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
INIT_METHOD = "HPCTRACK_INIT_METHOD"  # in place of an address: where ranks meet, e.g. file:///shared/folder/file
ENVIRONMENT = "environment"  # source of a place that no launcher gave: the parent may be a shell, and may end
MPI = {  # rank, number of ranks, rank on the node; the first that has a rank and a number counts
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    "Cray PALS": ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
FIRST_PORT, PORTS = 20000, 10000  # of jobs that have no other way to agree on one


@dataclass(frozen=True)
class Place:
    """`rank` of `world` as `source` says; `local_rank` on its node and rank 0's `address` and `port` where known."""

    source: str
    rank: int
    world: int
    local_rank: int | None = None
    address: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.source} says rank {self.rank} of {self.world}"


def find_place(environ: Mapping[str, str]) -> Place | None:
    """This process' place, from the innermost launcher that started it; None if there was none.

    torchrun and the DeepSpeed launcher start processes of their own, so they win over the launcher that started them
    (srun, mpirun), and mpirun over srun. RANK and WORLD_SIZE that somebody else has set must agree with a launcher.
    Raises InputError for variables that are half set or contradict each other.
    """
    by_hand, mpi, slurm = from_torch(environ), from_mpi(environ), from_slurm(environ)
    if by_hand is not None:
        for other in (mpi, slurm) if by_hand.source == ENVIRONMENT else ():
            if other is not None and (other.rank, other.world) != (by_hand.rank, by_hand.world):
                raise InputError(f"{by_hand} (RANK, WORLD_SIZE), but {other}; unset one of them")
        return by_hand
    if mpi is not None and slurm is not None:
        if (mpi.rank, mpi.world) == (slurm.rank, slurm.world):
            return slurm  # srun --mpi=…: it knows an address, too
        if mpi.world == slurm.world:
            raise InputError(f"environment: {mpi}, but {slurm}; start with srun or with mpirun, not with both")
    return mpi or slurm


def from_torch(environ: Mapping[str, str]) -> Place | None:
    """The place in RANK, WORLD_SIZE, LOCAL_RANK and the address beside them."""
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return None
    needed = TORCH + (() if INIT_METHOD in environ else ADDRESS)
    missing = [name for name in needed if name not in environ]
    if missing:
        given = ", ".join(name for name in needed if name in environ)
        raise InputError(f"environment: {given} set but not {', '.join(missing)}; start with torchrun")
    rank, world, local = (number(environ, name) for name in TORCH)
    source = ENVIRONMENT
    if "TORCHELASTIC_RUN_ID" in environ:
        source = "torchrun"
    elif "CROSS_RANK" in environ:
        source = "deepspeed"
    return placed(source, rank, world, local, environ)


def from_mpi(environ: Mapping[str, str]) -> Place | None:
    """The place that mpirun, mpiexec or aprun give."""
    for source, (rank, world, local) in MPI.items():
        if rank in environ and world in environ:
            local_rank = number(environ, local) if local in environ else None
            return placed(source, number(environ, rank), number(environ, world), local_rank, environ)
    return None


def from_slurm(environ: Mapping[str, str]) -> Place | None:
    """The place of a task that srun started; a batch script and what it starts without srun are no such tasks."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, world = number(environ, "SLURM_PROCID"), number(environ, "SLURM_STEP_NUM_TASKS")
    local = number(environ, "SLURM_LOCALID") if "SLURM_LOCALID" in environ else None
    return placed("Slurm", rank, world, local, environ)


def placed(source: str, rank: int, world: int, local: int | None, environ: Mapping[str, str]) -> Place:
    """A place with the address that is set; InputError for a rank that cannot be."""
    if not 0 <= rank < world:
        raise InputError(f"environment: {source} says rank {rank} of {world}; ranks go from 0 to {world - 1}")
    port = number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else None
    return Place(source, rank, world, local, environ.get("MASTER_ADDR"), port=port)


def number(environ: Mapping[str, str], name: str) -> int:
    """The variable as a whole number; InputError names it otherwise."""
    if not re.fullmatch("[0-9]{1,9}", environ[name]):
        raise InputError(f"environment: {name}='{environ[name]}' is not a whole number; unset it or correct it")
    return int(environ[name])


def step_id(environ: Mapping[str, str], source: str) -> str:
    """What the launcher calls what it has started, the same for all of its ranks; empty if it does not say."""
    names = {"torchrun": ("TORCHELASTIC_RUN_ID",), "Slurm": ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")}
    return ".".join(environ.get(name, "") for name in names.get(source, ()))


# ------------------------------------------------------------------------------------------------ Slurm


def slurm_rendezvous(environ: Mapping[str, str]) -> tuple[str, int]:
    """Where the tasks of a job step meet: an address of the step's first node, and a port that follows from its ids."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    job, restart, step = (int(re.sub(r"\D", "", environ.get(name, "")) or 0) for name in names)
    port = FIRST_PORT + (31 * job + 7 * restart + step) % PORTS  # another one at each try
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1", port
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        raise InputError("environment: Slurm names no nodes (SLURM_STEP_NODELIST); set MASTER_ADDR to that of rank 0")
    return node_address(first_node(nodes)), port


def first_node(nodes: str) -> str:
    """First name of a Slurm node list: `n[03-05,9],m1` -> `n03`; several brackets a name are allowed."""
    depth, end = 0, len(nodes)
    for position, character in enumerate(nodes):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            end = position
            break
    name = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes[:end])
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"environment: no node name in Slurm's node list '{nodes}'; set MASTER_ADDR to that of rank 0")
    return name


def node_address(name: str) -> str:
    """The name if it resolves, else the address that Slurm itself has for this node."""
    try:
        socket.getaddrinfo(name, None)
        return name
    except OSError:
        pass
    try:
        command = ["scontrol", "show", "node", name]
        shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    if found is None or found[1] == name:
        raise InputError(f"node name '{name}' does not resolve, and Slurm has no address for it; set MASTER_ADDR")
    return found[1]


# -------------------------------------- network interfaces: gloo takes that of the host name, which may be the loopback


SIOCGIFADDR = 0x8915  # the IPv4 address of an interface, see netdevice(7)
ELSEWHERE = "192.0.2.1"  # RFC 5737: nobody's; the way to it is that to everybody who is not known better


def address_towards(target: str) -> str | None:
    """This machine's address on the way to `target`, a name or an address; None if there is no way. Sends nothing."""
    try:
        found = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return None


def is_loopback(address: str | None) -> bool:
    """Whether nobody else can reach this machine there."""
    return address is None or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_of(address: str) -> str | None:
    """Name of the interface that has `address`; None if none says so."""
    if ":" in address:
        wanted = ipaddress.ip_address(address.partition("%")[0]).packed.hex()
        table = Path("/proc/net/if_inet6")
        lines = table.read_text().split("\n") if table.exists() else []
        return next((line.split()[-1] for line in lines if line.startswith(wanted)), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def interface_for(rank: int, hosts: Sequence[str], addresses: Sequence[str | None]) -> str | None:
    """The interface by which `rank` reaches the other machines; None if all ranks are on one, or it cannot be told.

    `addresses`: each rank's own on its way to where the ranks have met. For a rank that was there already this may be
    the loopback; then it is that on the way to another machine.
    """
    if len(set(zip(hosts, addresses, strict=True))) == 1:
        return None
    own = addresses[rank]
    if is_loopback(own):
        others = [address for address in addresses if not is_loopback(address)]
        own = address_towards(str(others[0])) if others else None
    return None if own is None or is_loopback(own) else interface_of(own)
