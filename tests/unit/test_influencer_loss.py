"""The influencer loss against its formulas: three forms of the attraction, repulsion by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.losses import build_loss
from hpctrack.losses.influencer import attraction, attraction_loop, attraction_scatter
from hpctrack.testing.toys import toy_batch


def embeddings(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 100))
def test_three_forms_of_the_attraction_agree_in_value_and_gradient(sizes, noise, seed):
    batch = toy_batch(sizes=sizes, n_noise=noise, seed=seed)
    results = []
    for form in (lambda *a: attraction(*a)[0], attraction_loop, attraction_scatter):
        user, influencer = embeddings(batch.num_nodes, seed)
        value = form(user, influencer, batch, 1e-6)
        value.backward()
        results.append((value, user.grad, influencer.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pairs", ["all", "other_tracks"])
@pytest.mark.parametrize("squared", [False, True])
def test_repulsion_equals_the_formula(pairs, squared):
    batch = toy_batch(sizes=(4,), n_noise=3)
    user, influencer = embeddings(batch.num_nodes)
    loss = build_loss(Named(name="influencer", influencer_pairs=pairs, squared_hinge_ui=squared, influencer_margin=1.5))
    terms = loss({"user": user, "influencer": influencer}, batch)
    ui, ii = [], []
    for i in range(batch.num_nodes):
        for j in range(batch.num_nodes):
            same = batch.track[i] == batch.track[j] and batch.track[i] >= 0
            d = (user[i] - influencer[j]).norm().item()
            if not same and d < 1:
                ui.append((1 - d) ** 2 if squared else 1 - d)
            d = (influencer[i] - influencer[j]).norm().item()
            if i != j and d < 1.5 and (pairs == "all" or not same):
                ii.append(1.5 - d)
    assert terms["repulsion_ui"].sum.item() == pytest.approx(sum(ui) / len(ui), rel=1e-9)
    assert terms["repulsion_ii"].sum.item() == pytest.approx(sum(ii) / len(ii), rel=1e-9)


def test_neighbours_equal_the_formula_and_need_a_space():
    batch = toy_batch(sizes=(4, 2), n_noise=3)
    spaces = {f"space_{k}": 0.4 * embeddings(batch.num_nodes, k)[0] for k in range(2)}
    user, influencer = embeddings(batch.num_nodes)
    loss = build_loss(Named(name="influencer", neighbours=2.0))
    expected = 0.0
    for x in spaces.values():
        for event in range(2):
            members = [i for i in range(batch.num_nodes) if batch.batch[i] == event and batch.track[i] >= 0]
            for i in members:
                own = (batch.batch == event) & (batch.track == batch.track[i])
                far = (x[i] - x[own].mean(0)).square().sum().item() - 0.25**2
                distance = (x[i] - x[(batch.batch == event) & ~own]).norm(dim=1)
                expected += (max(0, far) + (1 - distance).clamp(min=0).square().sum().item()) / len(members)
    terms = loss({"user": user, "influencer": influencer} | spaces, batch)
    assert terms["neighbours"].count == 2 and loss.weights["neighbours"] == 2.0
    assert terms["neighbours"].sum.item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match=r"loss\.neighbours.*space_0"):
        loss({"user": user, "influencer": influencer}, batch)


def test_what_is_not_finite_stays_so():
    batch = toy_batch()
    user, influencer = (x.detach().clone() for x in embeddings(batch.num_nodes))
    user[3] = torch.nan
    terms = build_loss(Named(name="influencer"))({"user": user, "influencer": influencer}, batch)
    assert terms["repulsion_ui"].sum.isnan()
