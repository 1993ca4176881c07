"""The second level: truth, inputs, baseline, judgement, and that it learns collisions that are apart."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack.storage import schema
from hpctrack.storage.schema import ESTIMATE
from hpctrack.testing.toys import toy_event
from hpctrack.tracking import vertices
from tests.campaigns import vertices as study


def pile_up(event_id: int, z: np.ndarray, per_collision: int = 5) -> schema.Event:
    """Straight tracks, so many from each of the collisions at `z`."""
    event = toy_event(event_id, per_collision * len(z), 0)
    number = np.arange(per_collision * len(z)) // per_collision
    particles = dict(event.tables["particles"])
    particles["particle_id"] = ((1 + number.astype(np.int64)) << vertices.COLLISION_BIT) + 1 + np.arange(len(number))
    particles["vz"] = z[number].astype(np.float32)
    return schema.Event(event_id, dict(event.tables) | {"particles": particles})


def estimates(z0: np.ndarray, deviation: float = 0.1) -> np.ndarray:
    table = np.zeros((len(z0), len(ESTIMATE)))
    table[:, vertices.Z0], table[:, vertices.VARIANCE_Z0] = z0, deviation**2
    return table


def test_collisions_count_from_three_tracks_on():
    ids = np.array([5, 5, 5, 9, 9, 7, 7, 7, 7], dtype=np.int64) << vertices.COLLISION_BIT
    born = np.array([[0, 0, z] for z in (1.0, 1, 1, 2, 2, 3, 3, 3, 50)])
    found, z = vertices.collisions(ids, born, np.arange(9))
    assert found.tolist() == [0] * 3 + [-1] * 2 + [1] * 3 + [-1] and z.tolist() == [1.0, 3.0]
    assert vertices.collisions(ids, born, np.array([0, 1, -1, 5, 6, 7]))[0].tolist() == [-1, -1, -1, 0, 0, 0]
    assert vertices.collisions(ids, born, np.zeros(0, dtype=int))[0].tolist() == []


def test_the_baseline_cuts_at_gaps():
    z0 = np.array([5.0, 0.0, 0.1, 5.1, 0.2, 5.05, 9.0])
    found = vertices.gap_clusters(z0, 0.3)
    assert found.offsets.tolist() == [0, 3, 6] and found.rows.tolist() == [1, 2, 4, 0, 3, 5]
    assert len(vertices.gap_clusters(z0, 100.0).scores) == 1
    assert len(vertices.gap_clusters(np.zeros(0), 1.0).scores) == 0


def test_judgement_counts_collisions_clusters_and_tracks():
    collision = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1])
    ids = np.array([1, 1, 1, 0, 2, 2, 2, 2, 3, 3, 4, 4, 4])
    z0 = np.where(collision == 1, 3.0, 0.0)
    one = vertices.judge(ids, collision, estimates(z0), np.array([0.0, 2.0, 7.0]))
    assert one["efficiency"] == (2, 3)  # of collision 2 no three tracks are together
    assert one["fakes"] == (1, 3)  # the cluster of tracks that have no collision; cluster 3 is too small to count
    assert one["purity"] == (6, 7) and one["assigned"] == (6, 10)
    np.testing.assert_allclose(one["residual_mm"], [0, 9 / 4 - 2.0])


def test_a_precise_track_weighs_more():
    assert vertices.position(np.array([0.0, 1.0]), np.array([0.1, 0.2])) == pytest.approx(0.2)


def test_inputs_are_finite_and_of_order_one():
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.normal(size=(50, 5)) * 5, np.zeros((50, 15))], axis=1)
    x = vertices.features(table)
    assert x.shape == (50, len(vertices.FEATURES)) and np.isfinite(x).all() and np.abs(x).max() < 20


def test_the_same_loss_learns_collisions_of_tracks():
    rng = np.random.default_rng(1)
    events = [
        study.smeared(pile_up(k, 6 * rng.permutation(8)[:4] + rng.uniform(0, 2, 4) - 24), 0.05) for k in range(24)
    ]
    model = study.train(events[:20], steps=150)
    builder = study.build_builder(study.BUILDER, radius=0.5)
    test = events[20:]
    ids = [builder.build(study.predict(model, e), np.arange(20), 20, 0).track_ids for e in test]
    assert study.evaluate(test, ids)["efficiency"]["value"] > 0.8
    gap = study.evaluate(test, [study.track_ids(event, 1.0) for event in test])
    assert gap["efficiency"]["value"] == 1.0 and gap["fakes"]["value"] == 0.0
    assert gap["z_width_mm"] < 0.05
