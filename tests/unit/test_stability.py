"""The mathematics of `hpctrack landscape`: Hessians, directions, CKA, churn; and what its results look like."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpctrack.errors import InputError
from hpctrack.losses.term import LossTerm
from hpctrack.parallel.env import Env
from hpctrack.stability import churn, similarity
from hpctrack.stability.connections import CurveOptions, fit, on_curve
from hpctrack.stability.directions import leading_directions, normalised, random_vector
from hpctrack.stability.objective import Objective
from hpctrack.stability.subjects import Subject
from hpctrack.stability.surface import SurfaceOptions, surface
from hpctrack.stability.tasks import Place, committed, in_pieces
from hpctrack.storage.edges import Edges
from hpctrack.storage.schema import Candidates
from hpctrack.testing.toys import toy_batch

EIGENVALUES = torch.tensor([-5.0, 3.0, 1.0, 0.5, 0.1], dtype=torch.float64)


class Weights(nn.Module):
    """A model that is its weights, in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.0, 0.0], dtype=torch.float64))

    def forward(self, batch):
        return {"w": torch.cat([self.a, self.b])}


class Quadratic(nn.Module):
    """w A w / 2 an event."""

    weights = {"quadratic": 2.0}

    def __init__(self) -> None:
        super().__init__()
        rotation = torch.linalg.qr(random_vector(torch.zeros(5, 5, dtype=torch.float64), 3, 0))[0]
        self.matrix = rotation @ EIGENVALUES.diag() @ rotation.T
        self.rotation = rotation

    def counts(self, batch):
        return {"quadratic": batch.num_graphs}

    def forward(self, outputs, batch):
        w = outputs["w"]
        return {"quadratic": LossTerm(batch.num_graphs * (w @ self.matrix @ w) / 2, batch.num_graphs)}


@pytest.fixture
def quadratic() -> Objective:
    return Objective(Weights(), {"q": Quadratic()}, [toy_batch(), toy_batch(seed=1)], seed=0)


def alone(out: Path) -> Place:
    return Place(Env(0, 1, 0, torch.device("cpu"), None, "no launcher"), out, "fp64", 0, lambda at: None)


def test_products_with_the_hessian_are_those_of_a_quadratic_loss(quadratic):
    matrix = 2.0 * quadratic.losses["q"].matrix
    counts, v = quadratic.counts("q"), torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    for product, most in ((quadratic.hessian_times, 1e-14), (quadratic.hessian_times_by_differences, 1e-8)):
        found = sum(product(v, "q", k, counts) for k in range(2))
        assert float((found - matrix @ v).abs().max()) < most * float((matrix @ v).abs().max())
    assert quadratic.weights_P.tolist() == [1, 2, 2, 0, 0]


def test_power_iteration_finds_the_two_leading_eigenvectors(quadratic):
    loss = quadratic.losses["q"]
    starts = [random_vector(quadratic.weights_P, 0, k) for k in range(2)]
    first, second = leading_directions(lambda v: loss.matrix @ v, starts, 500, 1e-12)
    assert first.converged and second.converged
    assert (first.value, second.value) == pytest.approx((-5.0, 3.0), rel=1e-9)
    for found, column in ((first, 0), (second, 1)):
        assert abs(float(found.vector_P @ loss.rotation[:, column])) == pytest.approx(1, abs=1e-6)
    assert abs(float(first.vector_P @ second.vector_P)) < 1e-12
    short = leading_directions(lambda v: loss.matrix @ v, starts[:1], 2, 1e-12)[0]
    assert short.iterations == 2 and not short.converged
    assert leading_directions(torch.zeros_like, starts[:1], 9, 1e-3)[0].value == 0


def test_a_direction_is_as_long_as_the_weights_tensor_by_tensor(quadratic):
    found = normalised(random_vector(quadratic.weights_P, 0, 0), quadratic.parameters)
    assert float(found[:3].norm()) == pytest.approx(3) and float(found[3:].norm()) == 0


def test_the_plane_of_a_quadratic_loss(quadratic, tmp_path):
    options = SurfaceOptions(grid=3, span=0.5, iterations=300, tolerance=1e-10)
    found = surface(quadratic, "q", options, alone(tmp_path), folder=tmp_path / "s")
    plane = torch.load(tmp_path / "s/directions.pt", weights_only=True)["plane"]
    matrix = quadratic.losses["q"].matrix
    for (i, x), (j, y) in itertools.product(enumerate(found["axis"]), repeat=2):
        w = quadratic.weights_P + x * plane[0] + y * plane[1]
        value = found["losses"]["q"]["quadratic"][j][i]
        assert value == pytest.approx(float(w @ matrix @ w) / 2, rel=1e-12)
        assert found["losses"]["q"]["total"][j][i] == pytest.approx(2 * value, rel=1e-12)
    assert found["centre"]["q"]["quadratic"] == found["losses"]["q"]["quadratic"][1][1]
    assert [e["value"] for e in found["directions"]["eigen"]] == pytest.approx([-10, 6], rel=1e-6)
    assert found["directions"]["hessian"] == "exact"
    again = surface(quadratic, "q", options, alone(tmp_path), folder=tmp_path / "s")
    assert again == found


