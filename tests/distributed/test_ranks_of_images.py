"""Models on images: the gradient on two ranks is that of one (fp64: 1e-12), whichever slots tracks are matched with."""

from __future__ import annotations

import pytest

from hpctrack.testing.toys import toy_dataset
from hpctrack.testing.training_contract import SIZES, check_gradients, planned

CANVAS = {"planes": 14, "columns": 12, "plane": "plane", "column": "column"}
QUERIES = {"slots": 9, "heads": 2, "layers": 1, "covariance": True, "hits": True}
LINES = {"likelihood": 0.1, "presence": 0.3, "hits": 0.7, "lever": 0.1}
CASES = {
    "captioning": ({"channels": [2, 0, 3], "width": 4, "slots": 9}, {"name": "lines", "lever": 0.1}, "ddp"),
    "track_counting": ({"channels": [2, 0, 3], "most": 9}, {"name": "count"}, "ddp"),
    "line_bins": ({"channels": [2, 0, 3], "bins": 2}, {"name": "line_bins"}, "fsdp"),
    "track_queries": (
        QUERIES | {"backbone": {"name": "mlp", "width": 4, "layers": 1}},
        LINES | {"name": "lines", "slots": "matched"},
        "fsdp",
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_gradient_is_that_of_one_rank(tmp_path, name):
    toy_dataset(tmp_path / "data", sizes=SIZES, n_noise=2)
    model, loss, strategy = CASES[name]
    reading = {"features": ["plane", "column"], "augment": {}}

    def config(plan):
        return planned(plan, tmp_path, CANVAS | model | {"name": name}, loss, reading=reading)

    check_gradients(config, strategy, (2,), ("whole", "packed"))
