"""Candidates as lists of hits and their exclusive reading, one track a hit; and what all builders share.

Legend: C candidates, P (candidate, hit) pairs in all, H hits of the event, N of them that the model saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import MachineError
from hpctrack.evaluation.matching import match
from hpctrack.evaluation.metrics import METRICS
from hpctrack.events.perigee import PHI, SCALES, wrapped
from hpctrack.graphs.passed import EdgeTensors
from hpctrack.models.embedding import representatives
from hpctrack.storage.edges import Edges
from hpctrack.storage.hits import Hits
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.on_device import TensorLists, Tensors

if TYPE_CHECKING:
    from typing_extensions import Self


class Lists(NamedTuple):
    """Candidate c has the hits `rows[offsets[c]:offsets[c + 1]]`, ascending, and `scores[c]`."""

    offsets: np.ndarray  # int64 [C + 1]
    rows: np.ndarray  # [P]
    scores: np.ndarray  # [C]

    def at(self, hit_rows: np.ndarray) -> Lists:
        """The same candidates, with `hit_rows[row]` in the place of each row; ascending, as rows are."""
        return self._replace(rows=hit_rows[self.rows])

    def candidates(self, n_hits: int, event_id: int, min_hits: int) -> Candidates:
        """The event's candidates, with their exclusive reading."""
        rows, scores = self.rows.astype(np.int32), self.scores.astype(np.float32)
        return Candidates(event_id, self.offsets, rows, scores, exclusive(self.offsets, rows, scores, n_hits, min_hits))


def from_lists(
    lists: Sequence[np.ndarray], scores: Sequence[float], n_hits: int, event_id: int, min_hits: int
) -> Candidates:
    """Candidates from their hit rows, each ascending and without repetition, and scores."""
    return joined(lists, scores).candidates(n_hits, event_id, min_hits)


def joined(lists: Sequence[np.ndarray], scores: Sequence[float]) -> Lists:
    """Lists one behind the other."""
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    rows = np.concatenate(lists) if len(lists) else np.zeros(0, dtype=np.int64)
    return Lists(offsets, rows, np.asarray(scores, dtype=np.float64))


def exclusive(offsets: np.ndarray, rows: np.ndarray, scores: np.ndarray, n_hits: int, min_hits: int) -> np.ndarray:
    """One track id per hit, int32 [n_hits], 0 = none: the best first, each kept if most of its hits are free.

    Best is the highest score, then the most hits, then the lowest first hit. A candidate's fate depends on none but the
    better ones it shares hits with. So candidates are decided in rounds, all at a time: who has too few free hits is
    out, for these only get fewer; who is the best at each of its free hits takes them. The result is that of one
    candidate after the other, whatever their order in the lists, in a few vectorised rounds.
    """
    size = np.diff(offsets)
    order = np.lexsort((rows[offsets[:-1]] if len(size) else size, -size, -scores))
    size = size[order]  # from here on a candidate is named by its rank, 0 is the best
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    of_pair = np.repeat(rank, np.diff(offsets))
    worst_first = np.argsort(-of_pair, kind="stable")
    of_pair, hit = of_pair[worst_first], rows[worst_first]
    owner = np.full(n_hits, -1, dtype=np.int64)
    best = np.empty(n_hits, dtype=np.int64)
    while len(hit):
        free = np.bincount(of_pair, minlength=len(size))
        alive = ((free >= min_hits) & (2 * free > size))[of_pair]
        of_pair, hit = of_pair[alive], hit[alive]
        best[hit] = of_pair  # of several values the last stays, which is the best
        leads = best[hit] == of_pair
        takes = (np.bincount(of_pair[leads], minlength=len(size)) == free)[of_pair]
        owner[hit[takes]] = of_pair[takes]
        left = owner[hit] < 0
        of_pair, hit = of_pair[left], hit[left]
    track_ids = np.zeros(n_hits, dtype=np.int32)
    owned = owner >= 0
    track_ids[owned] = np.unique(owner[owned], return_inverse=True)[1] + 1
    return track_ids


# ------------------------------------------------------ builders: options, tuning, and the way to an event's candidates


Outputs = Mapping[str, np.ndarray]
PAIRS_PER_HIT = 200  # near each other, on average, above which a radius says nothing: tracks have some ten hits
PAIRS_ALWAYS = 1 << 24  # that are listed whatever the event's size: about 1 GB


class TooManyPairs(MachineError):
    """More hits are near each other than could be candidates, or held in memory."""


def pairs_limit(n_hits: int) -> int:
    """The most pairs of `n_hits` hits that are listed."""
    return max(PAIRS_ALWAYS, PAIRS_PER_HIT * n_hits)


