"""Events padded to sizes of buckets: the sizes, and that no row of the event knows of the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from hpctrack import infer
from hpctrack.config import Named
from hpctrack.events.padding import bucket, padded, unpadded
from hpctrack.models import build_model
from hpctrack.models.embedding import InfluencerModel
from hpctrack.parallel.env import distributed
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.toys import FEATURES, toy_batch, toy_config, toy_dataset
from hpctrack.training.loop import train
from tests.unit.test_models_contract import CONFIGS

STATIC = [
    name for name in sorted(CONFIGS) if build_model(Named(name=name.split()[0], **CONFIGS[name]), FEATURES).static
]


def test_buckets_are_few_and_at_most_an_eighth_larger():
    sizes = np.array([bucket(n) for n in range(5000)])
    assert (sizes >= np.arange(5000)).all() and (8 * (sizes - np.arange(5000)) <= np.arange(5000)).all()
    assert (np.diff(sizes) >= 0).all() and all(bucket(n) == n for n in set(sizes.tolist()))
    assert len(set(sizes[1000:2001].tolist())) <= 10 and bucket(1_600_001) == 1_703_936


def test_models_of_edges_and_of_single_hits_are_static():
    assert {name.split()[0] for name in STATIC} == {
        "attention", "convolution", "embedding", "filter", "hit_filter", "interaction"
    }  # fmt: skip
    assert "embedding mlp" in STATIC and "embedding" not in STATIC


@pytest.mark.parametrize("name", STATIC)
def test_outputs_are_those_without_padding(name):
    torch.manual_seed(0)
    model = build_model(Named(name=name.split()[0], **CONFIGS[name]), FEATURES).double().eval()
    for batch in (toy_batch(sizes=(14,), n_noise=3, edges=4), toy_batch(sizes=(1,), n_noise=0, edges=1)):
        event = batch.get_example(0)
        together = padded(event)
        assert together.num_nodes == bucket(event.num_nodes + 1) and together.num_edges == bucket(event.num_edges)
        with torch.inference_mode():
            found, alone = unpadded(model(together), event), model(batch)
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-13)


def test_an_event_without_hits_stays_alone():
    empty = Data(x=torch.zeros(0, 3), edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=0)
    assert isinstance(padded(empty), Batch) and padded(empty).num_nodes == 0 and len(padded(empty).ptr) == 2
    assert unpadded({"edge_score": torch.zeros(0), "x": torch.zeros(0, 2)}, empty)["x"].shape == (0, 2)


def found(run, data, out, *more):
    code = infer.main(["--checkpoint", str(run), "--data", str(data), "--out", str(out), *more])
    return CandidateStore(out) if code == 0 else code


def trained(folder, data, **model):
    config = toy_config(folder, data, model=model, train={"steps": 1, "precision": "fp32"})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    return folder


def test_inference_with_compile_pads_and_finds_the_same(tmp_path, monkeypatch):
    """With a compiler that changes nothing: the real one takes half a minute (tests/gpu has it)."""
    data, asked, sizes = toy_dataset(tmp_path / "data", sizes=(9, 0, 14)), [], []
    run = trained(tmp_path / "run", data, backbone={"name": "mlp", "width": 8, "layers": 2})
    alone = found(run, data, tmp_path / "alone")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    forward = InfluencerModel.forward
    seen = lambda self, batch: sizes.append(batch.num_nodes) or forward(self, batch)  # noqa: E731
    monkeypatch.setattr(InfluencerModel, "forward", seen)
    padded = found(run, data, tmp_path / "padded", "--compile")
    assert asked == [{"dynamic": True, "mode": None}] and all(bucket(n) == n for n in sizes) and len(sizes) == 3
    assert padded.attributes["compiled"] and "compiled" not in alone.attributes
    for i in range(3):
        for name in ("hit_offsets", "hit_rows", "track_ids"):
            assert np.array_equal(getattr(alone.read(i), name), getattr(padded.read(i), name))
        assert np.allclose(alone.read(i).scores, padded.read(i).scores, rtol=1e-5)


def test_between_searches_a_model_is_compiled_as_it_is(tmp_path, monkeypatch):
    """Message steps and features of pairs, without padding; with a compiler that changes nothing."""
    data, asked, called = toy_dataset(tmp_path / "data", sizes=(9, 0, 14)), [], set()
    backbone = {"name": "neighbours", "width": 8, "stages": 2, "steps": 1, "neighbours": 4, "heads": 2}
    run = trained(tmp_path / "run", data, backbone=backbone)
    alone = found(run, data, tmp_path / "alone")

    def compiler(function, **options):
        asked.append((function.__name__, options))
        number = len(asked)
        return lambda *tensors: called.add(number) or function(*tensors)

    monkeypatch.setattr(torch, "compile", compiler)
    compiled = found(run, data, tmp_path / "compiled", "--compile")
    names = sorted(name for name, _ in asked)
    assert names == ["pair_features", "say", "say", "update", "update"] and called == {1, 2, 3, 4, 5}
    assert all(options == {"dynamic": True} for _, options in asked) and compiled.attributes["compiled"]
    for i in range(3):
        for name in ("hit_offsets", "hit_rows", "track_ids", "scores"):
            assert np.array_equal(getattr(alone.read(i), name), getattr(compiled.read(i), name))


def test_models_that_are_not_static_are_refused_in_a_line(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data")
    run = trained(tmp_path / "run", data)  # a transformer: pieces as large as each event
    assert found(run, data, tmp_path / "out", "--compile") == 2
    assert "--compile: what the model 'influencer' of" in capsys.readouterr().err
    assert infer.main(["--method", "dbscan", "--data", str(data), "--out", str(tmp_path / "out"), "--compile"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
