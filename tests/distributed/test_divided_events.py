"""An event that several ranks hold together has the outputs, losses and gradients of the whole one (fp64: 1e-12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from hpctrack import infer
from hpctrack.config import Named, ParallelConfig, RunConfig
from hpctrack.division.divided import Division, Place, collect_outputs, divide
from hpctrack.division.exchange import Way
from hpctrack.files.jsonlines import read_metrics
from hpctrack.losses import build_loss, objective
from hpctrack.models import build_model
from hpctrack.parallel.env import distributed
from hpctrack.parallel.groups import GroupExchange, make_groups
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import FEATURES, toy_batch, toy_config, toy_dataset
from hpctrack.testing.training_contract import assert_same, gradients, planned
from hpctrack.training.loop import train
from hpctrack.training.trainer import Trainer

NEIGHBOURS = {"name": "neighbours", "width": 8, "stages": 2, "steps": 2, "neighbours": 4, "space": 2, "heads": 2}
TRANSFORMER = {"name": "transformer", "width": 8, "layers": 4, "heads": 2}
INFLUENCER = {"compactness": 1.0, "neighbours": 0.5, "parameters": 0.1, "hits": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "influencer": (
        {
            "name": "influencer",
            "embedding": 3,
            "parameters": True,
            "hit_score": True,
            "backbone": NEIGHBOURS | {"azimuth": 0.5},
        },
        {"name": "influencer", **INFLUENCER},
    ),
    "influencer other": (
        {"name": "influencer", "embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}},
        {"name": "influencer", "per": "hit", "squared_hinge_ui": True, "influencer_pairs": "other_tracks"},
    ),
    "contrastive": (
        {"name": "embedding", "embedding": 3, "backbone": NEIGHBOURS},
        {"name": "contrastive", "neighbours": 0.5},
    ),
    "condensation": (
        {"name": "condensation", "embedding": 3, "backbone": NEIGHBOURS},
        {"name": "condensation", "neighbours": 0.5},
    ),
    "transformer": (
        {"name": "influencer", "embedding": 3, "backbone": TRANSFORMER},
        {"name": "influencer", "repulsion_ui": 0.0},
    ),
    "hits": (
        {"name": "hit_filter", "backbone": NEIGHBOURS},
        {"name": "hits", "neighbours": 0.5, "balance": True},
    ),
}
GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "interaction": (
        {"name": "interaction", "width": 6, "iterations": 4, "layers": 2, "chunk": 25, "embed_hits": 2},
        {"name": "hybrid", "of": "hits", "balance": True, "others": "true"},
    ),
    "attention": (
        {"name": "attention", "width": 6, "iterations": 3, "pairs": True, "chunk": 25},
        {"name": "edges", "true_weight": 2.0},
    ),
    "convolution": (
        {"name": "convolution", "width": 6, "iterations": 2, "embed_edges": 2},
        {"name": "edges"},
    ),
    "filter": ({"name": "filter", "width": 6, "layers": 2, "pairs": True}, {"name": "edges", "balance": True}),
    "metric": (
        {"name": "embedding", "embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}},
        {"name": "metric"},
    ),
    "mined": (
        {"name": "embedding", "embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}},
        {"name": "metric", "mined": 3},
    ),
}
CASES |= GRAPHS


def events(edges: int = 0) -> list[Data]:
    """Events of tracks and noise, of noise alone, of one track alone, of one hit, and of none."""
    found = [
        *toy_batch((9, 0), n_noise=6, seed=3, edges=edges).to_data_list(),
        *toy_batch((1,), n_noise=0, seed=4, edges=edges).to_data_list(),
        *toy_batch((0,), n_noise=1, seed=5, edges=0).to_data_list(),
        *toy_batch((0,), n_noise=0, seed=6, edges=0).to_data_list(),
    ]
    for number, event in enumerate(found):
        rng = np.random.default_rng([11, number])
        if edges and "edge_index" not in event:
            event.edge_index, event.edge_truth = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
        if number == 0:
            event.track_weight = torch.from_numpy(rng.uniform(0.5, 2, int(event.n_tracks)))
    return found


def owners(event: Data, of: int, number: int) -> torch.Tensor:
    """Owners of hits: at random, all one's, or of all ranks but one."""
    rng = np.random.default_rng([number, of])
    chosen = [
        rng.integers(0, of, event.num_nodes),
        np.full(event.num_nodes, number % of),
        rng.integers(0, max(1, of - 1), event.num_nodes),
    ][number % 3]
    return torch.from_numpy(np.asarray(chosen, dtype=np.int64))


