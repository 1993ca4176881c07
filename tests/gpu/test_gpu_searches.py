"""Searches, sums over pairs and building on the device against the CPU's, on large events."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpctrack.benchmarks.measure import embeddings, tracks
from hpctrack.config import Named
from hpctrack.graphs.cells import nearest_rows
from hpctrack.graphs.neighbours import cell_blocks, near_blocks, nearest, radius_pairs
from hpctrack.graphs.passed import EdgeTensors, PassedEdges
from hpctrack.graphs.stored import StoredEdges
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.storage.schema import Event
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


BUILDERS = {
    "radius influencers": {"radius": 0.5},
    "radius users": {"radius": 0.5, "around": "users"},
    "greedy": {"radius": 0.5},
    "condensation": {"radius": 0.5, "beta_min": 0.1},
    "components": {"cut": 0.5},
    "walk": {"cut": 0.5},
    "edges": {"cut": 0.5},
    "radius_graph": {"radius": 0.2},
}


@pytest.fixture(scope="module")
def outputs(large):
    """Of a trained model, on hits and on the edges of a graph from which a walk has to choose."""
    track, rng = tracks(large), np.random.default_rng(3)
    user, influencer = embeddings(track, 8, copies=2)
    by_track = np.argsort(track, kind="stable")
    chains = np.stack([by_track[:-1], by_track[1:]])
    ends = np.concatenate([chains, rng.integers(0, large, (2, 2 * large))], axis=1)
    place = np.argsort(by_track)  # edges lead to hits further behind: there is no circle
    ends = np.where(place[ends[0]] < place[ends[1]], ends, ends[::-1])[:, ends[0] != ends[1]]
    true = (track[ends[0]] == track[ends[1]]) & (track[ends[0]] >= 0)
    score = np.where(true, 3, -3) + rng.normal(0, 1.5, len(true))
    found = {"user": user, "influencer": influencer, "embedding": user, "edge_index": ends}
    return found | {"beta": rng.normal(0, 2, large).astype("f4"), "edge_score": score.astype("f4")}


@pytest.mark.parametrize("builder", BUILDERS)
def test_building(device, large, outputs, builder):
    built = build_builder(Named(name=builder.split()[0], **BUILDERS[builder]))
    here = built.build(outputs, np.arange(large), large, 1)
    tensors = {name: torch.from_numpy(value).to(device) for name, value in outputs.items()}
    there = built.build_on_device(tensors, np.arange(large), large, 1)
    if isinstance(there, EdgeTensors):
        assert there.score.device.type == device.type
        there = there.stored()
        assert np.array_equal(here.sender, there.sender) and np.array_equal(here.receiver, there.receiver)
        assert len(here) and np.allclose(here.score, there.score, rtol=1e-4, atol=1e-6)
        return
    assert len(here) > large / 100
    for name in ("hit_offsets", "hit_rows"):
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert np.allclose(here.scores, there.scores, rtol=1e-6, atol=1e-7)
    assert (here.track_ids == there.track_ids).mean() > 0.9999


@pytest.mark.parametrize("name", ["greedy", "condensation"])
def test_building_where_all_hits_lie_together(device, large, name):
    """As in a model that has not been trained; all pairs are near, and the first seed takes every hit."""
    config = Named(name=name, radius=0.5, **({"beta_min": 0.1} if name == "condensation" else {}))
    outputs = {"embedding": torch.full((large, 8), 3.0, device=device), "beta": torch.ones(large, device=device)}
    found = build_builder(config).build_on_device(outputs, np.arange(large), large, 1)
    assert len(found) == 1 and len(found.hit_rows) == large and (found.track_ids == 1).all()


def test_edges_stay_between_stages(device, large, outputs):
    """They are where they were found, and the next stage sees of them what it would see of those on the host."""
    rng = np.random.default_rng(5)
    place = {name: rng.uniform(0, 1000, large).astype("f4") for name in ("r", "z")}
    event = Event(1, {"hits": place})
    rows, graph = np.arange(0, large, 2), PassedEdges(StoredEdges.Options(edges="none", score_min=0.3))
    tensors = {name: torch.from_numpy(outputs[name]).to(device) for name in ("edge_index", "edge_score")}
    graph.found = build_builder(Named(name="edges", cut=0.1)).build_on_device(tensors, np.arange(large), large, 1)
    there = graph(event, rows)
    graph.found = graph.found.stored()
    here = graph(event, rows)
    assert there.device.type == device.type and here.shape[1]
    assert np.array_equal(there.cpu().numpy(), here)


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
