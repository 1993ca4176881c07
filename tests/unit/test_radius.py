"""The fixed-radius search against brute force: every path, every block size, points that are hard."""

from __future__ import annotations

import pytest
import torch

from hpctrack.graphs import neighbours
from hpctrack.graphs.neighbours import radius_pairs


def points(n: int, seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return spread * torch.rand(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def found(query: torch.Tensor, point: torch.Tensor | None, r: float) -> list[tuple[int, int]]:
    chunks = [torch.stack(pair, 1) for pair in radius_pairs(query, point, r)]
    return sorted(map(tuple, torch.cat(chunks).tolist())) if chunks else []


@pytest.fixture(params=[(8192, 0.0), (8192, 1.0), (16, 0.0), (16, 1.0), (16, 0.02)], ids=str)
def path(request, monkeypatch):
    """Block sizes, and the share above which a rectangle is computed whole (0: always, 1: never)."""
    monkeypatch.setattr(neighbours, "BLOCK", request.param[0])
    monkeypatch.setattr(neighbours, "DENSE_SHARE", request.param[1])
    monkeypatch.setattr(neighbours, "TILE", {"cpu": (7, 11)})


@pytest.mark.parametrize("spread", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_are_those_of_brute_force_on_every_path(path, spread, dtype):
    a, b = points(53, 0, spread, dtype), points(61, 1, spread, dtype)
    r = 0.3 * spread
    square = sum((a[:, None, e] - b[None, :, e]) ** 2 for e in range(3))
    assert found(a, b, r) == sorted(map(tuple, (square < r * r).nonzero().tolist()))
    own = sum((a[:, None, e] - a[None, :, e]) ** 2 for e in range(3))
    once = {tuple(sorted(pair)) for pair in found(a, None, r)}
    assert len(once) == len(found(a, None, r))
    assert sorted(once) == sorted(map(tuple, (own < r * r).triu(1).nonzero().tolist()))


def test_pairs_at_the_radius_are_decided_alike(monkeypatch):
    grid = torch.cartesian_prod(*[torch.arange(5) * 0.1] * 3)  # many distances that are the radius but for rounding
    results = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(neighbours, "DENSE_SHARE", share)
        results.append(found(grid, grid + 0.1, 0.3))
    assert results[0] == results[1]


@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_few_points(path, m, n):
    assert len(found(points(m, 0), points(n, 1), 10.0)) == m * n
    assert found(points(m, 0), None, 10.0) == [] if m < 2 else True


def test_points_that_are_not_finite_are_near_to_nothing():
    a = points(5, 0)
    a[2] = torch.nan
    assert {m for m, _ in found(a, points(4, 1), 10.0)} == {0, 1, 3, 4}
