"""Counts of edges against their definitions, written out slowly."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hpctrack.evaluation.edge_metrics import CUTS, at_cut, auc, cut_that_keeps, tally_edges


def make(seed, n_hits=30, n_edges=80):
    rng = np.random.default_rng(seed)
    particle = rng.integers(-1, 5, n_hits)
    target = rng.random(5) < 0.6
    edges = np.unique(np.sort(rng.integers(0, n_hits, (2, n_edges)), axis=0), axis=1)
    same = (particle[edges[0]] == particle[edges[1]]) & (particle[edges[0]] >= 0) & (edges[0] != edges[1])
    truth = edges[::-1, same & (rng.random(edges.shape[1]) < 0.8)]
    found = edges[:, rng.random(edges.shape[1]) < 0.7]
    score = rng.choice([0.0, 0.005, 0.2, 0.5, 0.77, 0.99, 1.0], found.shape[1])
    return found, score.astype(np.float32), truth, particle, target


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_counts_are_their_definitions(seed, cut):
    found, score, truth, particle, target = make(seed)
    tally = tally_edges(found, score, truth, particle, target)
    true = {frozenset(edge) for edge in truth.T.tolist()}
    kinds = []
    for i, j in found.T.tolist():
        kinds.append("false" if frozenset((i, j)) not in true else "target" if target[particle[i]] else "other")
    kinds, kept = np.array(kinds), score >= cut
    n = {kind: int(((kinds == kind) & kept).sum()) for kind in ("target", "other", "false")}
    of_target = sum(bool(target[particle[i]]) for i, _ in truth.T)
    rejected = int(((kinds == "false") & ~kept).sum())
    assert at_cut(tally, cut) == {
        "efficiency": (n["target"], of_target),
        "efficiency_all": (n["target"] + n["other"], truth.shape[1]),
        "kept_true": (n["target"], int((kinds == "target").sum())),
        "purity": (n["target"], n["target"] + n["false"]),
        "purity_all": (n["target"] + n["other"], int(kept.sum())),
        "accuracy": (n["target"] + rejected, int((kinds != "other").sum())),
        "edges_per_event": (int(kept.sum()), 1),
    }
    told = kinds != "other"
    if len(set(kinds[told])) == 2:
        np.testing.assert_allclose(auc(tally), roc_auc_score(kinds[told] == "target", score[told]))
    else:
        assert auc(tally) is None


def test_events_are_added():
    one, two = (tally_edges(*make(seed)) for seed in (1, 2))
    both = one + two
    assert both.events == 2 and both.true_target == one.true_target + two.true_target
    assert at_cut(both, 0.5)["purity"] == tuple(np.add(at_cut(one, 0.5)["purity"], at_cut(two, 0.5)["purity"]))


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.9, 1.0]))
def test_the_cut_that_keeps_a_share_is_the_highest(seed, share):
    tally = tally_edges(*make(seed))
    cut = cut_that_keeps(tally, share)
    kept, all_ = at_cut(tally, cut)["kept_true"]
    assert kept >= share * all_
    for higher in (c for c in (*CUTS, 0.995, 0.9999) if c > cut + 0.002):
        assert all_ == 0 or at_cut(tally, higher)["kept_true"][0] < share * all_
