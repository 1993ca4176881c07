"""Candidates from embeddings: the radius search, the exclusive reading, tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.testing import BuilderContract
from hpctrack.tracking.builder import exclusive, joined
from hpctrack.tracking.builders import BUILDERS, build_builder, choose, settings, tuning_counts
from hpctrack.tracking.hit_probability import probabilities
from hpctrack.tracking.on_device import TensorLists
from hpctrack.tracking.radius_builder import nearest_track

CONFIGS = {  # of the builders on embeddings
    "condensation": Named(name="condensation", radius=0.5, beta_min=0.1),
    "greedy": Named(name="greedy", radius=0.5),
    "radius": Named(name="radius", radius=0.5),
}
ON_EDGES = {
    "assignment",
    "components",
    "dbscan",
    "edges",
    "hdbscan",
    "hopfield",
    "radius_edges",
    "radius_graph",
    "walk",
}  # in test_edge_builders.py
ON_PLANES = {"seeded"}  # in tests/unit/test_planes_models.py
OF_HITS = {"hits"}  # in tests/unit/test_kept_hits.py
OF_SLOTS = {"lines", "slots"}  # in tests/unit/test_images.py
OUTPUTS = {  # of a model for these: dimensions
    "condensation": {"embedding": 3, "beta": 1},
    "greedy": {"embedding": 3},
    "radius": {"user": 3, "influencer": 3},
}
OPEN = {name: Named(name=name) for name in CONFIGS}


class TestBuilders(BuilderContract):
    @pytest.fixture(params=sorted(CONFIGS))
    def config(self, request):
        self.outputs = OUTPUTS[request.param]
        return CONFIGS[request.param]


def clusters(n_tracks=4, size=5, seed=0, spread=0.05):
    rng = np.random.default_rng(seed)
    track = np.repeat(np.arange(n_tracks), size)
    centre = 3.0 * np.eye(n_tracks)[:, : max(n_tracks, 2)][track]
    user = centre + rng.normal(0, spread, centre.shape)
    outputs = {"user": user, "influencer": centre + 0.01, "embedding": user, "beta": rng.normal(0, 1, (len(user), 1))}
    return {name: values.astype(np.float32) for name, values in outputs.items()}, track


def lists_of(found):
    return np.split(found.hit_rows, found.hit_offsets[1:-1])


def test_every_builder_is_here():
    assert set(CONFIGS) | ON_EDGES | ON_PLANES | OF_HITS | OF_SLOTS == set(BUILDERS.own)
    made = {name: BUILDERS[name].product for name in BUILDERS.own if BUILDERS[name].product != "candidates"}
    assert made == {"edges": "edges", "radius_edges": "edges", "radius_graph": "edges", "hits": "hits"}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_clusters_become_candidates_and_tracks(name):
    outputs, track = clusters()
    rows = np.arange(3, 3 + len(track)) * 2  # rows of a larger event
    found = build_builder(CONFIGS[name]).build(outputs, rows, 60, event_id=9)
    check_candidates(found, 60)
    assert found.event_id == 9
    assert len(found) == (len(track) if name == "radius" else 4)  # every influencer finds its track
    wanted = {tuple(rows[track == t]) for t in range(4)}
    assert {tuple(members) for members in lists_of(found)} == wanted
    assert len(set(found.track_ids[rows])) == 4 and (found.track_ids[rows] > 0).all()
    assert (np.delete(found.track_ids, rows) == 0).all()


@pytest.mark.parametrize("name", ["condensation", "radius"])  # greedy draws its order by the rows of hits
def test_order_of_hits_does_not_matter(name):
    outputs, track = clusters(spread=0.4, seed=2)
    order = np.random.default_rng(0).permutation(len(track))
    builder = build_builder(CONFIGS[name])
    straight = builder.build(outputs, np.arange(len(track)), len(track), 0)
    shuffled = builder.build({k: v[order] for k, v in outputs.items()}, np.arange(len(track)), len(track), 0)
    content = {tuple(members) for members in lists_of(straight)}
    assert content == {tuple(sorted(order[members])) for members in lists_of(shuffled)} and content


def test_greedy_draws_its_order_from_the_event():
    outputs, track = clusters(n_tracks=8, spread=0.3, seed=2)
    builder = build_builder(Named(name="greedy", radius=1.0))
    a, b, other = (builder.build(outputs, np.arange(len(track)), len(track), event) for event in (1, 1, 2))
    assert np.array_equal(a.track_ids, b.track_ids)
    assert not np.array_equal(a.hit_rows, other.hit_rows)


@pytest.mark.parametrize("around", ["influencers", "users"])
def test_neighbourhoods_are_those_of_the_formula(around):
    outputs, track = clusters(n_tracks=6, spread=0.3, seed=4)
    user, points = (outputs[name].astype(np.float64) for name in ("user", around.removesuffix("s")))
    builder = build_builder(Named(name="radius", radius=0.7, around=around))
    found = builder.build(outputs, np.arange(len(track)), len(track), 0)
    distance = np.linalg.norm(points[:, None] - user[None], axis=2)
    wanted = [np.flatnonzero(row <= 0.7) for row in distance]
    scores = [1 - row[row <= 0.7].mean() / 0.7 for row, near in zip(distance, wanted, strict=True) if len(near) >= 3]
    for members, near in zip(lists_of(found), (near for near in wanted if len(near) >= 3), strict=True):
        assert np.array_equal(members, near)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


def test_hits_go_to_the_nearest_track():
    user = np.array([[0.0], [0.1], [0.2], [0.6], [0.7], [0.8], [0.39], [3.0], [1.9], [2.0]])
    given = np.array([1, 1, 1, 2, 2, 2, 2, 0, 3, 3], dtype=np.int32)
    assert nearest_track(user, given, 0.5, min_hits=3).tolist() == [1, 1, 1, 2, 2, 2, 2, 0, 0, 0]
    user[6] = 0.3
    assert nearest_track(user, given, 0.5, min_hits=3).tolist() == [1, 1, 1, 2, 2, 2, 1, 0, 0, 0]
    assert nearest_track(user, given, 0.5, min_hits=2).tolist() == [1, 1, 1, 2, 2, 2, 1, 0, 3, 3]
    assert nearest_track(user, 0 * given, 0.5, min_hits=2).tolist() == [0] * 10


@pytest.mark.parametrize("assign", ["nearest", "best"])
def test_each_way_to_assign_hits_gives_whole_tracks(assign):
    outputs, track = clusters(n_tracks=5)
    builder = build_builder(Named(name="radius", radius=0.5, assign=assign))
    ids = builder.build(outputs, np.arange(len(track)), len(track), 0).track_ids
    assert {tuple(np.flatnonzero(ids == k)) for k in range(1, 6)} == {
        tuple(np.flatnonzero(track == t)) for t in range(5)
    }


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_hits_give_no_candidate(name, n):
    outputs = {key: np.zeros((n, 3), dtype=np.float32) for key in ("user", "influencer", "embedding")}
    outputs["beta"] = np.zeros((n, 1), dtype=np.float32)
    found = build_builder(CONFIGS[name]).build(outputs, np.arange(n), 5, 1)
    assert len(found) == 0 and found.hit_offsets.tolist() == [0] and found.track_ids.tolist() == [0] * 5


def test_exclusive_takes_the_best_and_needs_most_of_the_hits():
    offsets = np.array([0, 4, 9, 12])
    rows = np.array([0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9])
    ids = exclusive(offsets, rows, np.array([0.1, 0.9, 0.5], dtype=np.float32), 11, min_hits=3)
    assert ids.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0]  # candidate 0 has only half of its hits left


def one_after_the_other(offsets, rows, scores, n_hits, min_hits):
    ids, next_id = np.zeros(n_hits, dtype=np.int32), 1
    for c in np.lexsort((rows[offsets[:-1]], -np.diff(offsets), -scores)):
        members = rows[offsets[c] : offsets[c + 1]]
        free = members[ids[members] == 0]
        if len(free) >= min_hits and 2 * len(free) > len(members):
            ids[free] = next_id
            next_id += 1
    return ids


CANDIDATE = st.tuples(st.sets(st.integers(0, 14), min_size=1, max_size=6), st.integers(0, 3))


@given(st.lists(CANDIDATE, max_size=30), st.integers(1, 3), st.randoms())
def test_rounds_decide_as_one_candidate_after_the_other_in_any_order(candidates, min_hits, random):
    distinct = {(-score, -len(hits), min(hits)): (hits, score) for hits, score in candidates}  # no ties: order is told
    results = []
    for _ in range(2):
        chosen = list(distinct.values())
        random.shuffle(chosen)
        offsets, rows, scores = joined([np.array(sorted(hits)) for hits, _ in chosen], [s for _, s in chosen])
        results.append(exclusive(offsets, rows, scores, 15, min_hits))
        assert np.array_equal(results[-1], one_after_the_other(offsets, rows, scores, 15, min_hits))
    size = torch.from_numpy(np.diff(offsets))
    lists = TensorLists(torch.repeat_interleave(size), torch.from_numpy(rows), size, torch.from_numpy(scores))
    assert lists.exclusive(15, min_hits).tolist() == results[-1].tolist()
    assert np.array_equal(*results)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tuning_finds_a_setting_that_separates(name):
    config = OPEN[name]
    assert build_builder(config).needs_tuning and not build_builder(CONFIGS[name]).needs_tuning
    counts = tuning_counts(config, [(*clusters(seed=s), np.ones(4, dtype=bool)) for s in range(3)])
    assert counts[:, 1].tolist() == [12] * len(settings(config))  # particles, whatever the setting
    tuned = choose(config, counts)
    outputs, track = clusters(seed=9)
    found = build_builder(config, **tuned).build(outputs, np.arange(len(track)), len(track), 0)
    own = [track[members] for members in lists_of(found)]
    assert all(len(set(t)) == 1 for t in own) and {t[0] for t in own if len(t) > 2} == set(range(4))


def test_candidates_of_no_track_are_cut_away_where_the_model_scores_hits():
    """Noise whose users lie together makes candidates; tuning by exclusive tracks finds a cut that leaves it out."""
    outputs, track = clusters()
    noise = np.full((6, outputs["user"].shape[1]), 5.0, dtype=np.float32)
    outputs = {name: np.concatenate([outputs[name], noise]) for name in ("user", "influencer")}
    outputs["hit_score"] = np.where(np.arange(len(track) + 6) < len(track), 4.0, -2.0).astype(np.float32)
    rows, particle = np.arange(len(track) + 6), np.append(track, [-1] * 6)
    found = build_builder(Named(name="radius", radius=0.5, around="users")).build(outputs, rows, len(rows), 0)
    assert len(np.unique(found.track_ids)) == 5 and (found.track_ids > 0).all()
    cut = Named(name="radius", radius=0.5, around="users", cut=0.5)
    found = build_builder(cut).build(outputs, rows, len(rows), 0)
    assert (found.track_ids[-6:] == 0).all() and not np.isin(rows[-6:], found.hit_rows).any()
    assert len(np.unique(found.track_ids[:-6])) == 4
    opened = Named(name="radius", around="users", cut=None, tuned_by="exclusive")
    tuned = choose(opened, tuning_counts(opened, [(outputs, particle, np.ones(4, dtype=bool))]))
    assert tuned["cut"] > 0 and settings(opened)[0].keys() == {"cut", "radius"}
    with pytest.raises(InputError, match=r"builder\.cut: the model does not score hits; set model\.hit_score"):
        build_builder(cut).build({name: outputs[name] for name in ("user", "influencer")}, rows, len(rows), 0)


@pytest.mark.parametrize(("share", "tolerance"), [(0.3, 0.02), (0.85, 0.02), (1.0, 0.005)])
def test_the_share_of_hits_on_tracks_is_the_events_own(share, tolerance):
    """Scores of a classifier that is right about events with 85 % of hits on tracks."""
    rng = np.random.default_rng(1)
    on_track = rng.random(20_000) < share
    seen = rng.normal(np.where(on_track, 1.5, -1.5), 1.0)
    score = 3.0 * seen + np.log(0.85 / 0.15)  # log of the ratio of two normal densities, and of the shares
    found = probabilities(score[:, None], 0.85)
    assert found.mean() == pytest.approx(share, abs=tolerance)
    assert abs(found[found > 0.5].mean() - on_track[found > 0.5].mean()) < 0.02
    assert probabilities(np.zeros((0, 1)), 0.85).shape == (0,)


def test_tuning_leaves_alone_what_is_given():
    tried = settings(Named(name="condensation", radius=0.33))
    assert all(setting.keys() == {"beta_min"} for setting in tried) and len(tried) == 5


def test_a_track_reaches_as_far_as_it_is_told():
    outputs = {name: np.array([[0.0], [0.1], [0.2], [0.85]]) for name in ("user", "influencer")}
    for reach, wanted in ((1.0, [1, 1, 1, 1]), (0.5, [1, 1, 1, 0])):  # the mean of all four is at 0.29
        builder = build_builder(Named(name="radius", radius=1.0, reach=reach))
        assert builder.build(outputs, np.arange(4), 4, 0).track_ids.tolist() == wanted
