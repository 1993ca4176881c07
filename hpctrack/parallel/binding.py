"""Ranks on CPUs get cores of their own, as they do from launchers that bind.

Left to itself, a scheduler may keep two ranks on one core for seconds while another core idles; every step then waits
for the slower of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
