"""Searches are bounded in memory whatever the data: events whose hits all lie at one place."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.cluster import DBSCAN

from hpctrack.config import Named
from hpctrack.errors import MachineError
from hpctrack.tracking import builder, dbscan, radius_builder
from hpctrack.tracking.builders import build_builder, choose, settings, tuning_counts

ROOM = 1_200_000_000  # bytes that a search may take beyond what the process has; all pairs would take ten times that
N = 30_000


@pytest.fixture
def little_memory():
    """More than ROOM is refused to this process."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def collapsed(*names: str) -> dict[str, np.ndarray]:
    return {name: np.full((N, 4), 3.0, np.float32) for name in names}


def test_tuning_takes_a_radius_that_can_be(little_memory, monkeypatch):
    monkeypatch.setattr(builder, "PAIRS_ALWAYS", 1 << 16)
    monkeypatch.setattr(builder, "PAIRS_PER_HIT", 500)
    n = 2000
    apart = np.arange(30, dtype=np.float32).repeat(4)[:, None] * np.ones(4, np.float32)
    good = {"user": apart, "influencer": apart}
    particle = np.arange(30).repeat(4)
    near = {
        name: values[:n] + np.linspace(0, 0.6, n, dtype=np.float32)[:, None]
        for name, values in collapsed(*good).items()
    }
    events = [(good, particle, np.ones(30, bool)), (near, np.full(n, -1), np.zeros(0, bool))]
    config = Named(name="radius")
    counts = tuning_counts(config, events)
    chosen = settings(config).index(choose(config, counts))
    assert 0 < counts[:, 4].sum() < len(counts) and counts[chosen, 4] == 0
    assert choose(config, tuning_counts(config, [(collapsed("user", "influencer"), particle[:0], np.zeros(0, bool))]))


@pytest.mark.parametrize("name", ["radius", "radius_graph"])
def test_a_result_that_cannot_be_held_is_one_line(name, little_memory):
    outputs = collapsed("user", "influencer", "embedding")
    with pytest.raises(MachineError, match=r"event 7: .* pairs of 30000 hits are within builder.radius=0.5"):
        build_builder(Named(name=name, radius=0.5)).build(outputs, np.arange(N), N, 7)


def test_pairs_that_are_few_are_not_counted_first():
    """A count takes as long as the search; where a sample leaves doubt, it is made."""
    rng = np.random.default_rng(2)
    apart = rng.normal(size=(2 * radius_builder.SAMPLE, 4)).astype(np.float32)
    crowd = apart.copy()
    crowd[np.arange(len(crowd)) % 8 < 3] = 3.0  # at one place
    for points, counted in ((apart, False), (crowd, True)):
        trees = [CountedTree(points), CountedTree(points)]
        radius_builder.check_radius(trees, 0.05)
        assert bool(trees[0].counts) is counted
        near = radius_builder.search(trees, 0.05)
        assert near.nnz == trees[0].count_neighbors(trees[1], 0.05)


class CountedTree(cKDTree):
    """Knows how often its pairs were counted."""

    counts = 0

    def count_neighbors(self, *args):
        self.counts += 1
        return super().count_neighbors(*args)


def test_dbscan_in_chunks_is_dbscan(monkeypatch):
    monkeypatch.setattr(dbscan, "CHUNK", 500)
    rng = np.random.default_rng(1)
    for seed in range(4):
        points = np.concatenate([rng.normal(size=(300, 3)), rng.normal(size=(300, 3)) * 0.2])
        for eps, least in ((0.15, 2), (0.3, 4), (0.5, 10)):
            expected = DBSCAN(eps=eps, min_samples=least, algorithm="kd_tree").fit_predict(points)
            assert np.array_equal(dbscan.labels_in_chunks(dbscan.cKDTree(points), eps, least), expected), (seed, eps)
