"""Candidates from embeddings: the radius search, the exclusive reading, tuning."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack.config import Named
from hpctrack.tracking.builders import BUILDERS, build_builder, choose, exclusive, tuning_counts
from hpctrack.tracking.matching import check_candidates

CONFIG = Named(name="radius", radius=0.5)


def clusters(n_tracks=4, size=5, seed=0, spread=0.05):
    rng = np.random.default_rng(seed)
    track = np.repeat(np.arange(n_tracks), size)
    centre = 3.0 * np.eye(n_tracks)[:, : max(n_tracks, 2)][track]
    user = centre + rng.normal(0, spread, centre.shape)
    return {"user": user.astype(np.float32), "influencer": (centre + 0.01).astype(np.float32)}, track


def test_clusters_become_candidates_and_tracks():
    outputs, track = clusters()
    rows = np.arange(3, 3 + len(track)) * 2  # rows of a larger event
    found = build_builder(CONFIG).build(outputs, rows, 60, event_id=9)
    check_candidates(found, 60)
    assert found.event_id == 9 and len(found) == len(track)  # every influencer finds its track
    for c in range(len(found)):
        members = found.hit_rows[found.hit_offsets[c] : found.hit_offsets[c + 1]]
        assert sorted(members) == sorted(rows[track == track[c]])
    assert len(set(found.track_ids[rows])) == 4 and (found.track_ids[rows] > 0).all()
    assert (np.delete(found.track_ids, rows) == 0).all()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_order_of_hits_does_not_matter(name):
    outputs, track = clusters(spread=0.4, seed=2)
    order = np.random.default_rng(0).permutation(len(track))
    builder = build_builder(Named(name=name, radius=0.6))
    straight = builder.build(outputs, np.arange(len(track)), len(track), 0)
    shuffled = builder.build({k: v[order] for k, v in outputs.items()}, np.arange(len(track)), len(track), 0)

    def content(found, row):
        bounds = zip(found.hit_offsets[:-1], found.hit_offsets[1:], strict=True)
        return sorted(tuple(sorted(row[found.hit_rows[a:b]])) for a, b in bounds)

    assert content(straight, np.arange(len(track))) == content(shuffled, order)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_hits_give_no_candidate(n):
    outputs = {name: np.zeros((n, 3), dtype=np.float32) for name in ("user", "influencer")}
    found = build_builder(CONFIG).build(outputs, np.arange(n), 5, 1)
    assert len(found) == 0 and found.hit_offsets.tolist() == [0] and found.track_ids.tolist() == [0] * 5


def test_exclusive_takes_the_best_and_needs_most_of_the_hits():
    offsets = np.array([0, 4, 9, 12])
    rows = np.array([0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9])
    ids = exclusive(offsets, rows, np.array([0.1, 0.9, 0.5], dtype=np.float32), 11, min_hits=3)
    assert ids.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0]  # candidate 0 has only half of its hits left


def test_tuning_finds_a_radius_that_separates():
    config = Named(name="radius", radius=None)
    assert build_builder(config).needs_tuning
    counts = tuning_counts(config, [clusters(seed=s) for s in range(3)])
    assert counts[:, 1].tolist() == [12] * 20  # particles, whatever the radius
    radius = choose(config, counts)["radius"]
    outputs, track = clusters(seed=9)
    found = build_builder(config, radius=radius).build(outputs, np.arange(len(track)), len(track), 0)
    assert len(found) == len(track) and len(found.hit_rows) == 5 * len(track)
