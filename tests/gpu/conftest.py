"""Tests on an accelerator. Without one they are skipped; HPCTRACK_GPU_REHEARSAL=1 runs what can be run on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REHEARSAL = os.environ.get("HPCTRACK_GPU_REHEARSAL") == "1"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what has no device; in a rehearsal, what only a GPU can show."""
    if torch.cuda.is_available() and not REHEARSAL:
        return
    none = pytest.mark.skip(reason="torch sees no GPU; HPCTRACK_GPU_REHEARSAL=1 runs these tests on the CPU")
    cuda = pytest.mark.skip(reason="a rehearsal on the CPU cannot show this: it needs a GPU")
    for item in items:
        if HERE in item.path.parents and not (REHEARSAL and not item.get_closest_marker("cuda")):
            item.add_marker(cuda if REHEARSAL else none)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or in a rehearsal the CPU."""
    return torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)


@pytest.fixture(scope="session")
def large(device: torch.device) -> int:
    """Hits of a large event; few in a rehearsal."""
    return 800 if device.type == "cpu" else 120_000
