"""What every graph must do: edges among the hits that it is given, the same each time, none where there are no hits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.graphs import Graph, build_graph
from hpctrack.requirements.needs import Need, check
from hpctrack.storage import schema
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_dataset


def divided(owner_N: np.ndarray, costs: list[np.ndarray], cost_N: np.ndarray) -> np.ndarray:
    """Given owners, whatever hits cost, which is noted."""
    costs.append(cost_N)
    return owner_N


class GraphContract:
    """Tests of a graph: a subclass sets `graph`, as the section `data.graph` of a recipe.

    Events are of straight tracks from the origin through six layers of volume 8 (testing/toys.py).
    """

    graph: ClassVar[dict[str, Any]]

    @pytest.fixture
    def data(self, tmp_path: Path) -> Dataset:
        """A dataset of two events."""
        return Dataset(toy_dataset(tmp_path / "data", sizes=(4, 6)))

    @pytest.fixture
    def built(self, data: Dataset) -> Graph:
        """The graph."""
        found = build_graph(Named(**self.graph), data.folder, data)
        assert found is not None
        return found

    def test_edges_are_among_the_given_hits(self, built: Graph, data: Dataset) -> None:
        event = data.read(1, list(built.COLUMNS))
        for rows in (np.arange(event.n_hits), np.arange(1, event.n_hits, 2), np.arange(1), np.arange(0)):
            edges = built(event, rows)
            assert edges.dtype == np.int64 and edges.shape[0] == 2
            assert ((edges >= 0) & (edges < len(rows))).all() and (edges[0] != edges[1]).all()
            assert np.array_equal(edges, built(event, rows))

    def test_ranks_of_a_divided_event_have_the_edges_of_their_hits(self, built: Graph, data: Dataset) -> None:
        event = data.read(1, list(built.COLUMNS))
        for rows in (np.arange(event.n_hits), np.arange(1, event.n_hits, 2), np.arange(1), np.arange(0)):
            whole, owner_N = built(event, rows), np.random.default_rng(len(rows)).integers(0, 3, len(rows))
            for number in range(3):
                costs: list[np.ndarray] = []
                found_N, edges = built.of_part(event, rows, partial(divided, owner_N, costs), number)
                assert np.array_equal(found_N, owner_N) and costs[0].shape == rows.shape and (costs[0] > 0).all()
                assert np.array_equal(edges, whole[:, (owner_N[whole] == number).any(axis=0)])

    def test_it_finds_edges_and_knows_their_number_if_it_says_so(self, built: Graph, data: Dataset) -> None:
        counts = [
            built(event, np.arange(event.n_hits)).shape[1]
            for event in (data.read(row, list(built.COLUMNS)) for row in range(len(data)))
        ]
        assert min(counts) > 0
        assert built.n_edges is None or list(built.n_edges) == counts

    def test_it_says_what_it_reads_and_an_event_without_it_is_refused(self, built: Graph, tmp_path: Path) -> None:
        said = set(built.COLUMNS)
        assert said <= set(schema.all_columns())
        for part in ("cells", "momenta", "vertices"):
            lacks = schema.PARTS[part]
            data = Dataset(toy_dataset(tmp_path / part, sizes=(2,), lacks=lacks))
            needs = [Need("the graph", list(built.COLUMNS))]
            if said.isdisjoint(lacks):
                check(data, needs)
            else:
                with pytest.raises(InputError, match=f"lacks {part}, which the graph needs"):
                    check(data, needs)

    def test_unknown_options_are_named(self, data: Dataset) -> None:
        with pytest.raises(InputError, match=r"data\.graph\.no_such_option"):
            build_graph(Named(name=self.graph["name"], no_such_option=1), data.folder, data)
