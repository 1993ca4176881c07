"""Graph networks under DDP: in every memory mode the ranks' summed gradient is that of one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from hpctrack.config import Named, ParallelConfig
from hpctrack.models import build_model
from hpctrack.parallel.env import distributed
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import FEATURES, toy_batch


def gradient(name: str, mode: str) -> list[np.ndarray]:
    """Gradient over two events, one a rank where there are two; one of three ranks has none."""
    torch.manual_seed(0)
    model = build_model(Named(name=name, width=8, iterations=3, chunk=7), FEATURES, mode).double()
    events = toy_batch(sizes=(4, 3), edges=3).to_data_list()
    with distributed(ParallelConfig(), 1) as env:
        run = torch.nn.parallel.DistributedDataParallel(model) if env.backend else model
        share = events[env.rank :: env.world] or [toy_batch(sizes=(0,), n_noise=0, edges=1)[0]]
        (run(Batch.from_data_list(share))["edge_score"].square().sum() * env.world).backward()
        return [p.grad.numpy().copy() for p in model.parameters()]


@pytest.mark.parametrize("mode", ["plain", "recompute", "nested", "chunks"])
def test_gradient_is_that_of_one_rank(mode):
    [expected] = run_ranks(1, gradient, "interaction", "plain")
    for found in run_ranks(3, gradient, "interaction", mode):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())
