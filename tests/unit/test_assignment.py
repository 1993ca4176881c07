"""The exact assignment against brute force, estimates of its gradient against their definitions, and its chains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.graphs.assignment import Assignment
from hpctrack.graphs.planes import Planes
from hpctrack.losses import build_loss
from hpctrack.losses.assignment.estimators import ESTIMATORS, Strength
from hpctrack.models import build_model
from hpctrack.models.segments.blocks import angles, between, on_grid, waves
from hpctrack.models.segments.refined import best
from hpctrack.simulation.telescope.planes import plane_z
from hpctrack.simulation.telescope.source import frame
from hpctrack.storage.schema import Event
from hpctrack.testing.toys import toy_batch
from hpctrack.tracking.assignment.builder import assigned
from hpctrack.tracking.builders import build_builder


def brute(edge_2M: np.ndarray, cost_M: np.ndarray) -> tuple[int, float]:
    """Number of edges and cost of the best choice: the most edges, then the least cost."""
    best = (0, 0.0)
    for size in range(min(len(np.unique(ends)) for ends in edge_2M) + 1):
        for chosen in itertools.combinations(range(edge_2M.shape[1]), size):
            ends = edge_2M[:, list(chosen)]
            if all(len(np.unique(end)) == size for end in ends):
                best = min(best, (-size, float(cost_M[list(chosen)].sum())))
    return -best[0], best[1]


@pytest.mark.parametrize("rows,columns", [(3, 3), (2, 4), (4, 2), (4, 4)])
@pytest.mark.parametrize("density", [0.3, 0.7])
def test_it_is_that_of_brute_force(rows, columns, density):
    """Forbidden pairs, more rows than columns and fewer, rows and columns without any edge, costs of either sign."""
    rng = np.random.default_rng([rows, columns, int(10 * density)])
    for trial in range(6):
        allowed = rng.random((rows, columns)) < density
        allowed[0] &= trial % 2 == 0  # an empty row
        edge_2M = np.stack(np.nonzero(allowed))
        edge_2M[1] += rows
        cost_M = rng.normal(size=edge_2M.shape[1]) if trial > 3 else rng.random(edge_2M.shape[1])
        solve = Assignment(edge_2M, rows + columns, threads=1 + trial % 2)
        chosen_M = solve(cost_M)
        number, cost = brute(edge_2M, cost_M)
        assert chosen_M.sum() == number and cost_M[chosen_M].sum() == pytest.approx(cost)
        assert all(len(np.unique(end)) == number for end in edge_2M[:, chosen_M])


def test_layers_fall_apart_and_repeated_edges_are_taken_once():
    edge_2M = np.array([[0, 0, 1, 2, 2, 3], [2, 2, 3, 4, 5, 5]])
    solve = Assignment(edge_2M, 6)
    assert solve.component_M.tolist() == [0, 0, 1, 2, 2, 2]
    assert solve(np.array([0.5, 0.5, 9.0, 0.1, 0.9, 0.9])).tolist() == [True, False, True, True, False, True]
    assert Assignment(np.zeros((2, 0), np.int64), 3)(np.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match="finite"):
        solve(np.full(6, np.nan))


def square(seed=0, n=4):
    """All pairs of n and n hits, random costs, and a true pairing."""
    rng = np.random.default_rng(seed)
    edge_2M = np.stack(np.divmod(np.arange(n * n), n)) + np.array([[0], [n]])
    true_M = edge_2M[0] == edge_2M[1] - n
    return edge_2M, rng.random(n * n), np.where(true_M, -1.0, 1.0), true_M


def least(cost_M, n=4):
    """The best full pairing by trying all, bool [M]."""
    pairings = [
        np.isin(np.arange(n * n), [n * i + j for i, j in enumerate(p)]) for p in itertools.permutations(range(n))
    ]
    return min(pairings, key=lambda chosen: cost_M[chosen].sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_blackbox_gradient_is_its_definition(seed):
    edge_2M, cost_M, g_M, true_M = square(seed)
    solve, strength = Assignment(edge_2M, 8), 0.3
    found = ESTIMATORS["blackbox"](solve, cost_M, solve(cost_M), g_M, Strength(strength, 1, 1, (0,)))
    other = least(np.maximum(cost_M + strength * g_M, 0))
    np.testing.assert_allclose(found, -(least(cost_M).astype(float) - other) / strength)
    loss = build_loss(Named(name="assignment", strength=strength))
    score = torch.logit(torch.from_numpy(1 - cost_M)).requires_grad_()
    batch = toy_batch(sizes=(1,), n_noise=7)
    batch.edge_index, batch.edge_truth = torch.from_numpy(edge_2M), torch.from_numpy(true_M)
    batch.track, batch.batch = torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.long)
    batch.ptr = torch.tensor([0, 8])
    term = loss({"edge_score": score}, batch)["edges"]
    (3.0 * term.sum).backward()
    assert float(term.sum) == pytest.approx((least(cost_M) != true_M).mean())
    np.testing.assert_allclose(score.grad.numpy(), 3.0 / 16 * -found * cost_M * (1 - cost_M), atol=1e-14)


def test_a_margin_teaches_choices_that_are_hardly_right():
    """Each true edge is dearer and each other one cheaper by the margin, then both the other way."""
    edge_2M, _, sign_M, true_M = square()
    cost_M = np.where(true_M, 0.4, 0.5) + 1e-2 * np.random.default_rng(0).random(16)
    solve, batch = Assignment(edge_2M, 8), toy_batch(sizes=(1,), n_noise=7)
    batch.edge_index, batch.edge_truth = torch.from_numpy(edge_2M), torch.from_numpy(true_M)
    batch.track, batch.batch = torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.long)
    batch.ptr = torch.tensor([0, 8])
    for margin, learns in ((0.0, False), (0.1, True)):
        score = torch.logit(torch.from_numpy(1 - cost_M)).requires_grad_()
        term = build_loss(Named(name="assignment", strength=0.2, margin=margin))({"edge_score": score}, batch)["edges"]
        term.sum.backward()
        assert float(term.sum) == 0 and bool(score.grad.abs().sum() > 0) == learns
        if learns:
            harder = solve(cost_M - margin * sign_M).astype(float)
            slope = (solve(cost_M + 0.1 * sign_M) - harder) / 0.2  # as `blackbox`: from there by 0.2 towards the truth
            np.testing.assert_allclose(score.grad.numpy(), -slope * cost_M * (1 - cost_M) / 16, atol=1e-14)


@pytest.mark.parametrize(
    "options,text",
    [
        ({"estimator": "sinkhorn", "strength": 2.1e-3, "margin": 0.1}, "with sinkhorn at least 0.0022"),
        ({"estimator": "identity", "margin": 0.1}, "margin: with identity it changes nothing"),
    ],
)
def test_margins_that_do_not_fit_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        build_loss(Named(name="assignment", **options))
    build_loss(Named(name="assignment", **{**options, "margin": 0.0}))


def test_the_best_segments_do_not_depend_on_their_order():
    edge_2M = torch.tensor([[0, 0, 0, 0, 1], [2, 3, 4, 5, 5]])
    score_M = torch.tensor([2.0, 1.0, 1.0, 0.5, 3.0])
    for order in (torch.arange(5), torch.tensor([4, 2, 3, 1, 0])):
        kept = best(score_M[order], edge_2M[:, order], 6, 2)
        assert kept.tolist() == [[True, True, True, False, True][k] for k in order]  # both of the second place
    assert best(score_M[:0], edge_2M[:, :0], 6, 2).tolist() == []
    with pytest.raises(InputError, match="the model 'line_graph_refined'"):
        build_model(Named(name="line_graph_refined"), ["z"])


def test_other_estimates_are_their_definitions():
    edge_2M, cost_M, g_M, _ = square(7)
    solve = Assignment(edge_2M, 8)
    chosen_M = solve(cost_M)
    identity = ESTIMATORS["identity"](solve, cost_M, chosen_M, g_M, Strength(1.0, 1, 1, (0,)))
    np.testing.assert_allclose(identity, g_M.mean() - g_M)
    perturbed = ESTIMATORS["perturbed"](solve, cost_M, chosen_M, g_M, Strength(0.3, 2000, 1, (1,)))
    step, rng = 0.3, np.random.default_rng(2)  # by finite differences of the mean over noise, along one direction
    direction = rng.normal(size=16)
    noise = 0.3 * rng.normal(size=(2000, 16))
    values = [np.mean([g_M @ solve(cost_M + s * step * direction + z) for z in noise]) for s in (-1, 1)]
    assert perturbed @ direction == pytest.approx((values[1] - values[0]) / (2 * step), abs=1.0)
    relaxed = ESTIMATORS["sinkhorn"](solve, cost_M, chosen_M, g_M, Strength(0.4, 1, 400, (0,)))
    assert relaxed @ direction == pytest.approx(
        (g_M @ softened(cost_M + 1e-5 * direction) - g_M @ softened(cost_M - 1e-5 * direction)) / 2e-5, rel=1e-4
    )


def softened(cost_M, tau=0.4, n=4):
    """Sinkhorn's plan with a spare place for each hit, by its own plain iteration."""
    kernel, u, v, spare = np.exp(-cost_M.reshape(n, n) / tau), np.ones(n), np.ones(n), np.exp(-1 / tau)
    for _ in range(400):
        u = 1 / (kernel @ v + spare)
        v = 1 / (kernel.T @ u + spare)
    return (u[:, None] * kernel * v).ravel()


