"""Triplets against their definition; what is learned from them, and how edges get their scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.graphs.triplets import per_event, triplet_chunks, triplets, true_triplets
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.models.triplet_network import ALONE, SEGMENT, segment
from hpctrack.testing.toys import FEATURES, toy_batch
from hpctrack.tracking.builders import build_builder

HAND = torch.tensor([[0, 1, 5, 2, 1, 3], [1, 2, 1, 4, 3, 4]])  # 0 and 5 -> 1 -> 2 and 3 -> 4
OF_HAND = [(0, 1), (0, 4), (1, 3), (2, 1), (2, 4), (4, 5)]


def pairs_of(edge_2M: torch.Tensor) -> list[tuple[int, int]]:
    source, target = edge_2M.tolist()
    return [(a, b) for a, b in itertools.product(range(len(source)), repeat=2) if target[a] == source[b]]


def test_a_graph_by_hand():
    assert triplets(HAND, 6).T.tolist() == [list(pair) for pair in OF_HAND]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(("hits", "edges"), [(1, 0), (5, 1), (2, 9), (12, 30), (40, 200)])
def test_triplets_are_all_pairs_that_share_the_middle_hit(hits, edges, size):
    edge_2M = torch.from_numpy(np.random.default_rng(edges).integers(0, hits, (2, edges)))
    chunks = list(triplet_chunks(edge_2M, hits, size))
    found = torch.cat(chunks, dim=1)
    assert [tuple(pair) for pair in found.T.tolist()] == pairs_of(edge_2M)
    assert torch.equal(found, triplets(edge_2M, hits))
    most = int(torch.bincount(edge_2M[0], minlength=hits).max())
    assert all(part.shape[1] <= size + most for part in chunks)


def test_true_ones_and_those_of_each_event():
    batch = toy_batch(sizes=(4, 0, 3), edges=3)
    pairs, truth, event = pairs_of(batch.edge_index), batch.edge_truth.tolist(), batch.batch[batch.edge_index[0]]
    odd = torch.arange(batch.num_edges) % 2 == 1
    expected = [(a, b) for a, b in pairs if truth[a] and truth[b] and odd[a] and odd[b]]
    assert [tuple(pair) for pair in true_triplets(batch, odd).T.tolist()] == expected
    assert per_event(batch).tolist() == [sum(int(event[a]) == i for a, _ in pairs) for i in range(3)]


@pytest.mark.parametrize("pool", ["best", "mean"])
def test_edges_have_the_score_of_their_triplets(pool):
    model = build_model(Named(name="triplets", pool=pool, network={"name": "attention", "width": 4}), FEATURES).double()
    batch = toy_batch(sizes=(2,), n_noise=4)
    batch.edge_index = torch.cat([HAND, torch.tensor([[6], [7]])], dim=1)  # the last edge meets no other
    found = model(batch)
    score = dict(zip(OF_HAND, found["triplet_score"].tolist(), strict=True))
    for edge in range(6):
        own = [value for pair, value in score.items() if edge in pair]
        assert found["edge_score"][edge].item() == pytest.approx(max(own) if pool == "best" else sum(own) / len(own))
    assert found["edge_score"][6] == ALONE


def test_a_segment_is_known_by_its_middle():
    a = torch.tensor([[1.0, 0.2, 0.5, 0.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 0.3, 1.5, 0.0]], dtype=torch.float64)
    x, y = ((1 * f(0.2) + 2 * f(0.3)) / 2 for f in (np.cos, np.sin))
    found = dict(zip(SEGMENT, segment(a, b)[0].tolist(), strict=True))
    expected = {"r": np.hypot(x, y), "cos_phi": x / np.hypot(x, y), "sin_phi": y / np.hypot(x, y), "z": 1.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_loss_is_that_of_its_definition():
    batch = toy_batch(sizes=(4, 3), edges=2)
    pairs, truth, target = pairs_of(batch.edge_index), batch.edge_truth, batch.track[batch.edge_index[0]] >= 0
    score = torch.randn(len(pairs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for event in range(2):
        terms = []
        for (a, b), value in zip(pairs, score, strict=True):
            true = truth[a] & truth[b]
            if batch.batch[batch.edge_index[0, a]] == event and (not true or target[b]):
                terms.append(binary_cross_entropy_with_logits(value, true.double()))
        total += sum(terms) / len(terms)
    outputs = {"triplet_score": score, "edge_score": torch.zeros(batch.num_edges, dtype=torch.float64)}
    found = build_loss(Named(name="triplets"))(outputs, batch)["triplets"]
    assert found.count == 2 and found.sum.item() == pytest.approx(float(total))


def test_metric_learning_on_edges_is_that_of_its_definition(monkeypatch):
    monkeypatch.setattr("hpctrack.losses.hybrid.CHUNK", 7)
    batch = toy_batch(sizes=(4, 3), edges=2)
    pairs, truth, target = pairs_of(batch.edge_index), batch.edge_truth, batch.track[batch.edge_index[0]] >= 0
    x = torch.randn(batch.num_edges, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    pull, push = torch.zeros(2), torch.zeros(2)
    for event in range(2):
        own = [(a, b) for a, b in pairs if batch.batch[batch.edge_index[0, a]] == event]
        near = [(x[a] - x[b]).square().sum() for a, b in own if truth[a] and truth[b] and target[a] and target[b]]
        far = [(1 - (x[a] - x[b]).norm()).clamp(min=0) ** 2 for a, b in own if not (truth[a] and truth[b])]
        pull[event], push[event] = sum(near) / len(near), sum(far) / len(far)
    outputs = {"edge_embedding": x, "edge_score": torch.zeros(batch.num_edges, dtype=torch.float64)}
    found = build_loss(Named(name="hybrid"))(outputs, batch)
    assert found["positives"].count == found["negatives"].count == 2
    assert found["positives"].sum.item() == pytest.approx(float(pull.sum()), rel=1e-6)
    assert found["negatives"].sum.item() == pytest.approx(float(push.sum()), rel=1e-6)


def test_radius_edges_go_on_near_by():
    x = np.array([[0.0], [0.1], [5.0], [0.3], [7.0], [9.0]], dtype=np.float32)
    outputs = {"edge_embedding": x, "edge_index": HAND.numpy()}
    found = build_builder(Named(name="radius_edges", radius=0.5)).build(outputs, np.arange(6) * 10, 60, 3)
    assert found.event_id == 3
    assert list(zip(found.sender.tolist(), found.receiver.tolist(), strict=True)) == [(0, 10), (10, 20), (20, 40)]
    np.testing.assert_allclose(found.score, [0.8, 0.8, 0.6], rtol=1e-5)


def test_what_does_not_fit_is_said():
    batch = toy_batch(edges=3)
    with pytest.raises(InputError, match=r"model\.triplets_max.*triplets of .* edges are more than 5; raise"):
        build_model(Named(name="triplets", triplets_max=5), FEATURES).double()(batch)
    with pytest.raises(InputError, match=r"model\.network\.name.*unknown 'filter'; one of: attention, convolution"):
        build_model(Named(name="triplets", network={"name": "filter"}), FEATURES)
    with pytest.raises(InputError, match="mined is for an embedding of hits"):
        build_loss(Named(name="hybrid", of="edges", mined=5))
    outputs = build_model(Named(name="filter", width=8), FEATURES).double()(batch)
    with pytest.raises(InputError, match=r"needs the output 'edge_embedding' of model\.embed_edges"):
        build_loss(Named(name="hybrid"))(outputs, batch)
    with pytest.raises(InputError, match=r"radius_edges needs a model that embeds edges"):
        build_builder(Named(name="radius_edges")).build({"edge_index": HAND.numpy()}, np.arange(6), 6, 0)
    with pytest.raises(InputError, match="give a graph"):
        build_model(Named(name="triplets"), FEATURES).double()(toy_batch())