def check_pairs(pairs: int, n_hits: int, option: str, radius: float) -> None:
    """TooManyPairs, which names the `option` that sets the radius, unless so many pairs of `n_hits` hits can be."""
    limit = pairs_limit(n_hits)
    if pairs > limit:
        raise TooManyPairs(
            f"{pairs} pairs of {n_hits} hits are within {option}={radius:g}, at most {limit} are taken; lower it, or "
            "train further: hits are not apart yet"
        )


@contextmanager
def of_event(event_id: int) -> Iterator[None]:
    """Within, TooManyPairs names the event."""
    try:
        yield
    except TooManyPairs as error:
        raise TooManyPairs(f"event {event_id}: {error}") from error


Built = Candidates | Edges | Hits  # of one event
STEPS = ("build", "lists", "groups")  # of builders; the device form of each is named so, with `_on_device` behind it


class Builder:
    """Makes track candidates, or what a next stage sees, of a model's outputs on one event.

    Those of candidates have the base class `BaseBuilder`. An option that the recipe leaves open is tuned on validation
    events: `grid` lists the settings to try, `count` counts how each does, `choose` picks one.

    A builder may have a device form besides, of tensors where they are: the same steps in torch. A subclass that says
    anew how a step is done in numpy, and not how in torch, has none.
    """

    Options: ClassVar[type[Section]]  # the keys of the section `builder` besides `name`
    product: ClassVar[str] = "candidates"  # what it makes: the name of a kind of product (storage/products.py)
    n_counts: ClassVar[int] = 5  # numbers that `count` has of each setting
    options: Any

    def __init__(self, options: Any) -> None:
        """`options`: of `Options`."""
        self.options = options

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries; none unless a builder says which."""
        return []

    @property
    def needs_tuning(self) -> bool:
        """Whether an option of the grid is open, so that training has to choose it on validation events."""
        return any(getattr(self.options, name) is None for setting in self.grid() for name in setting)

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Built:
        """Candidates of an event with `n_hits` hits from `outputs` on those that it saw, `hit_rows` [N], ascending.

        `outputs` has also `edge_index` [2, M], if the event has a graph. Candidates are of rows of the whole event.
        """
        raise NotImplementedError

    def build_on_device(
        self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int
    ) -> Built | EdgeTensors:
        """As `build`, of tensors, where these are; edges stay there."""
        raise NotImplementedError

    @classmethod
    def has_device_form(cls) -> bool:
        """Whether there is a device form of all its steps."""
        steps = [step for step in STEPS if hasattr(cls, step)]
        return all(issubclass(class_with(cls, f"{step}_on_device"), class_with(cls, step)) for step in steps)

    def build_where(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Built | EdgeTensors:
        """As `build`, of tensors: on the accelerator that they are on, if there is a device form; else in numpy."""
        if self.has_device_form() and all(on_accelerator(value) for value in outputs.values()):
            return self.build_on_device(outputs, hit_rows, n_hits, event_id)
        return self.build(arrays(outputs), hit_rows, n_hits, event_id)

    @classmethod
    def sweep(cls, builders: Sequence[Self], outputs: Outputs) -> Iterator[Lists | None]:
        """Each builder's candidates of the same event; None where its setting cannot be."""
        raise NotImplementedError

    @classmethod
    def count(cls, builders: Sequence[Self], outputs: Outputs, particle: np.ndarray, target: np.ndarray) -> np.ndarray:
        """How each builder, of one setting, does on an event: int64 [builders, n_counts], to be added over events.

        `particle` [N]: each hit's particle 0..P-1, or -1; `target` [P]: which of these are wanted. A candidate of
        another particle is no fake. Numbers: double-majority numerator and denominator, fake-rate numerator and
        denominator, 1 if the setting cannot be at this event (too many pairs within a radius).
        """
        counts = np.zeros((len(builders), cls.n_counts), dtype=np.int64)
        for k, found in enumerate(cls.sweep(builders, outputs)):
            if found is None:
                counts[k, 4] = 1
                continue
            matched = match(found.offsets, found.rows, particle, len(target))
            counts[k, :2] = METRICS["double_majority_efficiency"].count(matched, target)
            counts[k, 2:4] = METRICS["fake_rate"].count(matched, target)
        return counts

    @classmethod
    def choose(cls, builders: Sequence[Self], counts: np.ndarray) -> int:
        """Which builder is best by the sums of `count`: largest double-majority efficiency minus fake rate.

        Of equals the first. Not one that cannot be at some event, unless there is no other.
        """
        efficiency = counts[:, 0] / np.maximum(counts[:, 1], 1)
        fake_rate = np.where(counts[:, 3] > 0, counts[:, 2] / np.maximum(counts[:, 3], 1), 1.0)
        return int(np.argmax(efficiency - fake_rate - 4.0 * (counts[:, 4] > 0)))


