"""The models that come with the package, on events that were never in their training: a guard against regressions."""

from __future__ import annotations

import json

import pytest

from hpctrack import convert, evaluate, infer, simulate
from hpctrack.inspection.describe_checkpoints import check_checkpoint
from hpctrack.training import checkpoint, checkpoint_metadata

SHIPPED = sorted(path.parent.name for path in checkpoint.SHIPPED.glob(f"*/{checkpoint_metadata.STATE}"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_whole_and_small(name):
    folder = checkpoint.SHIPPED / name
    assert check_checkpoint(folder) == []
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    text = (folder / "README.md").read_text()
    assert all(word in text for word in ("commit", "seed", "hpctrack train"))


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    """One event with every hit, of a fifth of the pile-up that models were trained at."""
    for package in ("acts.examples", "pythia8mc"):
        pytest.importorskip(package, reason="the simulation is not installed (extra `sim`)")
    folder = tmp_path_factory.mktemp("event")
    csv, whole = folder / "csv", folder / "whole"
    run(simulate, csv, "--source", "acts", "--events", 1, "--mu", 40, "--seed", 977, "--jobs", 1)
    run(convert, csv, whole, "--jobs", 1)
    return whole


def run(verb, *words):
    assert verb.main([str(word) for word in words]) == 0


def metrics_of(out, data, results):
    run(evaluate, out, "--data", data, "--out", results, "--pt-min-gev", 1)
    return json.loads(results.read_text())["exclusive"]["metrics"]


def test_the_shipped_pipeline_finds_tracks_among_every_hit(event, tmp_path):
    stages = [word for name in ("embedding", "filter", "gnn") for word in ("--checkpoint", f"pipeline-{name}")]
    run(infer, *stages, "--data", event, "--out", tmp_path / "candidates")
    metrics = metrics_of(tmp_path / "candidates", event, tmp_path / "results.json")
    assert metrics["efficiency"]["value"] > 0.93
    assert metrics["fake_rate"]["value"] < 0.1


def test_the_shipped_model_finds_tracks(event, tmp_path):
    """Thresholds are well below what it reaches."""
    data = tmp_path / "data"
    run(convert, event, data, "--tracks", "all", "--pt-min-gev", 1, "--remove-noise", "--jobs", 1)
    run(infer, "--checkpoint", "influencer-500", "--data", data, "--out", tmp_path / "candidates")
    metrics = metrics_of(tmp_path / "candidates", data, tmp_path / "results.json")
    assert metrics["double_majority_efficiency"]["denominator"] > 100
    assert metrics["double_majority_efficiency"]["value"] > 0.98
    assert metrics["perfect_efficiency"]["value"] > 0.85
    assert metrics["fake_rate"]["value"] < 0.01