def found(model: torch.nn.Module, loss: Any, batch: Batch, counts: dict[str, int]) -> tuple[Any, dict[str, float], Any]:
    """Outputs, sums of terms and gradients of a pass."""
    model.zero_grad()
    outputs = model(batch)
    terms = loss(outputs, batch)
    objective(loss.weights, terms, counts).backward()
    every = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return outputs, {name: term.sum.detach() for name, term in terms.items()}, torch.cat([g.flatten() for g in every])


def assert_close(found: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, scale))


def own_rows(name: str, whole: torch.Tensor, event: Data, division: Division) -> torch.Tensor:
    """The rows of a whole event's output that this rank has."""
    if not name.startswith("edge_"):
        return whole[division.rows_n]
    return whole[(division.owner_N[event.edge_index] == division.place.number).any(dim=0)]


def check_case(case: str, mode: str, exchange: GroupExchange, with_edges: int) -> None:
    """Compare every event, divided in some ways, with itself whole."""
    options, loss_options = CASES[case]
    torch.manual_seed(1)
    model = build_model(Named(**options), FEATURES, mode).double()
    loss = build_loss(Named(**loss_options))
    assert model.divisible and loss.divisible
    for number, event in enumerate(events(with_edges)):
        if not event.num_nodes and with_edges:
            continue
        whole = Batch.from_data_list([event])
        counts = loss.counts(whole)
        outputs, sums, gradients = found(model, loss, whole, counts)
        for way in range(3) if number == 0 else (number,):
            part = divide(event, owners(event, exchange.of, way), Place(exchange.number, exchange.of))
            part.division.join(exchange)
            assert {n: part.division.total(c) for n, c in loss.counts(part).items()} == counts
            outputs_n, sums_n, gradients_n = found(model, loss, part, counts)
            for name, value in outputs_n.items():
                assert_close(value, own_rows(name, outputs[name], event, part.division))
            for name, value in collect_outputs(outputs_n, part, event).items():
                assert_close(value.detach(), outputs[name].detach())
            assert_close(exchange.all_sum(torch.stack([*sums_n.values()])), torch.stack([*sums.values()]))
            assert_close(exchange.all_sum(gradients_n), gradients, float(gradients.abs().max()))


Cases = list[tuple[str, tuple[str, ...]]]  # names in CASES, and in which memory modes
EVERY = ("recompute", "nested", "chunks")


def check_cases(of_way: dict[Way, Cases]) -> None:
    with distributed(ParallelConfig(), 1) as env:
        for way, cases in of_way.items():
            exchange = make_groups(env, [env.world], 60, way)[env.world]
            for name, modes in cases:
                for mode in modes:
                    check_case(name, mode, exchange, 3 if name in GRAPHS else 0)


def test_two_ranks_have_the_outputs_and_gradients_of_whole_events():
    cases: Cases = [*((name, ("plain",)) for name in CASES), ("transformer", ("recompute", "nested"))]
    fetching: Cases = [(name, ("plain",)) for name in ("influencer", "interaction", "filter", "metric")]
    run_ranks(2, check_cases, {"boundary": cases, "all": fetching}, timeout=600)


def test_memory_modes_on_three_ranks():
    embeddings: Cases = [("influencer", ("chunks",)), ("transformer", ("chunks",))]
    cases: Cases = [*embeddings, ("interaction", EVERY), ("attention", EVERY)]
    run_ranks(3, check_cases, {"boundary": cases, "all": [("interaction", EVERY)]}, timeout=600)


