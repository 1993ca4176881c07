"""Graph truth and particle truth against their definitions, written out slowly."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.events.truth import graph_truth, is_true, particle_truth
from hpctrack.storage import schema


def make_event(seed: int, n_hits: int, n_particles: int, n_layers: int) -> schema.Event:
    """Hits on a lattice, so that distances from the vertex are often equal."""
    rng = np.random.default_rng(seed)
    hits = {axis: rng.integers(-3, 4, n_hits).astype(np.float32) for axis in "xyz"}
    layers = rng.integers(0, n_layers, n_hits)
    hits |= {"volume_id": (7 + layers % 2).astype(np.uint8), "layer_id": (layers // 2).astype(np.uint8)}
    row = rng.integers(-1, n_particles, n_hits).astype(np.int32)
    particles = {f"v{axis}": rng.integers(-1, 2, n_particles).astype(np.float32) for axis in "xyz"}
    return schema.Event(seed, {"hits": hits, "truth": {"particle_row": row}, "particles": particles})


def slow_graph_truth(event: schema.Event, rows: list[int]) -> list[tuple[int, int]]:
    hits, particles = event.tables["hits"], event.tables["particles"]
    edges = []
    for p in range(len(particles["vx"])):
        groups: dict[tuple[int, int], list[tuple[float, int]]] = {}
        for number, row in enumerate(rows):
            if event.column("truth.particle_row")[row] == p:
                distance = sum((float(hits[a][row]) - float(particles[f"v{a}"][p])) ** 2 for a in "xyz") ** 0.5
                layer = (int(hits["volume_id"][row]), int(hits["layer_id"][row]))
                groups.setdefault(layer, []).append((distance, number))
        along = sorted(groups, key=lambda layer: (min(groups[layer])[0], layer))
        for inner, outer in itertools.pairwise(along):
            edges += [(i, j) for _, i in groups[inner] for _, j in groups[outer]]
    return sorted(edges)


EVENTS = st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 6), st.integers(1, 8))


@given(EVENTS, st.booleans())
def test_graph_truth_is_its_definition(sizes, some):
    event = make_event(*sizes)
    rows = np.arange(event.n_hits)[:: 2 if some else 1]
    found = graph_truth(event, rows if some else None)
    assert found.dtype == np.int64 and found.shape[0] == 2
    assert sorted(map(tuple, found.T.tolist())) == slow_graph_truth(event, rows.tolist())


@given(EVENTS)
def test_particle_truth_is_every_pair_once(sizes):
    row = make_event(*sizes).column("truth.particle_row")
    expected = [(i, j) for i, j in itertools.combinations(range(len(row)), 2) if row[i] == row[j] >= 0]
    assert sorted(map(tuple, particle_truth(row).T.tolist())) == expected


@given(EVENTS)
def test_an_edge_is_true_in_either_direction(sizes):
    event = make_event(*sizes)
    truth = graph_truth(event)
    pairs = np.array(list(itertools.product(range(event.n_hits), repeat=2)), dtype=np.int64).reshape(-1, 2).T
    known = {tuple(edge) for edge in [*truth.T.tolist(), *truth[::-1].T.tolist()]}
    assert is_true(pairs, truth, event.n_hits).tolist() == [tuple(pair) in known for pair in pairs.T.tolist()]


def test_layers_hit_twice_and_noise():
    columns = {"x": [10.0, 20.1, 20.0, 30.0, 5.0], "y": [0.0] * 5, "z": [0.0] * 5}
    hits = {name: np.array(values, np.float32) for name, values in columns.items()}
    hits |= {"volume_id": np.full(5, 8, np.uint8), "layer_id": np.array([2, 4, 4, 6, 2], np.uint8)}
    particles = {name: np.zeros(1, np.float32) for name in ("vx", "vy", "vz")}
    row = {"particle_row": np.array([0, 0, 0, 0, -1], np.int32)}
    found = graph_truth(schema.Event(0, {"hits": hits, "truth": row, "particles": particles}))
    assert sorted(map(tuple, found.T.tolist())) == [(0, 1), (0, 2), (1, 3), (2, 3)]
