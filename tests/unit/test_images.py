"""Models that see images of events: sizes as published, and what their losses compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.losses import build_loss, objective
from hpctrack.losses.images.lines import cholesky, gaussian_nll
from hpctrack.models import build_model
from hpctrack.models.images.captioning import distances
from hpctrack.testing import BuilderContract
from hpctrack.testing.model_contract import low_precision_engine
from hpctrack.testing.toys import FEATURES, gradient, toy_batch, toy_data
from hpctrack.tracking.builders import build_builder

AXES = ["plane", "column"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "captioning"}, 9_295_050),  # HEP.TrkX's summary
        ({"name": "captioning", "covariance": True}, 18_578_253),
        ({"name": "track_counting"}, 16_489),
        ({"name": "line_bins"}, 770_368),
    ],
)
def test_models_have_the_published_number_of_weights(model, expected):
    with torch.device("meta"):
        built = build_model(Named(**model), AXES)
    assert sum(p.numel() for p in built.parameters()) == expected


CANVAS = {"planes": 8, "columns": 8, "plane": "r", "column": "z"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ({"name": "captioning", "channels": [4, 0, 4], "width": 16, "covariance": True}, {"likelihood": 0.1}),
        ({"name": "track_queries", "hits": True, "heads": 2}, {"slots": "matched", "presence": 1.0, "hits": 1.0}),
    ],
)
def test_half_precision_is_near_single(model, loss, precision):
    batch = toy_batch(sizes=(5, 6, 2), dtype=torch.float32)
    batch.x = 3 * batch.x.abs()
    losses, gradients = [], []
    for name in ("fp32", precision):
        torch.manual_seed(0)
        engine = low_precision_engine(build_model(Named(**CANVAS | model), FEATURES), name)
        terms = build_loss(Named(name="lines", lever=1.0, **loss))(engine.forward(batch, True), batch)
        engine.backward(objective(dict.fromkeys(terms, 1.0), terms))
        engine.gradient_norm(None)
        losses.append(sum(found.sum.item() for found in terms.values()))
        gradients.append(torch.cat([gradient(p).flatten() for p in engine.module.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


# ------------------------------------------------------------------------------------------------ losses


def batch_of(lines, track, x=None):
    """One event with true lines (intercept, slope), and hits on tracks."""
    track = np.asarray(track)
    data = toy_data(track, np.zeros((len(track), 2)) if x is None else x, 7, len(lines))
    data.lines = torch.tensor([[b, 0.0, s, 0.0] for b, s in lines], dtype=torch.float64)
    return Batch.from_data_list([data])


def slots(*lines):
    return {"event_lines": torch.tensor([[number for line in lines for number in line]], dtype=torch.float64)}


def term(outputs, batch, name="lines", **options):
    found = build_loss(Named(name="lines", **options))(outputs, batch)
    return found[name].sum.item() / found[name].count


def test_tracks_are_compared_in_the_order_of_their_intercepts():
    batch = batch_of([(30.0, 0.2), (10.0, -0.4)], [0, 1])
    found = slots((11.0, -0.4), (30.0, 0.3), (99.0, 9.0))
    squares = [1.0, 0.0, 0.0, (0.1 * 25) ** 2]
    assert term(found, batch, per="event") == pytest.approx(sum(squares) / 4)  # as Keras averages, masked
    assert term(found, batch) == pytest.approx(sum(squares) / 2 / 3)


def test_matching_takes_the_slots_of_least_cost():
    batch = batch_of([(30.0, 0.2), (10.0, -0.4)], [0, 1])
    found = slots((99.0, 9.0), (30.0, 0.2), (10.0, -0.4))
    assert term(found, batch, slots="matched") == pytest.approx(0.0)
    assert term(found, batch) > 1000.0
    found["event_presence"] = torch.tensor([[-20.0, 20.0, 20.0]], dtype=torch.float64)
    assert term(found, batch, "presence", slots="matched", presence=1.0) < 1e-6
    found["hit_slot"] = torch.tensor([[0.0, 30.0, 0.0, 0.0], [0.0, 0.0, 30.0, 0.0]], dtype=torch.float64)
    assert term(found, batch, "hits", slots="matched", hits=1.0) < 1e-6
    assert term(found, batch_of([(30.0, 0.2), (10.0, -0.4)], [1, 0]), "hits", slots="matched", hits=0.1) > 10.0


def test_the_likelihood_is_that_of_a_gaussian():
    generator = torch.Generator().manual_seed(0)
    deviation, raw = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (2, 3))
    first, below, second = cholesky(raw)
    factor = torch.stack([torch.stack([first, 0 * first], 1), torch.stack([below, second], 1)], 1)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), scale_tril=factor)
    expected = -exact.log_prob(deviation) - math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(deviation, raw), expected)
    assert gaussian_nll(deviation, raw - 1000).isfinite().all()


def test_more_tracks_than_slots_is_an_error():
    with pytest.raises(InputError, match="event 7 has 2 tracks, but the model has 1 slots"):
        term(slots((1.0, 0.0)), batch_of([(30.0, 0.2), (10.0, -0.4)], [0, 1]))
    with pytest.raises(InputError, match="event 7 has 2 tracks, but the model counts to 1"):
        build_loss(Named(name="count"))({"event_count": torch.zeros(1, 2)}, batch_of([(1.0, 0.0)] * 2, [0]))


def test_bins_are_those_of_intercept_and_slope():
    batch = batch_of([(15.0, -0.9), (63.9, 0.99)], [0, 1])
    loss = build_loss(Named(name="line_bins"))
    assert loss.true_bins(batch, 4).nonzero().tolist() == [[0, 0], [0, 15]]


# ------------------------------------------------------------------------------------------------ candidates


class TestSlotBuilders(BuilderContract):
    @pytest.fixture(params=["lines", "slots"])
    def config(self, request):
        self.outputs = {"lines": {"hit_distance": 6}, "slots": {"hit_slot": 7}}[request.param]
        return Named(name=request.param)


def test_hits_go_to_the_nearest_line_of_a_track_that_is_there():
    x = np.array([[plane, column + 0.5] for column in (2, 6) for plane in range(5)] + [[0, 20.5]])
    batch = batch_of([], np.full(len(x), -1), x)
    line_BS2 = torch.tensor([[[2.3, 0.0], [6.4, 0.0], [2.2, 0.0]]], dtype=torch.float64)
    far = distances(batch.x, batch, line_BS2).numpy()
    np.testing.assert_allclose(far[:, 0][[0, 5]], [0.2, 4.2])
    outputs = {"hit_distance": far, "event_presence": np.array([[5.0, 5.0, -5.0]])}
    found = build_builder(Named(name="lines")).build(outputs, np.arange(len(x)), len(x), event_id=1)
    assert found.track_ids.tolist() == [1] * 5 + [2] * 5 + [0]
    outputs["hit_slot"] = np.eye(4)[[0] * 5 + [1] * 5 + [3]]
    same = build_builder(Named(name="slots")).build(outputs, np.arange(len(x)), len(x), event_id=1)
    assert same.track_ids.tolist() == found.track_ids.tolist()


def test_a_canvas_needs_its_axes():
    with pytest.raises(InputError, match=r"model\.column.*'column' is not in data\.features"):
        build_model(Named(name="captioning"), ["plane"])
    with pytest.raises(InputError, match="2 x 2 pixels cannot be halved 4 times"):
        build_model(Named(name="track_counting", planes=2, columns=2), AXES)
