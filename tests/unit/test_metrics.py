"""Each definition on cases made by hand, then against slow references and the reference scorer of TrackML."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.errors import InputError
from hpctrack.evaluation import metrics
from hpctrack.evaluation.matching import Match, exclusive_lists, match_candidates, match_exclusive
from hpctrack.evaluation.metrics import METRICS, census, fraction, mean_score, trackml_score, wilson
from hpctrack.storage.schema import Candidates


def candidates(lists: list[list[int]], n_hits: int, track_ids: np.ndarray | None = None) -> Candidates:
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    rows = np.array([row for rows in lists for row in sorted(rows)], dtype=np.int32)
    ids = np.zeros(n_hits, np.int32) if track_ids is None else track_ids
    return Candidates(7, offsets, rows, np.ones(len(lists), np.float32), ids)


def found_in(labels: list[int], lists: list[list[int]], n_particles: int = 3) -> Match:
    return match_candidates(candidates(lists, len(labels)), np.array(labels, np.int32), n_particles)


ALL = np.ones(3, dtype=bool)
#        row: 0  1  2  3  4  5  6  7  8   9  10  11
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, -1, -1, -1]


def count(name: str, lists: list[list[int]], target: np.ndarray = ALL, labels: list[int] = LABELS) -> tuple[int, int]:
    return METRICS[name].count(found_in(labels, lists), target)


class TestMatching:
    def test_majority_size_and_particle_hits(self):
        found = found_in(LABELS, [[0, 1, 4], [8, 9], [], [9, 10, 0]])
        assert found.size.tolist() == [3, 2, 0, 3]
        assert found.majority.tolist() == [0, -1, -1, -1]
        assert found.majority_hits.tolist() == [2, 0, 0, 0]
        assert found.particle_hits.tolist() == [4, 4, 1]

    def test_ties_go_to_noise_then_to_the_lowest_row(self):
        found = found_in(LABELS, [[0, 1, 4, 5], [4, 5, 9, 10], [4, 8]])
        assert found.majority.tolist() == [0, -1, 1]
        assert not metrics.matched(found).any()

    def test_no_candidates_and_no_hits(self):
        assert len(found_in(LABELS, []).size) == 0
        empty = match_candidates(candidates([], 0), np.zeros(0, np.int32), 0)
        assert census(empty, np.zeros(0, bool))["candidates"] == 0

    def test_exclusive_ids_may_have_gaps(self):
        offsets, rows = exclusive_lists(np.array([5, 0, 2, 5, 2, 9]))
        assert offsets.tolist() == [0, 2, 4, 5]
        assert rows.tolist() == [2, 4, 0, 3, 5]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"track_ids": np.zeros(11, np.int32)}, "11 track ids for 12 hits"),
            ({"hit_rows": np.array([0, 1, 12], np.int32)}, r"hit_rows\[2\] is 12; expected 0 to 11"),
            ({"hit_rows": np.array([0, 2, 2], np.int32)}, r"hit_rows\[2\] is 2; expected ascending"),
            ({"hit_offsets": np.array([0, 4])}, "hit_offsets"),
            ({"track_ids": np.full(12, -1, np.int32)}, r"track_ids\[0\] is -1"),
        ],
    )
    def test_candidates_that_do_not_fit_the_event(self, change: dict, says: str):
        good = candidates([[0, 1, 2]], 12)
        bad = Candidates(**({name: getattr(good, name) for name in good.__dataclass_fields__} | change))
        with pytest.raises(InputError, match=f"candidates of event 7: .*{says}"):
            match_candidates(bad, np.array(LABELS), 3)


class TestDefinitions:
    def test_exactly_half_is_no_match(self):
        assert count("efficiency", [[0, 1, 4, 5]]) == (0, 3)
        assert count("fake_rate", [[0, 1, 4, 5]]) == (1, 1)
        assert count("efficiency", [[0, 1, 4]]) == (1, 3)
        assert count("fake_rate", [[0, 1, 4]]) == (0, 1)

    def test_two_hits_are_no_candidate(self):
        assert count("efficiency", [[0, 1]]) == (0, 3)
        assert count("fake_rate", [[0, 1], [9, 10]]) == (0, 0)

    def test_noise_is_never_a_match(self):
        assert count("fake_rate", [[9, 10, 11], [0, 9, 10]]) == (2, 2)
        assert count("efficiency", [[9, 10, 11]]) == (0, 3)
        assert count("lhc_efficiency", [[9, 10, 11], [0, 9, 10]]) == (0, 0)

    def test_duplicates(self):
        lists = [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3], [4, 5, 6]]
        assert count("duplicate_rate", lists) == (2, 4)
        assert count("efficiency", lists) == (2, 3)
        assert count("fake_rate", lists) == (0, 4)

    def test_particles_that_are_no_targets(self):
        target = np.array([True, False, False])
        lists = [[0, 1, 2], [4, 5, 6], [4, 5, 6, 7], [9, 10, 11]]
        assert count("efficiency", lists, target) == (1, 1)
        assert count("fake_rate", lists, target) == (1, 4)  # the two of particle 1 are not fakes
        assert count("duplicate_rate", lists, target) == (0, 1)
        assert count("lhc_efficiency", lists, target) == (1, 1)
        assert census(found_in(LABELS, lists), target) == {
            "candidates": 4,
            "short": 0,
            "counted": 4,
            "first_of_target": 1,
            "duplicates_of_target": 0,
            "of_other_particles": 2,
            "fakes": 1,
        }

    def test_lhc_is_from_exactly_three_quarters(self):
        assert count("lhc_efficiency", [[0, 1, 2, 4]]) == (1, 1)
        assert count("lhc_efficiency", [[0, 1, 4]]) == (0, 1)
        assert count("lhc_efficiency", [[0, 1, 2, 3], [4, 5, 6, 7]]) == (2, 2)

    def test_double_majority_needs_more_than_half_of_the_particle(self):
        labels = [0] * 6 + [1] * 3
        assert count("double_majority_efficiency", [[0, 1, 2]], labels=labels) == (0, 3)  # exactly 50 % of six
        assert count("double_majority_efficiency", [[0, 1, 2, 3]], labels=labels) == (1, 3)
        assert count("efficiency", [[0, 1, 2]], labels=labels) == (1, 3)

    def test_perfect_is_all_hits_and_no_other(self):
        assert count("perfect_efficiency", [[0, 1, 2, 3], [4, 5, 6, 7, 9]]) == (1, 3)
        assert count("perfect_efficiency", [[0, 1, 2]]) == (0, 3)
        assert count("perfect_efficiency", [[0, 1, 2, 3], [0, 1, 2, 3]]) == (1, 3)  # particles, not candidates

    def test_nothing_to_count(self):
        none = np.zeros(3, dtype=bool)
        for name in METRICS:
            assert count(name, []) == (0, 3 if METRICS[name].denominator == "target particles" else 0)
            assert count(name, [], none) == (0, 0)
        number = fraction(0, 0)
        assert number["value"] is None and number["error"] is None and number["denominator"] == 0


class TestErrors:
    def test_wilson_against_scipy(self):
        stats = pytest.importorskip("scipy.stats")
        level = stats.norm.cdf(1) - stats.norm.cdf(-1)
        for k, n in [(0, 5), (5, 5), (3, 10), (977, 1000)]:
            interval = stats.binomtest(k, n).proportion_ci(level, method="wilson")
            assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)

    def test_a_full_count_has_an_error(self):
        number = fraction(20, 20)
        assert number["value"] == 1 and number["hi"] == 1 and 0 < number["error"] < 0.05

    def test_mean_score(self):
        number = mean_score([0.8, None, 0.9, 1.0])
        assert number["value"] == pytest.approx(0.9) and number["denominator"] == 3
        assert number["error"] == pytest.approx(0.1 / np.sqrt(3))
        assert mean_score([1.0])["error"] is None
        assert mean_score([None])["value"] is None


def slow_counts(lists: list[list[int]], labels: list[int], target: list[bool]) -> dict[str, tuple[int, int]]:
    """The definitions once more, in plain Python."""
    hits = {p: labels.count(p) for p in range(len(target))}
    found: dict[str, set] = {"eff": set(), "dm": set(), "perfect": set()}
    valid = fakes = lhc = lhc_of = matched_targets = 0
    for rows in lists:
        if len(rows) < 3:
            continue
        valid += 1
        held = {label: sum(labels[r] == label for r in rows) for label in {labels[r] for r in rows}}
        best = max(held.values())
        major = min(label for label in held if held[label] == best)
        is_target = major >= 0 and target[major]
        lhc_of += is_target
        lhc += is_target and best / len(rows) >= 0.75
        if major < 0 or best / len(rows) <= 0.5:
            fakes += 1
            continue
        matched_targets += is_target
        if is_target:
            found["eff"].add(major)
            if best / hits[major] > 0.5:
                found["dm"].add(major)
            if best == hits[major] == len(rows):
                found["perfect"].add(major)
    n = sum(target)
    return {
        "efficiency": (len(found["eff"]), n),
        "fake_rate": (fakes, valid),
        "duplicate_rate": (matched_targets - len(found["eff"]), matched_targets),
        "double_majority_efficiency": (len(found["dm"]), n),
        "lhc_efficiency": (lhc, lhc_of),
        "perfect_efficiency": (len(found["perfect"]), n),
    }


def slow_score(track_ids: list[int], ids: list[int], weight: list[float], zero_is_a_track: bool = False) -> float:
    """What `score_event` of LAL/trackml-library computes, in plain Python."""
    total = 0.0
    for track in set(track_ids):
        if track == 0 and not zero_is_a_track:
            continue
        rows = [h for h in range(len(ids)) if track_ids[h] == track]
        held = {p: sum(ids[h] == p for h in rows) for p in {ids[h] for h in rows}}
        major = min(p for p in held if held[p] == max(held.values()))
        if 2 * held[major] > len(rows) and 2 * held[major] > ids.count(major):
            total += sum(weight[h] for h in rows if ids[h] == major)
    return total / sum(weight)


@st.composite
def events(draw):
    n_particles = draw(st.integers(0, 6))
    labels = draw(st.lists(st.integers(-1, n_particles - 1), max_size=30))
    n = len(labels)
    rows = st.lists(st.integers(0, n - 1), unique=True, max_size=8).map(sorted) if n else st.just([])
    lists = draw(st.lists(rows, max_size=12))
    target = draw(st.lists(st.booleans(), min_size=n_particles, max_size=n_particles))
    ids = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    return labels, lists, target, ids


@given(events(), st.randoms(use_true_random=False))
def test_agrees_with_plain_python_in_any_order(event, random):
    labels, lists, target, ids = event
    particle_row, wanted = np.array(labels, np.int32), np.array(target, bool)
    found = match_candidates(candidates(lists, len(labels), np.array(ids, np.int32)), particle_row, len(target))
    expected = slow_counts(lists, labels, target)
    assert {name: metric.count(found, wanted) for name, metric in METRICS.items()} == expected
    parts = census(found, wanted)
    kinds = ("first_of_target", "duplicates_of_target", "of_other_particles", "fakes")
    assert parts["counted"] == sum(parts[kind] for kind in kinds)
    assert parts["candidates"] == parts["counted"] + parts["short"]

    order = random.sample(range(len(labels)), len(labels))  # old row of each new row
    new_row = {old: new for new, old in enumerate(order)}
    shuffled = [sorted(new_row[r] for r in rows) for rows in random.sample(lists, len(lists))]
    moved = match_candidates(candidates(shuffled, len(labels)), particle_row[order], len(target))
    assert {name: metric.count(moved, wanted) for name, metric in METRICS.items()} == expected


@given(events())
def test_exclusive_is_the_lists_of_the_ids(event):
    labels, _, target, ids = event
    particle_row = np.array(labels, np.int32)
    exclusive = match_exclusive(candidates([], len(labels), np.array(ids, np.int32)), particle_row, len(target))
    lists = [[h for h in range(len(ids)) if ids[h] == t] for t in sorted(set(ids) - {0})]
    expected = match_candidates(candidates(lists, len(labels)), particle_row, len(target))
    for name in ("size", "majority", "majority_hits", "particle_hits"):
        assert getattr(exclusive, name).tolist() == getattr(expected, name).tolist()


@given(events())
def test_truth_labels_are_perfect(event):
    labels, *_ = event
    particle_row = np.array(labels, np.int32)
    n_particles = max(labels, default=-1) + 1
    target = np.bincount(particle_row[particle_row >= 0], minlength=n_particles) >= 3
    truth = candidates([], len(labels), particle_row + 1)
    found = match_exclusive(truth, particle_row, n_particles)
    for name in ("efficiency", "double_majority_efficiency", "perfect_efficiency"):
        assert METRICS[name].count(found, target) == (target.sum(), target.sum())
    lhc = METRICS["lhc_efficiency"].count(found, target)
    assert lhc == (target.sum(), target.sum())
    assert METRICS["fake_rate"].count(found, target)[0] == METRICS["duplicate_rate"].count(found, target)[0] == 0


@settings(max_examples=200)
@given(events(), st.integers(0, 2**32 - 1))
def test_score_equals_the_reference_scorer(event, seed):
    labels, _, target, ids = event
    rng = np.random.default_rng(seed)
    weight = np.where(np.array(labels) >= 0, rng.random(len(labels)), 0).astype(np.float32)
    score = trackml_score(np.array(ids, np.int32), np.array(labels, np.int32), weight, len(target))
    if weight.sum() == 0:
        assert score is None
        return
    assert 0 <= score <= 1
    particle_ids = [label + 1 for label in labels]  # the reference scores noise (0) with its weight 0
    assert score == pytest.approx(slow_score(ids, particle_ids, weight.astype(float).tolist()), abs=1e-12)
    everywhere = [track + 1 for track in ids]  # no hit left out: exactly the reference's reading
    score = trackml_score(np.array(everywhere), np.array(labels, np.int32), weight, len(target))
    assert score == pytest.approx(slow_score(everywhere, particle_ids, weight.astype(float).tolist(), True), abs=1e-12)
    truth = trackml_score(np.array(labels) + 1, np.array(labels, np.int32), weight, len(target))
    assert truth == 1.0


def real_truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    folder = os.environ.get("HPCTRACK_TRACKML_DIR")
    if not folder:
        pytest.skip("HPCTRACK_TRACKML_DIR names no folder of TrackML files")
    path = next(Path(folder).glob("event*-truth.csv*"))
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        rows = list(csv.DictReader(file))
    ids = np.array([int(row["particle_id"]) for row in rows])
    weight = np.array([float(row["weight"]) for row in rows], dtype=np.float32)
    particles, inverse = np.unique(ids, return_inverse=True)
    return ids, inverse - int(particles[0] == 0), weight


def test_real_event_from_truth_labels_and_from_one_label():
    _, particle_row, weight = real_truth()
    n_particles = particle_row.max() + 1
    assert trackml_score(particle_row + 1, particle_row, weight, n_particles) == 1.0
    own_labels = np.where(particle_row >= 0, particle_row + 1, np.arange(len(weight)) + n_particles + 2)
    assert trackml_score(own_labels, particle_row, weight, n_particles) == 1.0  # noise hits as tracks of their own
    assert trackml_score(np.ones_like(particle_row), particle_row, weight, n_particles) == 0.0  # no majority
    one = np.where(particle_row == 5, 1, 0)
    expected = weight[particle_row == 5].sum(dtype=np.float64) / weight.sum(dtype=np.float64)
    assert trackml_score(one, particle_row, weight, n_particles) == pytest.approx(expected, abs=1e-15)