def test_subsets_of_edges_have_means_of_their_own():
    batch = toy_batch(sizes=(3, 2), edges=2)
    score = torch.randn(batch.num_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch.edge_subset = torch.arange(batch.num_edges) % 2
    found = build_loss(Named(name="segments", others="true"))({"edge_score": score}, batch)["edges"]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    event = batch.batch[batch.edge_index[0]]
    means = [
        bce(score[own], batch.edge_truth[own].double())
        for own in ((event == e) & (batch.edge_subset == s) for e in (0, 1) for s in (0, 1))
    ]
    torch.testing.assert_close(found.sum, sum(means))
    assert found.count == 2


def test_the_networks_have_the_papers_weights_and_waves():
    features = ["x", "y", "z", "cell_charge"]
    sizes = [
        sum(p.numel() for p in build_model(Named(name=n), features).parameters()) for n in ("line_graph", "hit_graph")
    ]
    assert sizes == [4961, 39839]
    angle = torch.rand(1000, dtype=torch.float64) * np.pi
    encoded = waves(angle)
    assert torch.allclose(encoded[:, 0], torch.sin(1000 * angle.sqrt())) and encoded.shape == (1000, 128)
    assert torch.allclose(encoded[:, 127], torch.cos(1000 ** (1 / 64) * angle.sqrt()))
    assert (between(waves(on_grid(16384, angle)), angle) - encoded).abs().max() < 2e-3
    a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[1.0, 1.0, 0]])
    assert float(angles(a, b)) == pytest.approx(np.pi / 4) and float(angles(a, 0 * b)) == 0


