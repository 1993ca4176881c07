"""The contract of every loss: a sum over events with known counts, blind to batching and order, finite everywhere."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch
from toys import reordered, rows_of, toy_batch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.losses import LOSSES, build_loss

VARIANTS = {
    "condensation": [{}, {"q_min": 0.1, "neighbours": 0.5}],
    "contrastive": [{}, {"per": "hit", "squared_hinge": True, "margin": 0.6, "neighbours": 0.5}],
    "edges": [{}, {"balance": True, "others": "true"}, {"true_weight": 3.0, "others": "false"}],
    "influencer": [
        {"compactness": 1.0},
        {"compactness": 1.0, "per": "hit", "squared_hinge_ui": True, "influencer_pairs": "other_tracks"},
        {"influencer_margin": 0.3, "log_floor": 1e-4, "neighbours": 0.5},
        {"attraction_form": "scatter"},
        {"parameters": 0.1},
    ],
    "hybrid": [{}, {"of": "hits", "mined": 4}, {"edges": 0.0, "margin": 1.5}],
    "metric": [{}, {"mined": 4, "margin": 1.5}],
    "triplets": [{}, {"edges": 1.0, "balance": True, "others": "true"}],
}
OUTPUTS = {  # of a model for this loss: dimensions
    "condensation": {"embedding": 3, "beta": 1},
    "contrastive": {"embedding": 3},
    "edges": {"edge_score": None},  # one a row, of the rows that are edges
    "hybrid": {"edge_score": None, "edge_embedding": 3, "embedding": 3},
    "influencer": {"user": 3, "influencer": 3},
    "metric": {"embedding": 3},
    "triplets": {"triplet_score": None, "edge_score": None},
}
SPACES = {"space_0": 3, "space_1": 2}  # in addition, where neighbours are trained
CASES = [(name, options) for name in sorted(LOSSES) for options in VARIANTS.get(name, [{}])]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(case[1])}")
def loss(request):
    name, options = request.param
    loss = build_loss(Named(name=name, **options))
    loss.outputs = OUTPUTS[name] | (SPACES if "neighbours" in options else {})
    loss.outputs |= {"parameters": 20} if "parameters" in options else {}
    return loss


def outputs_for(loss, batch: Batch, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (0.5 * torch.randn(shape(name, width, batch), generator=generator, dtype=torch.float64))
        .to(dtype)
        .requires_grad_()
        for name, width in loss.outputs.items()
    }


def shape(name: str, width: int | None, batch: Batch) -> tuple[int, ...]:
    """Shape of an output."""
    rows = len(rows_of(name, batch))
    return (rows,) if width is None else (rows, width)


def graphs(**options) -> Batch:
    """A toy batch with edges."""
    return toy_batch(edges=2, **options)


def test_a_batch_is_the_sum_of_its_events(loss):
    batch = graphs(sizes=(4, 0, 3, 1))
    outputs = outputs_for(loss, batch)
    together = loss(outputs, batch)
    alone = []
    for i, event in enumerate(batch.to_data_list()):
        own = {k: v[rows_of(k, batch) == i] for k, v in outputs.items()}
        alone.append(loss(own, Batch.from_data_list([event])))
    for name, term in together.items():
        torch.testing.assert_close(term.sum, sum(a[name].sum for a in alone), rtol=1e-12, atol=1e-14)
        assert term.count == sum(a[name].count for a in alone)


def test_counts_are_known_before_the_forward_pass(loss):
    batch = graphs(sizes=(4, 0, 3), n_noise=0)
    counts = loss.counts(batch)
    terms = loss(outputs_for(loss, batch), batch)
    assert {name: term.count for name, term in terms.items()} == counts
    assert counts.keys() == loss.weights.keys()


def test_order_of_hits_and_numbering_of_tracks_do_not_matter(loss):
    batch = graphs(sizes=(5,))
    outputs = outputs_for(loss, batch)
    expected = loss(outputs, batch)
    order = torch.randperm(batch.num_nodes, generator=torch.Generator().manual_seed(1))
    renumbered = torch.tensor([3, 0, 4, 1, 2])
    batch.track = torch.where(batch.track >= 0, renumbered[batch.track], batch.track)[order]
    batch.parameters = batch.parameters[renumbered.argsort()]
    edges = torch.randperm(batch.num_edges, generator=torch.Generator().manual_seed(2))
    shuffled = {k: v[reordered(k, batch, order, edges)] for k, v in outputs.items()}
    batch.edge_index, batch.edge_truth = order.argsort()[batch.edge_index][:, edges], batch.edge_truth[edges]
    for name, term in loss(shuffled, batch).items():
        torch.testing.assert_close(term.sum, expected[name].sum, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("sizes", "noise"), [((0,), 0), ((0,), 1), ((0,), 6), ((1,), 0), ((0, 0), 0)])
def test_empty_terms_are_graph_connected_zeros(loss, sizes, noise):
    batch = graphs(sizes=sizes, n_noise=noise)
    outputs = outputs_for(loss, batch)
    terms = loss(outputs, batch)
    sum(term.sum for term in terms.values()).backward()
    for value in outputs.values():
        assert value.grad is not None and value.grad.isfinite().all()
    for term in terms.values():
        assert term.sum.isfinite() and (term.count > 0 or term.sum == 0)


def test_coinciding_points_have_a_finite_slope(loss):
    batch = graphs()
    outputs = {
        name: torch.zeros(shape(name, width, batch), dtype=torch.float64, requires_grad=True)
        for name, width in loss.outputs.items()
    }
    sum(term.sum for term in loss(outputs, batch).values()).backward()
    assert all(value.grad.isfinite().all() for value in outputs.values())


def test_gradient_is_that_of_finite_differences(loss):
    batch = graphs(sizes=(2, 1), n_noise=2)
    outputs = outputs_for(loss, batch)
    names = list(outputs)
    assert torch.autograd.gradcheck(
        lambda *v: sum(term.sum for term in loss(dict(zip(names, v, strict=True)), batch).values()),
        tuple(outputs.values()),
    )


def test_low_precision_outputs_are_computed_in_fp32(loss):
    batch = graphs()
    exact = loss({k: v.bfloat16().double() for k, v in outputs_for(loss, batch).items()}, batch)
    for name, term in loss(outputs_for(loss, batch, torch.bfloat16), batch).items():
        assert term.sum.dtype == torch.float32
        torch.testing.assert_close(term.sum.double(), exact[name].sum, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_low_precision_outputs_of_full_events_off_zero(loss, dtype):
    """Sums over 20,000 hits with a mean of 10 are beyond what fp16 holds, and bf16 rounds them to 1 of 128."""
    batch = graphs(sizes=(5000,), n_noise=6000)
    assert batch.num_nodes > 20_000
    values = {name: off_zero(name, width, batch).to(dtype) for name, width in loss.outputs.items()}
    grads, sums = [], []
    for outputs in ({name: value.double() for name, value in values.items()}, values):
        leaves = {name: value.detach().requires_grad_() for name, value in outputs.items()}
        terms = loss(leaves, batch)
        (LOSS_SCALE * sum(term.sum for term in terms.values())).backward()
        sums.append({name: term.sum.item() for name, term in terms.items()})
        grads.append({name: leaf.grad.double() / LOSS_SCALE for name, leaf in leaves.items()})
        assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves.values())
    assert sums[1] == pytest.approx(sums[0], rel=1e-3)
    for name, exact in grads[0].items():
        assert (grads[1][name] - exact).norm() <= 0.01 * exact.norm(), name


LOSS_SCALE = 2.0**10  # as fp16 has one; below, gradients per hit are none of its numbers


def off_zero(name: str, width: int | None, batch: Batch) -> torch.Tensor:
    """An output whose points lie evenly in a box around 10, a wider one in two dimensions; logits are about 1."""
    generator = torch.Generator().manual_seed(4)
    value = torch.rand(shape(name, width, batch), generator=generator, dtype=torch.float64)
    return 2 * value if width in (None, 1, 20) else 1 + (18 if width > 2 else 80) * value


def test_unknown_options_are_named():
    with pytest.raises(InputError, match=r"loss\.atraction"):
        build_loss(Named(name="influencer", atraction=3.0))
    with pytest.raises(InputError, match=r"loss\.per.*'pair' or 'hit'"):
        build_loss(Named(name="influencer", per="event"))
