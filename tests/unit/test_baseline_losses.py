"""Contrastive loss and object condensation against their formulas, written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from hpctrack.config import Named
from hpctrack.losses import build_loss
from hpctrack.testing.toys import toy_batch


def outputs_for(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = {"embedding": (n, 3), "beta": (n, 1)}
    return {k: 0.6 * torch.randn(*shape, generator=generator, dtype=torch.float64) for k, shape in draw.items()}


@pytest.mark.parametrize("squared", [False, True])
def test_contrastive_equals_the_formula(squared):
    batch = toy_batch(sizes=(4,), n_noise=3)
    outputs = outputs_for(batch.num_nodes)
    x, track = outputs["embedding"], batch.track.tolist()
    terms = build_loss(Named(name="contrastive", squared_hinge=squared, margin=1.2))(outputs, batch)
    push, pull = [], []
    for t in range(4):
        own = x[batch.track == t]
        pull.append(torch.stack([(a - b).square().sum() for a in own for b in own]).mean().item())
    for i in range(len(x)):
        for j in range(len(x)):
            d = (x[i] - x[j]).norm().item()
            if i != j and d < 1.2 and (track[i] != track[j] or track[i] < 0):
                push.append((1.2 - d) ** (2 if squared else 1))
    assert terms["attraction"].sum.item() == pytest.approx(sum(pull) / 4, rel=1e-9)
    assert terms["repulsion"].sum.item() == pytest.approx(sum(push) / len(push), rel=1e-9)


def test_condensation_equals_the_formula():
    batch = toy_batch(sizes=(4,), n_noise=3)
    outputs = outputs_for(batch.num_nodes)
    x, beta, track = outputs["embedding"], outputs["beta"].squeeze(1).sigmoid(), batch.track.tolist()
    terms = build_loss(Named(name="condensation", q_min=0.3))(outputs, batch)
    q = [math.atanh(b) ** 2 + 0.3 for b in beta.tolist()]
    alphas = [max((i for i in range(len(x)) if track[i] == t), key=lambda i: q[i]) for t in range(4)]
    attraction = repulsion = 0.0
    for t, alpha in enumerate(alphas):
        for j in range(len(x)):
            d = (x[j] - x[alpha]).norm().item()
            if track[j] == t:
                attraction += q[j] * q[alpha] * d**2
            else:
                repulsion += q[j] * q[alpha] * max(0, 1 - d)
    assert terms["attraction"].sum.item() == pytest.approx(attraction / len(x), rel=1e-9)
    assert terms["repulsion"].sum.item() == pytest.approx(repulsion / len(x), rel=1e-9)
    assert terms["beta"].sum.item() == pytest.approx(1 - beta[alphas].mean().item(), rel=1e-9)
    assert terms["noise"].sum.item() == pytest.approx(beta[batch.track < 0].mean().item(), rel=1e-9)


def test_condensation_charges_stay_finite():
    batch = toy_batch()
    outputs = outputs_for(batch.num_nodes)
    outputs = {name: value.float() for name, value in outputs.items()}
    outputs["beta"] = (100 * outputs["beta"]).requires_grad_()  # beta rounds to 1, whose arctanh is infinite
    terms = build_loss(Named(name="condensation"))(outputs, batch)
    sum(term.sum for term in terms.values()).backward()
    assert outputs["beta"].grad.isfinite().all()
