"""What every builder of track candidates must do: valid candidates, none of too few hits, the same each time.

A builder that has a device form must do the same with it, and give the same candidates; here on tensors of the CPU.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.graphs.passed import EdgeTensors
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import Builder, Built, Outputs
from hpctrack.tracking.builders import build_builder, settings

COLUMNS = ("event_id", "hit_offsets", "hit_rows", "track_ids")  # of candidates, that are the same in both forms


def on_tensors(builder: Builder, outputs: Outputs, rows: np.ndarray, n_hits: int, event_id: int) -> Built:
    """What a builder makes in its device form, of which the CPU is a device, too; as it is stored."""
    tensors = {name: torch.from_numpy(values) for name, values in outputs.items()}
    found = builder.build_on_device(tensors, rows, n_hits, event_id)
    return found.stored() if isinstance(found, EdgeTensors) else found


def check_same(here: Candidates, there: Candidates) -> None:
    """The same candidates, in the same types; a sum in another order may change the last bits of a score."""
    for name in COLUMNS:
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert np.allclose(here.scores, there.scores, rtol=1e-6, atol=1e-7)
    for name in COLUMNS[1:]:
        assert getattr(here, name).dtype == getattr(there, name).dtype, name
    assert here.scores.dtype == there.scores.dtype


class BuilderContract:
    """Tests of a builder of candidates on hits, or on edges: a subclass sets `builder`, as the section of a recipe.

    `builder` leaves no option open. `outputs` {name: dimensions} are those of the model that it reads. If `edge_score`
    is among them, events have edges, and that is a number for each.
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
        outputs: dict[str, np.ndarray] = {
            name: (np.resize(centre, (len(centre), width)) + rng.normal(0, 0.01, (len(centre), width))).astype("f4")
            for name, width in self.outputs.items()
            if name != "edge_score"
        }
        if "edge_score" in self.outputs:  # of all edges from a hit to the next, and to the one behind
            hit = np.arange(len(centre))
            ends = np.stack([np.repeat(hit, 2), np.append(hit + 1, hit + 2).reshape(2, -1).T.ravel()])
            ends = ends[:, ends[1] < len(hit)]
            true = (ends[0] // size == ends[1] // size) & (ends[1] == ends[0] + 1)
            outputs["edge_index"] = ends
            outputs["edge_score"] = (np.where(true, 3, -3) + rng.uniform(-1, 1, len(true))).astype(np.float32)
        return outputs

    def found(self, built: Builder, outputs: Outputs, rows: np.ndarray, n_hits: int) -> list[Candidates]:
        """What it makes, in each of its forms, of the outputs of the hits `rows` of an event with so many, number 9."""
        forms = [built.build(outputs, rows, n_hits, event_id=9)]
        if built.has_device_form():
            forms.append(on_tensors(built, outputs, rows, n_hits, event_id=9))
        candidates = [found for found in forms if isinstance(found, Candidates)]
        assert len(candidates) == len(forms)
        return candidates

    def test_candidates_are_of_the_rows_of_the_whole_event(self, built: Builder) -> None:
        outputs = self.clusters(6)
        rows = 3 + 2 * np.arange(30)  # the model saw every second hit
        for found in self.found(built, outputs, rows, 70):
            check_candidates(found, 70)
            assert found.event_id == 9 and set(found.hit_rows) <= set(rows.tolist())
            assert not np.delete(found.track_ids, rows).any()

    def test_an_event_has_the_same_candidates_each_time_and_in_each_form(self, built: Builder) -> None:
        outputs = self.clusters(6)
        each, again = (self.found(built, outputs, np.arange(30), 30) for _ in range(2))
        assert len(each[0])
        for first, second in zip(each, again, strict=True):
            for name in ("hit_offsets", "hit_rows", "scores", "track_ids"):
                assert np.array_equal(getattr(first, name), getattr(second, name))
            check_same(each[0], first)

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_too_few_hits_give_no_candidate(self, built: Builder, n: int) -> None:
        outputs: dict[str, np.ndarray] = {
            name: np.zeros((n, width), dtype=np.float32) for name, width in self.outputs.items()
        }
        if "edge_score" in outputs:
            outputs["edge_index"], outputs["edge_score"] = np.zeros((2, 0), np.int64), np.zeros(0, np.float32)
        for found in self.found(built, outputs, np.arange(n), 5):
            assert len(found) == 0 and not found.track_ids.any() and len(found.track_ids) == 5

    def test_tuning_tries_settings_of_open_options(self, config: Named, built: Builder) -> None:
        assert not built.needs_tuning
        for setting in settings(Named(name=config.name)):
            assert not build_builder(config, **setting).needs_tuning

    def test_unknown_options_are_named(self, config: Named) -> None:
        with pytest.raises(InputError, match=r"builder\.no_such_option"):
            build_builder(Named(name=config.name, no_such_option=1))
