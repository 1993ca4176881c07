"""The only place that imports mpi4py: the communicator of a launcher's processes, and where they can meet."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from hpctrack.errors import EXIT_INPUT, InputError
from hpctrack.parallel.launchers import from_mpi, from_slurm


def launched() -> tuple[int, int]:
    """(rank, number of ranks) that an MPI launcher (mpirun, mpiexec, srun) gave this process; (0, 1) without one."""
    places = [place for place in (from_mpi(os.environ), from_slurm(os.environ)) if place is not None]
    best = max(places, key=lambda place: place.world, default=None)
    return (best.rank, best.world) if best is not None else (0, 1)


def mpi_world(size: int, finalize: bool = True) -> Any:
    """The communicator of the `size` processes that a launcher started; with `finalize`, MPI is closed at any exit.

    If there is none, or of another size, rank 0 raises InputError and the others end with it, quietly.
    """
    try:
        try:
            import mpi4py

            mpi4py.rc.finalize = finalize
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # the latter: mpi4py is there, but finds no MPI library
            raise InputError(
                f"{size} processes were started by an MPI launcher, but mpi4py cannot be used ({error}): "
                "pip install 'hpctrack[mpi]' (and load the launcher's MPI), or start it without the launcher"
            ) from error
        world = MPI.COMM_WORLD
        if world.size != size:
            raise InputError(
                f"the launcher started {size} processes, but MPI sees {world.size}: mpi4py and the launcher must be "
                "of one MPI (with Slurm: srun --mpi=pmi2 or --mpi=pmix)"
            )
        return world
    except InputError as error:
        if launched()[0]:
            raise SystemExit(EXIT_INPUT) from error
        raise


def mpi_rendezvous(size: int) -> tuple[str, int, int]:
    """Rank 0's address and a free port of it, the same on all ranks, and this rank's number on its node.

    A process that fails leaves MPI open: closing it would wait for ranks that wait for this one, while the launcher
    ends them all. `mpi_end` closes it after a run without errors.
    """
    world = mpi_world(size, finalize=False)
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    meeting = None
    if world.rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        meeting = ("127.0.0.1" if node.size == size else socket.gethostname(), port)
    address, port = world.bcast(meeting)
    return address, port, node.rank


def mpi_end() -> None:
    """Close MPI at the end of a run without errors, if it was opened."""
    if "mpi4py.MPI" not in sys.modules:
        return
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()
