"""Searches by sorted cells against brute force, bit for bit: points that are hard, and every way through the search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.benchmarks.measure import embeddings, tracks
from hpctrack.config import Named
from hpctrack.errors import MachineError
from hpctrack.graphs import cells, neighbours
from hpctrack.graphs.cells import nearest_rows, square_distance
from hpctrack.graphs.neighbours import cell_blocks
from hpctrack.losses import pairs
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.testing.builder_contract import check_same, on_tensors
from hpctrack.tracking import builder as tracking_builder
from hpctrack.tracking.builders import build_builder

KINDS = ("even", "clusters", "lattice", "duplicates", "one place", "line", "huge", "tiny", "one far")


@pytest.fixture(autouse=True, scope="module")
def small():
    """Few pairs and queries at a time, and no event too small to be searched."""
    patch = pytest.MonkeyPatch()
    for name, value in (("PAIRS", {"cpu": 300}), ("QUERIES", 37), ("FEW", 200), ("SAMPLE", 5)):
        patch.setattr(cells, name, value)
    patch.setattr(neighbours, "TILE", {"cpu": (23, 31)})
    yield
    patch.undo()


def points(kind: str, n: int, dimensions: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dimensions, generator=draw, dtype=dtype)
    some = torch.randint(0, 4, (n,), generator=draw)
    return {
        "even": lambda: x,
        "clusters": lambda: some.unsqueeze(1) * 0.7 + 0.05 * x,
        "lattice": lambda: (4 * x).round() / 4,  # ties, and pairs at the radius but for rounding
        "duplicates": lambda: x[some % max(1, min(4, n))] if n else x,
        "one place": lambda: x * 0 + 3,
        "line": lambda: x[:, :1] * torch.ones(dimensions, dtype=dtype),
        "huge": lambda: 1e30 * (x - 0.5) * (some > 0).unsqueeze(1) + x,
        "tiny": lambda: 1e-20 * x,
        "one far": lambda: x + 1e18 * (torch.arange(n) == 1).unsqueeze(1),
    }[kind]()


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return square_distance(a.T.unsqueeze(2), b.T)


def nearest_by_sorting(query: torch.Tensor, point: torch.Tensor, k: int) -> torch.Tensor:
    return distances(query, point).sort(dim=1, stable=True).indices[:, :k]


def near(a: torch.Tensor, b: torch.Tensor | None, r: float) -> list[tuple[int, int]]:
    found, other = [], a if b is None else b
    for block in cell_blocks(a, b, r):
        inside = neighbours.block_square_distance(a[block.rows], other[block.cols], block) < r * r
        inside = inside.triu(1) if block.shape == "triangle" else inside
        i, j = inside.nonzero().T if not block.listed else inside.nonzero().expand(-1, 2).T
        found += list(zip(block.rows[i].tolist(), block.cols[j].tolist(), strict=True))
    return sorted(found)


numbers = {"n": st.integers(0, 70), "dimensions": st.integers(1, 7), "seed": st.integers(0, 10**6)}


@settings(max_examples=25)
@given(kind=st.sampled_from(KINDS), k=st.integers(1, 9), own=st.booleans(), **numbers)
def test_nearest_are_those_of_brute_force(kind, k, own, n, dimensions, seed):
    x = points(kind, n, dimensions, seed)
    query = x if own else points(kind, 31, dimensions, seed + 1)
    k = min(k, n)
    assert torch.equal(nearest_rows(x, k, None if own else query), nearest_by_sorting(query, x, k))


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    radius=st.sampled_from([1e-21, 0.05, 0.25, 0.5, 2.0]),
    double=st.booleans(),
    crowded=st.sampled_from([0.0, 0.5, 2.0]),
    **numbers,
)
def test_near_pairs_are_those_of_brute_force(kind, radius, double, crowded, n, dimensions, seed):
    dtype = torch.float64 if double else torch.float32
    a, b = points(kind, n, dimensions, seed, dtype), points(kind, 41, dimensions, seed + 1, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CROWDED", crowded)
        assert near(a, b, radius) == sorted(map(tuple, (distances(a, b) < radius * radius).nonzero().tolist()))
        own = [tuple(sorted(pair)) for pair in near(a, None, radius)]
    assert sorted(own) == sorted(map(tuple, (distances(a, a) < radius * radius).triu(1).nonzero().tolist()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(value):
    x = points("even", 50, 3, 0)
    x[7, 1] = value
    for search in (lambda: nearest_rows(x, 2), lambda: near(x, None, 0.3), lambda: near(x[:5], x, 0.3)):
        with pytest.raises(ValueError, match="not finite"):
            search()


def test_few_of_all_pairs_are_looked_at_and_few_at_a_time(monkeypatch):
    monkeypatch.setattr(cells, "PAIRS", {"cpu": 1 << 14})
    monkeypatch.setattr(cells, "QUERIES", 1 << 12)
    seen = []
    original = cells.Stretches.pairs
    monkeypatch.setattr(cells.Stretches, "pairs", lambda self: seen.append(int(self.size_MS.sum())) or original(self))
    per_point = {}
    for n in (500, 4000):
        x = points("even", n, 6, 1)[:, :4] * n**0.25  # as dense whatever their number
        seen.clear()
        near(x, None, 0.7)
        assert max(seen) <= 1 << 14
        per_point[n] = sum(seen) / n
    assert per_point[4000] < 2 * per_point[500] < 0.3 * 500


def test_sums_of_hinges_by_cells_are_those_by_trees(monkeypatch):
    found = []
    for blocks in (pairs.near_blocks, cell_blocks):
        monkeypatch.setattr(pairs, "near_blocks", blocks)
        x, y = (points("clusters", 90, 5, seed, torch.float64).requires_grad_() for seed in (0, 1))
        group = torch.arange(90) % 7
        for a, b in ((Points(x, group), None), (Points(x, group), Points(y, group))):
            total, count = hinge_sum(a, b, 0.8, squared=True)
            total.backward()
            found.append((total.item(), count, x.grad.clone()))
    for tree, cell in zip(found[:2], found[2:], strict=True):
        assert tree[1] == cell[1] and tree[0] == pytest.approx(cell[0], rel=1e-12)
        assert torch.allclose(tree[2], cell[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("around", "assign", "cut"), [("influencers", "nearest", 0.0), ("users", "best", 0.0), ("users", "nearest", 0.7)]
)
def test_building_in_torch_is_building_in_numpy(around, assign, cut, monkeypatch):
    monkeypatch.setattr(cells, "FEW", 0)
    builder = build_builder(Named(name="radius", radius=0.4, around=around, assign=assign, reach=0.9, cut=cut))
    rows = np.arange(300) * 2
    track = tracks(300, 0.2)
    user, influencer = embeddings(track, 5, copies=2, seed=4)
    hit_score = np.where(track % 5 == 1, -2.0, 3.0).astype(np.float32)[:, None]
    for kept in (300, 2, 0):
        outputs = {"user": user[:kept], "influencer": influencer[:kept], "hit_score": hit_score[:kept]}
        here = builder.build(outputs, rows[:kept], 600, 3)
        there = on_tensors(builder, outputs, rows[:kept], 600, 3)
        assert len(here) > 20 or kept < 300
        assert not cut or not (here.track_ids[rows[:kept]] > 0)[track[:kept] % 5 == 1].any()
        check_same(here, there)


def test_building_in_torch_refuses_too_many_pairs(monkeypatch):
    monkeypatch.setattr(tracking_builder, "PAIRS_ALWAYS", 1000)
    monkeypatch.setattr(tracking_builder, "PAIRS_PER_HIT", 10)
    crowd = {name: torch.zeros(300, 3) for name in ("user", "influencer")}
    with pytest.raises(MachineError, match=r"event 4: .* pairs of 300 hits are within builder.radius=0.5"):
        build_builder(Named(name="radius", radius=0.5)).build_on_device(crowd, np.arange(300), 300, 4)
