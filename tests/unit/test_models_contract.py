"""Every model keeps the contract (hpctrack/testing/model_contract.py)."""

from __future__ import annotations

import pytest
import torch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.models import MODELS, build_model, neighbour_attention
from hpctrack.testing import LowPrecisionContract
from hpctrack.testing.toys import FEATURES, toy_batch

NEIGHBOURS = {"name": "neighbours", "width": 8, "stages": 2, "steps": 2, "neighbours": 4, "space": 2, "heads": 2}
TRANSFORMER = {"name": "transformer", "width": 8, "layers": 2, "heads": 2}
CANVAS = {"planes": 4, "columns": 5, "plane": "r", "column": "z"}
QUERIES = {"slots": 3, "backbone": {"name": "mlp", "width": 4, "layers": 1}, "layers": 2, "heads": 2}
SMALL = {"planes": 3, "pixels": 4, "plane": "r", "axes": ["z"]}  # toy_batch has numbers about 0 for these features
SQUARE = SMALL | {"axes": ["sin_phi", "z"]}
CONFIGS = {  # the model's name, and what sets this configuration of it apart
    "attention": {"width": 8, "iterations": 3, "chunk": 7},
    "attention pairs": {"width": 8, "iterations": 3, "chunk": 7, "pairs": True},
    "attention hits": {"width": 8, "iterations": 3, "chunk": 7, "embed_hits": 3},
    "captioning": CANVAS | {"channels": [2, 0, 3], "width": 5, "covariance": True, "presence": True},
    "condensation": {"embedding": 3, "backbone": TRANSFORMER},
    "convolution": {"width": 8, "iterations": 3, "chunk": 7},
    "embedding": {"embedding": 3, "backbone": NEIGHBOURS},
    "embedding mlp": {"embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}, "azimuth": 0.5},
    "filter": {"width": 8, "layers": 3, "chunk": 7},
    "filter pairs": {"width": 8, "layers": 3, "chunk": 7, "embed_edges": 3, "pairs": True},
    "hit_filter": {"backbone": NEIGHBOURS},
    "hit_graph": {"width": 8},
    "hit_filter mlp": {"backbone": {"name": "mlp", "width": 8, "layers": 2}},
    "influencer azimuth": {"embedding": 3, "backbone": NEIGHBOURS | {"azimuth": 0.5}, "azimuth": 0.5},
    "influencer neighbours": {"embedding": 3, "backbone": NEIGHBOURS},
    "influencer parameters": {"embedding": 3, "backbone": NEIGHBOURS, "parameters": True, "hit_score": True},
    "influencer transformer": {"embedding": 3, "backbone": TRANSFORMER},
    "interaction": {"width": 8, "iterations": 3, "chunk": 7},
    "interaction edges": {"width": 8, "iterations": 3, "chunk": 7, "embed_edges": 3},
    "line_bins": CANVAS | {"channels": [2, 0, 3], "bins": 2},
    "track_counting": CANVAS | {"channels": [2, 0, 3], "most": 9},
    "track_queries": CANVAS | QUERIES,
    "track_queries hits": CANVAS | QUERIES | {"covariance": True, "hits": True},
    "plane_autoencoder": SMALL | {"planes": 4, "channels": [2, 3]},
    "plane_convolution": SMALL | {"layers": 2, "filters": 3},
    "plane_convolution square": SQUARE | {"layers": 1, "filters": 3},
    "plane_lstm": SMALL | {"hidden": 5, "before": 1, "after": 2, "bidirectional": True},
    "plane_lstm ahead": SQUARE | {"hidden": 5, "ahead": True},
    "seeded_transformer": SMALL | {"width": 8, "layers": 3, "heads": 2, "waves": 2},
    "seeded_transformer square": SQUARE | {"width": 8, "layers": 1, "heads": 2, "waves": 2},
    "square_autoencoder": SQUARE | {"pixels": 32, "filters": 1},
    "line_graph": {"width": 8, "table": 256, "chunk": 7},
    "line_graph rivals": {"width": 8, "steps": 2, "compete": True, "table": 0, "chunk": 7},
    "line_graph_refined": {"width": 8, "table": 256, "chunk": 7, "keep": 2, "rounds": 2, "wide": 8},
    "triplets": {"network": {"name": "attention", "width": 8, "iterations": 2, "chunk": 7}},
    "triplets mean": {"pool": "mean", "network": {"name": "interaction", "width": 8, "iterations": 2, "embed_hits": 2}},
    "window_lstm": SMALL | {"hidden": 5},
}


LOSS_OF = {  # what a model is trained by, without the sums over all pairs: test_losses_contract.py has these
    "condensation": {"name": "condensation", "repulsion": 0.0},
    "embedding": {"name": "contrastive", "repulsion": 0.0},
    "hit_filter": {"name": "hits"},
    "influencer": {"name": "influencer", "repulsion_ui": 0.0, "repulsion_ii": 0.0, "compactness": 1.0},
    "triplets": {"name": "triplets", "edges": 1.0},
}


def test_every_model_is_here():
    assert {key.split()[0] for key in CONFIGS} == set(MODELS.own), (
        "add a small configuration of the model to this suite"
    )


class TestModels(LowPrecisionContract):
    @pytest.fixture(params=sorted(CONFIGS))
    def config(self, request):
        return Named(name=request.param.split()[0], **CONFIGS[request.param])

    @pytest.fixture
    def loss_config(self, config):
        return Named(**LOSS_OF.get(config.name, {"name": "edges"}))

    def test_memory_modes_give_the_same_gradient(self, config, monkeypatch):
        monkeypatch.setattr("hpctrack.models.transformer.CHUNK", 5)
        monkeypatch.setitem(neighbour_attention.CHUNK, "cpu", 5)
        super().test_memory_modes_give_the_same_gradient(config)

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_low_precision_of_full_events_off_zero(self, config, loss_config, precision):
        if config.options.get("backbone", {}).get("name") in ("transformer", "neighbours"):
            pytest.skip("half precision of these is slow on CPUs: python -m tests.campaigns.precision_at_size")
        if "plane" in config.options:
            pytest.skip("images are of few tracks: tests/unit/test_images.py")
        larger = Named(name=config.name, **({k: v for k, v in config.options.items() if k != "chunk"}))
        super().test_low_precision_of_full_events_off_zero(larger, loss_config, precision)


MODEL = TestModels()


def test_steps_in_chunks_are_those_of_autograd(monkeypatch):
    monkeypatch.setitem(neighbour_attention.CHUNK, "cpu", 5)
    config, gradients = Named(name="influencer", backbone={"name": "neighbours", "width": 8, "neighbours": 3}), []
    for listen in (neighbour_attention.NeighbourAttention.apply, lambda step, near, h_NH, *_: step(h_NH, near)):
        monkeypatch.setattr(neighbour_attention.NeighbourAttention, "apply", listen)
        model = MODEL.make(config)
        batch = toy_batch(sizes=(5, 2, 0))
        batch.x.requires_grad_()
        sum(value.square().sum() for value in model(batch).values()).backward()
        gradients.append([batch.x.grad, *(p.grad for p in model.parameters())])
    for ours, autograd in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-12, atol=1e-14)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match=r"model\.widht"):
        build_model(Named(name="interaction", widht=3), FEATURES)
    with pytest.raises(InputError, match="unknown 'nonsense'; one of: .*influencer"):
        build_model(Named(name="nonsense"), FEATURES)
    with pytest.raises(InputError, match=r"model\.backbone.*multiple of heads"):
        build_model(Named(name="influencer", backbone={"name": "transformer", "width": 10, "heads": 4}), FEATURES)
