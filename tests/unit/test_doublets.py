"""Doublets against all pairs; what the cuts keep and how well."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, SelectionConfig, parse
from hpctrack.division.sectors import sectors
from hpctrack.errors import InputError
from hpctrack.events.loader import EventLoader
from hpctrack.graphs import build_graph, doublets
from hpctrack.graphs.doublets import Doublets
from hpctrack.storage import schema
from hpctrack.storage.detector import TRACKML
from hpctrack.storage.store import Dataset
from hpctrack.testing import GraphContract
from hpctrack.testing.toys import FEATURES, toy_dataset

BARREL = TRACKML.neighbours
RADII = dict(zip(BARREL, (32, 72, 116, 172, 260, 360, 500, 660, 820, 1020), strict=True))


def make_event(seed: int, n_hits: int) -> schema.Event:
    rng = np.random.default_rng(seed)
    layers = [BARREL[k] for k in rng.integers(0, len(BARREL), n_hits)]
    r = np.array([RADII[layer] for layer in layers]) + rng.normal(0, 2, n_hits)
    hits = {"r": r, "phi": rng.uniform(-np.pi, np.pi, n_hits), "z": rng.normal(0, 300, n_hits)}
    hits = {name: values.astype(np.float32) for name, values in hits.items()}
    volume, layer = np.array(layers, dtype=np.uint8).reshape(-1, 2).T
    return schema.Event(seed, {"hits": hits | {"volume_id": volume, "layer_id": layer}})


def slow(event: schema.Event, rows: np.ndarray, slope: float, z0_max: float, skips: int) -> set[tuple[int, int]]:
    r, phi, z, volume, layer = (event.column(name)[rows].astype(float) for name in Doublets.COLUMNS)
    place = [BARREL.index(key) for key in zip(volume.astype(int), layer.astype(int), strict=True)]
    edges = set()
    for i in range(len(rows)):
        for j in range(len(rows)):
            if 0 < place[j] - place[i] <= 1 + skips and r[j] > r[i]:
                turn = abs(phi[j] - phi[i])
                slope_ij = min(turn, 2 * np.pi - turn) / (r[j] - r[i])
                z0 = z[i] - r[i] * (z[j] - z[i]) / (r[j] - r[i])
                if slope_ij < slope and abs(z0) < z0_max:
                    edges.add((i, j))
    return edges


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([0.0005, 0.003, 0.2]), st.sampled_from([50, 5000]))
def test_all_pairs_within_the_cuts_and_no_other(seed, n_hits, slope, z0_max):
    event = make_event(seed, n_hits)
    rows = np.arange(n_hits)[:: 1 + seed % 2]
    skips = seed % 3
    graph = Doublets(Doublets.Options(phi_slope_max_per_mm=slope, z0_max_mm=float(z0_max), skips=skips))
    edges = graph(event, rows)
    assert edges.shape[0] == 2 and edges.dtype == np.int64
    found = list(map(tuple, edges.T.tolist()))
    assert found == sorted(set(found))
    assert set(found) == slow(event, rows, slope, z0_max, skips)
    phi, of = event.column("hits.phi")[rows], 1 + seed % 4
    parts = [graph.of_part(event, rows, partial(sectors, phi, parts=of), number) for number in range(of)]
    for number, (owner, part) in enumerate(parts):
        assert np.array_equal(owner, parts[0][0])
        assert np.array_equal(part, edges[:, (owner[edges] == number).any(axis=0)])


def test_memory_is_bounded_by_chunks(monkeypatch):
    event = make_event(1, 300)
    graph, rows = Doublets(Doublets.Options(phi_slope_max_per_mm=0.01, z0_max_mm=5000.0)), np.arange(300)
    whole = graph(event, rows)
    monkeypatch.setattr(doublets, "CHUNK", 50)
    r, phi = event.column("hits.r"), event.column("hits.phi")
    assert max(len(i) for i, _ in graph.candidates(r, phi, rows[:100], np.argsort(phi)[:100])) <= 50 + 100
    assert np.array_equal(graph(event, rows), whole)


def test_layers_can_be_named():
    event = make_event(2, 200)
    options = parse(Doublets.Options, {"pairs": [[8, 2, 8, 6]], "phi_slope_max_per_mm": 0.1, "z0_max_mm": 5e4}, "toy")
    i, j = Doublets(options)(event, np.arange(200))
    layer = event.column("hits.layer_id")
    assert len(i) and set(layer[i]) == {2} and set(layer[j]) == {6}
    with pytest.raises(InputError, match="pairs"):
        parse(Doublets.Options, {"pairs": "endcap"}, "toy")


def test_batches_have_edges_and_their_truth(tmp_path):
    folder = toy_dataset(tmp_path / "data", sizes=(4, 0, 5), n_noise=6)
    graph = build_graph(Named(name="doublets", phi_slope_max_per_mm=0.02, z0_max_mm=500.0), folder)
    turned = AugmentConfig(rotate=True, mirror=True)
    load = EventLoader(Dataset(folder), FEATURES, SelectionConfig(), turned, (1, 0), graph=graph)
    batch = Batch.from_data_list([load(row, 0) for row in range(3)])
    i, j = batch.edge_index
    assert (batch.batch[i] == batch.batch[j]).all() and len(batch.edge_truth) == batch.num_edges
    r = FEATURES.index("r")
    assert (batch.x[i, r] < batch.x[j, r]).all()
    same = (batch.track[i] == batch.track[j]) & (batch.track[i] >= 0)
    assert (same[batch.edge_truth]).all() and 0 < batch.edge_truth.sum() == 3 * 9 < batch.num_edges
    with pytest.raises(InputError, match=r"data\.graph\.name.*unknown 'doublet'; one of: doublets"):
        build_graph(Named(name="doublet"), folder)


class TestDoublets(GraphContract):
    graph = {"name": "doublets", "phi_slope_max_per_mm": 0.02, "z0_max_mm": 500.0}


class TestTrueEdges(GraphContract):
    graph = {"name": "truth"}
