"""Graph networks: every memory mode gives the plain gradient, and keeps what it says; forms agree with their papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.models import build_model
from hpctrack.models.hit_geometry import pair_features
from hpctrack.models.memory_modes import MODES
from hpctrack.testing.toys import FEATURES, toy_batch

NETWORKS = {
    "interaction": {},
    "interaction recurrent": {"recurrent": True, "norm": "none", "layers": 2},
    "attention": {},
    "attention own weights": {"recurrent": False, "residual": True, "inputs": False, "norm": "none"},
    "convolution": {},
    "convolution recurrent": {"recurrent": True, "layers": 1, "norm": "none"},
    "interaction with embeddings": {"embed_hits": 3, "embed_edges": 2},
    "attention with embeddings": {"embed_hits": 3, "embed_edges": 2},
    "convolution with an embedding of hits": {"embed_hits": 3},
}


def make(network: str, mode: str = "plain", features=FEATURES, **options) -> nn.Module:
    torch.manual_seed(0)
    options = {"width": 8, "iterations": 5} | NETWORKS.get(network, {}) | options
    model = build_model(Named(name=network.split()[0], **options), features).double()
    model.memory = mode  # past set_memory: offload works without a GPU too, there is only nothing to gain
    return model


def step(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """All outputs, and gradients of all parameters."""
    score = torch.cat([value.flatten() for value in model(batch).values()])
    (score * torch.linspace(-1, 2, len(score), dtype=score.dtype)).sum().backward()
    return score.detach(), [p.grad for p in model.parameters()]


def assert_same(found, expected, rtol=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(1e-2, float(b.abs().max() if b.numel() else 0)))


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("network", NETWORKS)
def test_all_memory_modes_give_the_plain_gradient(network, chunk):
    batch = toy_batch(sizes=(4, 0, 3), edges=3)  # the last hits of an event have no edge
    score, gradients = step(make(network), batch)
    for mode in MODES[1:]:
        other, found = step(make(network, mode, chunk=chunk), batch)
        assert_same([other, *found], [score, *gradients])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edges", [0, 1])
def test_a_graph_with_no_edge_or_one(network, edges):
    batch = toy_batch(sizes=(2,))
    batch.edge_index = torch.tensor([[0], [1]])[:, :edges]
    score, gradients = step(make(network), batch)
    for mode in MODES[1:]:
        other, found = step(make(network, mode), batch)
        assert_same([other, *found], [score, *gradients])


@pytest.mark.parametrize("network", NETWORKS)
def test_modes_that_compute_alike_agree_bit_for_bit(network):
    batch = toy_batch(edges=3)
    for a, b in (("recompute", "nested"), ("chunks", "offload")):
        (score, gradients), (other, found) = (step(make(network, mode, chunk=7), batch) for mode in (a, b))
        assert torch.equal(score, other)
        assert all(torch.equal(x, y) for x, y in zip(gradients, found, strict=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_without_gradient_the_scores_are_the_same(network):
    batch = toy_batch(edges=3)
    model = make(network, chunk=7)
    expected = model(batch)["edge_score"].detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(model(batch)["edge_score"], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("frozen", ["start", "edge_start", "iterations", "iterations.0.nodes", "head"])
def test_frozen_parts_and_gradients_of_inputs(mode, frozen):
    def run(mode: str) -> list[torch.Tensor | None]:
        model, batch = make("interaction", mode, chunk=7), toy_batch(edges=3)
        model.get_submodule(frozen).requires_grad_(False)
        batch.x.requires_grad_()
        return [*step(model, batch)[1], batch.x.grad]

    assert_same(run(mode), run("plain"))


@pytest.mark.parametrize("network", ["interaction", "attention", "convolution"])
def test_bf16_stays_near_fp32(network):
    batch = toy_batch(edges=3, dtype=torch.float32)
    exact = torch.cat([g.flatten() for g in step(make(network).float(), batch)[1]])
    for mode in ("plain", "recompute", "chunks"):
        with torch.autocast("cpu", torch.bfloat16):
            model = make(network, mode, chunk=7).float()
            score = model(batch)["edge_score"]
        (score.float() * torch.linspace(-1, 2, len(score))).sum().backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert torch.cosine_similarity(found, exact, dim=0) > 0.99, mode


def test_what_is_kept_between_the_passes():
    """Bytes kept for the backward pass, by mode and number of iterations, in units of a tensor [M, H]."""
    width, chunk = 16, 64
    batch = toy_batch(sizes=(20,), edges=40)
    unit = batch.num_edges * width * 8

    def kept(mode: str, iterations: int) -> float:
        model = make("interaction", mode, width=width, chunk=chunk, iterations=iterations)
        saved = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held = model(batch)  # so that no two of the tensors that are kept share a place
        del held
        return sum(saved.values()) / unit

    def growth(mode: str) -> float:
        return (kept(mode, 9) - kept(mode, 3)) / 6

    assert growth("plain") > 6
    assert 1 < growth("recompute") < 1.3
    assert growth("nested") < 0.5
    assert growth("chunks") < 0.05
    assert kept("chunks", 9) < 2.8


def test_interaction_is_the_network_on_concatenations():
    model, batch = make("interaction", iterations=3), toy_batch(edges=3)
    source, target = batch.edge_index

    def perceptron(split: nn.Module, *parts: torch.Tensor) -> torch.Tensor:
        return split.rest(split.first(torch.cat(parts, dim=1)))

    place, x = model.geometry(batch.x), perceptron(model.start, batch.x)
    e = perceptron(model.edge_start.perceptron, pair_features(place[source], place[target]))
    for step_ in model.steps:
        e = e + perceptron(step_.edges, x[source], x[target], e)
        inward = torch.zeros_like(x).index_add(0, target, e)
        outward = torch.zeros_like(x).index_add(0, source, e)
        x = x + perceptron(step_.nodes, x, inward, outward)
    expected = perceptron(model.head.perceptron, x[source], x[target], e).squeeze(1)
    torch.testing.assert_close(model(batch)["edge_score"], expected, rtol=1e-12, atol=1e-13)


def test_attention_is_the_segment_classifier_of_heptrkx():
    """With the original's sizes: its number of parameters and its formula, with incidence matrices."""
    model = make("attention", features=["r", "phi", "z"], width=32, iterations=4, norm="none")
    assert sum(p.numel() for p in model.parameters()) == 6881
    batch = toy_batch(sizes=(3,), edges=3)
    inputs = batch.x = batch.x[:, :3]
    out_of, into = (nn.functional.one_hot(ends, batch.num_nodes).double() for ends in batch.edge_index)
    edges, nodes = model.iterations[0].edges, model.iterations[0].nodes

    def edge_network(h: torch.Tensor) -> torch.Tensor:
        return edges.rest(edges.first(torch.cat([out_of @ h, into @ h], dim=1)))

    h = torch.cat([model.encode(inputs), inputs], dim=1)
    for _ in range(4):
        weight = edge_network(h).sigmoid()
        inward, outward = into.T @ (weight * (out_of @ h)), out_of.T @ (weight * (into @ h))
        h = nodes.rest(nodes.first(torch.cat([h, inward, outward], dim=1))).tanh()
        h = torch.cat([h, inputs], dim=1)
    torch.testing.assert_close(model(batch)["edge_score"], edge_network(h).squeeze(1), rtol=1e-12, atol=1e-13)


def test_what_they_need_is_said():
    with pytest.raises(InputError, match=r"data\.features.*interaction network needs r, cos_phi"):
        make("interaction", features=["x", "y", "z"])
    with pytest.raises(InputError, match="give a graph"):
        make("attention")(toy_batch())
    with pytest.raises(ValueError, match="no memory mode 'offload'; one of: plain"):
        make("attention").set_memory("offload")
