"""What every loss must do: a sum over events with known counts, blind to batching and order, finite everywhere."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.events import perigee
from hpctrack.losses import Loss, build_loss
from hpctrack.storage.schema import all_columns
from hpctrack.testing.toys import gradient, reordered, rows_of, toy_batch

LOSS_SCALE = 2.0**10  # as fp16 has one; below, gradients per hit are none of its numbers
Widths = dict[str, "int | None"]
FULL_EVENT = (5000, 6000)  # tracks and noise hits


class LossContract:
    """Tests of a loss: a subclass sets `loss`, as the section of a recipe, and the `outputs` of a model for it.

    `outputs`: {name: dimensions}, None for one number a row. A row is a hit; in outputs named `edge_…` an edge, in
    those named `event_…` an event.
    `full_event`: tracks and noise hits of the largest event that it must take, some 21,000 hits; a loss whose memory
    grows with the square of the hits needs a smaller one.
    """

    loss: ClassVar[dict[str, Any]]
    outputs: ClassVar[Widths]
    full_event: ClassVar[tuple[int, int]] = FULL_EVENT

    @pytest.fixture
    def config(self) -> Named:
        """The section `loss`."""
        return Named(**self.loss)

    @pytest.fixture
    def widths(self) -> Widths:
        """Of the model's outputs."""
        return self.outputs

    @pytest.fixture
    def built(self, config: Named) -> Loss:
        """The loss."""
        return build_loss(config)

    def test_a_batch_is_the_sum_of_its_events(self, built: Loss, widths: Widths) -> None:
        batch = graphs(sizes=(4, 0, 3, 1))
        outputs = outputs_for(widths, batch)
        together = built(outputs, batch)
        alone = []
        for i, event in enumerate(batch.to_data_list()):
            own = {k: v[rows_of(k, batch) == i] for k, v in outputs.items()}
            alone.append(built(own, Batch.from_data_list([event])))
        for name, term in together.items():
            torch.testing.assert_close(term.sum, sum(a[name].sum for a in alone), rtol=1e-12, atol=1e-14)
            assert term.count == sum(a[name].count for a in alone)

    def test_its_terms_say_what_they_need(self, built: Loss, widths: Widths) -> None:
        said = {name for columns in built.columns.values() for name in columns}
        assert built.columns.keys() == built.weights.keys() and said <= set(all_columns())
        batch = graphs()
        if said.isdisjoint(perigee.COLUMNS):
            del batch.parameters, batch.lines  # which are of these columns
        assert built(outputs_for(widths, batch), batch).keys() == built.weights.keys()

    def test_counts_are_known_before_the_forward_pass(self, built: Loss, widths: Widths) -> None:
        batch = graphs(sizes=(4, 0, 3), n_noise=0)
        counts = built.counts(batch)
        terms = built(outputs_for(widths, batch), batch)
        assert {name: term.count for name, term in terms.items()} == counts
        assert counts.keys() == built.weights.keys() and all(weight > 0 for weight in built.weights.values())

    def test_order_of_hits_and_numbering_of_tracks_do_not_matter(self, built: Loss, widths: Widths) -> None:
        batch = graphs(sizes=(5,))
        outputs = outputs_for(widths, batch)
        expected = built(outputs, batch)
        order = torch.randperm(batch.num_nodes, generator=torch.Generator().manual_seed(1))
        renumbered = torch.tensor([3, 0, 4, 1, 2])
        batch.track = torch.where(batch.track >= 0, renumbered[batch.track], batch.track)[order]
        batch.parameters, batch.lines = batch.parameters[renumbered.argsort()], batch.lines[renumbered.argsort()]
        edges = torch.randperm(batch.num_edges, generator=torch.Generator().manual_seed(2))
        shuffled = {k: v[reordered(k, batch, order, edges)] for k, v in outputs.items()}
        batch.edge_index, batch.edge_truth = order.argsort()[batch.edge_index][:, edges], batch.edge_truth[edges]
        for name, term in built(shuffled, batch).items():
            torch.testing.assert_close(term.sum, expected[name].sum, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(("sizes", "noise"), [((0,), 0), ((0,), 1), ((0,), 6), ((1,), 0), ((0, 0), 0)])
    def test_empty_terms_are_graph_connected_zeros(self, built: Loss, widths: Widths, sizes: tuple, noise: int) -> None:
        batch = graphs(sizes=sizes, n_noise=noise)
        outputs = outputs_for(widths, batch)
        terms = built(outputs, batch)
        sum(term.sum for term in terms.values()).backward()
        assert all(gradient(value).isfinite().all() for value in outputs.values())
        for term in terms.values():
            assert term.sum.isfinite() and (term.count > 0 or term.sum == 0)

    def test_coinciding_points_have_a_finite_slope(self, built: Loss, widths: Widths) -> None:
        batch = graphs()
        outputs = {
            name: torch.zeros(shape(name, width, batch), dtype=torch.float64, requires_grad=True)
            for name, width in widths.items()
        }
        sum(term.sum for term in built(outputs, batch).values()).backward()
        assert all(gradient(value).isfinite().all() for value in outputs.values())

    def test_gradient_is_that_of_finite_differences(self, built: Loss, widths: Widths) -> None:
        batch = graphs(sizes=(2, 1), n_noise=2)
        outputs = outputs_for(widths, batch)
        names = list(outputs)
        assert torch.autograd.gradcheck(
            lambda *v: sum(term.sum for term in built(dict(zip(names, v, strict=True)), batch).values()),
            tuple(outputs.values()),
        )

    def test_low_precision_outputs_are_computed_in_fp32(self, built: Loss, widths: Widths) -> None:
        batch = graphs()
        exact = built({k: v.bfloat16().double() for k, v in outputs_for(widths, batch).items()}, batch)
        for name, term in built(outputs_for(widths, batch, torch.bfloat16), batch).items():
            assert term.sum.dtype == torch.float32
            torch.testing.assert_close(term.sum.double(), exact[name].sum, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def test_low_precision_outputs_of_full_events_off_zero(
        self, built: Loss, widths: Widths, dtype: torch.dtype
    ) -> None:
        """Sums over 20,000 hits with a mean of 10 are beyond what fp16 holds, and bf16 rounds them to 1 of 128."""
        tracks, n_noise = self.full_event
        batch = graphs(sizes=(tracks,), n_noise=n_noise)
        assert batch.num_nodes > 20_000 or self.full_event != FULL_EVENT
        values = {name: off_zero(name, width, batch).to(dtype) for name, width in widths.items()}
        grads, sums = [], []
        for outputs in ({name: value.double() for name, value in values.items()}, values):
            leaves = {name: value.detach().requires_grad_() for name, value in outputs.items()}
            terms = built(leaves, batch)
            (LOSS_SCALE * sum(term.sum for term in terms.values())).backward()
            sums.append({name: term.sum.item() for name, term in terms.items()})
            grads.append({name: gradient(leaf).double() / LOSS_SCALE for name, leaf in leaves.items()})
            assert all(gradient(leaf).dtype == leaf.dtype for leaf in leaves.values())
        assert sums[1] == pytest.approx(sums[0], rel=1e-3)
        for name, exact in grads[0].items():
            assert (grads[1][name] - exact).norm() <= 0.01 * exact.norm(), name

    def test_unknown_options_are_named(self, config: Named) -> None:
        with pytest.raises(InputError, match=r"loss\.no_such_option"):
            build_loss(Named(name=config.name, no_such_option=3.0))


def graphs(**options: Any) -> Batch:
    """A toy batch with edges."""
    return toy_batch(edges=2, **options)


def shape(name: str, width: int | None, batch: Batch) -> tuple[int, ...]:
    """Shape of an output."""
    rows = len(rows_of(name, batch))
    return (rows,) if width is None else (rows, width)


def outputs_for(widths: Widths, batch: Batch, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random outputs of a model."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (0.5 * torch.randn(shape(name, width, batch), generator=generator, dtype=torch.float64))
        .to(dtype)
        .requires_grad_()
        for name, width in widths.items()
    }


def off_zero(name: str, width: int | None, batch: Batch) -> Tensor:
    """An output whose points lie evenly in a box around 10, a wider one in two dimensions; logits are about 1."""
    generator = torch.Generator().manual_seed(4)
    value = torch.rand(shape(name, width, batch), generator=generator, dtype=torch.float64)
    return 2 * value if width in (None, 1, 20) else 1 + (18 if width > 2 else 80) * value
