"""Searches, sums over pairs and building on the device against the CPU's, on large events."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpctrack.benchmarks.measure import embeddings, tracks
from hpctrack.config import Named
from hpctrack.graphs.cells import nearest_rows
from hpctrack.graphs.neighbours import cell_blocks, near_blocks, nearest, radius_pairs
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.tracking.builders import build_builder


@pytest.fixture(scope="module", params=[1.0, 0.02], ids=["trained", "collapsed"])
def event(request, large):
    n = large if request.param == 1 else large // 8  # all pairs of a collapsed event are near
    track = tracks(n)
    return torch.from_numpy(track), *map(torch.from_numpy, embeddings(track, 8, copies=2, scale=request.param))


def sorted_pairs(chunks, n: int) -> torch.Tensor:
    return torch.cat([torch.minimum(i, j) * n + torch.maximum(i, j) for i, j in chunks]).sort().values.cpu()


def test_pairs_within_a_radius(device, event):
    _, _, x = event
    radius = 0.5 if float(x.std()) > 0.2 else 0.01
    here = sorted_pairs(radius_pairs(x, None, radius), len(x))
    assert torch.equal(sorted_pairs(radius_pairs(x.to(device), None, radius), len(x)), here) and len(here)


def test_nearest_neighbours(device, event):
    _, x, _ = event
    there, exists = nearest(x.to(device), [len(x) // 3, len(x) - len(x) // 3], 16)
    here, _ = nearest(x, [len(x) // 3, len(x) - len(x) // 3], 16)
    distance = [(x[rows] - x.unsqueeze(1)).square().sum(2) for rows in (there.cpu(), here)]
    assert exists.all()
    torch.testing.assert_close(distance[0], distance[1], rtol=1e-5, atol=1e-9)
    rows = nearest_rows(x.to(device), 16).cpu()
    assert torch.equal(rows, nearest_rows(x, 16))  # fp32 on both, ties by row: bit for bit


def test_sums_of_hinges(device, event):
    track, user, influencer = event
    group = torch.where(track < 0, torch.arange(len(track)) + len(track), track)
    found = []
    for where in (torch.device("cpu"), device):
        u, v = (x.clone().to(where).requires_grad_() for x in (user, influencer))
        a, b = Points(u, group.to(where)), Points(v, group.to(where))
        sums = [hinge_sum(a, b, 1.0, squared=True), hinge_sum(b, None, 1.0)]
        sum(total for total, _ in sums).backward()
        found.append(([total.item() for total, _ in sums], [n for _, n in sums], u.grad.cpu(), v.grad.cpu()))
    here, there = found
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    assert there[1] == pytest.approx(here[1], rel=1e-6)  # a pair at the margin may be on either side
    for a, b in zip(here[2:], there[2:], strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-4


@pytest.mark.cuda
def test_a_search_prunes(device, large):
    """All pairs of 120,000 hits are 7 * 10^9: looked at one by one they would take seconds, and lists of few GiB."""
    x = torch.from_numpy(embeddings(tracks(large), 8)[0]).to(device)
    seconds = {}
    for n in (large // 4, large):
        part = x[:n]
        for _ in range(2):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            pairs = sum(len(block.rows) for block in near_blocks(part, None, 1.0) if block.listed)
            end.record()
            torch.cuda.synchronize()
            seconds[n] = start.elapsed_time(end) / 1000
        assert pairs
    assert seconds[large] < 1.0 and seconds[large] < 12 * seconds[large // 4]


@pytest.mark.parametrize("around", ["influencers", "users"])
def test_building(device, large, around):
    track = tracks(large)
    user, influencer = embeddings(track, 8, copies=2)
    builder = build_builder(Named(name="radius", radius=0.5, around=around))
    outputs = {"user": user, "influencer": influencer}
    here = builder.build(outputs, np.arange(large), large, 1)
    tensors = {name: torch.from_numpy(value).to(device) for name, value in outputs.items()}
    there = builder.build_on_device(tensors, np.arange(large), large, 1)
    for name in ("hit_offsets", "hit_rows"):
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert np.allclose(here.scores, there.scores, rtol=1e-6, atol=1e-7)
    assert (here.track_ids == there.track_ids).mean() > 0.9999


def test_cells_hold_every_pair_that_is_near(device, event):
    _, _, x = event
    x, radius = x.to(device), 0.3 if float(x.std()) > 0.2 else 0.01
    held = torch.zeros(len(x), dtype=torch.long, device=device)
    for block in cell_blocks(x, x, radius):
        near = block.listed or block.shape == "rectangle"
        assert near
        if block.listed:
            inside = ((x[block.rows] - x[block.cols]).square().sum(1) < radius**2).long()
            held.index_add_(0, block.rows, inside)
        else:
            held.index_add_(0, block.rows, (torch.cdist(x[block.rows], x[block.cols]) < radius).sum(1))
    some = torch.arange(0, len(x), max(1, len(x) // 500), device=device)
    exact = "donot_use_mm_for_euclid_dist"
    brute = (torch.cdist(x[some], x, compute_mode=exact) < radius).sum(1)
    assert (held[some] - brute).abs().float().mean() < 0.01  # but for rounding at the radius