def test_a_loss_that_cannot_be_differentiated_twice_is_one_line():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x**3).sum()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 3 * grad * ctx.saved_tensors[0] ** 2

    class Cubic(Quadratic):
        def forward(self, outputs, batch):
            return {"quadratic": LossTerm(Once.apply(outputs["w"]), 1)}

    objective = Objective(Weights(), {"q": Cubic()}, [toy_batch()], seed=0)
    counts, v = {"quadratic": 1.0}, torch.ones(5, dtype=torch.float64)
    with pytest.raises(InputError, match="--hessian differences"):
        objective.hessian_times(v, "q", 0, counts)
    found = objective.hessian_times_by_differences(v, "q", 0, counts)
    assert found.tolist() == pytest.approx([12, 24, 24, 0, 0], abs=1e-7)


class Ring(Quadratic):
    """Low on the unit circle of the first two weights, with a wall in its middle."""

    def forward(self, outputs, batch):
        w = outputs["w"]
        return {"quadratic": LossTerm((w[:2].square().sum() - 1) ** 2 + w[2:].square().sum(), 1)}


def test_a_curve_goes_around_the_wall_and_a_fit_goes_on_where_it_was(tmp_path):
    objective = Objective(Weights(), {"q": Ring()}, [toy_batch(sizes=(1,))], seed=0)
    ends = torch.tensor([[1.0, 0, 0, 0, 0], [-0.9, 0.1, 0, 0, 0]], dtype=torch.float64).unbind()

    def run(path: Path, steps: int) -> torch.Tensor:
        options = CurveOptions(steps=steps, lr=0.03, events_per_step=1)
        return fit(objective, "q", ends, options, (0, 0, 1), path=path, alive=lambda at: None)

    whole = run(tmp_path / "whole.pt", 90)
    run(tmp_path / "parts.pt", 55)
    assert torch.equal(run(tmp_path / "parts.pt", 90), whole)

    def largest(c: torch.Tensor) -> float:
        losses = []
        for t in np.linspace(0, 1, 11):
            with objective.at(on_curve(ends[0], c, ends[1], float(t))):
                losses.append(objective.values()["q"]["total"])
        return max(losses)

    assert largest((ends[0] + ends[1]) / 2) > 1.9 and largest(whole) < 0.2


# ------------------------------------------------------------------------------------------------ CKA


def explicit_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    n = len(x)
    k, m = (z @ z.T - (z @ z.T).diag().diag() for z in (x, y))
    ones = torch.ones(n, dtype=x.dtype)
    second = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float((torch.trace(k @ m) + second - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3)))


def features(n: int = 40, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) + d for d in (3, 5, 2)]


def test_hsic_from_features_is_that_of_whole_kernels():
    x, y = features(), features(seed=1)
    found = similarity.hsic(similarity.Moments(x), similarity.Moments(y))
    expected = [[explicit_hsic(a, b) for b in y] for a in x]
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def few(run: dict) -> dict:
    return {name: (2, rows[:2]) for name, (_, rows) in run.items()}


def test_a_layer_is_like_itself_rotated_shifted_and_scaled_and_not_like_noise():
    x = features(400)
    turned = [one @ torch.linalg.qr(torch.randn(one.shape[1], one.shape[1], dtype=one.dtype))[0] * 3 - 1 for one in x]
    rows = similarity.Rows(100, 4, 0, 7)
    runs = [{str(k): (400, one) for k, one in enumerate(of)} for of in (x, turned, features(400, seed=5))]
    names = [list(of) for of in runs]
    event = {"layers": names, "hsic": similarity.of_event(runs, rows)}
    empty = {"layers": [names[0], [], names[2]], "hsic": similarity.of_event([few(runs[0]), {}, few(runs[2])], rows)}
    found = similarity.summary([event, event, empty])
    assert found["layers"] == names
    own, same, other = found["pairs"][:3]
    assert np.diag(own["cka"]) == pytest.approx([1, 1, 1], abs=1e-12)
    assert np.diag(same["cka"]) == pytest.approx([1, 1, 1], abs=1e-9)
    assert np.allclose(own["cka"], same["cka"], atol=1e-9) and np.abs(np.array(other["cka"])).max() < 0.1
    assert np.max(own["error"]) < 1e-12


def test_layers_of_other_rows_are_not_compared_and_few_rows_are_left_out():
    x, rows = features(40), similarity.Rows(1024, 8, 0, 0)
    run = {"hits": (40, x[0]), "edges": (30, x[1][:30])}
    found = similarity.of_event([run], rows)["0-0"]
    assert found[0][1] is None and found[1][0] is None and found[0][0] is not None
    assert similarity.Rows(10, 8, 0, 0).batches(23) == [slice(0, 10), slice(10, 20)]
    chosen = similarity.Rows(10, 2, 0, 3)(50)
    assert len(chosen) == len(set(chosen.tolist())) == 20
    assert torch.equal(chosen, similarity.Rows(10, 2, 0, 3)(50))


