"""The hit filter's builder: what it keeps, and the cut that tuning finds."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack.config import Named
from hpctrack.errors import InputError
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