def test_the_largest_sum_may_have_fewer_edges():
    edge_2M = np.array([[0, 0, 1], [2, 3, 3]])
    probability = np.array([0.1, 0.9, 0.3])
    assert assigned(edge_2M, probability, 4, "edges").tolist() == [True, False, True]
    assert assigned(edge_2M, probability, 4, "sum").tolist() == [False, True, False]


def test_a_hit_beside_a_chain_joins_it():
    edge_2M = np.array([[0, 1, 2, 4], [1, 2, 3, 2]])  # 4 is a second hit where 1 is
    outputs = {"edge_index": edge_2M, "edge_score": np.array([3.0, 3.0, 3.0, 2.0])}
    for join, size in ((None, 4), (0.5, 5)):
        found = build_builder(Named(name="assignment", cut=0.0, join=join)).build(outputs, np.arange(5), 5, 0)
        assert len(found) == 1 and found.hit_offsets.tolist() == [0, size]


def test_segments_join_neighbouring_planes_within_the_angles():
    _, hits = frame(20, 200.0, np.random.default_rng(0))
    columns = {"x": hits.position[:, 0], "y": hits.position[:, 1], "z": plane_z()[hits.plane]}
    columns |= {"volume_id": np.where(hits.plane < 2, 1, 2), "layer_id": hits.plane}
    event = Event(0, {"hits": columns})
    graph, rows = Planes(Planes.Options()), np.arange(len(hits.plane))
    edge_2M = graph(event, rows)
    i, j = edge_2M
    assert (hits.plane[j] == hits.plane[i] + 1).all() and len(i) > 400
    angle = np.arctan2(
        np.hypot(*(hits.position[j] - hits.position[i]).T), plane_z()[hits.plane[j]] - plane_z()[hits.plane[i]]
    )
    subset = graph.subsets(event, rows, edge_2M)
    assert np.array_equal(subset, hits.plane[i] < 2) and (angle < np.where(subset, 0.2, 0.4)).all()
    assert graph(event, rows[:0]).shape == (2, 0)
