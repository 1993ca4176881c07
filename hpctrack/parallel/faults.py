"""What becomes of the other ranks when one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from hpctrack.errors import MachineError

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
