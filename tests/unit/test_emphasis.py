"""Targets of rare kinds count more in a loss's means over tracks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, EmphasisConfig, Named, SelectionConfig
from hpctrack.events.emphasis import track_weights
from hpctrack.events.loader import EventLoader
from hpctrack.losses import LOSSES, build_loss
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.losses.term import Tracks, hit_weights
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return Dataset(toy_dataset(tmp_path_factory.mktemp("toy") / "data", sizes=(6, 4)))


def loaded(data: Dataset, **emphasis: float) -> Batch:
    how = EmphasisConfig(**emphasis)
    load = EventLoader(data, ["x", "y", "z"], SelectionConfig(), AugmentConfig(), (1, 0), emphasis=how)
    return Batch.from_data_list([load(row, 0) for row in range(len(data))])


def test_weights_are_those_of_the_kinds(data):
    event = data.read(0)
    load = EventLoader(data, ["x"], SelectionConfig(), AugmentConfig(), (1, 0))
    chosen, _ = load.draw(event, 0)
    columns = [event.column(f"particles.{name}")[chosen.particles] for name in ("px", "py", "vx", "vy")]
    pt, r = np.hypot(*columns[:2]), np.hypot(*columns[2:])
    owner = event.column("truth.particle_row")
    n_hits = np.array([(owner == particle).sum() for particle in chosen.particles])
    most, far, hard = int(np.median(n_hits)), float(np.median(r)), float(np.median(pt))
    how = EmphasisConfig(short=1, short_max_hits=most, displaced=10, displaced_min_mm=far, hard=100, hard_min_gev=hard)
    expected = 1 + 1 * (n_hits <= most) + 10 * (r >= far) + 100 * (pt >= hard)
    np.testing.assert_array_equal(track_weights(event, chosen, how), expected)


def test_nothing_is_read_or_weighed_without_emphasis(data):
    assert "track_weight" not in loaded(data) and Tracks(loaded(data)).weight is None
    assert loaded(data, short=1).track_weight.shape == (10,)


def test_means_are_weighted_within_each_event(data):
    batch = loaded(data, short=1)
    batch.track_weight = torch.arange(1.0, 11.0)
    tracks, values_T = Tracks(batch), torch.linspace(2, 5, 10, dtype=torch.float64)
    first, second = batch.track_weight[:6].double(), batch.track_weight[6:].double()
    expected = (first @ values_T[:6]) / first.sum() + (second @ values_T[6:]) / second.sum()
    assert tracks.per_track(values_T) == pytest.approx(expected.item(), rel=1e-12)
    values_M = values_T[tracks.track]
    weight_M, event_M = batch.track_weight.double()[tracks.track], tracks.event[tracks.track]
    means = [np.average(values_M[event_M == e], weights=weight_M[event_M == e]) for e in (0, 1)]
    assert tracks.per_hit(values_M).item() == pytest.approx(sum(means), rel=1e-12)


def test_pairs_count_as_the_geometric_mean_of_their_tracks(data):
    batch = loaded(data, short=1)
    batch.track_weight = torch.arange(1.0, 11.0)
    weight_N = hit_weights(batch).double()
    of_track = batch.track_weight[:6][batch.track[: batch.ptr[1]]].double()
    member = batch.track[: batch.ptr[1]] >= 0
    expected = torch.where(member, (of_track / of_track[member].mean()).sqrt(), 1.0)
    torch.testing.assert_close(weight_N[: batch.ptr[1]], expected, rtol=1e-6, atol=0)
    x_NE, group = torch.randn(batch.num_nodes, 3, dtype=torch.float64) / 3, torch.arange(batch.num_nodes) // 3
    pairs = weight_N[:, None] * weight_N * (1 - torch.cdist(x_NE, x_NE)).clamp(min=0).square()
    expected = (pairs * (group[:, None] != group)).sum()
    for other in (None, Points(x_NE, group, weight_N)):
        found, _ = hinge_sum(Points(x_NE, group, weight_N), other, 1.0, squared=True)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["influencer", "contrastive", "condensation"])
def test_equal_weights_change_nothing(data, name):
    assert name in LOSSES
    torch.manual_seed(1)
    batch = loaded(data)
    weighted = loaded(data, short=3, short_max_hits=1000)  # all of them
    assert (weighted.track_weight == 4).all()
    shapes = {"user": 3, "influencer": 3, "embedding": 3, "beta": 1}
    outputs = {key: torch.randn(batch.num_nodes, n, dtype=torch.float64) for key, n in shapes.items()}
    loss = build_loss(Named(name=name, **({"compactness": 1.0} if name == "influencer" else {})))
    for plain, same in zip(loss(outputs, batch).values(), loss(outputs, weighted).values(), strict=True):
        assert same.sum.item() == pytest.approx(plain.sum.item(), rel=1e-12)


@pytest.mark.parametrize("balance", [False, True])
def test_hits_of_targets_that_count_more_weigh_more(data, balance):
    batch = loaded(data, short=1)
    batch.track_weight = torch.arange(1.0, 11.0)
    score_N = torch.linspace(-3, 3, batch.num_nodes, dtype=torch.float64)
    found = build_loss(Named(name="hits", balance=balance, true_weight=2.0))({"hit_score": score_N}, batch)["hits"]
    expected, first = 0.0, 0
    for event in (0, 1):
        track, score = batch.track[batch.batch == event].numpy(), score_N[batch.batch == event].numpy()
        weight = np.where(track >= 0, batch.track_weight.double().numpy()[first + track.clip(0)], 1.0)
        first += int(batch.n_tracks[event])
        if balance:
            weight = weight / np.where(track >= 0, weight[track >= 0].sum(), weight[track < 0].sum())
        weight = weight * np.where(track >= 0, 2.0, 1.0)
        expected += np.average(np.log1p(np.exp(np.where(track >= 0, -score, score))), weights=weight)
    assert found.count == 2 and found.sum.item() == pytest.approx(expected, rel=1e-12)
