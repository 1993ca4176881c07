"""The hit filter: what it keeps, the cut that tuning finds, and how good it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.hit_metrics import at_cut, tally_hits
from hpctrack.tracking.builders import build_builder, choose, settings, tuning_counts

OPEN = Named(name="hits")


def event(seed: int, n_hits: int = 40_000):
    """Outputs of a filter, each hit's particle, and which particles are targets."""
    rng = np.random.default_rng(seed)
    particle, target = rng.integers(-1, 400, n_hits), rng.random(400) < 0.15
    wanted = np.append(target, False)[particle]
    score = np.where(wanted, rng.normal(4, 1.5, n_hits), rng.normal(-4, 2, n_hits))
    return {"hit_score": score.astype(np.float32)}, particle, target


def test_hits_above_the_cut_are_kept_by_their_rows():
    outputs = {"hit_score": np.array([0.0, -3.0, 2.0, 1.0], dtype=np.float32)}
    found = build_builder(Named(name="hits", cut=0.5)).build(outputs, np.array([2, 3, 7, 9]), 12, 5)
    assert (found.event_id, found.row.tolist(), found.row.dtype) == (5, [2, 7, 9], np.int32)
    np.testing.assert_allclose(found.score, 1 / (1 + np.exp([-0.0, -2.0, -1.0])), rtol=1e-6)
    assert len(build_builder(Named(name="hits", cut=0.0)).build(outputs, np.arange(4), 4, 5)) == 4
    nothing = build_builder(Named(name="hits", cut=0.5)).build({"hit_score": np.zeros(0, "f4")}, np.zeros(0, int), 4, 5)
    assert len(nothing) == 0
    with pytest.raises(InputError, match="'hits' needs a model that scores hits; take the model 'hit_filter'"):
        build_builder(Named(name="hits", cut=0.5)).build({}, np.arange(4), 4, 5)


@pytest.mark.parametrize(("efficiency", "within"), [(0.995, 0.0002), (0.9, 0.001)])
def test_the_tuned_cut_keeps_what_was_asked_and_is_the_largest(efficiency, within):
    config, events = Named(name="hits", efficiency=efficiency), [event(seed) for seed in range(3)]
    assert build_builder(config).needs_tuning and not build_builder(config, cut=0.1).needs_tuning
    counts = tuning_counts(config, events)
    tuned = choose(config, counts)
    wanted = [
        outputs["hit_score"].astype("f8")[np.append(target, False)[particle]] for outputs, particle, target in events
    ]
    probability = 1 / (1 + np.exp(-np.concatenate(wanted)))
    share = (probability >= tuned["cut"]).mean()
    assert efficiency <= share < efficiency + within
    cuts = [setting["cut"] for setting in settings(config)]
    for cut, (passed, every) in zip(cuts[::200], counts[::200], strict=True):
        assert (passed, every) == ((probability >= cut).sum(), len(probability))
    assert all((probability >= cut).mean() < efficiency for cut in cuts if cut > tuned["cut"])
    rest = build_builder(config, **tuned)
    kept = [rest.build(outputs, np.arange(40_000), 40_000, 0) for outputs, _, _ in events]
    assert sum(map(len, kept)) < 0.3 * 3 * 40_000


def test_without_targets_all_hits_are_kept():
    outputs, particle, target = event(0, 100)
    assert choose(OPEN, tuning_counts(OPEN, [(outputs, particle, ~target & target)])) == {"cut": 0.0}
    assert choose(OPEN, tuning_counts(OPEN, [])) == {"cut": 0.0}
    assert settings(Named(name="hits", cut=0.25)) == [{}]


# ------------------------------------------------------------------------------------------------ evaluation


def kept(seed: int):
    """Kept rows and scores of an event, which hits the selection leaves, each hit's particle, and targets."""
    rng = np.random.default_rng(seed)
    particle, target = rng.integers(-1, 6, 40), rng.random(6) < 0.6
    seen = rng.random(40) < 0.9
    row = np.flatnonzero(seen & (rng.random(40) < 0.8)).astype(np.int32)
    return row, rng.choice([0.03, 0.2, 0.5, 0.77, 0.99, 1.0], len(row)).astype(np.float32), seen, particle, target


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_counts_are_their_definitions(seed, cut):
    row, score, seen, particle, target = kept(seed)
    wanted = np.array([p >= 0 and bool(target[p]) for p in particle])
    passed = [int(hit) for hit, value in zip(row, score, strict=True) if value >= cut]
    left = [sum(particle[hit] == p for hit in passed) for p in np.flatnonzero(target)]
    good = sum(bool(wanted[hit]) for hit in passed)
    assert at_cut(tally_hits(row, score, seen, particle, target), cut) == {
        "hit_efficiency": (good, (wanted & seen).sum()),
        "hits_kept": (len(passed), seen.sum()),
        "purity": (good, len(passed)),
        "targets_left": (sum(n >= 3 for n in left), target.sum()),
        "kept_per_event": (len(passed), 1),
    }


def test_events_are_added():
    one, two = (tally_hits(*kept(seed)) for seed in (1, 2))
    for name, sums in at_cut(one + two, 0.5).items():
        assert sums == tuple(np.add(at_cut(one, 0.5)[name], at_cut(two, 0.5)[name]))