# ------------------------------------------------------------------------------------------------ runs


def planned_run(folder: Path, name: str, ranks_per_event: int | str, **sections: Any) -> RunConfig:
    model, loss = CASES["influencer"]
    values = {"parallel": {"ranks_per_event": ranks_per_event}, "optim": {"clip_norm": None}, **sections}
    return planned(name, folder, model, loss, **values)


def test_a_step_of_divided_events_is_that_of_one_rank(tmp_path):
    toy_dataset(tmp_path / "data", sizes=(9, 0, 3, 1, 12), n_noise=2)
    [[(expected, value, _)]] = run_ranks(1, gradients, [planned_run(tmp_path, "whole", 1)])
    for ranks, wanted in ((2, [(2, "chunked"), (2, "probed")]), (4, [(2, "whole"), ("auto", "packed")])):
        configs = [planned_run(tmp_path, name, each) for each, name in wanted]
        for rank in run_ranks(ranks, gradients, configs):
            for found_here, loss, _ in rank:
                assert loss == pytest.approx(value, rel=1e-12)
                assert_same(found_here, expected, 1e-12)


class Ended(Exception):
    """What ends a run amid its steps."""


def end_after(config: RunConfig, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    observe = Trainer.observe

    def ends(trainer: Trainer, *args: Any, **more: Any) -> None:
        if trainer.step > last:
            raise Ended
        observe(trainer, *args, **more)

    monkeypatch.setattr(Trainer, "observe", ends)
    with pytest.raises(Ended), distributed(config.parallel, 1) as env:
        train(config, env)


def run_to_the_end(config: RunConfig) -> None:
    with distributed(config.parallel, 1) as env:
        train(config, env)


def test_a_run_goes_on_with_other_ranks_and_another_division(tmp_path, monkeypatch):
    data = toy_dataset(tmp_path / "data", sizes=(5, 2, 3, 4, 1), n_noise=2)

    def config(name: str, ranks_per_event: int | str) -> RunConfig:
        train = {"steps": 4, "checkpoint_every": 2, "valid_every": 4, "probe_every": 1}
        sections = {"parallel": {"ranks_per_event": ranks_per_event}, "plan": {"events_per_step": 2}, "train": train}
        return toy_config(tmp_path / name, data, data, **sections)

    run_ranks(1, run_to_the_end, config("whole", 1))
    run_ranks(2, end_after, config("divided", 2), 3, monkeypatch)
    run_ranks(3, run_to_the_end, config("divided", "auto"))
    expected, found = (
        [(e["kind"], e["step"], e["loss"]) for e in read_metrics(tmp_path / name) if e["kind"] in ("train", "valid")]
        for name in ("whole", "divided")
    )
    assert [e[:2] for e in found] == [e[:2] for e in expected] and len(found) == 5
    np.testing.assert_allclose([e[2] for e in found], [e[2] for e in expected], rtol=1e-9)
    divided = [e for e in read_metrics(tmp_path / "divided") if e["kind"] == "train"]
    assert all(0 < e["exchange_s"] < e["step_s"] for e in divided[:2])
    assert not any("exchange_s" in e for e in read_metrics(tmp_path / "whole"))
    assert all(e["compute_s"] > 0 for e in divided[:2])  # beside the exchange, which is not part of it
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("whole", "divided")]
    assert ledgers[0] == ledgers[1]

    def infer_into(out: str, *more: str) -> None:
        run = ["--checkpoint", str(tmp_path / "whole"), "--data", str(data), "--out", str(tmp_path / out)]
        assert infer.main([*run, "builder.radius=0.4", *more]) == 0

    run_ranks(1, infer_into, "one")
    run_ranks(2, infer_into, "two", "parallel.ranks_per_event=2")
    assert CandidateStore(tmp_path / "one").digest == CandidateStore(tmp_path / "two").digest
