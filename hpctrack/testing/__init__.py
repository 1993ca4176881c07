"""Contract tests for models, losses, graphs and builders, of other packages as well; needs pytest (extra `dev`).

    from hpctrack.testing import LossContract, ModelContract, TrainingContract

    class TestMyModel(ModelContract):
        model = {"name": "my_model", "width": 8}

    class TestMyLoss(LossContract):
        loss = {"name": "my_loss"}
        outputs = {"embedding": 3}

    class TestTraining(TrainingContract):
        model = {"name": "my_model", "width": 8}
        loss = {"name": "my_loss"}

pytest collects all tests of a contract in its subclass. Tests of a contract may be overridden, and added to.
"""

from __future__ import annotations

import pytest

_CONTRACTS = ("model_contract", "loss_contract", "graph_contract", "builder_contract", "training_contract")
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _CONTRACTS))

from hpctrack.testing.builder_contract import BuilderContract  # noqa: E402 - after their asserts are registered
from hpctrack.testing.graph_contract import GraphContract  # noqa: E402
from hpctrack.testing.loss_contract import LossContract  # noqa: E402
from hpctrack.testing.model_contract import LowPrecisionContract, ModelContract  # noqa: E402
from hpctrack.testing.training_contract import TrainingContract  # noqa: E402

__all__ = [
    "BuilderContract",
    "GraphContract",
    "LossContract",
    "LowPrecisionContract",
    "ModelContract",
    "TrainingContract",
]
