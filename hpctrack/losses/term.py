"""What losses share, and what they return, so that batching, accumulation and the number of ranks cannot change it.

Legend: N hits in the batch, M hits that belong to a track, T tracks in the batch, B events.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.division.divided import division_of, leads
from hpctrack.errors import InputError
from hpctrack.numerics import at_least_fp32, group_mean, group_sum
from hpctrack.requirements.needs import TRACKS


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss over some events: the sum of its per-event values, and the number of events that have it.

    Sums and counts are added over micro-batches and ranks; the term's value is sum / count. A term that no event has is
    a zero that still hangs on the graph, with count 0.
    """

    sum: Tensor
    count: int


def objective(
    weights: Mapping[str, float], terms: Mapping[str, LossTerm], counts: Mapping[str, float] | None = None
) -> Tensor:
    """What is minimised: the sum of the terms with their weights, each over the number of events in `counts`."""
    over = dict.fromkeys(weights, 1.0) if counts is None else counts
    return reduce(operator.add, [weights[name] * terms[name].sum / max(1, over[name]) for name in weights])


class Loss(nn.Module):
    """Made as `Loss(options)`, options of `Options`; the base class `BaseLoss` leaves `counted` and `terms` to do.

    A term is defined for one event and averaged over the events of a step that have it, on whatever ranks they are.
    """

    Options: ClassVar[type[Section]]  # the keys of the section `loss` besides `name`
    COLUMNS: ClassVar[Mapping[str, Sequence[str]]] = {}  # of an event, beside its tracks, by the term that needs them
    weights: dict[str, float]  # of the terms that are computed, all above 0
    divisible: bool = False  # whether it can take a batch that is a rank's part of an event (division/divided.py)
    edge_labels: bool = True  # whether batches with edges have `edge_truth`: false saves the time to make it

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns of an event that each term of `weights` is computed with: a dataset must have them."""
        return {name: [*TRACKS, *self.COLUMNS.get(name, ())] for name in self.weights}

    @property
    def of_tracks(self) -> tuple[str, ...]:
        """What it compares with of true tracks, attributes of batches: names of TRUTH (events/loader.py)."""
        return ("parameters",) if "parameters" in self.weights else ()

    def counts(self, batch: Batch) -> dict[str, int]:
        """For each term of `weights`, how many of the batch's events have it; known before the forward pass."""
        raise NotImplementedError

    def metrics(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """What validation says besides, as sums and numbers over the batch's events; nothing unless a loss does.

        The same names each time; nothing is trained by it.
        """
        return {}

    def forward(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Each term of `weights`: its sum over the batch's events, without its weight, and their number."""
        raise NotImplementedError


class BaseLoss(Loss):
    """What losses share: a loss sets `counted`, has in `Options` a weight for each term, and computes `terms`.

    Outputs are taken to fp32 at least before anything is computed with them: sums, means and norms over the hits of an
    event are beyond what fp16 holds, and bf16 would stop adding. Gradients go back in the outputs' own type.
    """

    counted: Mapping[str, Callable[[Batch], int]]  # term: how many events of a batch have it

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        weights = {name: getattr(options, name) for name in self.counted}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Events that have each term with a weight, known before the forward pass."""
        found = {count: count(batch) for count in dict.fromkeys(self.counted[name] for name in self.weights)}
        counts = {name: found[self.counted[name]] for name in self.weights}
        return counts if leads(batch) else dict.fromkeys(counts, 0)

    def forward(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """The terms with a weight, of what `terms` takes, in any floating type; in fp32 at least.

        All are not-a-number if an output, of whatever hit, is not finite.
        """
        count = self.counts(batch)
        outputs = {name: at_least_fp32(output) for name, output in outputs.items()}
        zeros = [(output * 0).sum() for output in outputs.values()]  # no output goes without a gradient
        zero = sum(zeros[1:], zeros[0])
        division = division_of(batch)
        every = zero if division is None else division.others.all_sum(zero)  # ranks of an event go the same way
        if not every.isfinite():  # searches among points that are nowhere would take long or fail
            return {name: LossTerm(zero + every.detach(), count[name]) for name in count}
        sums = self.terms(outputs, batch)
        return {name: LossTerm(zero + sums[name], count[name]) for name in count}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """At least the terms with a weight, summed over events; `outputs` are in fp32 or fp64."""
        raise NotImplementedError


def events(batch: Batch) -> Iterator[slice]:
    """The rows of each event's hits."""
    bounds = batch.ptr.tolist()
    return map(slice, bounds[:-1], bounds[1:])


def labels(batch: Batch) -> Batch:
    """The batch, or of a divided event its labels on all ranks (`track`, `n_tracks`, `track_weight`, `ptr`)."""
    division = division_of(batch)
    return batch if division is None else division.whole


def real(batch: Batch) -> Tensor:
    """Which events are some of the dataset's, bool [B]: not the one that a rank without work is given in a step."""
    return batch.event_id >= 0


def every(batch: Batch) -> int:
    """All events."""
    return int(real(batch).sum())


def with_hit(batch: Batch) -> int:
    """Events that have a hit."""
    return int((labels(batch).ptr.diff() > 0).sum())


def with_track(batch: Batch) -> int:
    """Events that have a track."""
    return int((batch.n_tracks > 0).sum())


def needed(outputs: dict[str, Tensor], name: str, source: str) -> Tensor:
    """A model's output; InputError that says what gives it if the model has none."""
    if name not in outputs:
        raise InputError(f"section 'loss': needs the output '{name}' of {source}; the model gives {', '.join(outputs)}")
    return outputs[name]


def finite_lines(batch: Batch) -> Tensor:
    """`lines` [T, 4] of the batch's tracks; InputError that names the event of one that goes across z."""
    odd_T = ~batch.lines.isfinite().all(dim=1)
    if odd_T.any():
        event_T = torch.repeat_interleave(torch.arange(batch.num_graphs, device=odd_T.device), batch.n_tracks)
        event_id = int(batch.event_id[event_T[odd_T][0]])
        raise InputError(f"event {event_id}: a track goes across z (pz = 0), so it has no slope")
    return batch.lines


# ----------------------------------------------------------------- hits by track, and means over tracks and over events


class Tracks:
    """`hits` [M]: rows of the hits on tracks; `track` [M]: their tracks; `size` [T]: hits; `event` [T]: its event.

    `weight` [T]: how much each counts in means (`data.emphasis`); None: all the same. Of a divided event, M are a
    rank's own hits, all else is of the whole event, and sums over events are this rank's part of them.
    """

    def __init__(self, batch: Batch) -> None:
        self.division = division_of(batch)
        self.n_tracks = batch.n_tracks
        first_track = self.n_tracks.cumsum(0) - self.n_tracks
        self.hits = (batch.track >= 0).nonzero().squeeze(1)
        self.track = (batch.track + first_track[batch.batch])[self.hits]
        self.event = torch.repeat_interleave(torch.arange(len(self.n_tracks), device=self.track.device), self.n_tracks)
        self.size = self._everywhere(torch.bincount(self.track, minlength=len(self.event)))
        self.weight: Tensor | None = batch.track_weight if "track_weight" in batch else None

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values [M, …] over each track, [T, …], added up in fp64."""
        if self.division is None:
            return group_mean(values, self.track, self.size)
        total = self.division.all_sum(group_sum(values.double(), self.track, len(self.size)))
        return (total / self.size.view(-1, *[1] * (values.dim() - 1))).to(values.dtype)

    def pick(self, values_M: Tensor, chosen_T: Tensor) -> Tensor:
        """The values [T] of one hit of each track, given as rows of the hits on tracks, of the whole event."""
        if self.division is None:
            return values_M[chosen_T]
        hits_M = (self.division.whole.track >= 0).nonzero().squeeze(1)
        hit_T = hits_M[chosen_T]
        mine_T = self.division.owner_N[hit_T] == self.division.place.number
        place_n = torch.zeros_like(self.division.rows_n)
        place_n[self.hits] = torch.arange(len(self.hits), device=place_n.device)
        rows = place_n[self.division.number_N[hit_T[mine_T]]]
        found_T = values_M.new_zeros(len(hit_T)).index_put((mine_T.nonzero().squeeze(1),), values_M[rows])
        return self.division.all_sum(found_T)

    def per_track(self, values_T: Tensor) -> Tensor:
        """Values of tracks, averaged over each event's tracks and summed over events."""
        if self.weight is None:
            share = (values_T / self.n_tracks[self.event]).sum()
        else:
            share = self._weighted(values_T, self.weight, self.event, self._weights(self.weight, self.event))
        return share if self.division is None else self.division.on_leader(share)

    def per_hit(self, values_M: Tensor) -> Tensor:
        """Values of hits on tracks, averaged over each event's such hits and summed over events."""
        event = self.event[self.track]
        if self.weight is not None:
            weight = self.weight[self.track]
            return self._weighted(values_M, weight, event, self._everywhere(self._weights(weight, event)))
        return (values_M / self._everywhere(torch.bincount(event, minlength=len(self.n_tracks)))[event]).sum()

    def _everywhere(self, own: Tensor) -> Tensor:
        """Sums over hits of the batch, over those of all ranks that hold its event."""
        return own if self.division is None else self.division.others.all_sum(own)

    def _weights(self, weight: Tensor, event: Tensor) -> Tensor:
        """Sum of weights of each event, fp64."""
        return weight.new_zeros(len(self.n_tracks), dtype=torch.float64).index_add(0, event, weight.double())

    def _weighted(self, values: Tensor, weight: Tensor, event: Tensor, total: Tensor) -> Tensor:
        """Means of values over each event with these weights, of this `total` in each, summed over events."""
        return (values * (weight.double() / total[event]).to(values.dtype)).sum()


def hit_weights(batch: Batch) -> Tensor | None:
    """How much each hit [N] counts where hits repel each other; None without `data.emphasis`.

    A pair counts as the product of both, which is the geometric mean of their tracks' weights over the mean weight of
    the event's hits on tracks; a hit of no track counts 1.
    """
    division = division_of(batch)
    if division is not None:
        weight_N = hit_weights(division.whole)
        return None if weight_N is None else weight_N[division.rows_n]
    if "track_weight" not in batch:
        return None
    tracks = Tracks(batch)
    weight_M, event_M = batch.track_weight[tracks.track], tracks.event[tracks.track]
    mean_B = group_mean(weight_M, event_M, torch.bincount(event_M, minlength=len(tracks.n_tracks)))
    weight_N = weight_M.new_ones(batch.num_nodes)
    weight_N[tracks.hits] = (weight_M / mean_B[event_M]).sqrt()
    return weight_N


def of_rows(values_N: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    """Some of the values, if there are any."""
    return None if values_N is None else values_N[rows]


def parameter_groups(track_N: Tensor) -> Tensor:
    """The tracks [N] of an event's hits, where each hit of no track is a group of its own, numbered from -1 down."""
    return torch.where(track_N < 0, -1 - torch.arange(len(track_N), device=track_N.device), track_N)
