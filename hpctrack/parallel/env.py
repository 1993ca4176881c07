"""Who am I among the ranks: rank, world size, device and process group, from torchrun or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hpctrack.config import ParallelConfig
from hpctrack.errors import InputError


@dataclass(frozen=True)
class Env:
    """This rank's place: `rank` of `world`, its `device`, the backend of its process group (None: no group)."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    backend: str | None
    source: str

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
INIT_METHOD = "HPCTRACK_INIT_METHOD"  # in place of an address: where ranks meet, e.g. file:///shared/folder/file


@contextmanager
def distributed(config: ParallelConfig, threads: int | None) -> Iterator[Env]:
    """The rank's environment for the time of a run; starts and ends the process group where there are ranks.

    Raises InputError for a half-set torchrun environment or a device that is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    env = discover(config)
    if env.backend is None:
        yield env
        return
    dist.init_process_group(
        env.backend,
        init_method=os.environ.get(INIT_METHOD, "env://"),
        rank=env.rank,
        world_size=env.world,
        timeout=timedelta(seconds=config.timeout_s),
        device_id=env.device if env.device.type == "cuda" else None,
    )
    yield env
    dist.destroy_process_group()  # not after an error: other ranks may still wait in a collective


def discover(config: ParallelConfig) -> Env:
    """Read torchrun's variables, choose the device; no process group is started."""
    needed = VARIABLES + (() if INIT_METHOD in os.environ else ADDRESS)
    present = [name for name in needed if name in os.environ]
    launched = "RANK" in present or "WORLD_SIZE" in present
    if launched and len(present) < len(needed):
        missing = ", ".join(name for name in needed if name not in present)
        raise InputError(f"environment: {', '.join(present)} set but not {missing}; start with torchrun")
    rank, world, local = (int(os.environ[name]) for name in VARIABLES) if launched else (0, 1, 0)
    device = choose_device(config.device, local)
    backend = ("nccl" if device.type == "cuda" else "gloo") if launched and world > 1 else None
    return Env(rank, world, local, device, backend, "torchrun" if launched else "single process")


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """`cuda:local_rank` where there are GPUs (or they are asked for), else the CPU."""
    n_gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and n_gpus == 0:
        raise InputError("key 'parallel.device': cuda asked for, but torch sees no GPU; use cpu or auto")
    if n_gpus == 0:
        return torch.device("cpu")
    if local_rank >= n_gpus:
        raise InputError(
            f"local rank {local_rank} has no GPU of its own ({n_gpus} here); start {n_gpus} ranks per node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
