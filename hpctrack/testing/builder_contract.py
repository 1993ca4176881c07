"""What every builder of track candidates must do: valid candidates, none of too few hits, the same each time."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import Builder, Outputs
from hpctrack.tracking.builders import build_builder, settings


class BuilderContract:
    """Tests of a builder of candidates on embeddings: a subclass sets `builder`, as the section of a recipe.

    `builder` leaves no option open. `outputs` {name: dimensions} are those of the model that it reads.
    """

    builder: ClassVar[dict[str, Any]]
    outputs: ClassVar[dict[str, int]]

    @pytest.fixture
    def config(self) -> Named:
        """The section `builder`."""
        return Named(**self.builder)

    @pytest.fixture
    def built(self, config: Named) -> Builder:
        """The builder."""
        return build_builder(config)

    def clusters(self, n_tracks: int, size: int = 5) -> Outputs:
        """Outputs, float32 [N, dimensions], of tracks of so many hits that are apart."""
        rng = np.random.default_rng(0)
        centre = np.repeat(rng.normal(0, 10.0, (n_tracks, 3)), size, axis=0)
        return {
            name: (np.resize(centre, (len(centre), width)) + rng.normal(0, 0.01, (len(centre), width))).astype("f4")
            for name, width in self.outputs.items()
        }

    def found(self, built: Builder, outputs: Outputs, rows: np.ndarray, n_hits: int) -> Candidates:
        """What it makes of the outputs of the hits `rows` of an event, number 9, of so many hits."""
        found = built.build(outputs, rows, n_hits, event_id=9)
        assert isinstance(found, Candidates)
        return found

    def test_candidates_are_of_the_rows_of_the_whole_event(self, built: Builder) -> None:
        outputs = self.clusters(6)
        rows = 3 + 2 * np.arange(30)  # the model saw every second hit
        found = self.found(built, outputs, rows, 70)
        check_candidates(found, 70)
        assert found.event_id == 9 and set(found.hit_rows) <= set(rows.tolist())
        assert not np.delete(found.track_ids, rows).any()

    def test_an_event_has_the_same_candidates_each_time(self, built: Builder) -> None:
        outputs = self.clusters(6)
        first, again = (self.found(built, outputs, np.arange(30), 30) for _ in range(2))
        for name in ("hit_offsets", "hit_rows", "scores", "track_ids"):
            assert np.array_equal(getattr(first, name), getattr(again, name))

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_too_few_hits_give_no_candidate(self, built: Builder, n: int) -> None:
        outputs = {name: np.zeros((n, width), dtype=np.float32) for name, width in self.outputs.items()}
        found = self.found(built, outputs, np.arange(n), 5)
        assert len(found) == 0 and not found.track_ids.any() and len(found.track_ids) == 5

    def test_tuning_tries_settings_of_open_options(self, config: Named, built: Builder) -> None:
        assert not built.needs_tuning
        for setting in settings(Named(name=config.name)):
            assert not build_builder(config, **setting).needs_tuning

    def test_unknown_options_are_named(self, config: Named) -> None:
        with pytest.raises(InputError, match=r"builder\.no_such_option"):
            build_builder(Named(name=config.name, no_such_option=1))