def test_calls_in_chunks_are_one_layer():
    """12 edges in chunks of 5, twice; 4 hits at once; rows of something else alone."""
    calls, x = similarity.Calls({4, 12}, similarity.Rows(50, 1, 0, 0)), torch.arange(48.0).reshape(24, 2)
    for part in (*x[:12].split(5), *x[12:].split(5)):
        calls.take("edge", part)
    calls.take("hit", x[None, :4])
    calls.take("pair", x[:13])
    found = calls.all()
    assert {name: n for name, (n, _) in found.items()} == {"edge": 12, "edge#2": 12, "hit": 4, "pair": 13}
    assert sorted(found["edge#2"][1].flatten().tolist()) == list(range(24, 48))


# ------------------------------------------------------------------------------------------------ churn


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30))
def test_churn_lies_between_the_bounds_that_the_errors_set(rows):
    a, b, right = np.array(rows).T
    m, q_a, q_b = (a != b).mean(), (a != right).mean(), (b != right).mean()
    value = churn.normalised(m, q_a, q_b)
    assert value is None or -1e-9 <= value <= 1 + 1e-9


def test_churn_at_its_bounds():
    assert churn.normalised(0.2, 0.1, 0.3) == pytest.approx(0)  # all errors of one are errors of the other
    assert churn.normalised(0.4, 0.1, 0.3) == pytest.approx(1)  # no error is shared
    assert churn.normalised(0.0, 0.0, 0.0) is None


def test_decisions_on_hits_and_edges():
    track = np.array([0, 0, 0, 1, 1, 1, -1])
    hit_row = np.arange(10, 17)
    ids = np.zeros(20, dtype=np.int32)
    ids[10:17] = [4, 4, 2, 2, 2, 2, 0]
    edge = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
    truth = np.array([True, True, False, True])
    found = Candidates(0, np.array([0]), np.zeros(0, np.int32), np.zeros(0, np.float32), ids)
    made = churn.decisions(found, hit_row, track, edge, truth)
    assert made["hits"][0].tolist() == [0, 0, 1, 1, 1, 1, -1]
    assert made["edges"][0].tolist() == [True, False, True, True]
    assert churn.quality(made) == {
        "hits": {"n": 7, "wrong": 1}, "edges": {"n": 4, "wrong": 2, "true": 3, "found": 2},
    }  # fmt: skip
    kept = Edges(0, np.array([11, 13], np.int32), np.array([10, 12], np.int32), np.ones(2, np.float32))
    assert churn.decisions(kept, hit_row, track, edge, truth)["edges"][0].tolist() == [True, False, True, False]


def test_groups_that_differ_and_groups_that_do_not():
    values = {(0, 1): 0.1, (0, 2): 0.12, (1, 2): 0.11, (3, 4): 0.5, (3, 5): 0.52, (4, 5): 0.49}
    pairs = [{"a": a, "b": b, "normalised": values.get((a, b), 0.6)} for a, b in itertools.combinations(range(6), 2)]
    groups = ["small"] * 3 + ["large"] * 3
    [test] = churn.between_groups(pairs, groups, 0)
    assert test["t"] < -20 and test["p_pairs"] == pytest.approx(2 / 20)  # of C(6, 3) splits, the two most extreme
    assert test["p_runs"] == pytest.approx(2 / 20)
    alike = churn.between_groups([pair | {"normalised": 0.3} for pair in pairs], groups, 0)[0]
    assert alike["t"] == 0 and alike["p_pairs"] == 1
    assert churn.of_groups(pairs, groups)[0]["mean"] == pytest.approx(0.11)
    assert churn.between_groups(pairs, ["a", "b", "b", "b", "b", "b"], 0)[0]["t"] is None


# ------------------------------------------------------------------------------------------------ pieces


def test_pieces_that_are_done_are_not_done_again(tmp_path):
    def breaks(key: str) -> float:
        if key == "c":
            raise KeyboardInterrupt
        return len(key) / 3

    with pytest.raises(KeyboardInterrupt):
        in_pieces(tmp_path, list("abc"), breaks, alone(tmp_path))
    with open(tmp_path / "rank-00000.jsonl", "a") as file:
        file.write('{"key": "b2", "val')  # cut short
    asked = []
    found = in_pieces(tmp_path, list("abc"), lambda key: asked.append(key) or 7.0, alone(tmp_path))
    assert asked == ["c"] and found == {"a": 1 / 3, "b": 1 / 3, "c": 7.0}
    assert committed(tmp_path) == found


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    from hpctrack.stability.subjects import Named

    with pytest.raises(InputError, match="no checkpoint here"):
        Subject(Named.parse(f"group={tmp_path / 'nowhere'}"))
