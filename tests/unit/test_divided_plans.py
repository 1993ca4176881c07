"""Sectors of azimuth, and plans in which ranks hold events together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.division.sectors import cost_of_hits, sectors
from hpctrack.errors import InputError
from hpctrack.parallel.env import Env, distributed
from hpctrack.planning.plan import GIANT, plan_epoch
from hpctrack.reporting.sections import _training_split
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.testing.training_contract import planned
from hpctrack.training.build import build
from hpctrack.training.telemetry import Waste


def test_sectors_have_equal_cost_and_follow_each_other():
    rng = np.random.default_rng(0)
    phi, cost = rng.uniform(-np.pi, np.pi, 1000), rng.uniform(1, 5, 1000)
    phi[:2] = -np.pi, np.pi
    owner = sectors(phi, cost, 8)
    assert (np.diff(owner[np.argsort(phi)]) >= 0).all() and (owner[0], owner[1]) == (0, 7)
    np.testing.assert_allclose(np.bincount(owner, cost), cost.sum() / 8, rtol=0.03)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_sectors_of_few_hits(n):
    owner = sectors(np.zeros(n), np.ones(n), 8)
    assert len(owner) == n and len(set(owner)) == n and (owner < 8).all()


def test_an_edge_costs_at_both_its_hits():
    assert cost_of_hits(3, np.array([[0, 0], [1, 1]])).tolist() == [2.0, 2.0, 1.0]
    assert cost_of_hits(2, None).tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=20),
    st.sampled_from([2, 3, 4, 8, 12, 16]),
    st.sampled_from([2, 4, "auto"]),
)
def test_every_event_has_its_ranks(costs, world, wanted):
    if wanted != "auto" and world % wanted:
        return
    costs = np.array(costs)
    plan = plan_epoch(costs, world, 1, 0, 6, memory_cap=50.0, ranks_per_event=wanted)
    assert plan.hash == plan_epoch(costs, 1, 1, 0, 6).hash
    np.testing.assert_allclose(plan.loads(costs, world).sum(), costs.sum())
    for step in range(plan.n_steps):
        rows = plan.step_events(step)
        alone = [row for rank in range(world) for part in plan.micro_batches(step, rank) for row in part]
        held = [plan.divided(step, rank) for rank in range(world)]
        together = {}
        for rank, events in enumerate(held):
            for row, number, of in events:
                together.setdefault(row, []).append(rank)
                assert together[row] == list(range(rank - number, rank + 1)) and (rank - number) % of == 0
        assert sorted([*alone, *together]) == sorted(rows)
        order = [row for row in rows if row in together]
        assert all([e.row for e in events] == [r for r in order if r in {e.row for e in events}] for events in held)
        limit = GIANT * costs[rows].sum() / world
        if wanted == "auto":
            assert all(costs[row] > limit for row in together)
        else:
            assert not alone


def refused(tmp_path, model, loss=None, **sections) -> str:
    sections = {"parallel": {"ranks_per_event": 2}, **sections}
    config = planned("whole", tmp_path, model, loss, **sections)
    with pytest.raises(InputError) as error, distributed(config.parallel, 1) as env:
        build(config, env)
    return str(error.value)


def test_what_cannot_be_divided_is_refused(tmp_path):
    toy_dataset(tmp_path / "data", sizes=(3, 3))
    triplets = {"name": "triplets", "network": {"name": "attention", "width": 4}}
    mlp = {"name": "influencer", "backbone": {"name": "mlp", "width": 8}}
    found = refused(tmp_path, triplets, {"name": "edges"}, reading={"graph": {"name": "truth"}})
    assert "model 'triplets'" in found and "use 1" in found
    scatter = {"name": "influencer", "attraction_form": "scatter"}
    assert "loss 'influencer' (as set)" in refused(tmp_path, mlp, scatter)
    assert "does not divide the 1 ranks" in refused(tmp_path, mlp)
    assert "train.compile" in refused(tmp_path, mlp, train={"compile": True})
    for strategy in ("fsdp", "deepspeed"):
        with pytest.raises(InputError, match="ranks_per_event=2 is for strategy ddp"):
            toy_config(tmp_path / "run", tmp_path / "data", parallel={"ranks_per_event": 2, "strategy": strategy})


def test_the_report_of_waste_names_the_exchange():
    env, waste = Env(0, 1, 0, torch.device("cpu"), None, "test"), Waste()
    waste.add({"step_s": 2.0, "data_s": 0.0})
    waste.add_probe({"compute_s": 1.0, "wait_s": 0.2, "communicate_s": 0.2, "exchange_s": 0.6})
    report = waste.report(env)
    assert report["share/exchange"] == pytest.approx(0.3)
    assert "exchanging rows" in _training_split(SimpleNamespace(waste=report), 2.0, 0.0)