class BaseBuilder(Builder):
    """A builder says how hits become candidates, `lists(outputs)`, and which options can be tuned, `grid()`."""

    class Options(Section):
        """The smallest candidate that counts."""

        min_hits: int = Field(3, ge=1, description="smaller groups are no candidates")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        raise NotImplementedError

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event with `n_hits` hits from the outputs of its hits `hit_rows` [N], ascending.

        TooManyPairs that names the event.
        """
        with of_event(event_id):
            found = self.lists(outputs)
        return found.at(hit_rows).candidates(n_hits, event_id, self.options.min_hits)

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """As `build`, of tensors, where these are."""
        with of_event(event_id):
            found = self.lists_on_device(outputs)
        track_N = found.exclusive(len(hit_rows), self.options.min_hits)
        return found.candidates(track_N, hit_rows, n_hits, event_id)

    @classmethod
    def sweep(cls, builders: Sequence[Self], outputs: Outputs) -> Iterator[Lists | None]:
        """Each builder's candidates of the same event; None where its setting cannot be."""
        for builder in builders:
            try:
                found = builder.lists(outputs)
            except TooManyPairs:
                yield None
            else:
                yield found

    def lists(self, outputs: Outputs) -> Lists:
        """Candidates by the places of their hits among the N."""
        raise NotImplementedError

    def lists_on_device(self, outputs: Tensors) -> TensorLists:
        """As `lists`, of tensors, where these are."""
        raise NotImplementedError


def class_with(kind: type, name: str) -> type:
    """The class that `kind` has an attribute of: itself, or the nearest one that it is made from; `object` for none."""
    return next((one for one in kind.__mro__ if name in vars(one)), object)


def on_accelerator(value: torch.Tensor) -> bool:
    """Whether a tensor is where a device form is faster."""
    return value.device.type != "cpu"


def radii() -> list[dict[str, Any]]:
    """A grid of `radius`, for embeddings whose loss has a margin of 1."""
    return [{"radius": round(0.05 * k, 2)} for k in range(1, 21)]


def with_edges(outputs: Tensors, batch: Batch) -> dict[str, torch.Tensor]:
    """A model's outputs on a batch of one event, in fp32, where they are; with the edges, if the event has a graph."""
    tensors = {name: value.float() for name, value in outputs.items()}
    if batch.edge_index is None:
        return tensors
    device = next((value.device for value in tensors.values()), batch.edge_index.device)
    return tensors | {"edge_index": batch.edge_index.to(device)}


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    """Tensors as builders take them in numpy."""
    return {name: value.cpu().numpy() for name, value in tensors.items()}


def to_numpy(outputs: Tensors, batch: Batch) -> dict[str, np.ndarray]:
    """A model's outputs on a batch of one event, as builders take them; with the edges, if the event has a graph."""
    return arrays(with_edges(outputs, batch))


# --------------------- track parameters of candidates: the estimate that a model gives at each one's representative hit


LOWER = np.tril_indices(len(SCALES))
ROWS, COLS = np.tril_indices(len(SCALES), -1)


def with_parameters(found: Candidates, outputs: Mapping[str, np.ndarray], hit_rows: np.ndarray) -> Candidates:
    """The candidates with the columns ESTIMATE, if the model has an output `parameters` [N, 20]; else as they are.

    `hit_rows` [N], ascending: the rows of the hits that the model saw.
    """
    if "parameters" not in outputs:
        return found
    chosen = representative_hits(found, outputs["user"], outputs["influencer"], hit_rows)
    return replace(found, parameters=estimates(outputs["parameters"][chosen]).astype(np.float32))


def representative_hits(
    found: Candidates, user: np.ndarray, influencer: np.ndarray, hit_rows: np.ndarray
) -> np.ndarray:
    """The hit that stands for each candidate (models/embedding.py), index among the N hits [C]; computed in fp64."""
    hit, size = np.searchsorted(hit_rows, found.hit_rows), np.diff(found.hit_offsets)
    group = np.repeat(np.arange(len(size)), size)
    users, influencers = (torch.from_numpy(embedding[hit].astype(np.float64)) for embedding in (user, influencer))
    return hit[representatives(users, influencers, torch.from_numpy(group), torch.from_numpy(size)).numpy()]


def estimates(output: np.ndarray) -> np.ndarray:
    """A model's output `parameters` [C, 20] (models/embedding.py) as columns ESTIMATE: means and covariance."""
    output = output.astype(np.float64)
    factor = np.tile(np.eye(len(SCALES)), (len(output), 1, 1))
    factor[:, ROWS, COLS] = output[:, 10:]
    root = np.linalg.inv(factor) * np.exp(-output[:, None, 5:10])
    covariance = root @ root.transpose(0, 2, 1) * np.outer(SCALES, SCALES)
    mean = output[:, :5].copy()
    mean[:, PHI] = wrapped(mean[:, PHI])
    return np.concatenate([mean, covariance[:, LOWER[0], LOWER[1]]], axis=1)
