"""Models for ACTS: TorchScript and ONNX give what inference gives, and the chain runs without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_run import make_event, write_dataset
from torch_geometric.data import Batch, Data

from hpctrack import export
from hpctrack.config import Named
from hpctrack.deployment.node_features import NODE_FEATURES, Inputs, columns_of, node_features, own_column
from hpctrack.events.features import FEATURES, compute_features, feature_columns
from hpctrack.inference.stages import Chain, load_model, stages
from hpctrack.models import build_model
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint

PIPELINE = ("embedding", "filter", "gnn")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """The shipped stages, in fp32."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    for name in PIPELINE:
        path = checkpoint.find(Path(f"pipeline-{name}"))
        meta = checkpoint.read_meta(path)
        meta["config"]["train"]["precision"] = "fp32"
        checkpoint.write(folder / name, checkpoint.read_state(path), {k: v for k, v in meta.items() if k != "state"})
        found.append(folder / name)
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", [make_event(7, 80), make_event(8, 3)])


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("acts") / "models"
    first, *rest = map(str, runs)
    assert export.main([first, str(out), "--for", "acts", *(w for run in rest for w in ("--then", run))]) == 0
    return out


def columns(folder: Path) -> list[str]:
    return json.loads((folder / "manifest.json").read_text())["columns"]


def test_the_chain_without_this_package_finds_the_same_edges(exported, runs, dataset, tmp_path):
    assert len((exported / "run_onnx.py").read_text().splitlines()) <= 62
    chain = Chain(*reversed(stages(runs, ["builder={name: edges, cut: 0.5}"])), dataset, torch.device("cpu"))
    for row in range(2):
        event = dataset.read(row)
        x = node_features(event, np.arange(event.n_hits), columns(exported))
        np.savez(tmp_path / "hits.npz", x=x)
        command = [sys.executable, str(exported / "run_onnx.py"), "hits.npz", "edges.npz"]
        subprocess.run(command, cwd=tmp_path, check=True)
        found, own = np.load(tmp_path / "edges.npz"), chain(row)[0]
        assert len(own.sender) > 0
        mine = sorted(zip(own.sender.tolist(), own.receiver.tolist(), strict=True))
        assert sorted(map(tuple, found["edge_index"].T.tolist())) == mine
        assert found["track"].max() + 1 <= event.n_hits and (found["track"][own.sender] >= 0).all()


def test_files_give_what_the_models_give(exported, runs, dataset):
    event = dataset.read(0)
    rows = np.arange(event.n_hits)
    rng = np.random.default_rng(1)
    edges = rng.integers(0, len(rows), (2, 4000))
    square = event.column("hits.r").astype(np.float64) ** 2 + event.column("hits.z").astype(np.float64) ** 2
    outwards = np.where(square[edges[0]] > square[edges[1]], edges[::-1], edges)
    paths, configs = stages(runs, [])
    x = node_features(event, rows, columns(exported))
    for name, path, config in zip(PIPELINE, paths, configs, strict=True):
        features = {column: event.column(column) for column in feature_columns(config.features)}
        data = Data(x=torch.from_numpy(compute_features(features, config.features)), num_nodes=len(rows))
        data.edge_index = torch.from_numpy(outwards)
        given = {"x": x} if name == "embedding" else {"x": x, "edge_index": edges}
        name_of_output = "embedding" if name == "embedding" else "output"
        with torch.inference_mode():
            wanted = value(name, load_model(config, path, torch.device("cpu"))(Batch.from_data_list([data])))
            script = torch.jit.load(str(exported / f"{name}.pt"))(*map(torch.from_numpy, given.values())).numpy()
        session = onnxruntime.InferenceSession(str(exported / f"{name}.onnx"))
        assert [one.name for one in session.get_inputs()] == list(given)
        assert [one.name for one in session.get_outputs()] == [name_of_output]
        for found in (script, session.run(None, given)[0]):
            assert found.shape == wanted.shape
            gap = np.abs(value(name, {name_of_output: torch.from_numpy(found)}) - wanted)
            assert np.quantile(gap, 0.99) < 1e-5  # the rest are pairs of hits on one layer, of which fp32 says no more
            assert gap.max() < 1e-4


