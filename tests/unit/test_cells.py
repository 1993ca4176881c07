"""Cluster features against the plain definition, one hit at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.formats.detectors import ETA_MAX, cell_features, direction_angles
from hpctrack.storage import schema


def rotation(angle: float) -> np.ndarray:
    """A barrel module's: u along phi, v along z, w outwards."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[-s, 0, c], [c, 0, s], [0, 1, 0]])


def modules(n: int) -> dict[str, np.ndarray]:
    angles = np.linspace(-3, 3, n)
    return {
        "pitch_u": np.linspace(0.05, 0.12, n),
        "pitch_v": np.linspace(0.05625, 10.8, n),
        "thickness": np.linspace(0.3, 0.7, n),
        "rotation": np.array([rotation(a) for a in angles]),
    }


def plain(cells: list[tuple[int, int, float]], module: dict[str, np.ndarray], hit: int) -> dict[str, float]:
    ch0, ch1, value = zip(*cells, strict=True)
    u = (max(ch0) - min(ch0) + 1) * module["pitch_u"][hit]
    v = (max(ch1) - min(ch1) + 1) * module["pitch_v"][hit]
    local = np.array([u, v, module["thickness"][hit]])
    out = {"cell_count": len(cells), "cell_charge": sum(value), "size_u": u, "size_v": v}
    for name, vector in (("local", local), ("global", module["rotation"][hit] @ local)):
        theta = math.acos(vector[2] / math.sqrt(sum(vector**2)))
        out[f"{name}_eta"] = -math.log(math.tan(theta / 2))
        out[f"{name}_phi"] = math.atan2(vector[1], vector[0])
    return out


cell = st.tuples(st.integers(0, 1300), st.integers(0, 1300), st.floats(0, 10, width=32))


@given(st.lists(st.lists(cell, max_size=5), min_size=1, max_size=6), st.randoms())
def test_equals_the_definition_in_any_order(clusters, random):
    module = modules(len(clusters))
    rows = [(hit, *c) for hit, cluster in enumerate(clusters) for c in cluster]
    random.shuffle(rows)
    columns = np.array(rows).T if rows else np.zeros((4, 0))
    row, ch0, ch1 = columns[:3].astype(np.int64)
    got = cell_features(len(clusters), row, ch0, ch1, columns[3], module=module)
    assert {name: values.dtype for name, values in got.items()} == {k: np.dtype(d) for k, d in schema.CELLS.items()}
    for hit, cluster in enumerate(clusters):
        if not cluster:
            assert all(values[hit] == 0 for values in got.values())
            continue
        for name, value in plain(cluster, module, hit).items():
            assert got[name][hit] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=32)] * 3), max_size=5))
def test_angles_are_finite_and_in_range(vectors):
    eta, phi = direction_angles(np.array(vectors, dtype=np.float64).reshape(-1, 3))
    assert (np.abs(eta) <= ETA_MAX).all()
    assert (phi >= -np.pi).all() and (phi <= np.pi).all()


def test_angles_of_the_axes():
    eta, phi = direction_angles(np.array([[0, 0, 0], [0, 0, 2], [0, 0, -2], [-1, -0.0, 0], [3, 0, 0]], dtype=float))
    assert eta.tolist() == [0, ETA_MAX, -ETA_MAX, 0, 0]
    assert phi.tolist() == [0, 0, 0, np.pi, 0]


def test_no_value_makes_the_features_infinite():
    big = np.full(3, np.finfo(np.float32).max)
    ch = np.array([0, 2**31 - 1, 5])
    got = cell_features(1, np.zeros(3, int), ch, ch, big, module=modules(1))
    assert all(np.isfinite(values).all() for values in got.values())
    many = np.zeros(70_000, int)
    assert cell_features(1, many, many, many, many + 0.5, module=modules(1))["cell_count"][0] == 65_535
