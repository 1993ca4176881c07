"""Candidates from scored edges: components, walks, densities; against slow forms of their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.testing import BuilderContract
from hpctrack.tracking.builders import build_builder, choose, tuning_counts
from hpctrack.tracking.edge_clustering import beside

NAMES = ["assignment", "components", "dbscan", "hdbscan", "hopfield", "walk"]


class TestBuilders(BuilderContract):
    @pytest.fixture(params=NAMES)
    def config(self, request):
        self.outputs = {"edge_score": 1}
        return Named(name=request.param, cut=0.5)


def logit(probability):
    probability = np.asarray(probability, dtype=np.float64)
    return np.log(probability / (1 - probability))


def chains(n_tracks=4, size=5, wrong=0.0, seed=0):
    """Outputs of a good model on tracks of `size` hits in random order: true edges, and every tenth pair besides."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n_tracks * size).reshape(n_tracks, size)
    track = np.empty(n_tracks * size, dtype=np.int64)
    track[place] = np.arange(n_tracks)[:, None]
    layer = np.empty(n_tracks * size, dtype=np.int64)
    layer[place] = np.arange(size)
    pairs = np.array([(i, j) for i, j in itertools.product(range(len(track)), repeat=2) if layer[j] == layer[i] + 1]).T
    true = track[pairs[0]] == track[pairs[1]]
    kept = true | (rng.random(pairs.shape[1]) < 0.3)
    score = np.where(true, rng.uniform(0.8, 0.99, len(true)), rng.uniform(0.01, 0.3, len(true)))
    score = np.where(~true & (rng.random(len(true)) < wrong), 0.7, score)
    return {"edge_index": pairs[:, kept], "edge_score": logit(score[kept]).astype(np.float32)}, track


def sets_of(found):
    return {frozenset(rows.tolist()) for rows in np.split(found.hit_rows, found.hit_offsets[1:-1])}


@pytest.mark.parametrize("name", NAMES)
def test_chains_become_candidates_and_tracks(name):
    outputs, track = chains()
    rows = np.arange(3, 3 + len(track)) * 2
    found = build_builder(Named(name=name, cut=0.5)).build(outputs, rows, 60, 9)
    check_candidates(found, 60)
    assert found.event_id == 9 and len(found) == 4
    assert sets_of(found) == {frozenset(rows[track == t].tolist()) for t in range(4)}
    assert len(set(found.track_ids[rows])) == 4 and (found.track_ids[rows] > 0).all()
    assert ((found.scores > 0.8) & (found.scores < 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_order_of_hits_and_edges_does_not_matter(name):
    outputs, track = chains(n_tracks=6, wrong=0.2, seed=3)
    rng = np.random.default_rng(1)
    hits, edges = rng.permutation(len(track)), rng.permutation(outputs["edge_index"].shape[1])
    shuffled = {
        "edge_index": np.argsort(hits)[outputs["edge_index"]][:, edges],
        "edge_score": outputs["edge_score"][edges],
    }
    builder, rows = build_builder(Named(name=name, cut=0.5)), np.arange(len(track))
    straight, other = (builder.build(values, rows, len(rows), 0) for values in (outputs, shuffled))
    assert sets_of(straight) == {frozenset(hits[list(members)].tolist()) for members in sets_of(other)} != {frozenset()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edges", [0, 1, 2])
def test_few_edges(name, edges):
    index = np.array([[0, 1], [1, 2]])[:, :edges]
    outputs = {"edge_index": index, "edge_score": np.full(edges, 3.0, np.float32)}
    found = build_builder(Named(name=name, cut=0.5)).build(outputs, np.arange(5), 5, 0)
    check_candidates(found, 5)
    assert sets_of(found) - {frozenset()} == ({frozenset({0, 1, 2})} if edges == 2 else set())


@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(1, 30))
def test_walks_are_the_best_paths_one_after_the_other(seed, n, m):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, n, (2, m)), axis=0)
    ends = np.unique(ends[:, ends[0] < ends[1]], axis=1)
    probability = rng.uniform(0.5, 1, ends.shape[1])
    outputs = {"edge_index": ends, "edge_score": logit(probability)}
    found = build_builder(Named(name="walk", cut=0.4, min_hits=2, join=None)).build(outputs, np.arange(n), n, 0)
    assert sets_of(found) - {frozenset()} == slow_walks(ends, dict(zip(map(tuple, ends.T), probability, strict=True)))


