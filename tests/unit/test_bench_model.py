"""The benchmark of models on few hits."""

from __future__ import annotations

import torch

from hpctrack.benchmarks import measure, model


def test_measures_each_pass_at_each_size():
    x_NF = torch.randn(200, len(measure.FEATURES))
    for name in ("neighbours", "transformer"):
        seconds = model.measure(name, x_NF, [50, 200], rounds=2)
        assert set(seconds) == {"forward", "step"}
        assert all(len(rows) == 2 and all(len(row) == 2 and min(row) > 0 for row in rows) for rows in seconds.values())
