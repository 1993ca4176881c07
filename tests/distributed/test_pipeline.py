"""The pipeline stage by stage on helix events: the same edges on one and two ranks, and tracks at its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpctrack import evaluate, infer, inspect
from hpctrack.config import load_config
from hpctrack.errors import InputError
from hpctrack.events import truth
from hpctrack.graphs import GRAPHS, build_graph
from hpctrack.inspection import kinds
from hpctrack.parallel.env import distributed
from hpctrack.storage import candidates, edges, hits, journals
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks
from hpctrack.training.loop import train
from tests.campaigns import pipeline_table

ROOT = Path(__file__).parents[2]
SMALL = {
    "../hit-filter": ["model.backbone={name: mlp, width: 16, layers: 2}", "loss.neighbours=0", "builder.cut=0.4"],
    "embedding": ["model.backbone={name: mlp, width: 16, layers: 2}", "model.embedding=4", "loss.mined=10"],
    "filter": ["model.width=16", "builder.cut=0.0"],
    "gnn": ["model.width=8", "model.iterations=2"],
    "pair_embedding": ["model.width=16", "builder.cut=0.0"],
    "node_embedding": ["model.width=8", "model.iterations=2", "loss.mined=10", "train.steps=20"],
    "edge_embedding": ["model.width=8", "model.iterations=2"],
    "triplets": ["model.network={name: attention, width: 8, iterations: 2}"],
}


@pytest.fixture
def dataset(helix: Path) -> Path:
    return helix


def train_stage(stage: str, run: Path, data: Path, *more: str) -> None:
    values = [f"run={run}", f"data.train={data}", f"data.valid={data}", "data.selection.pt_min_gev=0.5"]
    values += ["data.augment.sector_rad=3.0"]
    values += ["train.steps=10", "train.valid_every=5", "train.log_every=5", "optim.warmup_steps=2", "optim.lr=0.01"]
    config = load_config(ROOT / "configs" / "pipeline" / f"{stage}.yaml", [*values, *SMALL[stage], *more])
    with distributed(config.parallel, 1) as env:
        assert train(config, env) == 0


def run_stage(run: Path, data: Path, out: Path, *more: str) -> None:
    assert infer.main(["--checkpoint", str(run), "--data", str(data), "--out", str(out), *more]) == 0


def test_the_chain_on_two_ranks(dataset, tmp_path):
    for stage in ("embedding", "filter", "gnn"):
        run = tmp_path / stage
        run_ranks(2, train_stage, stage, run, dataset)
        out = dataset / "edges" / stage if stage != "gnn" else tmp_path / "candidates"
        run_ranks(2, run_stage, run, dataset, out)
        run_ranks(1, run_stage, run, dataset, tmp_path / "alone" / stage)
        product = candidates.CANDIDATES if stage == "gnn" else edges.EDGES
        one, two = (product.open(path) for path in (tmp_path / "alone" / stage, out))
        assert one.digest == two.digest and one.event_ids.tolist() == list(range(4))
    results = tmp_path / "edges.json"
    assert not evaluate.main([str(dataset / "edges/filter"), "--data", str(dataset), "--out", str(results)])
    whole = json.loads(results.read_text())["cuts"]["0.0"]
    assert whole["efficiency"]["denominator"] > 100 and whole["kept_true"]["value"] == 1.0
    data, stored = Dataset(dataset), edges.EdgeStore(dataset / "edges" / "embedding")
    for i in range(4):
        found = stored.read(i)
        assert len(found) == stored.n_edges[i] > 0
        assert (found.sender != found.receiver).all() and max(found.sender.max(), found.receiver.max()) < data.n_hits[i]
        assert ((found.score >= 0) & (found.score <= 1)).all()
    store = CandidateStore(tmp_path / "candidates")
    assert all(len(store.read(i).track_ids) == data.n_hits[i] for i in range(4))

    in_one_call(tmp_path, dataset, store)
    behind_a_hit_filter(tmp_path, dataset)


def in_one_call(runs: Path, dataset: Path, expected: CandidateStore) -> None:
    """All stages by one command, on one and two ranks, store nothing between and find what `expected` has."""
    stages = [str(runs / name) for name in ("embedding", "filter", "gnn")]
    for n in (1, 2):
        out = runs / f"whole-{n}"
        run_ranks(n, run_stage, stages[0], dataset, out, *(x for run in stages[1:] for x in ("--checkpoint", run)))
        store = CandidateStore(out)
        for i in range(4):
            one, other = store.read(i), expected.read(i)
            for name in ("hit_offsets", "hit_rows", "scores", "track_ids"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert [stage["builder"]["name"] for stage in store.attributes["stages"]] == ["radius_graph", "edges"]
    timings = json.loads((out / "timings.jsonl").read_text().splitlines()[0])
    assert len(timings["stage_s"]) == 3
    spent = timings["read_s"] + timings["model_s"] + timings["build_s"]
    assert sum(timings["stage_s"]) == pytest.approx(spent)


def behind_a_hit_filter(runs: Path, dataset: Path) -> None:
    """The same stages, which know nothing of it, see its hits alone, and each the edges of the one before."""
    run_ranks(1, train_stage, "../hit-filter", runs / "hit-filter", dataset)
    run_ranks(1, run_stage, runs / "hit-filter", dataset, runs / "hits")
    stages = [str(runs / name) for name in ("hit-filter", "embedding", "filter", "gnn")]
    for n in (1, 2):
        more = [x for run in stages[1:] for x in ("--checkpoint", run)]
        run_ranks(n, run_stage, stages[0], dataset, runs / f"filtered-{n}", *more)
    one, two = (CandidateStore(runs / f"filtered-{n}") for n in (1, 2))
    kept = hits.HitStore(runs / "hits")
    assert one.digest == two.digest and sum(len(one.read(i)) for i in range(4))
    assert [stage["builder"]["name"] for stage in one.attributes["stages"]] == ["hits", "radius_graph", "edges"]
    for i in range(4):
        assert set(one.read(i).hit_rows) <= set(kept.read(i).row.tolist())
    assert (kept.n_kept < Dataset(dataset).n_hits).any()


def test_stages_that_do_not_fit_together_are_refused(dataset, tmp_path, capsys):
    run_ranks(1, train_stage, "embedding", tmp_path / "embedding", dataset)
    stage = ["--checkpoint", str(tmp_path / "embedding")]
    call = ["--data", str(dataset), "--out", str(tmp_path / "out")]
    assert infer.main([*stage, *stage, *call]) == 2
    assert "its graph is none, so it cannot follow a stage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def store_edges(folder: Path, data: Dataset, known: dict[int, edges.Edges]) -> list[int]:
    """Write a folder of edges as a stage would; its events."""
    journal = journals.Journal(folder, "rank-00000")
    sources = {event: journal.append(event, edges.encode(one)) for event, one in known.items()}
    journal.close()
    ids = data.event_ids.tolist()
    digest = edges.EDGES.write_shard(folder, "edges-00000.h5", ids, sources)
    edges.EDGES.write_index(folder, [("edges-00000.h5", ids, digest)], {"dataset_fingerprint": data.fingerprint})
    return ids


def test_hybrids_and_triplets_train_write_edges_and_are_compared(dataset, tmp_path):
    data, folder, rng, known = Dataset(dataset), tmp_path / "edges", np.random.default_rng(0), {}
    for i, event in enumerate(data.event_ids.tolist()):
        true = truth.graph_truth(data.read(i, truth.COLUMNS))
        ends = np.concatenate([true, rng.integers(0, data.n_hits[i], (2, 2 * true.shape[1]))], axis=1)
        ends = np.unique(np.sort(ends[:, ends[0] != ends[1]], axis=0), axis=1).astype(np.int32)
        known[event] = edges.Edges(event, *ends, np.ones(ends.shape[1], dtype=np.float32))
    store_edges(folder, data, known)
    compared = []
    for stage in ("pair_embedding", "node_embedding", "edge_embedding", "triplets"):
        run, out = tmp_path / stage, tmp_path / f"{stage}-edges"
        run_ranks(1, train_stage, stage, run, dataset, f"data.graph.edges={folder}")
        run_ranks(1, run_stage, run, dataset, out, "builder={name: edges, cut: 0.0}")
        store = edges.EdgeStore(out)
        assert [len(store.read(i)) for i in range(4)] == [len(one) for one in known.values()]
        results = tmp_path / "results.json"
        assert not evaluate.main([str(out), "--data", str(dataset), "--out", str(results), "--pt-min-gev", "0.5"])
        assert json.loads(results.read_text())["auc"] > 0.5, stage
        compared += [f"{stage}={run}", f"{stage}, scores={run}:edges"]
    compared.append(f"chain={tmp_path / 'pair_embedding'},{tmp_path / 'triplets'}")
    arguments = ["--checkpoints", *compared, "--data", str(dataset), "--events", "2", "--out", str(tmp_path / "table")]
    assert not pipeline_table.main(arguments)
    points, shown = tmp_path / "table" / "edges.jsonl", (tmp_path / "table" / "pipeline.md").read_text()
    measured = points.read_text()
    assert len(measured.splitlines()) == 9 * 2 * 2 and shown.count("\n| ") == 1 + 9 * 2
    assert not pipeline_table.main(arguments)
    assert points.read_text() == measured and (tmp_path / "table" / "pipeline.md").read_text() == shown


def test_stored_edges_come_back_among_the_selected_hits(dataset, tmp_path):
    data, folder, rng, known = Dataset(dataset), tmp_path / "edges", np.random.default_rng(0), {}
    for i, event in enumerate(data.event_ids.tolist()):
        ends = np.unique(np.sort(rng.integers(0, data.n_hits[i], (2, 30)), axis=0), axis=1).astype(np.int32)
        known[event] = edges.Edges(event, *ends, rng.random(ends.shape[1], dtype=np.float32))
    ids = store_edges(folder, data, known)
    config = load_config(ROOT / "configs/pipeline/filter.yaml", [f"data.graph.edges={folder}"]).data.graph
    graph = build_graph(config, dataset)
    for i, event_id in enumerate(ids):
        event = data.read(i, [*GRAPHS["stored"].COLUMNS, *truth.COLUMNS])
        one = known[event_id]
        assert graph.n_edges[i] == len(one)
        rows = np.flatnonzero(np.arange(event.n_hits) % 3)
        found = rows[graph(event, rows)]
        inside = np.isin(one.sender, rows) & np.isin(one.receiver, rows)
        assert set(map(frozenset, found.T.tolist())) == {
            frozenset((int(a), int(b))) for a, b in zip(one.sender[inside], one.receiver[inside], strict=True)
        }
        away = np.hypot(event.column("hits.r").astype(float), event.column("hits.z"))
        assert (away[found[0]] <= away[found[1]]).all()
    graph.store.close()  # HDF5 would hand out what it holds of an open file
    assert kinds.kind_of(folder) == kinds.EDGES and inspect.verify(folder, kinds.EDGES) == []
    assert inspect.describe(folder, kinds.EDGES)["edges"] == sum(map(len, known.values()))
    with open(folder / "edges-00000.h5", "r+b") as file:
        content = file.read()
        at = content.find(known[0].sender.tobytes())
        file.seek(at)
        file.write(b"\x01\x02\x03")
    with pytest.raises(InputError, match="event 0 fails its checksum"):
        edges.EdgeStore(folder).read(0)
    assert [problem.event for problem in inspect.verify(folder, kinds.EDGES)] == [0]
    with pytest.raises(InputError, match="format 'hpctrack-edges'"):
        CandidateStore(folder)