def slow_walks(ends, probability):
    found, edges = set(), set(map(tuple, ends.T))
    while edges:
        groups: list[set] = []
        for i, j in edges:
            near = [g for g in groups if i in g or j in g]
            groups = [g for g in groups if g not in near] + [{i, j}.union(*near)]
        for group in groups:
            paths = [[i] for i in group]
            best, value = None, 0.0
            while paths:
                path = paths.pop()
                total = sum(probability[edge] for edge in itertools.pairwise(path))
                best, value = (path, total) if total > value else (best, value)
                paths += [[*path, j] for i, j in edges if i == path[-1]]
            found.add(frozenset(int(hit) for hit in best))
            edges = {edge for edge in edges if not set(edge) & set(best)}
    return found


@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(0, 30))
def test_hits_beside_paths_go_where_most_leads(seed, n, m):
    rng = np.random.default_rng(seed)
    ends, weight, strong = rng.integers(0, n, (2, m)), rng.integers(1, 4, m), rng.random(m) < 0.5
    label, value = rng.integers(-1, 3, n), rng.integers(0, 2, max(n, 3))
    wanted = {}
    for hit in np.flatnonzero(label < 0):
        total, joins = {}, set()
        for (i, j), w, s in zip(ends.T, weight, strong, strict=True):
            for here, there in ((i, j), (j, i)):
                if here == hit and label[there] >= 0:
                    total[label[there]] = total.get(label[there], 0) + w
                    joins |= {label[there]} if s else set()
        if joins:
            wanted[hit] = min(joins, key=lambda of, total=total: (-total[of], -value[of], of))
    assert dict(zip(*beside(label, value, ends, weight, strong), strict=True)) == wanted


def test_a_walk_takes_both_hits_of_a_layer():
    """Two tracks of five layers, hits 0-4 and 5-9; layers 1 and 2 of the first have a second hit, 10 and 11."""
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 10), (10, 2), (1, 11), (10, 11), (11, 3)]
    edges += [(5, 6), (6, 7), (7, 8), (8, 9)]
    outputs = {"edge_index": np.array([*edges, (3, 12)]).T, "edge_score": np.array([4.0] * len(edges) + [-0.5])}
    found = [
        sets_of(build_builder(Named(name="walk", cut=0.3, **more)).build(outputs, np.arange(13), 13, 0))
        for more in ({}, {"join": None})
    ]
    assert found[0] == {frozenset({0, 1, 2, 3, 4, 10, 11}), frozenset(range(5, 10))}
    assert found[1] == {frozenset(range(5)), frozenset(range(5, 10))}


def test_a_walk_resolves_what_a_component_joins():
    outputs, track = chains(n_tracks=8, wrong=0.3, seed=5)
    rows = np.arange(len(track))
    wanted = {frozenset(np.flatnonzero(track == t).tolist()) for t in range(8)}
    joined, walked = (build_builder(Named(name=n, cut=0.5)).build(outputs, rows, 40, 0) for n in ("components", "walk"))
    assert len(sets_of(joined) & wanted) < len(sets_of(walked) & wanted) == 8


def test_a_circle_cannot_be_walked():
    outputs = {"edge_index": np.array([[0, 1, 2], [1, 2, 0]]), "edge_score": np.full(3, 2.0)}
    with pytest.raises(InputError, match="circle"):
        build_builder(Named(name="walk", cut=0.5)).build(outputs, np.arange(3), 3, 0)
    with pytest.raises(InputError, match="take a model that scores edges"):
        build_builder(Named(name="components", cut=0.5)).build({}, np.arange(3), 3, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_cut_is_tuned(name):
    config = Named(name=name)
    counts = tuning_counts(config, [(*chains(seed=s), np.ones(4, dtype=bool)) for s in range(3)])
    assert build_builder(config).needs_tuning
    assert choose(config, counts)["cut"] <= 0.8
    assert choose(config, counts)["cut"] >= 0.3 or name in (
        "assignment",
        "hdbscan",
        "hopfield",
        "walk",
    )  # look beyond a cut
    assert counts[:, 0].max() == counts[0, 1] == 12


def test_candidates_of_other_particles_are_no_fakes_in_tuning():
    outputs, particle = chains()
    counts = tuning_counts(Named(name="components"), [(outputs, particle, np.arange(4) < 3)])
    separated = counts[:, 0] == 3
    assert separated.any() and (counts[separated, 1] == 3).all()
    assert (counts[separated, 2] == 0).all() and (counts[separated, 3] == 4).all()
    noise = np.where(particle == 3, -1, particle)
    assert tuning_counts(Named(name="components"), [(outputs, noise, np.ones(3, dtype=bool))])[separated, 2].all()
