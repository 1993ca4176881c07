"""What every model must do: events do not see each other, hits have no order, edge cases, save and load, precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from hpctrack.config import Named, ParallelConfig
from hpctrack.errors import InputError
from hpctrack.losses import build_loss, objective
from hpctrack.models import Model, build_model
from hpctrack.models.memory_modes import MODES
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.storage.schema import all_columns
from hpctrack.testing.toys import FEATURES, gradient, reordered, rows_of, toy_batch

OFFSET = 8.0  # of embeddings


class ModelContract:
    """Tests of a model: a subclass sets `model`, as the section of a recipe, with small sizes.

    `features`: names of its inputs, in the order of the columns of `batch.x`; these are random numbers here.
    """

    model: ClassVar[dict[str, Any]]
    features: ClassVar[Sequence[str]] = FEATURES

    @pytest.fixture
    def config(self) -> Named:
        """The section `model`."""
        return Named(**self.model)

    def make(self, config: Named, memory: str = "plain") -> Model:
        """The model in fp64, with the same weights each time."""
        torch.manual_seed(0)
        return build_model(config, self.features, memory).double()

    def test_it_says_its_inputs_its_modes_and_its_cost(self, config: Named) -> None:
        model = self.make(config)
        assert model.n_features == len(self.features)
        assert model.memory_modes[0] == "plain" and set(model.memory_modes) <= set(MODES)
        hits = np.array([0, 1, 10, 1000, 100_000])
        for edges in (None, 3 * hits):
            cost = model.relative_cost(hits, edges)
            assert cost.shape == hits.shape and np.isfinite(cost).all() and (np.diff(cost) >= 0).all() and cost[-1] > 0

    def test_it_sees_no_truth_and_says_what_else_it_needs(self, config: Named) -> None:
        model, batch = self.make(config), toy_batch(edges=4)
        expected = model(batch)
        for name in ("track", "n_tracks", "parameters", "lines", "edge_truth"):
            del batch[name]
        assert set(type(model).COLUMNS) <= set(all_columns())
        for name, value in model(batch).items():
            assert torch.equal(value, expected[name])

    def test_batched_equals_alone(self, config: Named) -> None:
        model, batch = self.make(config), toy_batch(edges=4)
        together = model(batch)
        for i, event in enumerate(batch.to_data_list()):
            alone = model(Batch.from_data_list([event]))
            for name, value in alone.items():
                expected = together[name][rows_of(name, batch) == i]
                torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)

    def test_order_of_hits_and_edges_does_not_matter(self, config: Named) -> None:
        model, batch = self.make(config), toy_batch(sizes=(5,), edges=4)
        generator = torch.Generator().manual_seed(1)
        hits, edges = (torch.randperm(n, generator=generator) for n in (batch.num_nodes, batch.num_edges))
        expected = model(batch)
        order = {name: reordered(name, batch, hits, edges) for name in expected}
        batch.x = batch.x[hits]
        batch.edge_index = hits.argsort()[batch.edge_index][:, edges]
        for name, value in model(batch).items():
            torch.testing.assert_close(value, expected[name][order[name]], rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("sizes", "noise"), [((0,), 0), ((0, 0), 0), ((0,), 1), ((0,), 7), ((3, 0, 2), 0)])
    def test_events_without_hits_with_one_hit_or_only_noise(self, config: Named, sizes: tuple, noise: int) -> None:
        model, batch = self.make(config), toy_batch(sizes=sizes, n_noise=noise, edges=2)
        outputs = model(batch)
        total = sum(value.sum() for value in outputs.values())
        total.backward()
        assert all(len(value) == len(rows_of(name, batch)) for name, value in outputs.items())
        assert all(value.isfinite().all() for value in outputs.values())
        assert all(gradient(p).isfinite().all() for p in model.parameters())

    def test_save_and_load(self, config: Named, tmp_path: Path) -> None:
        model, batch = self.make(config), toy_batch(edges=4)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        torch.manual_seed(99)
        other = build_model(config, self.features).double()
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        for name, value in model(batch).items():
            assert torch.equal(value, other(batch)[name])

    def test_memory_modes_give_the_same_gradient(self, config: Named) -> None:
        gradients = []
        for mode in self.make(config).memory_modes:
            model = self.make(config, mode)
            sum(value.square().sum() for value in model(toy_batch(edges=4)).values()).backward()
            gradients.append([p.grad for p in model.parameters()])
        for other in gradients[1:]:
            for plain, again in zip(gradients[0], other, strict=True):
                torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)

    def test_unknown_options_are_named(self, config: Named) -> None:
        with pytest.raises(InputError, match=r"model\.no_such_option"):
            build_model(Named(name=config.name, no_such_option=3), self.features)


class LowPrecisionContract(ModelContract):
    """As well, how near to fp32 the model stays in fp16 and bf16 on an event of 20,000 hits, trained by `loss`.

    Apart from `ModelContract`, since it takes seconds. `loss` is a section of a recipe, without sums over all pairs.
    """

    loss: ClassVar[dict[str, Any]]

    @pytest.fixture
    def loss_config(self) -> Named:
        """The section `loss`."""
        return Named(**self.loss)

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_low_precision_of_full_events_off_zero(self, config: Named, loss_config: Named, precision: str) -> None:
        """Embeddings about 8, 20,000 hits, hits with hundreds of edges: sums within 1 % of fp32, and gradients."""
        batch = toy_batch(sizes=(5000,), n_noise=5500, edges=2, dtype=torch.float32)
        assert batch.num_nodes > 20_000
        batch.edge_index[1, ::4] = batch.edge_index[1, ::4] % 50  # some hits are met by hundreds of edges
        loss = build_loss(loss_config)
        found = []
        for name in ("fp32", precision):
            engine = low_precision_engine(self.make(config).float(), name)
            outputs = engine.forward(batch, True)
            terms = loss(outputs, batch)
            engine.backward(objective(dict.fromkeys(terms, 1.0), terms))
            norm = engine.gradient_norm(None)
            assert all(value.isfinite().all() for value in outputs.values())
            every = torch.cat([gradient(p).flatten() for p in engine.module.parameters()])
            found.append((sum(term.sum.item() for term in terms.values()), norm, every))
        (exact, exact_norm, exact_every), (value, norm, every) = found
        assert value == pytest.approx(exact, rel=0.01)
        assert every.isfinite().all() and norm == pytest.approx(exact_norm, rel=0.02)
        assert torch.dot(every, exact_every) > 0.999 * norm * exact_norm


def low_precision_engine(model: Model, precision: str) -> DDPEngine:
    """An engine on one rank; embeddings of a model with `heads` lie off zero."""
    for head in getattr(model, "heads", {}).values():
        if head[-1].bias.numel() > 1:
            nn.init.constant_(head[-1].bias, OFFSET)
    engine = DDPEngine(
        model,
        lambda m: torch.optim.SGD(m.parameters(), 0.1),
        Env(0, 1, 0, torch.device("cpu"), backend=None, source="test"),
        Precision(precision, torch.device("cpu")),
        ParallelConfig(),
    )
    if precision == "fp16":
        engine.precision.loss_scale = 2.0**10
    return engine