def value(stage: str, outputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The embedding, or the probability of each edge, on which the cut is."""
    if stage == "embedding":
        return outputs["embedding"].numpy()
    return outputs.get("edge_score", outputs.get("output")).double().sigmoid().numpy()


def test_both_heads_of_the_influencer_model(dataset, tmp_path, capsys):
    assert export.main(["influencer-500", str(tmp_path / "i"), "--for", "acts"]) == 0
    assert "influencer.pt (0e+00)" in capsys.readouterr().out
    [path], [config] = stages([Path("influencer-500")], [])
    event = dataset.read(1)  # of fewer hits than a hit has neighbours elsewhere
    rows = np.arange(event.n_hits)
    features = {column: event.column(column) for column in feature_columns(config.features)}
    data = Data(x=torch.from_numpy(compute_features(features, config.features)), num_nodes=len(rows))
    with torch.inference_mode():
        outputs = load_model(config, path, torch.device("cpu"))(Batch.from_data_list([data]))
    session = onnxruntime.InferenceSession(str(tmp_path / "i/influencer.onnx"))
    found = session.run(["user", "influencer"], {"x": node_features(event, rows, columns(tmp_path / "i"))})
    for name, values in zip(("user", "influencer"), found, strict=True):
        assert np.abs(values - outputs[name].numpy()).max() < 1e-5
    assert not (tmp_path / "i/run_onnx.py").exists()  # there is no chain


def test_the_third_input_is_there_if_it_is_asked_for(runs, tmp_path):
    assert export.main([str(runs[1]), str(tmp_path / "t"), "--for", "acts", "--edge-attr", "builder.cut=0.3"]) == 0
    manifest = json.loads((tmp_path / "t/manifest.json").read_text())
    assert manifest["stages"][0]["inputs"] == {"x": ["N", 10], "edge_index": [2, "E"], "edge_attr": ["E", 6]}
    assert manifest["stages"][0]["cut"] == 0.3 and manifest["feature_scales"] == [1.0] * 10
    session = onnxruntime.InferenceSession(str(tmp_path / "t/filter.onnx"))
    x, edges = np.ones((3, 10), np.float32), np.array([[0, 1], [1, 2]])
    given = {"x": x, "edge_index": edges, "edge_attr": np.full((2, 6), np.nan, np.float32)}
    assert np.isfinite(session.run(["output"], given)[0]).all()
    compile((tmp_path / "t/acts_config.py").read_text(), "acts_config.py", "exec")


def test_features_of_node_features_are_those_of_a_dataset():
    names = [name for name in FEATURES if own_column(name) in NODE_FEATURES]
    assert set(FEATURES) - set(names) == {"volume", "layer", "plane"}
    rng = np.random.default_rng(3)
    known = {
        column: rng.uniform(0.1, 3, 50).astype(np.float32) for name in FEATURES for column in FEATURES[name].columns
    }
    own = columns_of(names)
    x = torch.from_numpy(np.stack([known[column] for column in own], axis=1))
    np.testing.assert_allclose(Inputs(names, own)(x).numpy(), compute_features(known, names), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"data": {"features": ["r", "cos_phi", "sin_phi", "z", "volume"]}}, "no node feature for 'volume'"),
        ({"model": {"name": "hit_filter"}}, "has no place in ACTS"),
        ({"model": {"name": "triplets"}}, "has no place in ACTS"),
    ],
)
def test_what_acts_has_no_place_for(runs, tmp_path, capsys, change, what):
    meta = checkpoint.read_meta(runs[1])
    config = meta["config"]
    config["data"]["features"] = change.get("data", config["data"])["features"]
    config["model"] = change.get("model", config["model"])
    model = build_model(Named(**config["model"]), config["data"]["features"])
    meta = {key: value for key, value in meta.items() if key != "state"}
    checkpoint.write(tmp_path / "c", {"model": model.state_dict()}, meta)
    code = export.main([str(tmp_path / "c"), str(tmp_path / "out"), "--for", "acts"])
    err = capsys.readouterr().err
    assert code == 2 and what in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("more", [["--then", "pipeline-gnn"], ["--edge-attr"]])
def test_options_of_acts_alone(tmp_path, capsys, more):
    assert export.main(["pipeline-gnn", str(tmp_path / "out"), *more]) == 2
    assert "--for acts" in capsys.readouterr().err
