"""Device forms of builders against their host forms, on tensors of the CPU; what stays on a device between stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import make_event, write_dataset

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.graphs import neighbours
from hpctrack.graphs.passed import EdgeTensors, PassedEdges
from hpctrack.graphs.stored import StoredEdges
from hpctrack.inference.stages import Chain, stages
from hpctrack.storage.edges import Edges
from hpctrack.tracking import builder as tracking_builder
from hpctrack.tracking import condensing, edge_clustering
from hpctrack.tracking import edge_clustering_on_device as on_device
from hpctrack.tracking.builders import BUILDERS, build_builder
from hpctrack.tracking.condensing import condense, groups_in_turn
from hpctrack.tracking.edge_clustering import ComponentsBuilder, WalkBuilder
from tests.unit.test_cells import points

WITH = {"components", "condensation", "edges", "greedy", "radius", "radius_edges", "radius_graph", "walk"}


def test_a_builder_says_whether_it_has_a_device_form():
    """A subclass that changes what is done on the host alone has none."""

    class Other(WalkBuilder):
        def groups(self, edge_2M, probability_M):
            return super().groups(edge_2M, probability_M) * 0

    class Both(Other):
        def groups_on_device(self, edge_2M, probability_M):
            return super().groups_on_device(edge_2M, probability_M) * 0

    assert {name for name in BUILDERS.own if BUILDERS[name].has_device_form()} == WITH
    assert not Other.has_device_form() and Both.has_device_form()


# ------------------------------------------------------------------------------------------------ in turn


@settings(max_examples=100)
@given(
    kind=st.sampled_from(["even", "clusters", "lattice", "duplicates", "one place", "line"]),
    radius=st.sampled_from([0.05, 0.25, 0.5, 2.0]),  # of a lattice exact, so that its hits are at the radius
    share=st.sampled_from([1.0, 0.6, 0.0]),
    falling=st.booleans(),
    at_a_time=st.sampled_from([(1, 1 << 24), (5, 6), (64, 1 << 24)]),  # turns, at first; pairs that are held
    by_cells=st.booleans(),
    min_hits=st.integers(1, 3),
    n=st.integers(0, 60),
    seed=st.integers(0, 10**6),
)
def test_all_seeds_of_a_round_take_what_one_after_the_other_takes(
    *, kind, radius, share, falling, at_a_time, by_cells, min_hits, n, seed
):
    x = points(kind, n, 1 + seed % 4, seed)
    order = np.argsort(-x[:, 0].numpy(), kind="stable") if falling else np.random.default_rng(seed).permutation(n)
    order = order[: round(share * n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condensing, "FIRST", at_a_time[0])
        patch.setattr(condensing, "NEAR", at_a_time[1])
        patch.setattr(neighbours, "near_blocks", neighbours.cell_blocks if by_cells else neighbours.near_blocks)
        candidate, hit, seeds = groups_in_turn(x.double(), torch.from_numpy(order), radius, min_hits)
    wanted = condense(x.double().numpy(), order, radius, min_hits)
    assert seeds.tolist() == [one for one, _ in wanted]
    assert hit.tolist() == [row for _, rows in wanted for row in rows]
    assert candidate.tolist() == [k for k, (_, rows) in enumerate(wanted) for _ in rows]


# ------------------------------------------------------------------------------------------------ edges


def random_edges(seed: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges to later hits, some twice, and probabilities, many of them equal."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, n, (2, m)), axis=0)
    ends = ends[:, ends[0] < ends[1]]
    return ends, rng.integers(2, 5, ends.shape[1]) / 4


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 30),
    m=st.integers(1, 60),
    join=st.sampled_from([None, 0.5, 1.0]),
    min_hits=st.integers(1, 3),
)
def test_groups_of_edges_are_the_same(*, seed, n, m, join, min_hits):
    ends, probability = random_edges(seed, n, m)
    if not ends.size:
        return
    edge_2M, probability_M = torch.from_numpy(ends), torch.from_numpy(probability)
    walk = WalkBuilder(WalkBuilder.Options(cut=0.4, join=join))
    label = walk.groups(ends, probability)
    assert walk.groups_on_device(edge_2M, probability_M).tolist() == label.tolist()
    here = edge_clustering.labelled(label, ends, probability, min_hits)
    check_lists(here, on_device.labelled(torch.from_numpy(label), edge_2M, probability_M, min_hits))
    joined = ComponentsBuilder(ComponentsBuilder.Options(cut=0.4))
    here = edge_clustering.labelled(joined.groups(ends, probability), ends, probability, min_hits)
    there = joined.groups_on_device(edge_2M, probability_M)
    check_lists(here, on_device.labelled(there, edge_2M, probability_M, min_hits))


def check_lists(here, there) -> None:
    assert there.hit.tolist() == here.rows.tolist() and there.size.tolist() == np.diff(here.offsets).tolist()
    assert there.candidate.tolist() == np.repeat(np.arange(len(here.scores)), np.diff(here.offsets)).tolist()
    np.testing.assert_allclose(there.score.numpy(), here.scores, rtol=1e-12)


@given(st.integers(0, 10**6), st.integers(3, 14), st.integers(0, 30))
@settings(max_examples=40)
def test_hits_beside_paths_go_to_the_same(seed, n, m):
    rng = np.random.default_rng(seed)
    ends, weight, strong = rng.integers(0, n, (2, m)), rng.integers(1, 4, m), rng.random(m) < 0.5
    given = rng.integers(-1, 3, n), rng.integers(0, 2, n), ends, weight, strong
    there = on_device.beside(*map(torch.from_numpy, given))
    assert [values.tolist() for values in there] == [values.tolist() for values in edge_clustering.beside(*given)]


@pytest.mark.parametrize("edges", [[[0, 1, 2], [1, 2, 0]], [[0, 3, 4], [1, 4, 4]]])
def test_a_circle_cannot_be_walked(edges):
    builder, outputs = build_builder(Named(name="walk", cut=0.5)), {"edge_index": np.array(edges)}
    outputs["edge_score"] = np.full(3, 2.0)
    tensors = {name: torch.from_numpy(values) for name, values in outputs.items()}
    for build, values in ((builder.build, outputs), (builder.build_on_device, tensors)):
        with pytest.raises(InputError, match="circle"):
            build(values, np.arange(5), 5, 0)
    with pytest.raises(InputError, match="take a model that scores edges"):
        builder.build_on_device({}, np.arange(3), 3, 0)


def test_probabilities_are_the_same_but_for_the_last_bit():
    x = np.linspace(-40, 40, 2001, dtype=np.float32)
    there = on_device.sigmoid(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(there, edge_clustering.sigmoid(x), rtol=0, atol=2**-52)


# ------------------------------------------------------------------------------------------------ between stages


def test_edges_that_stay_on_a_device_are_those_of_the_host():
    event, rng = make_event(7, 30), np.random.default_rng(1)
    ends = rng.integers(0, event.n_hits, (2, 200)).astype(np.int32)
    score = rng.random(200).astype(np.float32)
    rows = np.flatnonzero(rng.random(event.n_hits) < 0.8)
    graph = PassedEdges(StoredEdges.Options(edges="none", score_min=float(score[3])))
    graph.found = Edges(event.event_id, *ends, score)
    here = graph(event, rows)
    graph.found = EdgeTensors(event.event_id, *torch.from_numpy(ends).long(), torch.from_numpy(score))
    assert 0 < here.shape[1] < 200 and np.array_equal(graph(event, rows).numpy(), here)
    for name in ("sender", "receiver", "score"):
        values = getattr(graph.found.stored(), name)
        assert np.array_equal(values, [*ends, score][("sender", "receiver", "score").index(name)])
        assert values.dtype == (np.float32 if name == "score" else np.int32)


def test_a_chain_on_a_device_is_that_of_the_host(tmp_path, monkeypatch):
    """The shipped pipeline, as if the CPU were an accelerator: edges pass as tensors."""
    data = write_dataset(tmp_path / "data", [make_event(7, 60)])
    paths, configs = stages([Path(f"pipeline-{name}") for name in ("embedding", "filter", "gnn")], [])
    chain = Chain(configs, paths, data, torch.device("cpu"))
    here, took = chain(0)
    monkeypatch.setattr(tracking_builder, "on_accelerator", lambda value: True)
    there, _ = chain(0)
    assert all(isinstance(stage.passed.edges.found, EdgeTensors) for stage in chain._stages[1:])
    assert len(here) > 20 and len(took.stage_s) == 3
    for name in ("hit_offsets", "hit_rows", "track_ids"):
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    np.testing.assert_allclose(here.scores, there.scores, rtol=1e-6)
