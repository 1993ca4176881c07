"""The memory benchmark's graph, its passes in processes of their own, and its figures."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch

from hpctrack.benchmarks import measure, memory
from hpctrack.errors import MachineError


@pytest.fixture
def hits() -> torch.Tensor:
    rng = np.random.default_rng(0)
    n = 400
    r, phi, z = rng.uniform(0.03, 1, n), rng.uniform(-np.pi, np.pi, n), rng.uniform(-1, 1, n)
    columns = {
        "r": r,
        "phi": phi / np.pi,
        "cos_phi": np.cos(phi),
        "sin_phi": np.sin(phi),
        "z": z,
        "eta": np.arcsinh(z / r) / 4,
        "inverse_r": 0.03 / r,
    }
    return torch.tensor(np.stack([columns[name] for name in measure.FEATURES], axis=1), dtype=torch.float32)


def test_pairs_go_outward_and_are_distinct(hits):
    pairs = memory.near_pairs(hits, 3000)
    r = hits[:, 0]
    assert pairs.shape == (2, 3000)
    assert (r[pairs[1]] - r[pairs[0]] > memory.STEP_M).all()
    assert len(pairs.unique(dim=1).T) == 3000


def test_a_sector_has_about_the_edges_asked_for(hits):
    x, pairs = memory.sector(hits, memory.near_pairs(hits, 3000), 500)
    assert 500 <= pairs.shape[1] < 520  # the outermost hit may have several
    assert pairs.max() < len(x) < len(hits)
    assert (x[pairs[1], 0] > x[pairs[0], 0]).all()


def test_a_pass_has_a_process_of_its_own(hits, tmp_path, monkeypatch):
    event = memory.Event.write(tmp_path / "graph.pt", hits, memory.near_pairs(hits, 3000))
    model = {"name": "interaction", "width": 8, "iterations": 2}
    found = memory.passes(event, model, "chunks", repeats=2)
    assert found["peak"] >= found["before"] > 0.05
    assert len(found["seconds"]) == 2
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(MachineError, match="mode chunks on 3000 edges failed: exit code 1, out of memory?"):
        memory.passes(event, model, "chunks")


def test_figures_and_table():
    def one(peak: float, *seconds: float) -> memory.Pass:
        return {"before": 1.0, "peak": peak, "seconds": list(seconds)}

    found = {
        "plain": (one(9.0, 2.0, 2.0), one(60.0)),  # no room
        "recompute": (one(2.0, 2.5, 2.6), one(17.0, 30.0)),
        "nested": (one(1.8, 3.0, 3.0), one(9.0, 40.0)),
        "chunks": (one(1.5, 3.5, 3.6), one(4.0, 50.0)),
    }
    values = {figure.name: list(figure.values) for figure in memory.figures(found, "chunks", one(3.5, 20.0))}
    assert values == {
        "full_event_peak_gib": [9.0],
        "full_event_hardest_gib": [4.0],
        "peak_8_over_2": [1.2],
        "time_8_over_plain": [1.75, 1.8],
        "recompute_peak_ratio": [0.125],
        "recompute_time_ratio": [1.25, 1.3],
    }
    assert "| plain | 8.00 | 2.00 | 60.00 | 59.00 | predicted |" in memory.table("Title", found)
