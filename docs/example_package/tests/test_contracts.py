"""The model and the loss keep hpctrack's contracts."""

from __future__ import annotations

from hpctrack.testing import LossContract, LowPrecisionContract, TrainingContract


class TestDeepSets(LowPrecisionContract):
    model = {"name": "deep_sets", "width": 8, "embedding": 3}
    loss = {"name": "pull_push", "push": 0.0}


class TestPullPushLoss(LossContract):
    loss = {"name": "pull_push"}
    outputs = {"embedding": 3}


class TestTraining(TrainingContract):
    model = {"name": "deep_sets", "width": 8, "embedding": 3}
    loss = {"name": "pull_push"}
