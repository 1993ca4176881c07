"""The plan benchmark's arithmetic, on small samples."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack import bench
from hpctrack.benchmarks import plan
from hpctrack.benchmarks.plan import CONFIG, Events, agreed, measure, resample
from hpctrack.config import load_config
from hpctrack.resources.cost_model import CostModel
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_dataset


def cost_model() -> CostModel:
    return CostModel({"coefficients": [0.0, 1e-4, 0.0, 1e-7]})


def test_steps_are_timed_round_by_round(tmp_path):
    dataset = Dataset(toy_dataset(tmp_path / "data", (20, 30, 25)))
    batches, seconds = measure(dataset, load_config(CONFIG), n=8, trained=2, rounds=3, share=0.3)
    assert [batch.num_graphs for batch in batches] == [1] * 8 + [4]
    assert seconds.shape == (9, 3)
    assert (seconds > 0).all()


def test_resampled_epoch_keeps_sizes_and_residuals_but_no_copies():
    rng = np.random.default_rng(0)
    hits, ratio = rng.lognormal(6, 0.2, 60), rng.normal(1, 0.02, 60)
    events = resample(hits, ratio, cost_model(), seed=1)
    assert np.log(events.hits).mean() == pytest.approx(np.log(hits).mean(), abs=0.01)
    assert np.log(events.hits).std() == pytest.approx(np.log(hits).std(), rel=0.02)
    assert len(np.unique(events.hits)) == len(events.hits)
    assert set(np.round(events.measured / events.predicted, 9)) == set(np.round(ratio, 9))


def test_noise_of_the_timings_is_told_from_what_they_share():
    rng = np.random.default_rng(0)
    true = 1 + rng.normal(0, 0.02, 4000)
    first, second = (true * (1 + np.abs(rng.normal(0, 0.03, 4000))) for _ in range(2))
    shared = agreed(np.minimum(first, second), first, second)
    assert np.std(shared) == pytest.approx(0.02, rel=0.1)
    assert np.std(agreed(first, first, rng.permutation(second))) < 0.01


def test_curve_and_page(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    hits = rng.lognormal(10, 0.2, 1024)
    events = Events(hits, hits**2, hits**2)
    monkeypatch.setattr(plan, "CURVES", ((16, 1), (16, 4)))
    points = plan.curves(events.predicted, events.measured)
    one_each = [p.balance for p in points if (p.per_rank, p.fixed) == (1, "count")]
    assert one_each == sorted(one_each)
    text = plan.curve_page(points, points, "toys", ["cost: known"], plan.peers_table(events))
    assert "| 16 x 1 | count | epoch |" in text
    assert "DynamicBatchSampler (PyG)" in text
    with open(tmp_path / "plan.png", "wb") as file:
        plan.plot(points, file)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_benchmark_without_events_refuses_a_dataset(capsys):
    assert bench.main(["loss", "--data", "somewhere"]) == 2
    assert "uses no dataset" in capsys.readouterr().err
