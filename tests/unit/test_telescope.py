"""Source `telescope`: graphs of the published sizes, physics of single protons, and what its tables say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hpctrack import convert, simulate
from hpctrack.simulation.telescope.planes import N_PLANES, Slab, phantom, plane_z
from hpctrack.simulation.telescope.protons import BEAM_MEV, Beam, Hits, energy_at, shoot
from hpctrack.simulation.telescope.source import cluster_size, frame
from hpctrack.storage.store import open_dataset

PUBLISHED = {  # phantom mm, protons: nodes and masked edges of a frame, arXiv:2407.13420
    (100, 50): (1337, 4311),
    (150, 100): (2148, 10397),
    (200, 150): (2445, 15770),
}


def masked_edges(hits: Hits) -> tuple[int, float]:
    """Edges between neighbouring planes within the angles, and which share of the true ones these keep."""
    z, edges, true, kept = plane_z(), 0, 0, 0
    for k in range(N_PLANES - 1):
        a, b = np.flatnonzero(hits.plane == k), np.flatnonzero(hits.plane == k + 1)
        apart = np.linalg.norm(hits.position[a][:, None] - hits.position[b][None], axis=2)
        near = np.arctan2(apart, z[k + 1] - z[k]) < (0.2 if k < 2 else 0.4)
        same = hits.proton[a][:, None] == hits.proton[b][None]
        edges, true, kept = edges + int(near.sum()), true + int(same.sum()), kept + int((same & near).sum())
    return edges, kept / true


@pytest.mark.parametrize(("case", "published"), PUBLISHED.items(), ids=str)
def test_graphs_have_the_published_sizes(case, published):
    frames = [frame(case[1], case[0], np.random.default_rng([seed, *case[::-1]]))[1] for seed in range(8)]
    found = [masked_edges(hits) for hits in frames]
    assert np.mean([len(hits.proton) for hits in frames]) == pytest.approx(published[0], rel=0.03)
    assert np.mean([edges for edges, _ in found]) == pytest.approx(published[1], rel=0.08)
    assert np.mean([kept for _, kept in found]) == pytest.approx(0.992, abs=0.004)


def test_protons_stop_where_their_range_ends_and_scatter_as_highland_says():
    assert energy_at(np.array([329.8]))[0] == pytest.approx(BEAM_MEV, abs=0.1)
    beam = Beam(4000, np.random.default_rng(0))
    beam.place[:], beam.slope[:] = 0, 0
    beam.cross(phantom(10.0))
    energy = energy_at(np.array([329.8 - 5.0]))[0]
    tau = energy / 938.272
    pv = energy * (tau + 2) / (tau + 1)
    sigma = 14.1 / pv * np.sqrt(10 / 360.8) * (1 + np.log10(10 / 360.8) / 9)
    assert beam.slope.std() == pytest.approx(sigma, rel=0.03)
    assert beam.place.std() == pytest.approx(sigma * 10 / np.sqrt(3), rel=0.03)
    assert beam.absorbed.mean() == pytest.approx(0.01, abs=0.006)
    beam.cross(Slab(400.0, 400.0, 400.0, 360.8))
    assert not beam.there.any()


def test_secondaries_start_behind_the_last_hit_of_an_absorbed_proton():
    beam, hits = shoot(2000, 100.0, np.random.default_rng(1))
    mothers = np.unique(hits.proton[~hits.primary])
    assert len(mothers) == pytest.approx(beam.absorbed.sum() / 2 * 0.7, rel=0.3)  # a part is absorbed in the water
    for mother in mothers[:20]:
        own, others = (hits.plane[(hits.proton == mother) & (hits.primary == of)] for of in (True, False))
        assert own.max() + 1 == others.min() and np.array_equal(others, np.arange(others.min(), others.max() + 1))
    assert (hits.deposit > 0).all() and hits.plane.max() < N_PLANES


def test_the_store_has_deposits_clusters_truth_and_who_is_primary(tmp_path, capsys):
    csv, data = tmp_path / "csv", tmp_path / "data"
    assert simulate.main([str(csv), "--preset", "proton-ct-200", "--protons", "12", "--events", "2"]) == 0
    assert len(pd.read_csv(csv / "detectors.csv")) == N_PLANES
    assert json.loads((csv / "simulation.json").read_text())["settings"]["field_t"] is None
    assert convert.main([str(csv), str(data), "--jobs", "1"]) == 0
    dataset = open_dataset(data)
    assert not dataset.field_is_known
    event = dataset.read(0, list(dataset.columns))
    deposit, count, weight = (event.column(n) for n in ("cells.cell_charge", "cells.cell_count", "truth.weight"))
    assert np.array_equal(count, cluster_size(deposit)) and count.min() >= 2
    assert weight.sum() == pytest.approx(1, abs=1e-3) and len(np.unique(weight)) <= 2
    assert event.n_particles == 12 and set(event.column("truth.particle_row")) == set(range(12))
    assert (event.column("hits.volume_id") == np.where(event.column("hits.layer_id") < 2, 1, 2)).all()
    assert np.allclose(event.column("hits.z"), plane_z()[event.column("hits.layer_id")])
    capsys.readouterr()
    assert simulate.main([str(tmp_path / "no"), "--source", "telescope", "--noise", "0.1"]) == 2
    assert "--noise: means nothing to --source telescope" in capsys.readouterr().err
    assert simulate.main([str(tmp_path / "no"), "--source", "helix", "--protons", "3"]) == 2
