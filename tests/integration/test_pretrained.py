"""The model that comes with the package, on an event that was never in its training: a guard against regressions."""

from __future__ import annotations

import json

import pytest

from hpctrack import convert, evaluate, infer, simulate
from hpctrack.inspection.checkpoints import check_checkpoint
from hpctrack.runtime import checkpoint

SHIPPED = sorted(path.parent.name for path in checkpoint.SHIPPED.glob(f"*/{checkpoint.STATE}"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_whole_and_small(name):
    folder = checkpoint.SHIPPED / name
    assert check_checkpoint(folder) == []
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    text = (folder / "README.md").read_text()
    assert all(word in text for word in ("commit", "seed", "hpctrack train"))


def test_the_shipped_model_finds_tracks(tmp_path):
    """A fifth of the pile-up that it was trained at, so thresholds are well below what it reaches."""
    for package in ("acts.examples", "pythia8mc"):
        pytest.importorskip(package, reason="the simulation is not installed (extra `sim`)")
    csv, whole, data = (tmp_path / name for name in ("csv", "whole", "data"))
    out, results = tmp_path / "candidates", tmp_path / "results.json"
    for verb, words in (
        (simulate, [csv, "--source", "acts", "--events", 1, "--mu", 40, "--seed", 977, "--jobs", 1]),
        (convert, [csv, whole, "--jobs", 1]),
        (convert, [whole, data, "--tracks", "all", "--pt-min-gev", 1, "--remove-noise", "--jobs", 1]),
        (infer, ["--checkpoint", "influencer-500", "--data", data, "--out", out]),
        (evaluate, [out, "--data", data, "--out", results, "--pt-min-gev", 1]),
    ):
        assert verb.main([str(word) for word in words]) == 0
    metrics = json.loads(results.read_text())["exclusive"]["metrics"]
    assert metrics["double_majority_efficiency"]["denominator"] > 100
    assert metrics["double_majority_efficiency"]["value"] > 0.98
    assert metrics["perfect_efficiency"]["value"] > 0.85
    assert metrics["fake_rate"]["value"] < 0.01
